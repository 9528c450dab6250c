"""The parts of a loss under their own names in a trainer's log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class LoggedParts:
    """Means of a loss's parts since the last log, of this process.

    They stay on their device until they are read, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """The parts of one batch, scalars."""
        for name, value in parts.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def into(self, logs: dict[str, float]) -> dict[str, float]:
        """A trainer's log; one of the training loss with the parts, which begin anew."""
        if "loss" not in logs or not self._count:
            return logs
        means = torch.stack(list(self._sums.values())).cpu() / self._count
        found = {
            f"loss_{name}": float(value) for name, value in zip(self._sums, means, strict=True)
        }
        self._sums, self._count = {}, 0
        return logs | found
