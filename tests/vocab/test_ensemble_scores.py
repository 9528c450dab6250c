"""`Ensemble.logprob` and `law` against the members' exact byte laws, pooled by hand in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import infer_kit as ik
from infer_kit.demo import text
from infer_kit.vocab.trie import Float
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab.reference import SlowCanonical, SlowReducer, TokenLaw, UncachedLM, uncached
from tests.vocab.taught import Member, Walk, is_utf8_so_far

pytestmark = pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")

END = 256
WEIGHTS = (0.7, 0.3)
TEXT = "Mia and the fox ran."
CHAT = [{"role": "user", "content": "Who ran?"}]
TEXTS = [
    "Once upon a time, Tom found a little key.",
    "The fox ate 3 fish!",
    "Où est le café?",
    "I'll say it's  late.\n",
    "x = [1, 2]",
    "清晨",
]


@cache
def members() -> list[Member]:
    """The models that ship, in float64."""
    return [(model.double(), tokenizer) for model, tokenizer in map(text.load, text.NAMES)]


@cache
def exact(*options: Any, **named: Any) -> ik.Ensemble:
    return ik.Ensemble(members(), *options, eps=0, **named)


@cache
def slow_parts() -> list[tuple[Vocabulary, UncachedLM, SlowCanonical]]:
    found = []
    for model, tokenizer in members():
        vocabulary = Vocabulary.from_hf(tokenizer, model)
        found.append((vocabulary, uncached(model), SlowCanonical(vocabulary, True)))
    return found


class Exact:
    """The members one by one along a text, without trie, cache or pruning.

    Attributes:
        laws: [n, N, 257] of each member before each byte, and after the last one.
        shares: [n, N] what each member gave the byte that came, P(ys)/P(y); those of END last.
        kept: [n + 1, 257] whether all members can write a byte there, and UTF-8 has it.
    """

    def __init__(self, data: bytes, prompt: str = "") -> None:
        word, space, rest = prompt.partition(" ")
        slow = []
        for vocabulary, lm, canonical in slow_parts():
            read = (*vocabulary.begin_ids, *vocabulary.encode(word)) if space else ()
            law = TokenLaw(lm, vocabulary, read or vocabulary.empty_ids)
            slow.append(SlowReducer(law, vocabulary, "late", canonical))
            for byte in (space + rest).encode() if space else vocabulary.prefix + prompt.encode():
                slow[-1].advance(byte)
        laws, shares, kept = [], [], []
        for place, byte in enumerate([*data, END]):
            laws.append([one.next() for one in slow])
            so_far = prompt.encode() + data[:place]
            valid = [is_utf8_so_far(so_far + bytes([s])) for s in range(END)]
            kept.append((np.array(laws[-1]) > 0).all(0) & [*valid, is_utf8_so_far(so_far)])
            before = np.array([one.mass() for one in slow])
            for one in slow if byte != END else ():
                one.advance(byte)
            after = [one.end() if byte == END else one.mass() for one in slow]
            shares.append(np.array(after) / before)
        self.laws, self.shares, self.kept = np.array(laws), np.array(shares), np.array(kept)

    def score(self, end: bool, pooled: Callable[[int], float]) -> float:
        """The sum of what `pooled` gives for each step."""
        return math.fsum(map(pooled, range(len(self.shares) - (not end))))


@pytest.fixture(scope="module")
def walked() -> Exact:
    return Exact(TEXT.encode())


def entropies(laws: Float) -> Float:
    return np.array([-sum(p * math.log(p) for p in law if p > 0) for law in laws])


# Pools


@pytest.mark.parametrize("end", [False, True])
def test_a_mixture_is_summed_step_by_step(walked: Exact, end: bool) -> None:
    score = exact(WEIGHTS).logprob(TEXT, end=end)
    by_hand = walked.score(end, lambda step: math.log(WEIGHTS @ walked.shares[step]))
    assert score.low == pytest.approx(by_hand, abs=1e-9) and score.high - score.low < 1e-9
    members_ = np.log(walked.shares[: None if end else -1]).sum(0)
    np.testing.assert_allclose(np.array(score.members), members_[:, None] + [0, 0], atol=1e-9)
    assert score.length == 20


@pytest.mark.parametrize("end", [False, True])
def test_a_product_is_normalised_at_each_step(walked: Exact, end: bool) -> None:
    powers = np.array([1.5, -0.25])

    def pooled(step: int) -> float:
        kept = walked.kept[step]
        masses = np.exp(powers @ np.log(walked.laws[step][:, kept]))
        return float(powers @ np.log(walked.shares[step])) - math.log(masses.sum())

    score = exact(tuple(powers), "product").logprob(TEXT, end=end)
    assert score.low == score.high == pytest.approx(walked.score(end, pooled), abs=1e-8)


def test_laws_are_pooled_by_hand(walked: Exact) -> None:
    """The mixture and the product, after every byte of a text."""
    for pool, pooled in (
        ("mixture", lambda laws: np.array(WEIGHTS) @ laws),
        ("product", lambda laws: (laws ** np.array(WEIGHTS)[:, None]).prod(0)),
    ):
        laws = Walk(exact(WEIGHTS, pool), TEXT.encode()).laws
        for law, own, kept in zip(laws, walked.laws, walked.kept, strict=False):
            expected = np.where(kept, pooled(own), 0.0)
            np.testing.assert_allclose(law, expected / expected.sum(), rtol=1e-9, atol=1e-300)


def test_entropy_weighs_the_surer_member_more(walked: Exact) -> None:
    weights = np.exp(-np.array([entropies(laws) for laws in walked.laws]))
    weights /= weights.sum(-1, keepdims=True)
    assert weights[:, 0].min() < 0.4 and weights[:, 0].max() > 0.6
    for end in (False, True):
        expected = walked.score(end, lambda step: math.log(weights[step] @ walked.shares[step]))
        score = exact("entropy").logprob(TEXT, end=end)
        assert score.low == pytest.approx(expected, abs=1e-9)
    found = Walk(exact("entropy"), TEXT.encode()).weights
    np.testing.assert_allclose(found, weights[:-1], rtol=1e-9)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_fixed_share_mixes_the_prior_in(walked: Exact, rate: float) -> None:
    weights = [np.array([0.5, 0.5])]
    for share in walked.shares:
        posterior = weights[-1] * share / (weights[-1] @ share)
        weights.append((1 - rate) * posterior + rate * 0.5)
    ensemble = exact("fixed_share", switching_rate=rate)
    for end in (False, True):
        expected = walked.score(end, lambda step: math.log(weights[step] @ walked.shares[step]))
        assert ensemble.logprob(TEXT, end=end).low == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_bayes_is_never_far_behind_the_best_member(eps: float) -> None:
    ensemble = ik.Ensemble(members(), "bayes", eps=eps)
    end = eps == 0  # what may end is read whatever eps is
    alone = [ik.ReducedLM(*member, eps=eps).logprob(TEXTS, end=end) for member in members()]
    widest = 0.0
    for place, score in enumerate(ensemble.logprob(TEXTS, end=end)):
        lows = [scores[place].low for scores in alone]
        highs = [scores[place].high for scores in alone]
        assert score.low == pytest.approx(np.logaddexp(*lows) - math.log(2), abs=1e-9)
        assert score.low >= max(lows) - math.log(2) - 1e-9
        assert score.high == pytest.approx(np.logaddexp(*highs) - math.log(2), abs=1e-9)
        widest = max(widest, score.high - score.low)
    assert widest > 1e-6 if eps else widest < 1e-9


# Laws of probability


@pytest.mark.parametrize("weights", [WEIGHTS, "bayes", "fixed_share", "entropy"], ids=str)
def test_parts_add_up_to_the_whole_with_weights_that_are_fixed(weights: Any) -> None:
    """What is learnt from a text is not learnt from a prompt: the others begin anew."""
    ensemble, prompt = exact(weights), "One day, "
    whole = ensemble.logprob(TEXT, prompt=prompt, end=True)
    for cut in (3, 10, 14):
        first = ensemble.logprob(TEXT[:cut], prompt=prompt)
        rest = ensemble.logprob(TEXT[cut:], prompt=prompt + TEXT[:cut], end=True)
        parts = np.add(first.members, rest.members)
        np.testing.assert_allclose(parts, whole.members, atol=1e-8)
        is_fixed = weights in (WEIGHTS, "entropy")
        assert (first.low + rest.low == pytest.approx(whole.low, abs=1e-8)) == is_fixed


def test_what_a_prompt_says_is_given() -> None:
    """The same sums by hand, after a prompt that is cut inside a word."""
    walked = Exact(b"wn to the", "Mia ran do")
    by_hand = walked.score(True, lambda step: math.log(WEIGHTS @ walked.shares[step]))
    score = exact(WEIGHTS).logprob("wn to the", prompt="Mia ran do", end=True)
    assert score.low == pytest.approx(by_hand, abs=1e-8)
    expected = np.where(walked.kept[0], np.array(WEIGHTS) @ walked.laws[0], 0)
    law = exact(WEIGHTS).law("Mia ran do")
    np.testing.assert_allclose(law, expected / expected.sum(), atol=1e-9)


@pytest.mark.parametrize("mode", ["full", "late"])
def test_what_may_come_next_adds_up(mode: Any) -> None:
    """To 1, but for the canonical mass that is lost ("late"), and never to more."""
    ensemble = exact(WEIGHTS, mode=mode)
    mixed = np.array(WEIGHTS) @ Walk(ensemble, b"Mi?").member_laws[2]
    common = [s for s in range(128) if ensemble.law("Mi")[s] > 0]
    before = ensemble.logprob("Mi").low
    onward = [score.low - before for score in ensemble.logprob([f"Mi{chr(s)}" for s in common])]
    onward.append(ensemble.logprob("Mi", end=True).low - before)
    shares, rest = np.exp(onward), 1 - mixed[[*common, END]].sum()
    assert 0 < rest < 0.1 and len(common) > 60
    if mode == "full":
        np.testing.assert_allclose(shares, mixed[[*common, END]], rtol=1e-9)
        assert shares.sum() + rest == pytest.approx(1, abs=1e-12)
    else:
        assert (shares <= mixed[[*common, END]] + 1e-12).all()
        assert 0.99 < shares.sum() + rest < 1 - 1e-9


def test_bounds_contain_the_exact_score() -> None:
    draw, tried, widest = random.Random(0), 0, 0.0
    for weights in (WEIGHTS, (0.5, 0.5), (0.01, 0.99), "bayes"):
        for eps in (1e-4, 1e-2, 0.2):
            pruned = ik.Ensemble(members(), weights, eps=eps)
            wholes = draw.choices(TEXTS, k=5)
            cuts = [draw.randrange(min(len(whole), 6)) for whole in wholes]
            texts = [whole[cut:] for whole, cut in zip(wholes, cuts, strict=True)]
            prompts = [whole[:cut] for whole, cut in zip(wholes, cuts, strict=True)]
            end = draw.random() < 0.5
            bounds = pruned.logprob(texts, prompt=prompts, end=end)
            values = exact(weights).logprob(texts, prompt=prompts, end=end)
            for score, value in zip(bounds, values, strict=True):
                tried += 1
                for (low, high), (own, _) in zip(score.members, value.members, strict=True):
                    assert low - 1e-9 <= own <= high + 1e-9
                assert score.low - 1e-9 <= value.low <= score.high + 1e-9
                widest = max(widest, score.high - score.low)
    assert tried == 60 and widest > 1e-3


# What is asked for


def test_a_list_is_its_texts_alone() -> None:
    for weights in (WEIGHTS, "fixed_share"):
        ensemble = ik.Ensemble(members(), weights)
        prompts = ["", "Mia ", CHAT, "It was", "y = 2\n", ""]
        together = ensemble.logprob(TEXTS, prompt=prompts, end=True)
        for score, piece, prompt in zip(together, TEXTS, prompts, strict=True):
            single = ensemble.logprob(piece, prompt=prompt, end=True)
            assert score.low == pytest.approx(single.low, abs=1e-9)
            assert score.high == pytest.approx(single.high, abs=1e-9)
            assert score.length == single.length == len(piece.encode())
    one_for_all = ensemble.logprob(TEXTS[:2], prompt="Mia ")
    assert one_for_all[1].low == pytest.approx(ensemble.logprob(TEXTS[1], prompt="Mia ").low)


def test_each_member_reads_a_chat_in_its_own_template() -> None:
    score = exact(WEIGHTS).logprob("Tom ran.", prompt=CHAT)
    for (vocabulary, lm, canonical), (_, tokenizer), own in zip(
        slow_parts(), members(), score.members, strict=True
    ):
        ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
        special = max(place for place, id in enumerate(ids) if vocabulary.tokens[id] is None) + 1
        law = TokenLaw(lm, vocabulary, tuple(ids[:special]))
        slow = SlowReducer(law, vocabulary, "late", canonical)
        for byte in vocabulary.spell(ids[special:]):
            slow.advance(byte)
        before = slow.mass()
        for byte in b"Tom ran.":
            slow.advance(byte)
        assert own[0] == pytest.approx(math.log(slow.mass() / before), abs=1e-8)


def test_weights_go_along() -> None:
    for weights, prior in (("bayes", (0.5, 0.5)), (WEIGHTS, WEIGHTS)):
        out = exact(weights).generate("Mia ", max_new_tokens=20)
        record = out.steps[0]
        expected = np.array(prior)
        for given, shares in zip(record.weights, np.exp(record.logprobs), strict=True):
            np.testing.assert_allclose(given, expected, rtol=1e-9)
            if weights == "bayes":
                expected = expected * shares / (expected @ shares)
        score = exact(weights).logprob(out.text[: record.length], prompt="Mia ")
        np.testing.assert_allclose(np.sum(record.logprobs, 0), np.transpose(score.members)[0])
