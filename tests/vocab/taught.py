"""Tiny language models with tokenizers of three kinds, each taught some sentences in two seconds.

Texts are then written as their tokenizers write them, as by real models, and the members of a pair
agree on some texts and not on others.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel

import infer_kit as ik
from infer_kit.vocab.pace import Pace
from infer_kit.vocab.pooled_text import PooledText
from infer_kit.vocab.reading import Reader
from tests.tiny import text_model
from tests.vocab import trained
from tests.vocab.texts import SENTENCES

LESSONS = [SENTENCES[place] for place in (0, 1, 2, 3, 4, 5, 12, 22)]
_FALLEN_BACK = "清晨的🎉👍"  # no lesson with one of these is in the training of "signed_bpe"

Member = tuple[PreTrainedModel, Any]
_STEPS, _ROWS, _LENGTH, _RATE = 120, 12, 40, 6e-3


def _pieces(texts: Sequence[str], size: int) -> Tokenizer:
    """SentencePiece-like BPE; which pieces it has does not depend on the run."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=trained.SPECIAL, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return core


@cache
def signed_bpe() -> Tokenizer:
    """With a dummy prefix, and bytes for what is not in its training text."""
    texts = [text for text in LESSONS if not set(text) & set(_FALLEN_BACK)]
    spec = json.loads(_pieces(texts, 400).to_str())
    vocab = spec["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    core = Tokenizer.from_str(json.dumps(spec))
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return core


@cache
def unigram() -> Tokenizer:
    vocab = json.loads(_pieces(LESSONS, 500).to_str())["model"]["vocab"]
    scores = [(piece, -math.log(id + 1)) for piece, id in vocab.items()]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    core.add_special_tokens(trained.SPECIAL)
    core.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    core.decoder = decoders.Metaspace("▁", "always")
    return core


_TOKENIZERS = {
    "split_bpe": trained.split_bpe,  # byte-level, cut by a regular expression
    "signed_bpe": signed_bpe,
    "unigram": unigram,
}
KINDS = tuple(_TOKENIZERS)


@cache
def taught(kind: str) -> Member:
    """(model, tokenizer) of one of `KINDS`; do not change them."""
    tokenizer = trained.wrapped(_TOKENIZERS[kind](), name_or_path=kind)
    vocabulary = ik.Vocabulary.from_hf(tokenizer)
    draw = random.Random(0)
    ids: list[int] = []
    while len(ids) < 20_000:
        ids += [1, *vocabulary.encode(draw.choice(LESSONS)), 2]
    starts = [place for place, token in enumerate(ids[:-_LENGTH]) if token == 1]
    model = text_model("llama", vocab_size=vocabulary.size, seed=KINDS.index(kind))
    optimizer = torch.optim.AdamW(model.train().parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, _STEPS)
    for _ in range(_STEPS):
        rows = [ids[start : start + _LENGTH] for start in draw.choices(starts, k=_ROWS)]
        batch = torch.tensor(rows)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


@cache
def precise(kind: str) -> Member:
    """The same in float64."""
    model, tokenizer = taught(kind)
    return copy.deepcopy(model).double(), tokenizer


def pair(in_double: bool = False) -> list[Member]:
    """Byte-level BPE cut by a regular expression, and SentencePiece-like BPE."""
    get = precise if in_double else taught
    return [get("split_bpe"), get("signed_bpe")]


def advance_together(
    texts: Sequence[PooledText], symbols: Sequence[int], readers: Sequence[Reader]
) -> None:
    """Every text goes on by its symbol; each model's forwards are shared by all texts."""
    pace = Pace(texts, readers)
    rows = range(len(texts))
    for row, symbol in zip(rows, symbols, strict=True):
        pace.start(row, symbol)
    while any(map(pace.waits, rows)):
        pace.read(rows)


class Walk:
    """A text read symbol by symbol.

    Attributes:
        laws: [n, symbols + 1] pooled law before each symbol.
        member_laws: [n, N, symbols + 1] those of the members, not pooled.
        bounds: [n] certified, where the pool has bounds.
        weights: [n, N].
        text: after the last symbol.
    """

    def __init__(self, ensemble: ik.Ensemble, data: bytes, prompt: Any = None) -> None:
        (self.text,), readers = ensemble._start(ensemble._conditionings([prompt]))
        laws, member_laws, bounds = [], [], []
        for symbol in data:
            laws.append(self.text.law())
            member_laws.append([reducer.next() for reducer in self.text.reducers])
            bounds.append(self.text.tv_bound)
            advance_together([self.text], [symbol], readers)
        self.laws = np.array(laws)
        self.member_laws = np.array(member_laws)
        self.bounds = np.array(bounds, float)
        self.weights = np.array(self.text.record.weights)


def open_text(ensemble: ik.Ensemble, prompt: Any = None) -> PooledText:
    return Walk(ensemble, b"", prompt).text


def is_utf8_so_far(text: bytes) -> bool:
    """By Python's own decoder: whether the bytes can go on to be UTF-8."""
    tails = (
        b"",
        *(bytes([first]) + b"\x80\x80"[:n] for first in (0x80, 0xA0, 0x90) for n in range(3)),
    )
    return any(_decodes(text + tail) for tail in tails)


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Total variation of laws [..., S]."""
    return np.abs(first - second).sum(-1) / 2


@contextmanager
def counted(members: Sequence[Member]) -> Iterator[list[int]]:
    """Forward calls of each member while it lasts."""
    calls = [0] * len(members)

    def count(member: int) -> Any:
        def hook(*_: Any) -> None:
            calls[member] += 1

        return hook

    hooks = [m.register_forward_pre_hook(count(n)) for n, (m, _) in enumerate(members)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
