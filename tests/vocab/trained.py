"""Small tokenizers of every kind, trained on `multilingual` text, and files of real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab.texts import CODE, SENTENCES, multilingual

SPECIAL = ["<unk>", "<s>", "</s>"]
NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def _lines() -> list[str]:
    text = multilingual(60_000, seed=1)
    letters = sorted(set("".join([*SENTENCES, *CODE]).upper() + multilingual(300_000)))
    return [*text.splitlines(keepends=True), *letters, *(f"a{letter}" for letter in letters)]


def wrapped(core: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core, **(NAMES | options))


@cache
def byte_level_bpe() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_lines(), trainer)
    return core


@cache
def split_bpe() -> Tokenizer:
    """Byte-level BPE with the splitting of newer models, and added tokens that are text."""
    core = Tokenizer(models.BPE())
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_lines(), trainer)
    core.add_tokens([AddedToken("größer", normalized=False), AddedToken("    ", normalized=False)])
    return core


@cache
def signed_bpe() -> Tokenizer:
    """SentencePiece-like BPE: a dummy prefix, and bytes for all but the commonest characters."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never")  # in training alone
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=[*SPECIAL, *_BYTES],
        limit_alphabet=150,
        max_token_length=12,
        show_progress=False,
    )
    core.train_from_iterator(_lines(), trainer)
    spec = json.loads(core.to_str())
    spec["added_tokens"] = spec["added_tokens"][: len(SPECIAL)]  # bytes are pieces
    spec["pre_tokenizer"] = None
    core = Tokenizer.from_str(json.dumps(spec))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


@cache
def unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    core.decoder = decoders.Metaspace("▁", "always")
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(_lines(), trainer)
    return core


@cache
def wordpiece() -> Tokenizer:
    """Words are cut at white space alone."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=10_000))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=4000, special_tokens=SPECIAL, show_progress=False
    )
    core.train_from_iterator(_lines(), trainer)
    return core


LOSSLESS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level_bpe": byte_level_bpe,
    "split_bpe": split_bpe,
    "signed_bpe": signed_bpe,
    "unigram": unigram,
}
"""Kinds that keep every text as it is."""

_DATA = os.environ.get("INFER_KIT_TEST_DATA")
FILES = {
    "gpt2": "gpt2_vocab.bpe",
    "cl100k": "cl100k_base.tiktoken",
    "o200k": "o200k_base.tiktoken",
    "qwen": "qwen.tiktoken",
    "mistral": "mistral_v7.model",
    "neox": "neox_olmo.json",
    "dolma2": "dolma2.json",
}


def data(path: str) -> Path:
    """A file or folder of the test data; skips where there is none."""
    if _DATA is None:
        pytest.skip("INFER_KIT_TEST_DATA is not set")
    found = Path(_DATA) / path
    if not found.exists():
        pytest.skip(f"the test data has no {path}")
    return found


@cache
def real(name: str) -> Vocabulary:
    """The vocabulary of one of `FILES`."""
    path = data(f"tokenizers/{FILES[name]}")
    if path.suffix == ".json":
        return Vocabulary.from_hf(Tokenizer.from_file(str(path)), name=name)
    if path.suffix == ".model":
        return Vocabulary.from_sentencepiece(path, name=name)
    return Vocabulary.from_tiktoken(path, name=name)
