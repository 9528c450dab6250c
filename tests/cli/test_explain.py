"""`infer-kit explain`: the page is written, and what cannot be is said before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infer_kit import cli, demo
from infer_kit.demo import icl
from infer_kit.errors import InferKitError
from infer_kit.explanation.page import MARK

QUESTION = "what color is the background ?"


def run(*arguments: Any) -> str:
    """What the command prints."""
    result = CliRunner().invoke(cli.app, ["explain", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("infer_kit.named_models.load_model", refused)


def test_the_example_of_the_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    words = shlex.split(cli.EXPLAIN_EXAMPLE)
    assert words[:2] == ["infer-kit", "explain"]
    assert run(*words[2:]).strip()
    assert MARK in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_picture_a_weight_and_options(tmp_path: Path) -> None:
    picture, question = demo.example()
    picture.save(tmp_path / "scene.png")
    out = tmp_path / "page.html"
    answer = run(
        "demo", question, "--image", tmp_path / "scene.png", "--method", "red", "--weight", "1",
        "--set", "normalize=true", "--with", "rationale=red", "--out", out, "--candidates", "3",
    )  # fmt: skip
    page = out.read_text(encoding="utf-8")
    assert answer.strip() in page and "data:image/png;base64," in page
    assert "RED(weight=1, normalize=True, image_weight=1.0)" in page
    assert "image 0.5; rationale 0.5" in page
    assert str(tmp_path) not in page
    run("demo", QUESTION, "--method", "cfg", "--out", out)  # a page is written over
    assert "CFG(" in out.read_text(encoding="utf-8")


def test_demonstrations(tmp_path: Path) -> None:
    (episode,) = icl.held_out(1, shots=8)
    lines = []
    for n, record in enumerate(episode.records()):
        record["image"].save(tmp_path / f"{n}.png")
        line = {"id": str(n), "question": record["question"], "answers": [record["answer"]]}
        lines.append(json.dumps(line | {"images": [f"{n}.png"]}))
    (tmp_path / "shots.jsonl").write_text("\n".join(lines), encoding="utf-8")
    episode.query.picture.save(tmp_path / "query.png")
    run(
        "demo-icl", episode.query.question, "--image", tmp_path / "query.png", "--method",
        "parallel-icl", "--set", "chunks=2", "--demonstrations", tmp_path / "shots.jsonl",
        "--out", tmp_path / "page.html", "--max-new-tokens", "2",
    )  # fmt: skip
    assert "chunk 1" in (tmp_path / "page.html").read_text(encoding="utf-8")


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "another file": (("--out", "notes.txt"), "exists and is not a page of infer-kit explain"),
    "no folder": (("--out", "none/page.html"), "There is no folder 'none'"),
    "a folder": (("--out", "."), "is a folder"),
    "no picture": (("--out", "p.html", "--image", "no.png"), "The picture 'no.png' is not there"),
    "a method": (("--out", "p.html", "--method", "vdc"), "Did you mean 'vcd'"),
    "an option": (("--out", "p.html", "--set", "wieght=1"), "no option 'wieght'.*'weight'"),
    "an input": (("--out", "p.html", "--with", "rational=a"), "no 'rational' beside.*'rationale'"),
    "no input at all": (
        ("--out", "p.html", "--method", "vcd", "--with", "context=a"), "'vcd' takes no 'context'",
    ),
    "no demonstrations": (
        ("--out", "p.html", "--method", "parallel_icl"), "Parallel-ICL needs demonstrations",
    ),
    "demonstrations of red": (
        ("--out", "p.html", "--demonstrations", "d.jsonl"), "'red' takes no demonstrations",
    ),
    "candidates": (
        ("--out", "p.html", "--candidates", "0"), "--candidates is a number from 1 on, got 0",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    arguments, message = WRONG[name]
    with pytest.raises(InferKitError, match=message):
        run("demo", QUESTION, *arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_writes_over_anything(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run("demo", QUESTION, "--out", tmp_path / "notes.txt", "--force")
    assert MARK in (tmp_path / "notes.txt").read_text(encoding="utf-8")
