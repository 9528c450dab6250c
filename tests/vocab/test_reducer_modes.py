"""Modes "late" and "early", pruning with certificates, prompts and reading ahead."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, TopKLogitsWarper

from infer_kit.vocab.conditioning import Conditioning, condition_on_ids
from infer_kit.vocab.language_models import language_model
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer, ZeroProbability
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import kinds, trained
from tests.vocab.reference import (
    SlowCanonical,
    SlowReducer,
    Symbols,
    TokenLaw,
    UncachedLM,
    cheap,
    conditioned,
    hashed,
    opened,
    reached,
    read,
    total_variation,
    uncached,
)

LONGEST = 4
TEXTS = {
    "english": "They'll say it's 1,234 days;  won't  they?\n\n  def f(x):\n        return\tx",
    "scripts": "größer über Straße, العربية 中文字 🎉👍🏽!",
    "added": "a<think>b </think>  c    d       e<tool_call><t größe <th",
}


def text_for(kind: str, text: str) -> bytes:
    """A text as the model would write it, its dummy prefix included."""
    kept = " ".join(text.split()) if kind == "wordpiece" else text
    return kinds.vocabulary(kind).prefix + kept.encode()


def partial_to(kind: str, text: bytes, seed: int = 0) -> tuple[UncachedLM, Symbols]:
    """A language model that likes the text's tokens, and what it starts from."""
    vocabulary = kinds.vocabulary(kind)
    favoured = [id for id, token in enumerate(vocabulary.tokens) if token and token in text]
    return hashed(vocabulary.size, seed, favoured=favoured), (vocabulary.end_ids[0],)


@cache
def reduction(kind: str, mode: str) -> Reduction:
    return Reduction(kinds.vocabulary(kind), mode=mode)


@cache
def slow_canonical(kind: str) -> SlowCanonical:
    return SlowCanonical(kinds.vocabulary(kind), kind in kinds.WINDOWED)


def check_against_slow(kind: str, mode: str, text: bytes) -> CertifiedReducer:
    lm, prompt = partial_to(kind, text)
    vocabulary = kinds.vocabulary(kind)
    slow = SlowReducer(TokenLaw(lm, vocabulary, prompt), vocabulary, mode, slow_canonical(kind))
    reducer, reader = opened(reduction(kind, mode), lm, prompt)
    rows = 0
    for place, byte in enumerate(text):
        slow.advance(byte)
        read(reducer, reader, [byte])
        assert math.exp(reducer.logprob()[0]) == pytest.approx(slow.mass(), rel=1e-10)
        rows += slow.hypotheses
        # One row of the model for every sequence of tokens that may have ended here, no more.
        assert reducer.stats.rows == rows
        if place % 8 == 0:
            assert total_variation(reducer.next(), slow.next()) < 1e-12
    assert math.exp(reducer.logprob_end()[0]) == pytest.approx(slow.end(), rel=1e-10)
    return reducer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_late_is_the_law_of_canonical_tokens(kind: str, text: str) -> None:
    reducer = check_against_slow(kind, "late", text_for(kind, TEXTS[text]))
    assert reducer.stats.leak > 0


@pytest.mark.parametrize("kind", ["o200k_bpe", "unsplit_bpe", "added_bpe", "fallback_unigram"])
def test_early_is_the_law_of_canonical_tokens_renormalised(kind: str) -> None:
    reducer = check_against_slow(kind, "early", text_for(kind, "we'll  é"))
    assert reducer.stats.leak == 0


@pytest.mark.parametrize("kind", ["o200k_bpe", "unsplit_bpe", "added_bpe", "signed_bpe"])
def test_early_loses_nothing(kind: str) -> None:
    """The sum over all symbols of P(ys), and P(y END), is P(y)."""
    text = text_for(kind, "e'll ")
    reducer, reader = opened(reduction(kind, "early"), *partial_to(kind, text))
    for byte in text:
        read(reducer, reader, [byte])
        assert abs(reducer.next().sum() - 1) < 1e-12
        onward = [reducer.logprob_end()[0]]
        for symbol in np.flatnonzero(reducer.next()[:-1]):
            onward.append(read(reducer.fork(), reader, [symbol]).logprob()[0])
        total = math.fsum(math.exp(part - reducer.logprob()[0]) for part in onward)
        assert total == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(
            np.exp(np.array(onward[1:]) - reducer.logprob()[0]),
            reducer.next()[:-1][reducer.next()[:-1] > 0],
            rtol=1e-9,
        )


# Certificates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "letters"),
    [("unsplit_bpe", b"the "), ("o200k_bpe", b"l 'e"), ("added_bpe", b"< \ne")],
)
def test_pruned_laws_are_within_their_bound(kind: str, letters: bytes) -> None:
    states, closest, longest_ledger = 0, 0.0, 0
    texts = b"".join(letters[i : i + 1] * 3 for i in range(4)) + letters * 3
    lm, prompt = partial_to(kind, texts + letters[::-1] * 2)
    exact = {
        y: (here.next(), here.logprob()[0])
        for y, here in reached(*opened(reduction(kind, "late"), lm, prompt), letters, LONGEST)
    }
    for eps in (1e-6, 1e-3, 0.03, 0.3):
        start = opened(reduction(kind, "late"), lm, prompt, eps)
        for y, here in reached(*start, letters, LONGEST):
            states += 1
            law, logprob = exact[y]
            error = total_variation(law, here.next())
            assert error <= here.tv_bound + 1e-12 <= eps + 2e-12
            closest = max(closest, error / max(here.tv_bound, 1e-9))
            low, high = here.logprob()
            assert low - 1e-10 <= logprob <= high + 1e-10
            longest_ledger = max(longest_ledger, here.stats.largest_ledger)
    print(f"{kind}: {states} states, error/bound up to {closest:.3f}, ledger {longest_ledger}")
    assert states > 1000 and closest > 0.05
