"""Tokenizers by file, folder, bundled name."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GenerationConfig, LlamaConfig

from infer_kit.errors import InferKitError
from infer_kit.vocab import sources
from infer_kit.vocab.sources import load_tokenizer
from tests.vocab import trained


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model's files but its weights."""
    tokenizer = trained.wrapped(trained.split_bpe())
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(tokenizer) + 8).save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=[2, len(tokenizer)]).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_folder_says_its_rows_and_ends(folder: str) -> None:
    vocabulary, tokenizer = load_tokenizer(folder)
    assert vocabulary.size == len(tokenizer) + 8
    assert vocabulary.end_ids == (2, len(tokenizer))


def test_a_tokenizer_without_a_model_is_itself(folder: str) -> None:
    for name in ("config.json", "generation_config.json"):
        (Path(folder) / name).unlink()
    vocabulary, tokenizer = load_tokenizer(folder)
    assert vocabulary.size == len(tokenizer) and vocabulary.end_ids == (2,)


def test_bundled_models_are_found_by_name(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.BUNDLED, "mine", folder)
    assert load_tokenizer("mine")[0].name == "mine"


def test_files_of_every_kind() -> None:
    for name in ("gpt2", "mistral"):
        path = trained.data(f"tokenizers/{trained.FILES[name]}")
        assert load_tokenizer(str(path))[0].fingerprint == trained.real(name).fingerprint


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="No tokenizer at 'no/such/thing'"):
        load_tokenizer("no/such/thing")
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(InferKitError, match=r"x.json' is no tokenizer file"):
        load_tokenizer(str(path))
