"""How much better the labels are predicted with the reward than by the base alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SourceGain:
    """Cross-entropies on held-out data, in nats a label.

    Attributes:
        base: of the base alone. composed: of base and reward together.
        standard_error: of `gain`, from the paired differences; examples, not labels, are taken
            as independent. NaN where there are fewer than two examples.
        labels, examples: how many there were.
    """

    base: float
    composed: float
    standard_error: float
    labels: int
    examples: int

    @property
    def gain(self) -> float:
        """CE(base) − CE(base + reward): above 0, the reward helps."""
        return self.base - self.composed

    @property
    def is_noise(self) -> bool:
        """Whether the gain is not above two standard errors, or not above 0."""
        noise = 0.0 if math.isnan(self.standard_error) else 2 * self.standard_error
        return not self.gain > noise

    def metrics(self, prefix: str) -> dict[str, float]:
        """Under the names that a trainer logs."""
        told = {
            f"{prefix}_base_cross_entropy": self.base,
            f"{prefix}_cross_entropy": self.composed,
            f"{prefix}_source_gain": self.gain,
        }
        if not math.isnan(self.standard_error):
            told[f"{prefix}_source_gain_error"] = self.standard_error
        return told

    def __str__(self) -> str:
        return (
            f"{self.gain:.4f} ± {self.standard_error:.4f} nats a label "
            f"({self.base:.4f} of the base, {self.composed:.4f} with the reward)"
        )


class GainSums:
    """Running sums over batches of labels, from which `SourceGain` follows."""

    def __init__(self) -> None:
        self._sums = torch.zeros(7, dtype=torch.float64)

    def add(self, base: Tensor, composed: Tensor, examples: Tensor) -> None:
        """Log-probabilities `[n]` of n labels, and `[n]` the row of the batch that each is of."""
        if not len(base):
            return
        base, composed = base.double().cpu(), composed.double().cpu()
        _, row = examples.cpu().unique(return_inverse=True)
        gain = torch.zeros(int(row.max()) + 1, dtype=torch.float64)
        count = gain.clone()
        gain.index_add_(0, row, composed - base)
        count.index_add_(0, row, torch.ones_like(base))
        self._sums += torch.stack(
            [
                base.sum(),
                composed.sum(),
                count.sum(),
                torch.tensor(float(len(count)), dtype=torch.float64),
                gain.square().sum(),
                (gain * count).sum(),
                count.square().sum(),
            ]
        )

    def state(self) -> Tensor:
        """`[7]` sums, which add up over processes."""
        return self._sums.clone()

    @staticmethod
    def gain(state: Tensor) -> SourceGain | None:
        """What the sums say; None without a label."""
        base, composed, labels, examples, gg, gn, nn = state.tolist()
        if not labels:
            return None
        mean = (composed - base) / labels
        # Of a ratio of sums over examples: the residuals are gain_e − mean · labels_e.
        residuals = max(gg - 2 * mean * gn + mean * mean * nn, 0.0)
        error = math.nan
        if examples > 1:
            error = math.sqrt(residuals * examples / (examples - 1)) / labels
        return SourceGain(-base / labels, -composed / labels, error, int(labels), int(examples))
