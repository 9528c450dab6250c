"""The tables of everything that runs without a GPU, by the same loop as all other runs.

python evals/tables.py --out runs/tables                       # the models that ship, ten minutes
python evals/tables.py --out runs/tables --models MODELS       # and real ones, an hour

MODELS has SmolLM2-135M-Instruct and Gemma-3-270M as `smollm2/` and `gemma/`, in transformers'
format: `evals/benchmarks/real_pair.py` leaves such a folder at ~/.cache/infer_kit. What is there
already is not run again. The rows go to evals/results/tables.json with --write. The commands for
the papers' own models and data are in docs/papers.md.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infer_kit.cli import run_app
from infer_kit.errors import InferKitError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "tables.json"
WEIGHTS = "0,0.25,0.5,1,2"


def tables(
    out: Annotated[Path, typer.Option(help="The folder of runs.")] = Path("runs/tables"),
    models: Annotated[
        Path | None, typer.Option(help="A folder with smollm2/ and gemma/: also the real models.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the rows to evals/results/tables.json.")
    ] = False,
) -> None:
    """Run every table, show them, and perhaps write them."""
    from rich.console import Console

    from infer_kit.evaluation.report import finished_runs, rows_of, tables_of

    for name in ("smollm2", "gemma"):
        if models is not None and not (models / name).is_dir():
            raise InferKitError(f"There is no folder {str(models / name)!r}.")
    for script, *options in commands(out, models):
        print("+ python", f"evals/{script}", *options, flush=True)
        done = subprocess.run([sys.executable, str(HERE / script), *options], check=False)
        if done.returncode:
            raise InferKitError(f"evals/{script} ended with code {done.returncode}; see above.")
    runs, _ = finished_runs([out])
    rows = rows_of(runs)
    for table in tables_of(rows):
        Console().print(table)
    if write:
        for row in rows:  # names, not places on this machine
            row["model"] = Path(row["model"]).name
            row["data"] = f"{Path(row['data']).parent.name}/{Path(row['data']).name}"
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        content = {"rows": rows, "versions": runs[0].results["versions"], "machine": machine}
        RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {RESULTS}")


def commands(out: Path, models: Path | None) -> Iterator[list[str]]:
    """The scripts with their options, in order."""
    data, runs = out / "data", ["--out", str(out)]
    scenes, bindings = data / "scenes", data / "bindings"
    yield ["data/scenes.py", "--out", str(scenes), "--count", "600"]
    yield ["data/bindings.py", "--out", str(bindings), "--count", "200"]
    pictures = ["--model", "demo", "--data", str(scenes / "test.jsonl"), "--task", "exact", *runs]
    yield ["sweep.py", "--methods", "direct,cot,red,vcd", "--weights", WEIGHTS, *pictures]
    words = ["--model", "demo-icl", "--data", str(bindings / "test.jsonl"), "--task", "exact"]
    yield ["sweep.py", "--methods", "direct", *words, *runs]
    yield [
        *("sweep.py", "--methods", "parallel_icl", "--grid", "chunks=1,2,4,8"),
        *("--grid", "weighting=uniform,similarity", "--set", "bank=false", *words, *runs),
    ]
    texts = data / "errands" / "test.jsonl"
    yield [
        *("data/texts.py", "--texts", str(HERE / "tasks/lm_eval/errand_tales.jsonl")),
        *("--text", "text", "--out", str(texts.parent)),
    ]
    for model in ("demo-text-a", "demo-text-b"):
        yield [*_bits(model, texts), *runs]
    yield [*_bits("demo-text-a", texts), *_pooled("demo-text-b"), *runs]
    if models is not None:
        yield from _real(data, models, runs)


def _real(data: Path, models: Path, runs: list[str]) -> Iterator[list[str]]:
    """A real instructed model, alone and pooled with another by bytes."""
    tasks, small, other = HERE / "tasks/lm_eval", str(models / "smollm2"), str(models / "gemma")
    sums, science, texts = (data / name for name in ("sums", "science", "texts"))
    asked = ["--question", "question", "--answer", "answer"]
    yield [
        *("data/jsonl.py", "--questions", str(tasks / "short_sums.jsonl"), *asked),
        *("--out", str(sums)),
    ]
    yield [
        *(
            "data/jsonl.py",
            "--questions",
            str(tasks / "short_sums_shots.jsonl"),
            "--split",
            "shots",
        ),
        *("--question", "question", "--answer", "working", "--out", str(sums)),
    ]
    yield [
        *("data/jsonl.py", "--questions", str(tasks / "everyday_science.jsonl"), *asked),
        *("--choices", "choices", "--answer-is", "index", "--out", str(science)),
    ]
    yield [
        *("data/texts.py", "--texts", str(tasks / "written_texts.jsonl"), "--text", "text"),
        *("--category", "language", "--out", str(texts)),
    ]
    sum_task = ["--model", small, "--data", str(sums / "test.jsonl"), "--task", "number"]
    shown = ["--demonstrations", str(sums / "shots.jsonl")]
    short = ["--max-new-tokens", "96"]
    yield ["sweep.py", "--methods", "direct", *sum_task, *short, *runs]
    yield ["sweep.py", "--methods", "direct", *sum_task, *short, *shown, *runs]
    yield [
        *("sweep.py", "--methods", "parallel_icl", "--grid", "chunks=1,3", *sum_task, *short),
        *(*shown, *runs),
    ]
    yield ["sweep.py", "--methods", "cfg", "--weights", "1.5", *sum_task, *short, *runs]
    letters = ["--model", small, "--data", str(science / "test.jsonl"), "--task", "choice"]
    yield ["sweep.py", "--methods", "direct,cfg", "--weights", "1.5", *letters, *runs]
    for model in (small, other):
        yield [*_bits(model, texts / "test.jsonl"), *runs]
    yield [*_bits(small, texts / "test.jsonl"), *_pooled(other), *runs]


def _bits(model: str, texts: Path) -> list[str]:
    return ["run.py", "--model", model, "--data", str(texts), "--task", "bits_per_byte"]


def _pooled(other: str) -> list[str]:
    return ["--method", "ensemble", "--set", f"others={other}", "--set", "weights=bayes"]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog="Example: python evals/tables.py --out runs/tables")(tables)
    run_app(app)
