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
    "scripts": "größer über Straße, رسالة 机器学 🎉👍🏽!",
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
    return SlowCanonical(kinds.vocabulary(kind), kind not in kinds.UNSPLIT)


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


@pytest.mark.parametrize("kind", ["few_letters_bpe", "unsplit_bpe", "signed_bpe"])
def test_early_is_the_law_of_canonical_tokens_renormalised(kind: str) -> None:
    reducer = check_against_slow(kind, "early", text_for(kind, "all  ab'll\nb"))
    assert reducer.stats.leak == 0


def few_letters(mode: str, eps: float = 0.0) -> tuple[CertifiedReducer, Reader]:
    vocabulary = kinds.vocabulary("few_letters_bpe")
    return opened(reduction("few_letters_bpe", mode), hashed(vocabulary.size), (2,), eps)


LETTERS = b"abl' \n"


def test_early_loses_nothing() -> None:
    """The sum over all symbols of P(ys), and P(y END), is P(y)."""
    masses: dict[Symbols, float] = {}
    laws = {}
    for y, here in reached(*few_letters("early"), LETTERS, 4):
        masses[y] = math.exp(here.logprob()[0])
        masses[(*y, 256)] = math.exp(here.logprob_end()[0])
        laws[y] = here.next()
        assert abs(laws[y].sum() - 1) < 1e-12
        assert here.stats.leak == 0
    for y, law in laws.items():
        if len(y) < 4:
            onward = np.array([masses.get((*y, s), 0.0) for s in (*LETTERS, 256)])
            assert onward.sum() == pytest.approx(masses[y], rel=1e-12)
            np.testing.assert_allclose(law[[*LETTERS, 256]] * masses[y], onward, rtol=1e-11)
    assert len(laws) > 400


# Certificates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["late", "early"])
def test_pruned_laws_are_within_their_bound(mode: str) -> None:
    states, closest, longest_ledger = 0, 0.0, 0
    exact = {
        y: (here.next(), here.logprob()[0])
        for y, here in reached(*few_letters(mode), LETTERS, LONGEST)
    }
    for eps in (1e-3, 0.03, 0.3):
        for y, here in reached(*few_letters(mode, eps), LETTERS, LONGEST):
            states += 1
            law, logprob = exact[y]
            error = total_variation(law, here.next())
            assert error <= here.tv_bound + 1e-12 <= eps + 2e-12
            closest = max(closest, error / max(here.tv_bound, 1e-9))
            low, high = here.logprob()
            assert low - 1e-10 <= logprob <= high + 1e-10
            longest_ledger = max(longest_ledger, here.stats.largest_ledger)
    print(f"{mode}: {states} states, error/bound up to {closest:.3f}, ledger {longest_ledger}")
    assert states > 1000 and closest > 0.5
