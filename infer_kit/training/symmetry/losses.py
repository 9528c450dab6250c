"""Losses of targets, and whether two means of them differ."""

from __future__ import annotations

from math import sqrt

from torch import Tensor
from torch.nn.functional import cross_entropy


class Losses:
    """Cross-entropies of many targets, batch by batch, in float64."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.sums: list[float] = []
        self.squares = 0.0

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """A batch of logits [N, C] and targets [N]."""
        # The mean of float32 numbers would lose digits over many; not all devices have float64.
        losses = cross_entropy(logits, targets, reduction="none").cpu().double()
        self.sizes.append(len(targets))
        self.sums.append(float(losses.sum()))
        self.squares += float(losses.square().sum())

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, sizes: list[int]) -> Losses:
        """Those of batches of these sizes, in one."""
        found = cls()
        for part in zip(logits.split(sizes), targets.split(sizes), strict=True):
            found.add(*part)
        return found

    @property
    def count(self) -> int:
        return sum(self.sizes)

    @property
    def mean(self) -> float:
        return sum(self.sums) / self.count

    def _between(self) -> float:
        """The variance of the mean by that of the batches' means; 0 for one batch."""
        n, mean = len(self.sizes), self.mean
        if n < 2:
            return 0.0
        off = [(s - size * mean) ** 2 for s, size in zip(self.sums, self.sizes, strict=True)]
        return n / (n - 1) * sum(off) / self.count**2

    def above(self, other: Losses) -> float:
        """How many standard errors the mean is above another's, if both are of one distribution.

        The variance is that of all losses together: of a few that are all about 0 their own says
        nothing. Targets of one batch may be alike, as those of one text are; then the batches'
        means tell how far means are apart.
        """
        n, m = self.count, other.count
        mean = (sum(self.sums) + sum(other.sums)) / (n + m)
        variance = max(0.0, (self.squares + other.squares) / (n + m) - mean**2)
        error = sqrt(max(variance * (1 / n + 1 / m), self._between() + other._between()))
        off = self.mean - other.mean
        return off / error if error else float("inf") * off if off else 0.0
