"""`infer-kit demo icl`: what it prints, saves and reports."""

import json
from pathlib import Path

from typer.testing import CliRunner

from infer_kit import cli
from infer_kit.demo.icl import ways


def test_the_report_the_tables_and_the_figure(tmp_path: Path) -> None:
    arguments = ["demo", "icl", "--episodes", "6", "--save", str(tmp_path)]
    shown = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Accuracy, 6 queries" in shown.stdout and "CPU ms of a query" in shown.stdout
    assert (tmp_path / "icl.png").stat().st_size > 5000 and (tmp_path / "query.png").exists()


def test_json_alone() -> None:
    arguments = ["demo", "icl", "--episodes", "6", "--json"]
    out = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    report = json.loads(out.stdout)
    accuracy = report["accuracy"]
    assert set(accuracy) == {
        "full context", "K=2, uniform", "K=2, similarity", "K=4, uniform", "K=4, similarity"
    }  # fmt: skip
    assert set(accuracy["full context"]) == {str(n) for n in ways.SHOTS}
    assert set(accuracy["K=4, similarity"]) == {"4", "8", "16"}
    assert accuracy["full context"]["16"] > accuracy["full context"]["0"]
    latency = report["latency"]
    assert latency["shots"] == max(ways.LATENCY_SHOTS)
    assert latency["ratio"]["full context"] == 1.0
    assert set(latency["cpu_seconds"]) == {"full context", *ways.LATENCY_WAYS}
    assert set(latency["cpu_seconds_by_shots"]) == {str(n) for n in ways.LATENCY_SHOTS}
    assert report["n"] == 6 and len(report["example"]["chunks"]) == 2
