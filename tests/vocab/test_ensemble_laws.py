"""Laws of ensembles over bytes: the order of members, equal members, members of weight 0."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import infer_kit as ik
from infer_kit.demo import text
from tests.vocab.taught import Member, counted

WEIGHTS = (0.7, 0.3)
TEXT = "Mia and the fox ran."
TEXTS = [TEXT, "The fox ate 3 fish!", "Où est le café?", "x = [1, 2]", "清晨"]

pytestmark = pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")


@cache
def members() -> list[Member]:
    """The models that ship, in float64."""
    return [(model.double(), tokenizer) for model, tokenizer in map(text.load, text.NAMES)]


def swapped(given: Sequence[Any]) -> list[Any]:
    return list(given)[::-1]


@pytest.mark.parametrize(
    ("weights", "pool"),
    [(WEIGHTS, "mixture"), ((1.5, -0.25), "product"), ("bayes", "mixture"), ("entropy", "mixture")],
    ids=str,
)
def test_the_order_of_members_changes_nothing(weights: Any, pool: str) -> None:
    own = ik.Ensemble(members(), weights, pool)
    turned = weights if isinstance(weights, str) else swapped(weights)
    other = ik.Ensemble(swapped(members()), turned, pool)
    np.testing.assert_allclose(other.law("Mia "), own.law("Mia "), atol=1e-12)
    for mine, theirs in zip(own.logprob(TEXTS), other.logprob(TEXTS), strict=True):
        assert theirs.low == pytest.approx(mine.low, abs=1e-9)
        np.testing.assert_allclose(theirs.members, swapped(mine.members))
    written = [lm.generate("Mia ", max_new_tokens=30).text for lm in (own, other)]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("weights", "pool"),
    [
        ((0.4, 0.6), "mixture"),
        ((0.4, 0.6), "product"),
        ("bayes", "mixture"),
        ("entropy", "mixture"),
    ],
    ids=str,
)
def test_equal_members_are_one(weights: Any, pool: str) -> None:
    member, twin = members()[0], copy.deepcopy(members()[0])
    alone = ik.ReducedLM(*member, eps=0)
    both = ik.Ensemble([member, twin], weights, pool, "bytes", eps=0)
    np.testing.assert_allclose(both.law("Mia "), alone.law("Mia "), atol=1e-12)
    written = [lm.generate("Mia ", max_new_tokens=30).text for lm in (both, alone)]
    assert written[0] == written[1]
    if pool == "mixture":
        for mine, theirs in zip(alone.logprob(TEXTS), both.logprob(TEXTS), strict=True):
            assert theirs.low == pytest.approx(mine.low, abs=1e-9)


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_a_member_of_weight_0_is_never_run(pool: str) -> None:
    ensemble = ik.Ensemble(members(), [0, 1], pool)
    alone = ik.ReducedLM(*members()[1])
    with counted(members()) as calls:
        out = ensemble.generate("Mia ", max_new_tokens=20)
        score = ensemble.logprob(TEXT)
        law = ensemble.law("Mia ")
    assert calls[0] == 0 < calls[1]
    assert len(out.calls) == len(score.members) == 1
    assert out.text == alone.generate("Mia ", max_new_tokens=20).text
    assert score.members == alone.logprob(TEXT).members
    np.testing.assert_allclose(law, alone.law("Mia "), atol=1e-12)


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("prefetch", [None, 0.02])
def test_texts_to_score_need_no_more_forwards_than_the_longest(
    member: int, prefetch: float | None
) -> None:
    """A text that waits does so until all wait."""
    lm = ik.ReducedLM(*members()[member], prefetch=prefetch)
    alone = [lm.logprob(piece).calls[0] for piece in TEXTS]
    assert min(alone) < max(alone)
    assert lm.logprob(TEXTS)[0].calls[0] == max(alone)
