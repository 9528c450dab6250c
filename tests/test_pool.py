"""The pool's tensor functions against float64 by other formulas, on random and extreme cases."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from infer_kit.pool import (
    KLBudgetWeights,
    Step,
    kl_divergence,
    mixture,
    plausible,
    product,
    solve_kl_budget,
)

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 4)


def _random(seed: int, r: int, k: int, n: int, v: int = 12, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(r, k, n, v, generator=generator) * spread).log_softmax(-1)


def _weights(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    w = torch.randn(*shape, generator=generator)
    w[torch.rand(*shape, generator=generator) < 0.2] = 0.0
    return w


def _exclude(seed: int, scores: Tensor, share: float = 0.3) -> Tensor:
    """−inf for some tokens; token 0 is never excluded."""
    generator = torch.Generator().manual_seed(seed + 2)
    excluded = torch.rand(scores.shape, generator=generator) < share
    excluded[..., 0] = False
    return scores.masked_fill(excluded, -torch.inf)


@quick
@given(seeds, sizes, sizes, sizes, st.booleans(), st.booleans())
def test_product_is_the_product_of_powers(
    seed: int, r: int, k: int, n: int, by_position: bool, excluding: bool
) -> None:
    scores = _random(seed, r, k, n)
    scores = _exclude(seed, scores) if excluding else scores
    weights = _weights(seed, *((r, k, n) if by_position else (r, k)))
    pooled = product(scores, weights)
    assert pooled.dtype == torch.float32 and not pooled.isnan().any()
    p = scores.double().exp()
    for i in range(r):
        for t in range(n):
            powers = torch.ones(p.shape[-1], dtype=torch.float64)
            for j in range(k):
                w = float(weights[i, j, t] if by_position else weights[i, j])
                if w:
                    powers = torch.where(p[i, j, t] == 0, 0.0, powers * p[i, j, t] ** w)
            expected = powers / powers.sum()
            ours = pooled[i, t].double().softmax(-1)
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


@quick
@given(seeds, sizes, sizes, sizes, st.booleans(), st.booleans())
def test_mixture_is_the_mean_of_probabilities(
    seed: int, r: int, k: int, n: int, by_position: bool, excluding: bool
) -> None:
    logprobs = _random(seed, r, k, n)
    if excluding:
        logprobs = _exclude(seed, logprobs).log_softmax(-1)
    raw = _weights(seed, *((r, k, n) if by_position else (r, k))).abs()
    raw[:, 0] += 0.1
    weights = raw / raw.sum(1, keepdim=True)
    ours = mixture(logprobs, weights)
    w = weights if by_position else weights[..., None].expand(-1, -1, n)
    expected = torch.einsum("rkn,rknv->rnv", w.double(), logprobs.double().exp())
    torch.testing.assert_close(ours.double().exp(), expected, atol=1e-6, rtol=0)
    assert not ours.isnan().any()
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(r, n), atol=1e-5, rtol=0)


@quick
@given(seeds, sizes, sizes)
def test_raw_logits_give_the_same_distribution_and_their_own_scale(
    seed: int, r: int, k: int
) -> None:
    r"""$\sum w_k l_k = \sum w_k \log p_k + \sum w_k \log Z_k$."""
    logprobs = _random(seed, r, k, 1)
    log_z = torch.randn(r, k, 1, 1, generator=torch.Generator().manual_seed(seed + 3)) * 5
    weights = _weights(seed, r, k)
    scaled = product(logprobs + log_z, weights)
    shift = (weights[..., None] * log_z[..., 0]).sum(1)
    torch.testing.assert_close(
        scaled, product(logprobs, weights) + shift[..., None], atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("weight", [-2.0, -1e-3, 1e-3, 1.0])
def test_excluded_stays_excluded_whatever_the_sign(weight: float) -> None:
    scores = torch.tensor([[0.0, -1.0, -2.0], [-torch.inf, -0.5, -torch.inf]])[None, :, None]
    pooled = product(scores, torch.tensor([[1.0, weight]]))[0, 0]
    assert pooled[[0, 2]].eq(-torch.inf).all()
    assert pooled[1].item() == pytest.approx(-1.0 - 0.5 * weight)


def test_a_stream_of_weight_zero_has_no_say() -> None:
    scores = torch.tensor([[0.0, -1.0], [-torch.inf, -torch.inf]])[None, :, None]
    pooled = product(scores, torch.tensor([[1.0, 0.0]]))
    assert torch.equal(pooled, scores[:, 0])
    mixed = mixture(scores, torch.tensor([[1.0, 0.0]]))
    assert torch.equal(mixed, scores[:, 0])


def test_zero_weights_in_some_rows_and_positions_only() -> None:
    scores = torch.zeros(2, 2, 2, 3)
    scores[:, 1, :, 0] = -torch.inf
    weights = torch.tensor([[[1.0, 1.0], [0.0, -1.0]], [[1.0, 1.0], [2.0, 0.0]]])
    pooled = product(scores, weights)
    assert pooled.isneginf()[..., 0].tolist() == [[False, True], [True, False]]
    assert not pooled.isnan().any()


def test_unguarded_sum_where_all_weights_are_positive() -> None:
    scores = _exclude(5, _random(5, 3, 4, 2))
    weights = _weights(5, 3, 4).abs() + 0.1
    torch.testing.assert_close(
        product(scores, weights, signed=False), product(scores, weights, signed=True)
    )


@pytest.mark.parametrize("pool", [product, mixture])
def test_inputs_are_left_alone(pool) -> None:
    scores, weights = _exclude(1, _random(1, 2, 3, 2)), torch.full((2, 3), 1 / 3)
    before = scores.clone(), weights.clone()
    pool(scores, weights)
    assert torch.equal(scores, before[0]) and torch.equal(weights, before[1])


def test_one_stream_of_weight_one_is_itself() -> None:
    scores = _random(2, 3, 1, 2)
    assert torch.equal(product(scores, torch.ones(3, 1)), scores[:, 0])
    torch.testing.assert_close(mixture(scores, torch.ones(3, 1)), scores[:, 0])


# A weight that spends a budget of divergence


def _pair(seed: int, r: int = 3, n: int = 2, v: int = 20) -> tuple[Tensor, Tensor]:
    both = _random(seed, r, 2, n, v, spread=2.0)
    return both[:, 0], both[:, 1]


def _kl(weight: float, base: Tensor, other: Tensor) -> float:
    """KL of the normalised product from the base, in float64, by definition."""
    base, other = base.double(), other.double()
    pi = torch.exp(base + weight * other)
    pi = pi / pi.sum()
    terms = torch.where(pi > 0, pi * (pi.log() - base), 0.0)
    return float(terms.sum())


@quick
@given(seeds, st.floats(0.0, 8.0))
def test_divergence_and_its_slope(seed: int, weight: float) -> None:
    base, other = _pair(seed)
    step = 1e-4
    value, slope = kl_divergence(
        torch.full((3, 2), weight, dtype=torch.float64), base.double(), other.double()
    )
    for i in range(3):
        for t in range(2):
            pair = base[i, t], other[i, t]
            assert value[i, t].item() == pytest.approx(_kl(weight, *pair), abs=1e-9)
            numeric = (_kl(weight + step, *pair) - _kl(weight - step, *pair)) / (2 * step)
            assert slope[i, t].item() == pytest.approx(numeric, abs=1e-5)
            assert slope[i, t] >= 0


@quick
@given(seeds, st.floats(1e-3, 3.0))
def test_the_budget_is_spent_exactly_where_it_can_be(seed: int, budget: float) -> None:
    base, other = _pair(seed)
    weight = solve_kl_budget(base, other, budget)
    assert weight.dtype == torch.float32 and weight.shape == (3, 2)
    for i in range(3):
        for t in range(2):
            reached = _kl(float(weight[i, t]), base[i, t], other[i, t])
            if weight[i, t] == 100.0:
                assert _kl(100.0, base[i, t], other[i, t]) <= budget + 1e-4
            else:
                assert reached == pytest.approx(budget, abs=1e-4)


def test_a_larger_budget_gives_a_larger_weight() -> None:
    base, other = _pair(11)
    weights = [solve_kl_budget(base, other, budget) for budget in (0.01, 0.1, 0.5, 1.0)]
    for smaller, larger in itertools.pairwise(weights):
        assert (smaller < larger).all()


def test_a_budget_out_of_reach_gives_the_largest_weight() -> None:
    base, other = _pair(12)
    limit = -base.gather(-1, other.argmax(-1, keepdim=True)).squeeze(-1)
    assert (solve_kl_budget(base, other, float(limit.max()) + 1.0) == 100.0).all()
    assert (solve_kl_budget(base, other, 50.0, max_weight=7.0) == 7.0).all()
    flat = torch.full((1, 1, 20), -math.log(20.0))
    assert (solve_kl_budget(base[:1, :1], flat, 0.1) == 100.0).all()  # the other has no opinion


def test_a_budget_with_excluded_tokens() -> None:
    """Tokens that the other excludes are excluded at any weight above 0."""
    base, other = _pair(13)
    other = _exclude(13, other).log_softmax(-1)
    weight = solve_kl_budget(base, other, 1.5)
    assert weight.isfinite().all()
    reachable = weight < 100.0
    assert reachable.any()
    for i, t in reachable.nonzero().tolist():
        reached = _kl(float(weight[i, t]), base[i, t], other[i, t])
        at_zero = _kl(1e-9, base[i, t], other[i, t])  # what exclusion alone costs
        assert reached == pytest.approx(max(1.5, at_zero), abs=1e-4)


@pytest.mark.parametrize("budget", [1e-3, 0.3, 1.0])
def test_extreme_pairs_are_solved(budget: float) -> None:
    """Peaked, flat and opposed distributions."""
    peaked = torch.tensor([30.0, *[0.0] * 19]).log_softmax(-1)
    other = torch.tensor([*[0.0] * 19, 30.0]).log_softmax(-1)
    flat = torch.zeros(20).log_softmax(-1)
    for base, rationale in ((peaked, other), (flat, peaked), (peaked, flat), (flat, flat)):
        weight = float(solve_kl_budget(base[None, None], rationale[None, None], budget))
        assert 0 <= weight <= 100.0
        if weight < 100.0:
            assert _kl(weight, base, rationale) == pytest.approx(budget, abs=1e-4)


def _step(seed: int, streams: int = 2) -> Step:
    return Step(_random(seed, 3, streams, 2, 20, spread=2.0), torch.arange(2), torch.arange(3))


def _exponents_kl(weights: Tensor, start: Tensor, logprobs: Tensor) -> float:
    """KL of Π p_k^{w_k} / Z from Π p_k^{b_k} / Z by definition, float64; logprobs `[K, V]`."""
    powers = [(w.double()[:, None] * logprobs.double()).sum(0) for w in (weights, start)]
    pi, base = (power - power.logsumexp(0) for power in powers)
    return float((pi.exp() * (pi - base)).sum())


@quick
@given(
    seeds,
    st.floats(0.01, 1.0),
    st.sampled_from([([1, 0], [1, -1]), ([1, 0], [0, 1]), ([1, 0], [1, -2]), ([0.5, 0.5], [1, -1]),
                     ([2, 0, 0], [2, -1, -1]), ([1, 0.5, 0], [0, 0, 1])]),
)  # fmt: skip
def test_weights_that_spend_a_budget(seed: int, budget: float, line: Any) -> None:
    base, direction = (torch.tensor(values, dtype=torch.float32) for values in line)
    step = _step(seed, len(base))
    weights = KLBudgetWeights(budget, *line)(step)
    assert weights.shape == (3, len(base), 2) and weights.dtype == torch.float32
    moved = direction != 0
    for r in range(3):
        for t in range(2):
            given_up = weights[r, :, t] - base
            s = float((given_up[moved] / direction[moved]).mean())
            assert s > 0
            torch.testing.assert_close(given_up, s * direction, atol=1e-4, rtol=1e-5)
            spent = _exponents_kl(base + s * direction, base, step.logprobs[r, :, t])
            if s < 99.9:
                assert spent == pytest.approx(budget, abs=1e-4 + 1e-4 * s)
            else:
                assert spent <= budget + 1e-3


# The plausibility cut-off


@quick
@given(seeds, sizes, sizes, st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.booleans(), st.booleans())
def test_plausible_tokens_one_by_one(
    seed: int, r: int, n: int, beta: float, excluding: bool, raw: bool
) -> None:
    pooled, expert = _random(seed, r, 1, n)[:, 0], _random(seed + 9, r, 1, n)[:, 0]
    if excluding:
        expert = _exclude(seed, expert[:, None])[:, 0]
        pooled = _exclude(seed + 4, pooled[:, None])[:, 0]
    shift = 7.5 if raw else 0.0  # logits do as well as log-probabilities
    before = pooled.clone(), expert.clone()
    ours = plausible(pooled, expert + shift, beta)
    assert torch.equal(pooled, before[0]) and torch.equal(expert, before[1])
    removed = 0
    for i in range(r):
        for t in range(n):
            p = expert[i, t].double().exp().tolist()
            best = max(p)
            for v in range(len(p)):
                if abs(p[v] - beta * best) < 1e-5 * best and p[v] != best:
                    continue  # on the edge, where rounding decides
                kept = p[v] >= beta * best
                removed += not kept
                expected = pooled[i, t, v] if kept else torch.tensor(-torch.inf)
                assert torch.equal(ours[i, t, v], expected)
            assert not ours[i, t].isnan().any()
    assert removed or beta < 0.5
    if beta == 1.0:
        best = expert.argmax(-1, keepdim=True)
        assert torch.equal(ours.isfinite(), torch.zeros_like(ours, dtype=torch.bool).scatter(
            -1, best, pooled.gather(-1, best).isfinite()))  # fmt: skip


def test_equally_good_tokens_stay_at_a_cut_off_of_one() -> None:
    expert = torch.tensor([1.0, 2.0, 2.0])[None, None]
    kept = plausible(torch.zeros(1, 1, 3), expert, 1.0)[0, 0]
    assert kept.tolist() == [-torch.inf, 0.0, 0.0]
