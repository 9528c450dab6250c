"""Few-shot tasks drawn from labelled examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer_kit.errors import InferKitError


@dataclass(frozen=True)
class Episodes:
    """A batch of T tasks, each with labels of its own.

    Attributes:
        support_x: `[T, n, ...]` examples to learn from. support_y: `[T, n]` their labels.
        query_x: `[T, m, ...]` examples to be judged on. query_y: `[T, m]` their labels.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def to(self, device: torch.device | str) -> Episodes:
        """The same on another device."""
        return Episodes(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class EpisodeSampler:
    """N-way K-shot classification tasks; an iterable of `Episodes`, an epoch of `batches` of them.

    Each task draws its classes evenly, deals out the labels 0..ways-1 to them at random, and draws
    different examples of each for support and query.

    Attributes:
        generator: what tasks are drawn with, seeded once; in a checkpoint of `fit`.

    Args:
        x: `[N, ...]` examples. y: `[N]` int labels.
        ways, shots, queries: classes of a task, and its examples of each to learn from and to be
            judged on. tasks: of a batch. batches: of an epoch.
        classes: labels to draw from; None for all.
        seed: of the generator.

    Raises:
        InferKitError: fewer classes than ways, or a class with fewer examples than a task takes.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        ways: int = 5,
        shots: int = 5,
        queries: int = 15,
        tasks: int = 4,
        batches: int = 100,
        classes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        labels = sorted(set(y.tolist())) if classes is None else list(classes)
        if len(labels) < ways:
            raise InferKitError(f"Tasks of {ways} classes need as many: there are {len(labels)}.")
        members = [(y == label).nonzero().squeeze(1) for label in labels]
        for label, found in zip(labels, members, strict=True):
            if found.numel() < shots + queries:
                raise InferKitError(
                    f"Class {label} has {found.numel()} examples; a task takes {shots} to learn "
                    f"from and {queries} to be judged on.",
                    "Leave it out by classes=[...], or take fewer.",
                )
        self.x, self.ways, self.shots, self.queries = x, ways, shots, queries
        self.tasks, self.batches = tasks, batches
        self.generator = torch.Generator().manual_seed(seed)
        self._members = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
        sizes = torch.tensor([found.numel() for found in members])
        self._absent = torch.arange(self._members.shape[1]) >= sizes[:, None]

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Episodes]:
        for _ in range(self.batches):
            yield self.draw()

    def draw(self) -> Episodes:
        """A batch of tasks."""
        n, take = self.tasks, self.shots + self.queries
        chosen = self._order(torch.zeros(n, len(self._members), dtype=torch.bool), self.ways)
        places = self._order(self._absent[chosen], take)
        index = self._members[chosen].gather(2, places)
        label = torch.arange(self.ways).expand(n, self.ways)

        def part(at: slice) -> tuple[Tensor, Tensor]:
            i = index[..., at]
            y = label[..., None].expand_as(i)
            return self.x[i.flatten(1)], y.flatten(1)

        support, query = part(slice(self.shots)), part(slice(self.shots, take))
        return Episodes(*support, *query)

    def _order(self, absent: Tensor, take: int) -> Tensor:
        """The first `take` of a random order along the last dimension, of those not absent."""
        u = torch.rand(absent.shape, generator=self.generator)
        return u.masked_fill(absent, 2.0).argsort(-1)[..., :take]
