r"""Scores of a base tilted by rewards: pure tensor functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.pool import product


def compose_logprobs(
    base: Tensor,
    rewards: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    beta: float = 1.0,
    vocab_size: int | None = None,
) -> Tensor:
    r"""$\log \pi = \mathrm{log\_softmax}(z + \beta \sum_i w_i r_i)$ over the first V ids.

    What the base excludes (−inf) stays excluded whatever the sign of a weight; a reward of weight 0
    has no say. Weights are not divided by their sum.

    Args:
        base: `[..., V_b]` z, logits or log-probabilities. rewards: each `[..., V_i]`.
        weights: $w_i$, of any sign; default 1 each.
        vocab_size: V; default: the smallest number of columns.

    Returns:
        `[..., V]` log-probabilities, float32 at least.

    Raises:
        InferKitError: fewer than V columns, or as many weights as rewards were not given.

    Source: equation 10 of arXiv 2502.12776; the sum over several rewards is ours.
    """
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    if len(weights) != len(rewards):
        raise InferKitError(f"Got {len(weights)} weights for {len(rewards)} rewards.")
    have = min(scores.shape[-1] for scores in (base, *rewards))
    size = have if vocab_size is None else vocab_size
    if have < size:
        raise InferKitError(f"Some scores have {have} columns, the vocabulary has {size} ids.")
    dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
    parts = [scores[..., :size].to(dtype) for scores in (base, *rewards)]
    shape = parts[0].shape
    stacked = torch.stack([part.expand(shape).reshape(1, -1, size) for part in parts], dim=1)
    signed = torch.tensor([[1.0, *(beta * weight for weight in weights)]], dtype=dtype)
    return product(stacked, signed.to(base.device))[0].reshape(shape).log_softmax(-1)


def compose_shared(
    base: Tensor, reward: Tensor, base_ids: Tensor, reward_ids: Tensor, beta: float = 1.0
) -> Tensor:
    r"""The same where the reward knows only some of the base's ids, under numbers of its own.

    The base is tilted inside the shared ids, whose mass together stays what the base gave it, and
    so does the mass of every other id. A reward of 0 for these would not be neutral: a reward is
    defined up to a constant.

    Args:
        base: `[..., V_b]` logits or log-probabilities. reward: `[..., V_r]`.
        base_ids, reward_ids: `[m]` the shared ids in both, in one order.

    Returns:
        `[..., V_b]` log-probabilities, float32 at least.
    """
    if base_ids.shape != reward_ids.shape or base_ids.dim() != 1:
        raise InferKitError(
            f"Got {list(base_ids.shape)} ids of the base and {list(reward_ids.shape)} of the "
            "reward; expected as many of each, in one order."
        )
    if len(base_ids.unique()) < len(base_ids):
        raise InferKitError("An id of the base is shared twice.")
    dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
    logprobs = base.to(dtype).log_softmax(-1)
    shared = logprobs[..., base_ids]
    tilted = shared + beta * reward.to(dtype)[..., reward_ids]
    tilted = tilted.masked_fill(shared.isneginf(), -torch.inf)
    mass = shared.logsumexp(-1, keepdim=True)
    out = logprobs.clone()
    out[..., base_ids] = torch.where(
        mass.isneginf(), shared, tilted - tilted.logsumexp(-1, keepdim=True) + mass
    )
    return out
