"""Pooled laws against the members' own, and the pooled certificates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from infer_kit.errors import InferKitError
from infer_kit.vocab.pooled_text import Pool, PooledText
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer, ZeroProbability
from infer_kit.vocab.reduction import Mode, Reduction
from infer_kit.vocab.trie import Float
from infer_kit.vocab.weighting import Weighting
from tests.vocab import kinds
from tests.vocab.reference import (
    SlowCanonical,
    SlowReducer,
    Symbols,
    TokenLaw,
    UncachedLM,
    hashed,
    total_variation,
)
from tests.vocab.taught import advance_together

LETTERS = b"abl' \n"
MEMBERS = ("few_letters_bpe", "few_letters_unsplit_bpe")
PRIOR = (0.7, 0.3)
START = (2,)  # END of both


@cache
def member(kind: str, mode: Mode) -> tuple[Reduction, UncachedLM]:
    vocabulary = kinds.vocabulary(kind)
    return Reduction(vocabulary, mode=mode), hashed(vocabulary.size, seed=MEMBERS.index(kind))


def text_of(
    pool: Pool = "mixture",
    weighting: Weighting | None = None,
    eps: float = 0.0,
    mode: Mode = "late",
) -> tuple[PooledText, list[Reader]]:
    readers, reducers = [], []
    for kind in MEMBERS:
        reduction, lm = member(kind, mode)
        reader = Reader(reduction, lm, None)
        reducer = CertifiedReducer(reduction, eps)
        reducer.open(reader.begin([START])[0])
        readers.append(reader)
        reducers.append(reducer)
    return PooledText(reducers, weighting or Weighting(PRIOR), pool), readers


def slow_members(mode: Mode = "late") -> list[SlowReducer]:
    found = []
    for kind in MEMBERS:
        vocabulary, (_, lm) = kinds.vocabulary(kind), member(kind, mode)
        canonical = SlowCanonical(vocabulary, kind not in kinds.UNSPLIT)
        law = TokenLaw(lm, vocabulary, START)
        found.append(SlowReducer(law, vocabulary, mode, None if mode == "full" else canonical))
    return found


def reached(
    text: PooledText, readers: list[Reader], longest: int
) -> Iterator[tuple[Symbols, PooledText]]:
    """Every string of at most `longest` letters that the pooled law can write."""
    stack: list[tuple[Symbols, PooledText]] = [((), text)]
    while stack:
        y, here = stack.pop()
        yield y, here
        if len(y) < longest:
            law = here.law()
            for symbol in LETTERS:
                if law[symbol] > 0:
                    twin = here.fork()
                    advance_together([twin], [symbol], readers)
                    stack.append(((*y, symbol), twin))


def geometric(laws: Float, weights: Float) -> Float:
    return laws.prod(0) ** 0.5


POOLS: dict[str, tuple[Pool, Callable[[Float, Float], Float]]] = {
    "mixture": ("mixture", lambda laws, weights: weights @ laws),
    "product": ("product", lambda laws, weights: (laws ** weights[:, None]).prod(0)),
    "function": (geometric, geometric),
}


@pytest.mark.parametrize("mode", ["late", "full"])
@pytest.mark.parametrize("pool", POOLS)
def test_laws_are_pooled_from_the_members_own(pool: str, mode: Mode) -> None:
    given, formula = POOLS[pool]
    text, readers = text_of(given, mode=mode)
    slow = slow_members(mode)
    for byte in b"ab'll  a\nb":
        laws = np.stack([one.next() for one in slow])
        expected = np.where((laws > 0).all(0), formula(laws, np.array(PRIOR)), 0.0)
        law = text.law()
        np.testing.assert_allclose(law, expected / expected.sum(), rtol=1e-10)
        assert abs(law.sum() - 1) < 1e-12
        assert text.tv_bound == (0.0 if pool == "mixture" else None)
        for one in slow:
            one.advance(byte)
        advance_together([text], [byte], readers)
        shares = text.record.logprobs[-1]
        assert text.logprob(False)[2] == tuple(r.logprob() for r in text.reducers)
        members = [math.exp(r.logprob()[0]) for r in text.reducers]
        assert members == pytest.approx([one.mass() for one in slow], rel=1e-10)
    assert len(text.record.weights) == len(text.record.low) == 10
    assert math.exp(sum(share[0] for share in text.record.logprobs)) == pytest.approx(members[0])
    assert shares.shape == (2,)


def test_a_member_alone_is_itself() -> None:
    reduction, lm = member(MEMBERS[0], "late")
    reader = Reader(reduction, lm, None)
    reducer = CertifiedReducer(reduction, 1e-2)
    reducer.open(reader.begin([START])[0])
    text = PooledText([reducer], Weighting((1.0,)), "mixture")
    for byte in b"ab'll ":
        np.testing.assert_allclose(text.law(), reducer.next(), rtol=1e-12)
        assert text.tv_bound == pytest.approx(reducer.tv_bound, abs=1e-15)
        advance_together([text], [byte], [reader])
    for end in (False, True):
        low, high, members = text.logprob(end)
        assert members == ((low, high),)
        assert members[0] == (reducer.logprob_end() if end else reducer.logprob())


@pytest.mark.parametrize("end", [False, True])
def test_a_mixture_scores_step_by_step(end: bool) -> None:
    text, readers = text_of()
    slow = slow_members()
    before, expected = np.ones(2), 0.0
    for byte in b"ab'll  a":
        for one in slow:
            one.advance(byte)
        after = np.array([one.mass() for one in slow])
        expected += math.log(np.array(PRIOR) @ (after / before))
        before = after
        advance_together([text], [byte], readers)
    if end:
        expected += math.log(np.array(PRIOR) @ ([one.end() for one in slow] / before))
    low, high, _ = text.logprob(end)
    assert low == pytest.approx(expected, abs=1e-9) == high


def test_bayes_is_the_mixture_of_whole_texts() -> None:
    text, readers = text_of(weighting=Weighting(PRIOR, "bayes"))
    slow = slow_members()
    for byte in b"ab'll  a":
        masses = np.array([one.mass() for one in slow]) * PRIOR
        np.testing.assert_allclose(text.weights, masses / masses.sum(), rtol=1e-10)
        for one in slow:
            one.advance(byte)
        advance_together([text], [byte], readers)
    for end in (False, True):
        wholes = [one.end() if end else one.mass() for one in slow]
        low, high, members = text.logprob(end)
        assert low == pytest.approx(math.log(np.array(PRIOR) @ wholes), abs=1e-9) == high
        for prior, (_, best) in zip(PRIOR, members, strict=True):
            assert low >= best + math.log(prior) - 1e-9  # the loss is bounded on every text


@pytest.mark.parametrize("rule", [None, "bayes"])
@pytest.mark.parametrize("mode", ["late", "full"])
def test_pruned_mixtures_are_within_their_bound(rule: str | None, mode: Mode) -> None:
    weighting = Weighting(PRIOR, rule)
    exact = {
        y: (here.law(), here.logprob(False)[0], here.logprob(True)[0])
        for y, here in reached(*text_of(weighting=weighting, mode=mode), 3)
    }
    states, closest = 0, 0.0
    for eps in (1e-3, 0.03, 0.3):
        for y, here in reached(*text_of(weighting=weighting, eps=eps, mode=mode), 3):
            law, logprob, ended = exact[y]
            states += 1
            assert here.tv_bound is not None
            error = total_variation(law, here.law())
            assert error <= here.tv_bound + 1e-12
            closest = max(closest, error / max(here.tv_bound, 1e-9))
            for value, end in ((logprob, False), (ended, True)):
                low, high, _ = here.logprob(end)
                assert low - 1e-10 <= value <= high + 1e-10
    assert states > 300 and closest > 0.4


def test_fixed_share_scores_as_it_weighs() -> None:
    weighting = Weighting(PRIOR, "fixed_share", 0.1)
    text, readers = text_of(weighting=weighting)
    expected, weights, before = 0.0, np.array(PRIOR), np.ones(2)
    slow = slow_members()
    for byte in b"ab'll  a":
        np.testing.assert_allclose(text.weights, weights, rtol=1e-10)
        for one in slow:
            one.advance(byte)
        after = np.array([one.mass() for one in slow])
        expected += math.log(weights @ (after / before))
        posterior = weights * after / before
        weights = 0.9 * posterior / posterior.sum() + 0.1 * np.array(PRIOR)
        before = after
        advance_together([text], [byte], readers)
    assert text.logprob(False)[0] == pytest.approx(expected, abs=1e-9)


def test_weights_of_a_step_may_depend_on_its_laws() -> None:
    text, readers = text_of(weighting=Weighting(PRIOR, "entropy"))
    advance_together([text], [LETTERS[0]], readers)
    laws = np.stack([reducer.next() for reducer in text.reducers])
    entropy = np.array([-sum(p * math.log(p) for p in law if p > 0) for law in laws])
    expected = np.array(PRIOR) * np.exp(-entropy)
    np.testing.assert_allclose(text.weights, expected / expected.sum(), rtol=1e-9)
    mixed = np.where((laws > 0).all(0), text.weights @ laws, 0.0)
    np.testing.assert_allclose(text.law(), mixed / mixed.sum(), rtol=1e-9)
    negative = Weighting(PRIOR, lambda laws, prior: np.array([2.0, -1.0]))
    with pytest.raises(InferKitError, match="not negative"):
        _ = text_of(weighting=negative)[0].weights


def test_forks_go_their_own_way() -> None:
    weighting = Weighting(PRIOR, "bayes")
    text, readers = text_of(weighting=weighting, eps=0.02)
    advance_together([text], [LETTERS[0]], readers)
    state = text.law().copy(), text.logprob(False), text.weights.copy(), len(text.record.low)
    left, right = text.fork(), text.fork()
    for a, b in zip(b"b'll", b"l  b", strict=True):
        advance_together([left], [a], readers)
        advance_together([right], [b], readers)
    np.testing.assert_array_equal(text.law(), state[0])
    np.testing.assert_array_equal(text.weights, state[2])
    assert (text.logprob(False), len(text.record.low)) == (state[1], state[3])
    for fork, rest in ((left, b"b'll"), (right, b"l  b")):
        alone, own = text_of(weighting=weighting, eps=0.02)
        for byte in LETTERS[:1] + rest:
            advance_together([alone], [byte], own)
        assert fork.logprob(True) == alone.logprob(True)
        np.testing.assert_array_equal(fork.law(), alone.law())
        np.testing.assert_array_equal(fork.record.weights, alone.record.weights)


def test_texts_that_go_on_together_are_those_alone() -> None:
    strings = (b"ab'll ", b"ba'l \n", b" bal  ")
    together = [text_of(eps=1e-3) for _ in strings]
    readers = together[0][1]
    texts = []
    for _ in strings:  # all read by the same readers
        reducers = []
        for reader, kind in zip(readers, MEMBERS, strict=True):
            reducer = CertifiedReducer(member(kind, "late")[0], 1e-3)
            reducer.open(reader.begin([START])[0])
            reducers.append(reducer)
        texts.append(PooledText(reducers, Weighting(PRIOR), "mixture"))
    for symbols in zip(*strings, strict=True):
        advance_together(texts, symbols, readers)
    for text, string in zip(texts, strings, strict=True):
        alone, own = text_of(eps=1e-3)
        for byte in string:
            advance_together([alone], [byte], own)
        assert text.logprob(True)[:2] == pytest.approx(alone.logprob(True)[:2], abs=1e-12)
        np.testing.assert_allclose(text.law(), alone.law(), rtol=1e-12)


def test_a_symbol_that_a_member_cannot_write_has_no_mass() -> None:
    """Letters of one member only, bytes that are no UTF-8, and where nothing is left."""
    few, lm = member(MEMBERS[0], "late")
    many = kinds.vocabulary("byte_level_bpe")
    wide, wide_lm = Reduction(many), hashed(many.size)
    readers, reducers = [], []
    for reduction, model, start in ((few, lm, START), (wide, wide_lm, many.end_ids[:1])):
        reader = Reader(reduction, model, None)
        reducer = CertifiedReducer(reduction, 0.0)
        reducer.open(reader.begin([start])[0])
        readers.append(reader)
        reducers.append(reducer)
    for pool in POOLS:
        law = PooledText(reducers, Weighting(PRIOR), POOLS[pool][0]).law()
        assert set(np.flatnonzero(law)) == {*LETTERS, 256}
    alone = PooledText(reducers[1:], Weighting((1.0,)), "mixture")
    law = alone.law()
    assert reducers[1].next()[0x80] > 0 and law[0x80] == law[0xC0] == law[0xFF] == 0
    total = reducers[1].next()[law > 0].sum()
    np.testing.assert_allclose(law[law > 0], reducers[1].next()[law > 0] / total, rtol=1e-12)
    advance_together([alone], [0xE0], readers[1:])  # of three bytes: only A0 to BF may follow
    assert set(np.flatnonzero(alone.law())) <= set(range(0xA0, 0xC0))
    nothing = PooledText(reducers, Weighting(PRIOR), lambda laws, weights: np.zeros(257))
    with pytest.raises(ZeroProbability, match="Nothing can follow"):
        nothing.law()
    wrong = PooledText(reducers, Weighting(PRIOR), lambda laws, weights: laws[0, :5])
    with pytest.raises(InferKitError, match="returned shape"):
        wrong.law()
