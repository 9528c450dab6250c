"""Random weights as a function of (seed, name, position, generation): one bit pattern everywhere.

PyTorch's generators promise no equal numbers across releases, platforms or devices, so a ticket
that is stored as a seed cannot rest on them. These numbers are a counter through the finaliser of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
in integer arithmetic that every device does alike:

    key(seed, name) = little-endian int64 of blake2b("seed/name", 8 bytes)
    bits(i, gen)    = mix(mix(i G + key) + gen G)   modulo 2^64
    u               = (bits >>> 40) 2^-24           exact in float32

i is the flat position in the tensor; `gen` counts how often that weight was drawn anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Protocol

import torch
from torch import Tensor

RNG_VERSION = 1
"""Changes whenever one of these functions would give another number."""


def _int64(number: int) -> int:
    """The int64 that is congruent to a number modulo 2^64."""
    number %= 1 << 64
    return number - (1 << 64) if number >> 63 else number


_GOLDEN = _int64(0x9E3779B97F4A7C15)
_MIX_1 = _int64(0xBF58476D1CE4E5B9)
_MIX_2 = _int64(0x94D049BB133111EB)
_CHUNK = 1 << 20


def key(seed: int, name: str) -> int:
    """The int64 that tells the numbers of one tensor under one seed from all others."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _right(z: Tensor, by: int) -> Tensor:
    """Logical shift: `>>` of int64 copies the sign, which is masked off."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _right(z, 30)) * _MIX_1
    z = (z ^ _right(z, 27)) * _MIX_2
    return z ^ _right(z, 31)


def bits(seed: int, name: str, index: Tensor | int, gen: Tensor | int = 0) -> Tensor:
    """64 random bits for each position.

    Args:
        seed, name: of the tensor. index: int64 flat positions, any shape. gen: the generation, one
            for all or int of index's shape.

    Returns:
        int64 of index's shape, on its device; as unsigned numbers they are uniform in [0, 2^64).
    """
    i = torch.as_tensor(index, dtype=torch.int64)
    g = gen.to(torch.int64) * _GOLDEN if isinstance(gen, Tensor) else _int64(gen * _GOLDEN)
    return _mix(_mix(i * _GOLDEN + key(seed, name)) + g)


def uniform(seed: int, name: str, index: Tensor | int, gen: Tensor | int = 0) -> Tensor:
    """float32 in [0, 1), multiples of 2^-24; see `bits` for the arguments."""
    return _right(bits(seed, name, index, gen), 40).to(torch.float32) * 2.0**-24


def ascending(seed: int, name: str, n: int) -> Tensor:
    """`[n]` positions 0..n-1 in the stable order of their bits as unsigned numbers, on the CPU."""
    signed = bits(seed, name, torch.arange(n))
    return torch.sort(signed ^ _int64(1 << 63), stable=True).indices


class Numbers(Protocol):
    """The numbers of a distribution at int64 positions, float32, in one generation or one each."""

    def __call__(
        self, seed: int, name: str, i: Tensor, gen: Tensor | int, fan_in: int
    ) -> Tensor: ...


@dataclass(frozen=True)
class Distribution:
    """A distribution of initial weights.

    Attributes:
        name: of it. numbers: what it draws. portable: whether every machine and device draws the
            same bits; what is not is drawn on the CPU.
    """

    name: str
    numbers: Numbers
    portable: bool = True

    def __call__(
        self,
        seed: int,
        name: str,
        shape: Sequence[int],
        gen: Tensor | int = 0,
        *,
        index: Tensor | None = None,
        fan_in: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The weights of a tensor, in chunks that stay small in memory.

        Args:
            seed, name, shape: of the tensor. gen: one for all, or one for each number drawn.
            index: draw only these flat positions. fan_in: prod(shape[1:]) if not given.
            device: of what is returned, if no index tells.

        Returns:
            float32 of `shape`, or of index's shape.
        """
        where = torch.device(device or "cpu") if index is None else index.device
        at = where if self.portable else torch.device("cpu")
        flat = None if index is None else index.flatten().to(at)
        gens = gen.flatten().to(at) if isinstance(gen, Tensor) else None
        count = prod(shape) if flat is None else flat.numel()
        out = torch.empty(count, dtype=torch.float32, device=at)
        for start in range(0, count, _CHUNK):
            end = min(start + _CHUNK, count)
            i = torch.arange(start, end, device=at) if flat is None else flat[start:end]
            g = gen if gens is None else gens[start:end]
            out[start:end] = self.numbers(seed, name, i, g, fan_in or fan_in_of(shape))
        return out.to(where).view(tuple(shape) if index is None else index.shape)


def _kaiming_uniform(seed: int, name: str, i: Tensor, gen: Tensor | int, fan_in: int) -> Tensor:
    # 2 u - 1 is exact in float32, so that the product is rounded once, on every device alike.
    return (2 * uniform(seed, name, i, gen) - 1) * float32(sqrt(6 / fan_in))


def _signed_constant(seed: int, name: str, i: Tensor, gen: Tensor | int, fan_in: int) -> Tensor:
    return (1 - 2 * (bits(seed, name, i, gen) & 1)).to(torch.float32) * float32(sqrt(2 / fan_in))


def _kaiming_normal(seed: int, name: str, i: Tensor, gen: Tensor | int, fan_in: int) -> Tensor:
    # In float64, by the inverse of the distribution function, which IEEE 754 does not fix.
    u = (_right(bits(seed, name, i, gen), 11).to(torch.float64) + 0.5) * 2.0**-53
    return (torch.special.ndtri(u) * sqrt(2 / fan_in)).to(torch.float32)


kaiming_uniform = Distribution("kaiming_uniform", _kaiming_uniform)
"""U(-b, b) with b = sqrt(6 / fan_in): the Kaiming bound for ReLU."""

signed_constant = Distribution("signed_constant", _signed_constant)
"""±sqrt(2 / fan_in) with even odds."""

kaiming_normal = Distribution("kaiming_normal", _kaiming_normal, portable=False)
"""N(0, 2 / fan_in)."""

INITS = {d.name: d for d in (kaiming_uniform, signed_constant, kaiming_normal)}
"""Distributions by name."""


def fan_in_of(shape: Sequence[int]) -> int:
    """Inputs of one output of a layer whose weight is `[out, in, ...]`."""
    return max(1, prod(shape[1:]))


def float32(value: float) -> float:
    """Rounded once, here, so that no device rounds it in its own way."""
    return torch.tensor(value, dtype=torch.float64).to(torch.float32).item()
