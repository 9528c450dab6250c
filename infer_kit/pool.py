r"""How the next-token distributions of several streams become one.

Pure tensor functions, shared by every backend; this module imports torch alone.

Shape suffixes: R rows (one a sequence being written), K streams, n positions, V tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PoolFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """What a weight function sees when the weights depend on the step.

    Attributes:
        logprobs: `[R, K, n, V]` float32, log p_k of each stream at each position.
        position: `[n]` int64, index of the token being chosen; 0 is the first new token.
        request: `[R]` int64, the request (row of `rows`) that each sequence belongs to.
    """

    logprobs: Tensor
    position: Tensor
    request: Tensor


WeightFunction = Callable[[Step], Tensor]


def product(scores: Tensor, weights: Tensor, *, signed: bool = True) -> Tensor:
    r"""Weighted product of experts, not normalised: $\sum_k w_k s_k$.

    With $s_k = \log p_k$ it is $\log \prod_k p_k^{w_k}$ up to the constant $\log Z$. With raw
    logits it is the same distribution at the scale of raw logits, because
    $\sum_k w_k \log p_k + \sum_k w_k \log\sum e^{l_k} = \sum_k w_k l_k$; the engine uses that.

    A token that some stream with weight excludes ($s_k = -\infty$) stays excluded whatever the
    sign of the weight, and a stream of weight 0 has no say (0 · ∞ is never formed).

    Args:
        scores: `[R, K, n, V]` log-probabilities or logits, −inf allowed.
        weights: `[R, K]` or `[R, K, n]`, any sign.
        signed: False promises that every weight is positive, or its scores finite; the guard
            against −inf is then not needed and skipped.

    Returns:
        `[R, n, V]` in the dtype of `scores`.
    """
    if not signed:
        return _weighted_sum(scores, weights)
    excluded = torch.isneginf(scores)
    has_weight = (_by_position(weights, scores) != 0)[..., None]
    pooled = _weighted_sum(scores.masked_fill(excluded, 0.0), weights)
    return pooled.masked_fill((excluded & has_weight).any(1), -torch.inf)


def mixture(logprobs: Tensor, weights: Tensor) -> Tensor:
    r"""Weighted arithmetic mean of the distributions: $\log \sum_k w_k p_k$.

    Args:
        logprobs: `[R, K, n, V]` normalised log-probabilities, −inf allowed.
        weights: `[R, K]` or `[R, K, n]`, non-negative, summing to 1 over the streams.

    Returns:
        `[R, n, V]` normalised log-probabilities.
    """
    return torch.logsumexp(_by_position(weights, logprobs).log()[..., None] + logprobs, dim=1)


def plausible(pooled: Tensor, expert: Tensor, cutoff: float) -> Tensor:
    r"""Pooled scores with the tokens that an expert finds implausible excluded.

    Token v stays iff $\log p_0(v) \ge \log \beta + \max_u \log p_0(u)$ (Li et al., "Contrastive
    Decoding", ACL 2023, eq. 2, there α): a contrast of distributions is meaningless where both are
    tiny.

    Args:
        pooled: `[R, n, V]` scores.
        expert: `[R, n, V]` logits or log-probabilities of the expert.
        cutoff: β in (0, 1]; 1 keeps the expert's best token alone.

    Returns:
        `[R, n, V]`, −inf where excluded.
    """
    floor = expert.amax(-1, keepdim=True) + math.log(cutoff)
    return pooled.masked_fill(expert < floor, -torch.inf)


def kl_divergence(weight: Tensor, base: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    r"""KL of the product $\pi_\lambda \propto p_x p_r^\lambda$ from $p_x$, with its slope.

    $\log p_r$ may be any score of the tokens, such as the difference of two log-probabilities.

    $\mathrm{KL}(\pi_\lambda \| p_x) = \lambda E_{\pi_\lambda}[\log p_r] - \log Z_\lambda$, and its
    derivative in λ is $\lambda \mathrm{Var}_{\pi_\lambda}(\log p_r) \ge 0$.

    Args:
        weight: λ, any leading shape `[...]`.
        base: log p_x, `[..., V]`. other: log p_r, `[..., V]`.

    Returns:
        The divergence in nats and its derivative, both `[...]`.
    """
    excluded = torch.isneginf(other)
    reward = other.masked_fill(excluded, 0.0)  # where excluded, pi is 0 and the value is moot
    joint = (base + weight[..., None] * reward).masked_fill(excluded, -torch.inf)
    log_z = torch.logsumexp(joint, dim=-1)
    pi = (joint - log_z[..., None]).exp()
    mean = (pi * reward).sum(-1)
    variance = (pi * (reward - mean[..., None]).square()).sum(-1)
    return weight * mean - log_z, weight * variance


def solve_kl_budget(
    base: Tensor, other: Tensor, budget: float, max_weight: float = 100.0, tolerance: float = 1e-6
) -> Tensor:
    r"""The λ for which $\mathrm{KL}(\pi_\lambda \| p_x)$ equals a budget.

    The divergence rises with λ towards $-\log p_x(\arg\max p_r)$, so λ is unique where the
    budget is below that; elsewhere `max_weight` is returned. Newton steps inside a bracket, which
    fall back to bisection; float64 inside.

    Args:
        base: log p_x, `[R, n, V]`. other: log p_r, same shape.
        budget: nats a token, positive.
        max_weight: the largest λ that is returned.
        tolerance: how near the divergence comes to the budget, in nats.

    Returns:
        λ, `[R, n]` float32.
    """
    base, other = base.double(), other.double()
    low = torch.zeros(base.shape[:-1], dtype=base.dtype, device=base.device)
    high = torch.full_like(low, max_weight)
    reachable = kl_divergence(high, base, other)[0] > budget
    weight = torch.ones_like(low)
    for step in range(100):
        divergence, slope = kl_divergence(weight, base, other)
        gap = divergence - budget
        asked = step % 4 == 3  # the host reads the device seldom: each read stalls a GPU
        if asked and not bool((reachable & (gap.abs() > tolerance)).any()):
            break
        low = torch.where(gap < 0, weight, low)
        high = torch.where(gap < 0, high, weight)
        newton = weight - gap / slope
        inside = (newton > low) & (newton < high)  # False where the slope is 0 or NaN
        weight = torch.where(inside, newton, (low + high) / 2)
    return torch.where(reachable, weight, max_weight).float()


@dataclass(frozen=True)
class KLBudgetWeights:
    r"""Weights $w = w_0 + s d$ with s solved at every position for a KL budget.

    $\mathrm{KL}(\pi_s \| \pi_0) = $ `budget` nats, where $\pi_s \propto \prod_k p_k^{w_k}$; see
    `solve_kl_budget`. A `WeightFunction`.

    Attributes:
        budget: nats a token, positive.
        base: $w_0$, one a stream. direction: d, one a stream.
    """

    budget: float
    base: tuple[float, ...]
    direction: tuple[float, ...]

    def __call__(self, step: Step) -> Tensor:
        """`[R, K, n]` weights of a step."""
        rows = step.logprobs.shape[0]
        start, d = (
            step.logprobs.new_tensor(v).expand(rows, -1) for v in (self.base, self.direction)
        )
        pi_0 = product(step.logprobs, start).log_softmax(-1)
        solved = solve_kl_budget(pi_0, product(step.logprobs, d), self.budget)
        return start[..., None] + solved[:, None] * d[..., None]


def _by_position(weights: Tensor, scores: Tensor) -> Tensor:
    """`[R, K]` or `[R, K, n]` weights as `[R, K, n]`."""
    if weights.dim() == 2:
        weights = weights[..., None]
    return weights.expand(-1, -1, scores.shape[2])


def _weighted_sum(scores: Tensor, weights: Tensor) -> Tensor:
    """`sum_k w_k s_k` in one pass over the scores, without a [R, K, n, V] temporary."""
    w = _by_position(weights, scores)[..., None]
    pooled = scores[:, 0] * w[:, 0]
    for k in range(1, scores.shape[1]):
        pooled.addcmul_(scores[:, k], w[:, k])
    return pooled
