"""What all converters share: the file whole or not at all, paths, limits, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evals.data import reading
from evals.data.writing import Entry, Output, drawn_arguments, run_drawn, write
from infer_kit.errors import InferKitError, MissingExtra
from tests.evals.data.conftest import as_json, as_lines, pictures
from tests.evals.data.test_coco_based import gqa_file, textvqa_file

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(
    path.name
    for path in (ROOT / "evals/data").glob("*.py")
    if path.stem not in ("__init__", "reading", "writing")
)


def entry(id: str = "1", **change: object) -> Entry:
    return Entry(**{"where": "f, record 1", "id": id, "question": "q", "answers": ["a"]} | change)  # type: ignore[arg-type]


def test_scripts_run_from_any_folder(tmp_path: Path) -> None:
    path = as_lines(tmp_path / "t.jsonl", {"question": "q", "answer": "#### 1"})
    script = ROOT / "evals/data/gsm8k.py"
    done = subprocess.run(
        [sys.executable, script, "--questions", path.name, "--out", "o"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{Path('o/test.jsonl')}: 1 samples"
    assert json.loads((tmp_path / "o/test.jsonl").read_text())["answers"] == ["1"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help_with_a_command(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "evals/data" / script, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    assert f"python evals/data/{script} --" in done.stdout


def test_paths_below_the_output_are_relative_and_others_absolute(convert, tmp_path: Path) -> None:
    inside = pictures(tmp_path / "out/pictures", "n161313.jpg", "n235859.jpg")
    convert("gqa", questions=gqa_file(tmp_path), images=inside)
    first = json.loads((tmp_path / "out/test.jsonl").read_text().splitlines()[0])
    assert first["images"] == ["pictures/n161313.jpg"]
    outside = pictures(tmp_path / "else", "n161313.jpg", "n235859.jpg")
    convert("gqa", questions=gqa_file(tmp_path), images=outside)
    first = json.loads((tmp_path / "out/test.jsonl").read_text().splitlines()[0])
    assert first["images"] == [str(outside / "n161313.jpg")]


def test_relative_arguments(convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "images", "n161313.jpg", "n235859.jpg")
    gqa_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = {"questions": "testdev_balanced_questions.json", "images": "images"}
    samples = convert("gqa", out=Path("data"), **options)
    assert samples[0].images[0].is_file()


def test_limit(convert, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", "n161313.jpg")  # the second is not looked for
    assert len(convert("gqa", questions=gqa_file(tmp_path), images=images, limit=1)) == 1


def test_limit_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evals.data import gsm8k

    with pytest.raises(SystemExit, match="2"):
        gsm8k.main(["--questions", "x", "--out", str(tmp_path), "--limit", "0"])
    assert "--limit is a number of samples from 1, got 0" in capsys.readouterr().err


def test_missing_image(fails, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", "n161313.jpg")
    path = gqa_file(tmp_path)
    said = fails("gqa", questions=path, images=images)
    assert f"{path}, question '201640614': there is no image" in said
    assert "n235859.jpg" in said and "--images is the folder" in said


def test_folder_of_images_missing_or_not_given(fails, tmp_path: Path) -> None:
    path = gqa_file(tmp_path)
    assert "does not exist" in fails("gqa", questions=path, images=tmp_path / "no")
    said = fails("gqa", questions=path)
    assert "has the image 'n161313.jpg'" in said and "--images DIR" in said


def test_broken_utf8_names_the_line(fails, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a":\n"\xff"}')
    assert f"{path}, line 2: not UTF-8 (byte 0xff)" in fails("gqa", questions=path)
    path.write_bytes(b'{"question": "q", "answer": "#### 1"}\n\n{"question": "\xe9"}\n')
    assert f"{path}, line 3: not UTF-8 (byte 0xe9)" in fails("gsm8k", questions=path)


def test_other_formats_than_expected(fails, tmp_path: Path) -> None:
    lines = as_lines(tmp_path / "l.json", {"a": 1}, {"b": 2})
    said = fails("gqa", questions=lines)
    assert "line 2: not JSON: Extra data" in said and "one JSON object a line" in said
    cut = tmp_path / "c.json"
    cut.write_text('{"a": [1,\n2')
    assert "line 2: not JSON" in fails("gqa", questions=cut)
    assert "an object is expected, got a list" in fails("gqa", questions=as_json(cut, []))
    assert "no field 'data'; it has a" in fails("textvqa", questions=as_json(cut, {"a": 1}))
    assert "a list of objects is expected, got an object" in fails(
        "mibench", questions=[as_json(cut, {"a": 1})]
    )
    assert "record 1: an object is expected, got 3" in fails(
        "mibench", questions=[as_json(cut, [3])]
    )
    assert "cannot be read: No such file" in fails("gqa", questions=tmp_path / "none.json")


def test_a_byte_order_mark_is_no_error(convert, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "#### 1"}\r\n')
    assert convert("gsm8k", questions=path)[0].question == "q"


def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evals.data import gsm8k

    path = as_lines(tmp_path / "t.jsonl", {"question": "q", "answer": "#### 1"})
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SystemExit, match="2"):
        gsm8k.main(["--questions", str(path), "--out", str(blocked / "out")])
    said = capsys.readouterr().err
    assert "test.jsonl cannot be written: Not a directory." in said and "Hint:  Give --out" in said


def test_a_failed_run_leaves_the_old_file(convert, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", "003a8ae2ef43b901.jpg")
    convert("textvqa", questions=textvqa_file(tmp_path), images=images)
    old = (tmp_path / "out/test.jsonl").read_text()
    with pytest.raises(SystemExit, match="2"):
        convert("textvqa", questions=textvqa_file(tmp_path, question=""), images=images)
    assert (tmp_path / "out/test.jsonl").read_text() == old
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [entry("1"), entry("1", where="g, line 2")],
            "g, line 2: the id '1' was already that of f",
        ),
        ([entry(question=" \n")], "f, record 1: the question is empty"),
        ([entry(answers=["", " "])], "f, record 1: there is no answer"),
        ([entry(answers=["C"], choices=["x", "y"])], r"\['C'\] are not letters of the 2 choices"),
        (
            [entry("1"), entry("2", where="f, record 2", question="a \ud83d?")],
            r"f, record 2: question has half of a surrogate pair: 'a \\ud83d\?'",
        ),
        ([entry(answers=["a", "\ude00"])], "f, record 1: answers has half of a surrogate"),
        ([entry(context="\ud83d")], "f, record 1: context has half of a surrogate"),
        ([entry(passage="\ud83d")], "f, record 1: text has half of a surrogate"),
        (
            [entry(demonstrations=[{"question": "q", "answer": "a", "images": ["\udcff.png"]}])],
            "f, record 1: demonstrations has half of a surrogate",
        ),
        ([], "There is no sample to write"),
    ],
)
def test_checks(tmp_path: Path, entries: list[Entry], message: str) -> None:
    path = tmp_path / "out/test.jsonl"
    with pytest.raises(InferKitError, match=message):
        write(path, iter(entries))
    assert not list(path.parent.iterdir())


def test_half_of_a_character_in_valid_json(fails, convert, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "\\ud83d?", "answer": "#### 1"}\n')
    assert f"{path}, line 1: question has half of a surrogate" in fails("gsm8k", questions=path)
    path.write_text('{"question": "\\ud83d\\ude00?", "answer": "#### 1"}\n')
    assert convert("gsm8k", questions=path)[0].question == "😀?"


def test_scripts_that_draw_have_the_same_arguments(tmp_path: Path) -> None:
    parser = drawn_arguments("d")
    made = []
    argv = ["--out", str(tmp_path), "--split", "dev", "--count", "3", "--seed", "7"]
    run_drawn(parser, lambda path, options: made.append((path, options.count, options.seed)), argv)
    assert made == [(tmp_path / "dev.jsonl", 3, 7)]


def test_letters_outside_ascii_and_names_of_pictures(tmp_path: Path) -> None:
    from tests.evals.data.conftest import png

    output = Output(tmp_path)
    assert output.picture("a/../b é", png(), "f") == "images/test/a_.._b_é.png"
    write(tmp_path / "t.jsonl", iter([entry(question="où ?")]))
    assert "où ?" in (tmp_path / "t.jsonl").read_text(encoding="utf-8")


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pyarrow, which reads parquet files") as error:
        next(reading.read_parquet([Path("x")]))
    assert error.value.hint == "pip install 'infer-kit[evals]'"
