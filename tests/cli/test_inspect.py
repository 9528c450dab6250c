"""`infer-kit inspect`: what is printed, as tables and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from infer_kit import cli
from tests.cli.test_cli import run
from tests.vocab import trained


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    first, second = tmp_path / "[a].json", tmp_path / "b.json"
    trained.split_bpe().save(str(first))
    trained.signed_bpe().save(str(second))
    return str(first), str(second)


def test_two_tokenizers_are_shown_with_advice(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("inspect", *pair)
    assert code == 0
    for shown in (
        "[a].json", "byte-level BPE", "BPE over characters", "<unk>, <s>, </s>", "shared tokens",
        "reads U+2581 as a space: 'a▁b' → 'a b'", "symbols cut differently (bpe)", "for example",
        "tokens per byte", "Use: bytes", "Bytes fit any two tokenizers",
    ):  # fmt: skip
        assert shown in out


def test_one_tokenizer_is_shown_alone(pair: tuple[str, str]) -> None:
    code, out, _ = run("inspect", pair[0])
    assert code == 0
    assert "together" not in out and "Use: bytes" in out


def test_json_is_one_object(pair: tuple[str, str], tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("größere Vögel", encoding="utf-8")
    code, out, _ = run("inspect", *pair, "--json", "--text", str(text))
    found = json.loads(out)
    assert code == 0
    assert found["text_bytes"] == len("größere Vögel".encode()) and found["alphabet"] in (
        "bytes",
        "common vocabulary",
    )
    assert [facts["kind"] for facts in found["tokenizers"]] == ["byte_bpe", "bpe"]


def test_a_text_without_tokens_is_said(tmp_path: Path) -> None:
    trained.unigram().save(str(tmp_path / "u.json"))
    (tmp_path / "t.txt").write_text("the ꙮ sign", encoding="utf-8")
    code, out, _ = run("inspect", str(tmp_path / "u.json"), "--text", str(tmp_path / "t.txt"))
    assert code == 0
    assert "has no token for 'ꙮ'" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no/such",), "No tokenizer at 'no/such'"),
        (("demo",), "The tokens of the WordLevel tokenizer 'demo' cannot be spelled as bytes"),
        (("demo", "--text", "no.txt"), "--text 'no.txt' cannot be read"),
    ],
)
def test_errors_are_said_without_traceback(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["infer-kit", "inspect", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
