"""Slow, obvious counterparts of the package: Python integers, sorted lists, layers of one's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bits(seed: int, name: str, i: int, gen: int = 0) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    return mix((mix((i * GOLDEN + key) & MASK) + gen * GOLDEN) & MASK)


def weight(seed: int, name: str, i: int, gen: int, fan_in: int) -> float:
    """One number of kaiming_uniform, in float32."""
    u = torch.tensor((bits(seed, name, i, gen) >> 40) * 2.0**-24, dtype=torch.float32)
    bound = torch.tensor(math.sqrt(6 / fan_in), dtype=torch.float32)
    return float((2 * u - 1) * bound)


def layer_mask(scores: Tensor, p: float, signed: bool = True) -> Tensor:
    """IteRand's rule: the k-th smallest and all above are kept."""
    z = scores if signed else scores.abs()
    ranked = sorted(z.flatten().tolist())
    t = ranked[round(p * (len(ranked) - 1))]
    return torch.tensor([s >= t for s in z.flatten().tolist()]).view(scores.shape)


def global_masks(
    scores: Sequence[Tensor], frozen: Sequence[Tensor], sparsity: float
) -> list[Tensor]:
    """The rule of partially frozen networks."""
    ranked = []
    for s, f in zip(scores, frozen, strict=True):
        for value, kind in zip(s.flatten().tolist(), f.flatten().tolist(), strict=True):
            ranked.append({-1: -math.inf, 0: abs(value), 1: math.inf}[kind])
    ranked.sort()
    k = int(len(ranked) * sparsity)
    t = ranked[k - 1] if k else -1.0
    out = []
    for s, f in zip(scores, frozen, strict=True):
        mask = [
            {-1: False, 0: abs(value) > t, 1: True}[kind]
            for value, kind in zip(s.flatten().tolist(), f.flatten().tolist(), strict=True)
        ]
        out.append(torch.tensor(mask).view(s.shape))
    return out


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, mask):  # type: ignore[no-untyped-def]
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


class PlainLayer(nn.Module):
    """A masked linear layer written out: fixed weights, scores, one mask rule."""

    def __init__(self, weight: Tensor, scores: Tensor, p: float, c: float = 1.0) -> None:
        super().__init__()
        self.weight, self.p, self.c = weight.clone(), p, c
        self.scores = nn.Parameter(scores.clone())

    def forward(self, x: Tensor) -> Tensor:
        mask = layer_mask(self.scores.detach(), self.p)
        m = _Identity.apply(self.scores, mask)
        return x @ (self.weight * m * self.c).T
