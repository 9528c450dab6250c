"""Lasso problems of many kinds, and slow solvers to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("gaussian", "common mean", "duplicates", "unequal lengths", "near duplicates")


@dataclass(frozen=True)
class Case:
    """Phrases `[K, d]`, an image `[d]`, λ, and whether weights are ≥ 0; float64."""

    kind: str
    F: Tensor
    v: Tensor
    lam: float
    positive: bool

    def __str__(self) -> str:
        K, d = self.F.shape
        return f"{self.kind}, K={K}, d={d}, λ={self.lam:.1e}, positive={self.positive}"


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def cases(
    n: int, seed: int = 0, phrases: int = 200, dimensions: int = 48, smallest: float = 1e-5
) -> Iterator[Case]:
    """Random problems; λ is between `smallest` and 1 times λ_max."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    for trial in range(n):
        kind = KINDS[trial % len(KINDS)]
        K, d = number(1, phrases), number(2, dimensions)
        F = normal(K, d)
        if kind == "common mean":
            F = F + 3 * normal(d)
        if kind == "duplicates":
            F = F[torch.randint(0, K, (K,), generator=g)]
        if kind == "near duplicates":
            F = unit(F)[torch.randint(0, K, (K,), generator=g)]
            F = F + 10.0 ** -number(5, 12) * normal(K, d)
        if kind == "unequal lengths":
            F = F * 10 * torch.rand(K, 1, generator=g, dtype=torch.float64)
        else:
            F = unit(F)
        v = unit(normal(d)) * (7 if kind == "unequal lengths" else 1)
        positive = trial // len(KINDS) % 2 == 1
        c = F @ v
        most = float((c if positive else c.abs()).max())
        if most > 0:
            share = smallest ** float(torch.rand(1, generator=g))
            yield Case(kind, F, v, most * share, positive)


def clip_like(K: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Phrases and an image whose features share a mean each; float64."""
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -0.55
    spectrum = spectrum / spectrum.norm()

    def around() -> Tensor:
        return torch.randn(K, d, generator=g, dtype=torch.float64) * spectrum

    F = 0.75 * around()
    F[:, 0] += 1
    F = unit(F)
    v = unit(F[:6].sum(0) - 6 * F.mean(0)) + 0.5 * unit(around()[0])
    v[1] += 1.5
    return F, unit(v)


def by_coordinates(case: Case, sweeps: int = 20_000) -> Tensor:
    """One weight at a time, each to its optimum, until none moves: the textbook, in float64."""
    F, lam = case.F, case.lam
    w, r = torch.zeros(len(F), dtype=torch.float64), case.v.clone()
    square = F.square().sum(1)
    for _ in range(sweeps):
        moved = 0.0
        for j in range(len(F)):
            if square[j] == 0:
                continue
            c = float(F[j] @ r + square[j] * w[j])
            size = max(c - lam, 0.0) if case.positive else max(abs(c) - lam, 0.0)
            new = (size if c > 0 else -size) / float(square[j])
            step = new - float(w[j])
            if step:
                r -= step * F[j]
                w[j] = new
                moved = max(moved, abs(step))
        if moved < 1e-13:
            break
    return w


def objective_of(case: Case, w: Tensor) -> float:
    """As the formula is written."""
    r = case.v - case.F.T @ w
    return float(0.5 * r @ r + case.lam * w.abs().sum())


def gap_of(case: Case, w: Tensor) -> float:
    """The certificate as published: the objective less the dual objective at a feasible point."""
    r = case.v - case.F.T @ w
    c = case.F @ r
    most = float((c if case.positive else c.abs()).max())
    s = min(1.0, case.lam / most) if most > 0 else 1.0
    dual = 0.5 * float(case.v @ case.v) - 0.5 * float((case.v - s * r) @ (case.v - s * r))
    return objective_of(case, w) - dual
