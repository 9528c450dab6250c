"""The parts of a loss under their own names in a trainer's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LoggedParts:
    """Means of a loss's parts over the steps since the last log, and over processes.

    They stay on their device until they are read, so that no step waits for them. Like the loss
    that a trainer logs, that of a step is the sum over the batches it is accumulated over.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0.0

    def add(self, parts: Mapping[str, Tensor], batches: int = 1, shares: bool = False) -> None:
        """The parts of a batch, scalars.

        Args:
            batches: of the step. shares: the parts are shares of the step's already, not means of
                the batch.
        """
        self.add_to_step({k: v / (1 if shares else batches) for k, v in parts.items()})
        self._steps += 1 / batches

    def add_to_step(self, parts: Mapping[str, Tensor]) -> None:
        """Scalars of which there is one a step."""
        for name, value in parts.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def into(self, logs: dict[str, float], accelerator: Any) -> dict[str, float]:
        """A trainer's log; one of the training loss with the parts, which begin anew."""
        if "loss" not in logs or not self._sums:
            return logs
        means = accelerator.gather(torch.stack(list(self._sums.values()))[None]).mean(0)
        names = [f"loss_{name}" for name in self._sums]
        found = dict(zip(names, (means / self._steps).tolist(), strict=True))
        self._sums, self._steps = {}, 0.0
        return logs | found
