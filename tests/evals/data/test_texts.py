"""Texts to be scored: from fields of JSON lines, and from plain files."""

import json
from pathlib import Path

import pytest

from evals.data.texts import main
from infer_kit.evaluation.samples import read_samples


def test_a_field_of_json_lines(tmp_path: Path) -> None:
    lines = [{"body": "One.", "kind": "a"}, {"body": "Zwei ü.", "kind": "b"}]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    main(["--texts", str(path), "--text", "body", "--category", "kind", "--out", str(tmp_path)])
    samples = read_samples(tmp_path / "test.jsonl")
    assert [s.passage for s in samples] == ["One.", "Zwei ü."]
    assert [s.category for s in samples] == ["a", "b"]


def test_plain_files_are_taken_byte_for_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_bytes(f"{name}\r\n  é\n".encode())
    files = [str(tmp_path / f"{name}.txt") for name in ("one", "two")]
    main(["--texts", *files, "--out", str(tmp_path)])
    samples = read_samples(tmp_path / "test.jsonl")
    assert [s.passage for s in samples] == ["one\r\n  é\n", "two\r\n  é\n"]
    assert [s.id for s in samples] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "the text is empty"), (b"caf\xe9", r"line 1: not UTF-8 \(byte 0xe9\)")],
)
def test_bad_texts_are_refused(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["--texts", str(tmp_path / "bad.txt"), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "test.jsonl").exists()
