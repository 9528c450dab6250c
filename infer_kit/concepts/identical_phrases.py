"""Phrases with the same feature: solved as one, their weight shared out evenly."""

import torch
from torch import Tensor


def representatives(F: Tensor) -> Tensor:
    """`[B, K]`: for each row of `[B, K, d]` the number of the first row that is equal to it."""
    B, K, d = F.shape
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(d, generator=generator, dtype=F.dtype).to(F.device)
    # equal rows have equal sums up to rounding, and unequal rows hardly ever
    sums, order = (F @ direction).sort(dim=1)
    size = F.abs().amax((1, 2))[:, None]
    near = sums.diff(dim=1) <= 1e-12 * direction.norm() * size
    first = torch.arange(K, device=F.device).repeat(B, 1)
    for b, i in near.nonzero().tolist():  # seldom any
        one, other = order[b, i], order[b, i + 1]
        if torch.equal(F[b, one], F[b, other]):
            low, high = sorted((int(first[b, one]), int(first[b, other])))
            first[b, first[b] == high] = low
    return first


def shared_out(w: Tensor, first: Tensor) -> Tensor:
    """The weight `[B, K]` of each representative, in equal parts to the rows that it stands for."""
    members = torch.zeros_like(w).scatter_add_(1, first, torch.ones_like(w))
    return (w / members.clamp_min(1)).gather(1, first)
