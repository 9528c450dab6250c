"""`infer-kit eval` and `compare`, and the scripts of evals/, as users call them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infer_kit import cli
from infer_kit.errors import InferKitError

ROOT = Path(__file__).parents[2]
DEMO = ("--model", "demo", "--data", "demo", "--task", "exact", "--limit", "8", "--device", "cpu")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path, *more = arguments
    command = [sys.executable, str(ROOT / path), *more]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs: direct, and RED at three weights."""
    out = tmp_path_factory.mktemp("runs")
    swept = script(
        "evals/sweep.py", "--methods", "direct,red", "--weights", "0,0.5,1", *DEMO,
        "--trace", "--out", str(out), cwd=out,
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout.count("red (weight=") == 3
    return out


def test_the_figures_come_as_json(tmp_path: Path) -> None:
    out = run("eval", *DEMO, "--method", "red", "--weight", "1", "--out", str(tmp_path), "--json")
    shown = json.loads(out)
    assert shown["results"]["n"] == 8
    assert shown["results"]["config"]["options"] == {"weight": 1}
    assert (Path(shown["folder"]) / "results.json").is_file()
    again = run("eval", *DEMO, "--method", "red", "--weight", "1", "--out", str(tmp_path))
    assert "accuracy" in again and Path(shown["folder"]).name in again.replace("\n", "")


def test_a_sweep_writes_the_runs_that_eval_would(runs: Path) -> None:
    """Rationales are shared among the weights; the lines are the same."""
    options = ("--method", "red", "--weight", "1", "--trace")  # not the first with rationales
    found = json.loads(run("eval", *DEMO, *options, "--out", str(runs / "one"), "--json"))
    name = Path(found["folder"]).name
    tables = []
    for root in (runs, runs / "one"):
        lines = map(json.loads, (root / name / "samples-0.jsonl").read_text().splitlines())
        tables.append([{k: v for k, v in line.items() if k != "seconds"} for line in lines])
    assert tables[0] == tables[1]


def test_compare_pairs_the_samples(runs: Path) -> None:
    direct = next(runs.glob("*-direct-*"))
    red = next(p for p in runs.glob("*-red-*") if '"weight": 1' in (p / "config.json").read_text())
    shown = json.loads(run("compare", str(direct), str(red), "--json"))
    assert shown["n"] == 8 and shown["wins"] + shown["losses"] + shown["ties"] == 8
    assert shown["difference"] == pytest.approx(shown["values"][1] - shown["values"][0])
    text = run("compare", str(direct), str(red))
    assert "paired bootstrap over 8 samples" in text
    with pytest.raises(InferKitError, match="--resamples is a number from 100 on"):
        run("compare", str(direct), str(red), "--resamples", "9")


def test_a_report_has_tables_and_figures(runs: Path, tmp_path: Path) -> None:
    done = script("evals/report.py", str(runs), "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "red (weight=1)" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert {"runs.csv", "1-demo-scenes-against-weight.png", "1-demo-scenes-agreement.png"} <= names
    assert sum(name.endswith("-streams.png") for name in names) == 2  # of two streams
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evals/run.py", *DEMO, "--method", "magic"), "Unknown method 'magic'"),
        (("evals/run.py", *DEMO, "--method", "cot", "--weight", "1"), "'cot' has no --weight"),
        (("evals/run.py", *DEMO, "--batch-size", "many"), "a number or auto, got 'many'"),
        (("evals/run.py", *DEMO, "--generate", "max_new_tokens"), "--generate takes key=value"),
        (("evals/run.py", *DEMO, "--tensor-parallel-size", "2"), "give --backend vllm"),
        (("evals/run.py", *DEMO, "--backend", "tpu"), "Unknown backend 'tpu'"),
        (("evals/sweep.py", "--methods", "direct", "--weights", "0", *DEMO), "has a weight"),
        (("evals/sweep.py", "--methods", "red", "--grid", "chunks=1", *DEMO), "has the option"),
        (("evals/sweep.py", "--methods", "rde", *DEMO), "Did you mean 'red'?"),
        (("evals/sweep.py", "--methods", "red", "--method", "vcd", *DEMO), "not --method"),
        (
            ("evals/sweep.py", "--methods", "red", "--weights", "1", "--set", "weight=2", *DEMO),
            "'weight' of red is given twice",
        ),
        (("evals/report.py", "nowhere"), "There is no folder 'nowhere'"),
    ],
)
def test_scripts_say_errors_without_traceback(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = script(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_example_of_eval_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = cli.EVAL_EXAMPLE.split()[1:]
    assert "accuracy" in run(*words, "--limit", "4")


def test_processes_that_start_together_share_the_bundled_samples(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    words = [
        *torchrun,
        "--master_port",
        "0",
        str(ROOT / "evals/run.py"),
        *DEMO,
        "--batch-size",
        "2",
    ]
    subprocess.run([*words, "--out", str(tmp_path)], check=True, capture_output=True, timeout=300)
    (found,) = tmp_path.glob("*-direct-*/results.json")
    assert json.loads(found.read_text())["n"] == 8


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    for more in ((), ("--instruction", "Be short."), ("--max-new-tokens", "1"), ("--seed", "4")):
        run("eval", *DEMO, "--out", str(tmp_path), *more)
    done = script("evals/report.py", str(tmp_path), "--out", str(tmp_path / "r"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "r" / "runs.csv").read_text()
    for label in ("instruction=Be short.", "max_new_tokens=1", "seed=4"):
        assert label in table


def test_a_folder_of_a_bundled_models_name_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`infer-kit demo --save demo/` makes one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert "accuracy" in run("eval", *DEMO)


def test_compare_takes_two_runs(runs: Path) -> None:
    several = sorted(map(str, runs.glob("*-red-*")))
    with pytest.raises(InferKitError, match="Two runs are compared, and 3 are given"):
        run("compare", *several)


def test_what_a_disk_refuses_is_said_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "infer_kit", "demo", "--questions", "4", "--save", "file/x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "'file/x': Not a directory." in done.stderr and "Traceback" not in done.stderr


def test_true_answers_are_counted() -> None:
    from infer_kit.cli.compare import _counted

    assert _counted(["white", "off white", "white"]) == "white ×2, off white"
    assert _counted("red") == "red"
