"""Weights of members: posteriors, their regret, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infer_kit.errors import InferKitError
from infer_kit.vocab.trie import Float
from infer_kit.vocab.weighting import Weighting, make_weighting

PRIOR = (0.5, 0.3, 0.2)


def laws_of(members: int, steps: int, seed: int = 0) -> Float:
    """[steps, members] probabilities that members give the symbols of a text."""
    return np.random.default_rng(seed).uniform(0.01, 0.9, (steps, members))


def log_loss(weighting: Weighting, likelihoods: Float) -> float:
    """Of the mixture with these weights, in nats."""
    weights, loss = weighting.start(), 0.0
    logprobs = np.zeros(len(weights))
    for row in likelihoods:
        weights = weighting.at(weights, row[:, None])
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)
        loss -= math.log(weights @ row)
        logprobs = logprobs + np.log(row)
        weights = weighting.after(weights, row, logprobs)
    return loss


def test_bayes_is_the_posterior_and_the_mixture_of_whole_texts() -> None:
    likelihoods = laws_of(3, 40)
    weighting = Weighting(PRIOR, "bayes")
    weights = weighting.start()
    for step, row in enumerate(likelihoods):
        joint = np.array(PRIOR) * likelihoods[:step].prod(0)
        np.testing.assert_allclose(weights, joint / joint.sum(), rtol=1e-10)
        so_far = np.log(likelihoods[: step + 1]).sum(0)
        weights = weighting.after(weights, row, so_far)
    whole = -math.log(PRIOR @ likelihoods.prod(0))
    assert log_loss(weighting, likelihoods) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_bayes_loses_little_against_the_best_member(seed: int) -> None:
    likelihoods = laws_of(3, 60, seed)
    likelihoods[:, seed % 3] = likelihoods[:, seed % 3] ** 0.3  # one is better
    loss = log_loss(Weighting(PRIOR, "bayes"), likelihoods)
    for member, prior in enumerate(PRIOR):
        assert loss <= -np.log(likelihoods[:, member]).sum() - math.log(prior) + 1e-9


def test_fixed_share_follows_a_change_of_the_best_member() -> None:
    rate, steps = 0.02, 200
    likelihoods = np.full((steps, 2), 0.05)
    likelihoods[:100, 0] = likelihoods[100:, 1] = 0.8
    prior = (0.5, 0.5)
    shared = Weighting(prior, "fixed_share", rate)
    loss = log_loss(shared, likelihoods)
    # Herbster and Warmuth: the best sequence of members with one change costs no more than this.
    best = -steps * math.log(0.8)
    allowed = math.log(2) - (steps - 2) * math.log(1 - rate / 2) - math.log(rate / 2)
    assert loss <= best + allowed
    assert loss < log_loss(Weighting(prior, "bayes"), likelihoods) - 100
    weights = shared.start()
    for row in likelihoods[:100]:
        posterior = weights * row / (weights @ row)
        weights = shared.after(weights, row, row)
        np.testing.assert_allclose(weights, (1 - rate) * posterior + rate * 0.5, rtol=1e-12)
    assert weights.min() == pytest.approx(rate / 2, rel=0.1)  # none is ever given up


def test_without_switching_fixed_share_is_bayes() -> None:
    likelihoods = laws_of(3, 30)
    one, two = Weighting(PRIOR, "fixed_share", 0.0), Weighting(PRIOR, "bayes")
    assert log_loss(one, likelihoods) == pytest.approx(log_loss(two, likelihoods), rel=1e-12)


def test_entropy_prefers_the_surer_member() -> None:
    laws = np.array([[0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01], [1.0, 0.0, 0.0, 0.0]])
    weights = Weighting(PRIOR, "entropy").at(np.array(PRIOR), laws)
    entropy = [-sum(p * math.log(p) for p in law if p > 0) for law in laws]
    expected = np.array(PRIOR) * np.exp(-np.array(entropy))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-12)
    assert Weighting(PRIOR, "entropy").needs_laws and not Weighting(PRIOR, "bayes").needs_laws
    after = Weighting(PRIOR, "entropy").after(weights, laws[:, 0], laws[:, 0])
    np.testing.assert_array_equal(after, weights)


def test_fixed_weights_stay() -> None:
    weighting = Weighting(PRIOR)
    likelihoods = np.array([0.1, 0.9, 0.5])
    weights = weighting.after(weighting.start(), likelihoods, np.log(likelihoods))
    np.testing.assert_array_equal(weighting.at(weights, laws_of(3, 3)), PRIOR)


def test_underflow_of_all_members_teaches_nothing() -> None:
    weighting = Weighting(PRIOR, "fixed_share", 0.1)
    after = weighting.after(np.array(PRIOR), np.zeros(3), np.full(3, -np.inf))
    np.testing.assert_array_equal(after, PRIOR)


def test_a_member_far_behind_comes_back() -> None:
    """Weights of e^-900 are no number of float64; the posterior remembers them."""
    weighting = Weighting((0.5, 0.5), "bayes")
    behind = weighting.after(weighting.start(), np.ones(2), np.array([-100.0, -1000.0]))
    np.testing.assert_array_equal(behind, [1.0, 0.0])
    level = weighting.after(behind, np.ones(2), np.array([-1900.0, -1900.0]))
    np.testing.assert_allclose(level, [0.5, 0.5])


def test_a_function_gives_the_weights_of_each_step() -> None:
    seen = []

    def rule(laws: Float, prior: Float) -> Float:
        seen.append(prior)
        return laws[:, 0] / laws[:, 0].sum()

    weighting = make_weighting(rule, 3, "mixture", None)
    laws = laws_of(4, 3)
    np.testing.assert_allclose(weighting.at(weighting.start(), laws), laws[:, 0] / laws[:, 0].sum())
    np.testing.assert_allclose(seen[0], 1 / 3)
    wrong = make_weighting(lambda laws, prior: prior[:2], 3, "mixture", None)
    with pytest.raises(InferKitError, match=r"returned shape \[2\]; expected \[3\]"):
        wrong.at(wrong.start(), laws)
    endless = make_weighting(lambda laws, prior: prior / 0.0 * 0.0, 3, "mixture", None)
    with np.errstate(all="ignore"), pytest.raises(InferKitError, match="finite weights"):
        endless.at(endless.start(), laws)


def test_default_weights() -> None:
    assert make_weighting(None, 4, "mixture", None).prior == (0.25,) * 4
    assert make_weighting(None, 4, "product", None).prior == (1.0,) * 4
    assert make_weighting([2, 6], 2, "mixture", None).prior == (0.25, 0.75)
    assert make_weighting([2, -1], 2, "product", None).prior == (2.0, -1.0)
    assert make_weighting("bayes", 2, "mixture", None).rule == "bayes"
    shared = make_weighting("fixed_share", 2, "mixture", 0.3)
    assert shared.switching_rate == 0.3 and shared.prior == (0.5, 0.5)


@pytest.mark.parametrize(
    ("weights", "pool", "rate", "match"),
    [
        ([1], "mixture", None, "Got weights .* for 2 members"),
        ([1, math.nan], "mixture", None, "Got weights"),
        ([1, math.inf], "product", None, "Got weights"),
        ([1, -1], "mixture", None, "not negative"),
        ([0, 0], "mixture", None, "All weights are 0"),
        ("bayesian", "mixture", None, "Unknown weights 'bayesian'; expected .* bayes, fixed_share"),
        ("bayes", "product", None, "are those of a mixture, not of 'product'"),
        ("fixed_share", "mixture", 1.5, "switching_rate is 1.5"),
        (None, "mixture", 0.1, "switching_rate is that of weights='fixed_share'"),
    ],
)
def test_refused(weights: object, pool: str, rate: float, match: str) -> None:
    with pytest.raises(InferKitError, match=match):
        make_weighting(weights, 2, pool, rate)
