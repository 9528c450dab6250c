"""SentencePiece model files encode as SentencePiece itself does."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from infer_kit.errors import InferKitError
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained
from tests.vocab.texts import multilingual

spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

LINES = [line for line in multilingual(100_000, seed=5).splitlines() if line]

# What differs between model files.
OPTIONS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True,
            "remove_extra_whitespaces": False, "character_coverage": 0.98},
    "bpe_nfkc": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "unigram_as_it_is": {"model_type": "unigram", "normalization_rule_name": "identity",
                         "remove_extra_whitespaces": False, "character_coverage": 1.0},
    "user_defined": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False,
                     "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                     "user_defined_symbols": ["▁the", "==="], "control_symbols": ["<call>"]},
}  # fmt: skip


@cache
def model(name: str) -> bytes:
    """A model file of about a thousand pieces."""
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(multilingual(60_000, seed=1).splitlines()),
        model_writer=written,
        vocab_size=1200,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **OPTIONS[name],
    )
    return written.getvalue()


def both(name: str, tmp_path: Path) -> tuple[Vocabulary, Any]:
    path = tmp_path / f"{name}.model"
    path.write_bytes(model(name))
    return Vocabulary.from_sentencepiece(path), spm.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("name", OPTIONS)
def test_encoding_is_sentencepieces_own(name: str, tmp_path: Path) -> None:
    vocabulary, theirs = both(name, tmp_path)
    same = 0
    for line in LINES:
        expected = theirs.encode(line)
        if theirs.unk_id() in expected:
            continue
        found = vocabulary.encode(line)
        scores = [sum(map(theirs.get_score, ids)) for ids in (found, expected)]
        same += found == expected
        tie = vocabulary.kind == "unigram" and scores[0] == pytest.approx(scores[1], rel=1e-9)
        assert found == expected or tie
    assert same > 0.8 * len(LINES)


@pytest.mark.parametrize("name", ["bpe", "user_defined", "unigram_as_it_is"])
def test_joined_spellings_are_the_text(name: str, tmp_path: Path) -> None:
    vocabulary, _ = both(name, tmp_path)
    text = "  " + "\n".join(line for line in LINES if "\u2581" not in line) + "  "
    if name == "unigram_as_it_is":  # no byte fallback
        known = set(multilingual(60_000, seed=1)) - {"\n"}
        text = "".join(c for c in text if c in known)
    assert vocabulary.conditioned(text) == text


def test_what_a_normaliser_changes(tmp_path: Path) -> None:
    vocabulary, theirs = both("unigram", tmp_path)
    text = "  ﬁne   ①\tＡ  "
    assert vocabulary.conditioned(text) == theirs.decode(theirs.encode(text)) == "fine 1 A"


def test_ids_are_those_of_the_file(tmp_path: Path) -> None:
    vocabulary, theirs = both("bpe", tmp_path)
    assert (vocabulary.kind, vocabulary.prefix, vocabulary.size) == ("bpe", b" ", 1200)
    assert vocabulary.begin_ids == (theirs.bos_id(),)
    assert vocabulary.end_ids == (theirs.eos_id(),)
    assert vocabulary.tokens[theirs.unk_id()] is None
    assert vocabulary.byte_ids[0xE4] == theirs.piece_to_id("<0xE4>")


def test_control_symbols_have_no_text_and_user_defined_ones_have(tmp_path: Path) -> None:
    vocabulary, theirs = both("user_defined", tmp_path)
    assert vocabulary.prefix == b""
    assert vocabulary.tokens[theirs.piece_to_id("<call>")] is None
    assert vocabulary.tokens[theirs.piece_to_id("▁the")] == b" the"
    assert theirs.piece_to_id("▁the") in vocabulary.encode("in thesis")
    assert vocabulary.conditioned("a <call> </s>") == "a <call> </s>"


def test_a_real_file_encodes_as_sentencepiece_does() -> None:
    vocabulary = trained.real("mistral")
    theirs = spm.SentencePieceProcessor(model_file=str(trained.data("tokenizers/mistral_v7.model")))
    text = multilingual(100_000, seed=6)
    assert vocabulary.encode(text) == theirs.encode(text)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    for content in (b"", b"not a model file at all", model("bpe")[:1000]):
        path.write_bytes(content)
        with pytest.raises(InferKitError, match="x.model is no SentencePiece"):
            Vocabulary.from_sentencepiece(path)
    with pytest.raises(InferKitError, match="No file 'no/such.model'"):
        Vocabulary.from_sentencepiece("no/such.model")


def test_models_of_words_are_refused(tmp_path: Path) -> None:
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES[:50]),
        model_prefix=str(tmp_path / "w"),
        vocab_size=100,
        model_type="word",
        minloglevel=2,
    )
    with pytest.raises(InferKitError, match="no SentencePiece BPE or Unigram model .it is 'word'"):
        Vocabulary.from_sentencepiece(tmp_path / "w.model")
