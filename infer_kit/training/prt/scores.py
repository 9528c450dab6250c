"""Scores of base and reward at the labels of one batch, and what follows from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED, chunked_prt_loss, prt_loss
from infer_kit.training.indexed_data import predicted_labels
from infer_kit.training.prt.config import PRTConfig

_AT_A_TIME = 1024


@dataclass(frozen=True)
class Rows:
    """Scores at n labels, or what a head makes them of.

    Attributes:
        values: `[n, ...]`. head: any of these rows `[m, ...]` to scores `[m, columns]`.
    """

    values: Tensor
    head: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Places:
    """Where a batch has labels.

    Attributes:
        kept: mask of the labels' own shape, less the first column where they are shifted.
        labels: `[n]` ids. shifted: whether scores at t are for the label at t + 1.
    """

    kept: Tensor
    labels: Tensor
    shifted: bool

    @staticmethod
    def of(batch: dict[str, Any], shifted: bool) -> "Places":
        """From labels `[B, T]` of causal language models; `[B]` or `[B, T]` of classifiers."""
        labels = batch["labels"]
        if labels.is_floating_point():
            raise InferKitError(
                f"The labels are {labels.dtype}; expected one whole number for each.",
                hint="Rewards are for one label of several: not for regression, nor for several "
                "labels at once.",
            )
        if shifted and labels.ndim != 2:
            raise InferKitError(
                f"Labels of shape {list(labels.shape)}; of a causal language model, expected "
                "[batch, tokens].",
                hint='For a classifier give kind="classification".',
            )
        labels = predicted_labels(batch, shifted)
        labels = labels[:, 1:] if shifted else labels
        kept = labels != IGNORED
        return Places(kept, labels[kept], shifted)

    @property
    def examples(self) -> Tensor:
        """`[n]` the row of the batch that each label is of."""
        return self.kept.nonzero()[:, 0]

    def rows(self, scores: Tensor, whose: str) -> Tensor:
        """`[n, ...]` of scores or hidden states of the whole batch."""
        scores = scores[:, :-1] if self.shifted else scores
        if scores.shape[:-1] != self.kept.shape:
            raise InferKitError(
                f"The {whose} gives scores at {list(scores.shape[:-1])} places for labels at "
                f"{list(self.kept.shape)}{' (after the shift)' if self.shifted else ''}.",
                hint='kind is "causal-lm" for labels [batch, tokens] that are the tokens '
                'themselves, "classification" for all others.',
            )
        return scores[self.kept]


@dataclass(frozen=True)
class Scored:
    """Base and reward at the labels of one batch."""

    base: Rows
    reward: Rows
    places: Places

    def loss(self, prt: PRTConfig, size: int, num_items: Tensor | float) -> Tensor:
        """Scalar; see `prt_loss`. size: V. num_items: labels of the whole accumulated batch."""
        labels = self.places.labels
        if prt.chunk is not None:
            return chunked_prt_loss(
                self.base.values,
                self.reward.values,
                labels,
                self.base.head,
                self.reward.head,
                beta=prt.beta,
                alpha=prt.alpha,
                num_items=num_items,
                vocab_size=size,
                chunk=prt.chunk,
            )
        return prt_loss(
            self.base.head(self.base.values),
            self.reward.head(self.reward.values),
            labels,
            beta=prt.beta,
            alpha=prt.alpha,
            num_items=num_items,
            vocab_size=size,
        )

    @torch.no_grad()
    def logprobs(self, beta: float, size: int) -> tuple[Tensor, Tensor]:
        """`[n]` log-probability of each label under the base, and under base and reward."""
        alone, both = [], []
        for start in range(0, len(self.places.labels), _AT_A_TIME):
            rows = slice(start, start + _AT_A_TIME)
            z = self.base.head(self.base.values[rows])[:, :size].float()
            r = self.reward.head(self.reward.values[rows])[:, :size].float()
            y = self.places.labels[rows, None]
            alone.append(z.log_softmax(-1).gather(-1, y)[:, 0])
            both.append((z + beta * r).log_softmax(-1).gather(-1, y)[:, 0])
        if not alone:
            return torch.zeros(0), torch.zeros(0)
        return torch.cat(alone), torch.cat(both)


def same(values: Tensor) -> Tensor:
    """The head of values that are scores already."""
    return values
