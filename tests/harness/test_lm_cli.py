"""lm-evaluation-harness's command line with our model, offline, on local tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from infer_kit.harness.arguments import configuration_hash

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parents[2]
TASK = """
task: two_stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{begin}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
STORIES = [
    {"begin": "One morning, Mi", "choices": ["a and Emma", "qqqq"], "answer": 0},
    {"begin": "The swan", "choices": [" zzzz", " is a large animal"], "answer": 1},
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **{"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")},
    }
    return subprocess.run(
        [sys.executable, "evals/lm_eval_cli.py", "run", "--model", "infer-kit", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with a task of two documents."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = folder / "stories.jsonl"
    file.write_text("".join(json.dumps(story) + "\n" for story in STORIES))
    (folder / "two_stories.yaml").write_text(TASK.format(file=file))
    return folder


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("results_*.json"))]


def test_two_models_over_bytes_on_a_local_task(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        tmp_path,
        *("--model_args", "pretrained=demo-text-a,ensemble=demo-text-b,weights=0.5+0.5"),
        *("--tasks", "two_stories", "--include_path", str(task), "--device", "cpu"),
        *("--batch_size", "4", "--output_path", str(out), "--use_cache", str(tmp_path / "cache")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = results(out)
    assert found["results"]["two_stories"]["acc,none"] == 1.0
    given = {"pretrained": "demo-text-a", "ensemble": "demo-text-b", "weights": "0.5+0.5"}
    configuration = configuration_hash("infer-kit", given)
    assert found["config"]["infer_kit"] == configuration
    assert found["config"]["widest_bound_nats"] > 0
    assert (tmp_path / f"cache-{configuration}_rank0.db").is_file()


def test_what_cannot_be_is_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from evals import lm_eval_cli

    given = ["--model_args", "pretrained=demo-text-a,wieghts=1", "--tasks", "everyday_science"]
    tasks = ["--include_path", str(ROOT / "evals/tasks/lm_eval")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", "--model", "infer-kit", *given, *tasks])
    with pytest.raises(SystemExit, match="has no argument 'wieghts'. Did you mean 'weights'?"):
        lm_eval_cli.main()


def test_each_configuration_has_a_cache_of_its_own(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evals import lm_eval_cli

    cache, scores = tmp_path / "cache", {}
    for name, weights in (("even", "0.5+0.5"), ("first", "1+0"), ("again", "0.5+0.5")):
        out = tmp_path / name
        monkeypatch.setattr(
            sys,
            "argv",
            [
                *("lm_eval", "--model", "infer-kit", "--tasks", "two_stories", "--model_args"),
                f"pretrained=demo-text-a,ensemble=demo-text-b,weights={weights}",
                *("--include_path", str(task), "--use_cache", str(cache), "--device", "cpu"),
                *("--output_path", str(out), "--log_samples"),
            ],
        )
        lm_eval_cli.main()
        (samples,) = out.rglob("samples_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        scores[name] = {line["doc_id"]: line["resps"] for line in lines}
    assert len(list(tmp_path.glob("cache-*_rank0.db"))) == 2
    assert scores["even"] == scores["again"] != scores["first"]


@pytest.mark.parametrize("form", [["--use_cache", "c"], ["--use_cache=c"], ["-c", "c"]])
def test_the_cache_path_is_found_however_it_is_given(form: list[str]) -> None:
    from evals.lm_eval_cli import with_own_cache

    given = ["--model", "hf", "--model_args", "pretrained=gpt2", "--tasks", "x"]
    found = with_own_cache(["lm_eval", *given, *form])
    expected = f"c-{configuration_hash('hf', {'pretrained': 'gpt2'})}"
    assert found == ["lm_eval", "run", *given, *form, "--use_cache", expected]
    assert with_own_cache(["lm_eval", "ls", "tasks"]) == ["lm_eval", "ls", "tasks"]


def test_a_cache_in_a_configuration_file_too(tmp_path: Path) -> None:
    from evals.lm_eval_cli import with_own_cache

    file = tmp_path / "run.yaml"
    file.write_text("model: hf\nmodel_args: {pretrained: gpt2}\ntasks: [x]\nuse_cache: c\n")
    found = with_own_cache(["lm_eval", "run", "--config", str(file)])
    assert found[-1] == f"c-{configuration_hash('hf', {'pretrained': 'gpt2'})}"


def test_later_versions_find_the_model_by_its_entry_point() -> None:
    from infer_kit.harness.lm import InferKitLM

    (entry,) = entry_points(group="lm_eval.models", name="infer-kit")
    assert entry.load() is InferKitLM
    from lm_eval.api.registry import get_model

    assert get_model("infer-kit") is InferKitLM
