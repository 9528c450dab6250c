"""Tokenizers with the traps that real ones have, small, on top of those in `trained`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained
from tests.vocab.trained import SPECIAL

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words take their contraction along, and split where a capital follows (o200k).
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    _CASED + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    + _CASED + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
# Often enough to be merged: a word's end depends on what follows the apostrophe.
_CONTRACTIONS = (
    "they'll we've you're he's won't she'd THEY'LL WE'VE YOU'RE Ali'da l'ete I'VE I'VE I'LL I'M "
    * 60
)
# Texts that are tokens of their own, across the splits of the words.
ADDED = ("<think>", "</think>", "<tool_call>", "größer")


def _byte_level(splitter: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    core = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter is None)
    core.pre_tokenizer = plain if splitter is None else pre_tokenizers.Sequence([splitter, plain])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
        show_progress=False,
    )
    core.train_from_iterator([*trained._lines(), _CONTRACTIONS], trainer)
    return core


@cache
def o200k_bpe() -> Tokenizer:
    return _byte_level(pre_tokenizers.Split(Regex(O200K), "isolated"))


@cache
def unsplit_bpe() -> Tokenizer:
    """Byte-level BPE that never splits a text into words."""
    core = _byte_level(pre_tokenizers.Split("\n", "merged_with_previous"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return core


@cache
def whole_word_bpe() -> Tokenizer:
    """As Llama 3: a word that is a token is that token, though no merges lead to it."""
    core = _byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"))
    spec = json.loads(core.to_str())
    spec["model"]["ignore_merges"] = True
    for word in ("Ġlighthouse", "Ġharbor", "daught", "Ġwid"):
        spec["model"]["vocab"].setdefault(word, len(spec["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(spec))


@cache
def added_bpe() -> Tokenizer:
    """As GPT-NeoX: runs of spaces are added tokens; and tags as in models that call tools."""
    core = _byte_level(None)
    core.add_tokens([AddedToken(" " * n, normalized=False) for n in range(2, 13)])
    core.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return core


@cache
def fallback_unigram() -> Tokenizer:
    """Unigram over words, with bytes for the characters that are no pieces."""
    spec = json.loads(trained.unigram().to_str())
    pieces = [(piece, score) for piece, score in spec["model"]["vocab"] if len(piece) > 1 or
              ord(piece) < 0x3000]  # fmt: skip
    low = min(score for _, score in pieces) - 5
    spec["model"]["vocab"] = [*pieces, *((f"<0x{byte:02X}>", low) for byte in range(256))]
    spec["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(spec))


def _few_letters(split: bool, size: int) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(["ab'll  ab ba'l \n\nlab\n bal   all  b'la" * 9], trainer)
    return core


@cache
def few_letters_bpe() -> Tokenizer:
    """Splits words as GPT-2 does, over six letters: all its texts can be enumerated."""
    return _few_letters(True, 22)


@cache
def few_letters_unsplit_bpe() -> Tokenizer:
    """The same letters, and texts that are not split."""
    return _few_letters(False, 19)


# Ways to split a text that look at other things than GPT-2's, over one BPE.
SPLITTERS = {
    "llama3": [LLAMA3],
    "tekken": [
        _CASED + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|" + _CASED + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "deepseek": [
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "bloom": [r" ?[^(\s|[.,!?…。，、।۔،])]+"],
    # Groups of three from the right: what a digit belongs to depends on all that follow.
    "digits": [r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))", r"\s+|[^\s\p{N}]+|\p{N}+"],
}


@cache
def resplit_bpe(splitter: str) -> Tokenizer:
    core = Tokenizer.from_str(unsplit_bpe().to_str())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter == "marks")
    parts = [pre_tokenizers.Split(Regex(p), "isolated") for p in SPLITTERS.get(splitter, [])]
    if splitter == "marks":
        parts = [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(True)]
    core.pre_tokenizer = pre_tokenizers.Sequence([*parts, plain])
    core.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return core


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level_bpe": trained.byte_level_bpe,
    "split_bpe": trained.split_bpe,
    "o200k_bpe": o200k_bpe,
    "unsplit_bpe": unsplit_bpe,
    "whole_word_bpe": whole_word_bpe,
    "added_bpe": added_bpe,
    "signed_bpe": trained.signed_bpe,
    "unigram": trained.unigram,
    "fallback_unigram": fallback_unigram,
    "wordpiece": trained.wordpiece,
}
UNSPLIT = ("unsplit_bpe", "signed_bpe", "few_letters_unsplit_bpe")  # never split a text into words


OTHERS: dict[str, Callable[[], Tokenizer]] = {
    "few_letters_bpe": few_letters_bpe,
    "few_letters_unsplit_bpe": few_letters_unsplit_bpe,
    **{name: partial(resplit_bpe, name) for name in (*SPLITTERS, "marks")},
}


@cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary.from_hf(trained.wrapped((KINDS | OTHERS)[kind]()), name=kind)
