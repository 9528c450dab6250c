"""Which weights are taken out of the search: a random part of them, known from the seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import rng
from infer_kit.training.tickets.allocate import ALLOCATIONS, RULES

PRUNED, SEARCHED, LOCKED = -1, 0, 1


@dataclass(frozen=True)
class FrozenMask:
    """The frozen weights of one tensor.

    Attributes:
        name: of the tensor. shape: its shape. pruned, locked: how many of its weights are 0 for
            ever, and how many are in every mask.
    """

    name: str
    shape: tuple[int, ...]
    pruned: int
    locked: int

    def draw(self, seed: int) -> Tensor:
        """int8 of `shape`: -1 pruned, 0 searched, 1 locked, drawn under the name "name#freeze".

        In the stable order of the positions' bits the first are pruned, the next locked.
        """
        order = rng.ascending(seed, f"{self.name}#freeze", prod(self.shape))
        out = torch.full((order.numel(),), SEARCHED, dtype=torch.int8)
        out[order[: self.pruned]] = PRUNED
        out[order[self.pruned : self.pruned + self.locked]] = LOCKED
        return out.view(self.shape)


@dataclass(frozen=True)
class Freeze:
    """Shares of all weights that no search may touch.

    Otsuka et al., "Partially Frozen Random Networks Contain Compact Strong Lottery Tickets", TMLR,
    arXiv 2402.14029. A ticket stores one bit for each weight that is searched: with the share
    F = p + r frozen it is 1 / (1 - F) times smaller.

    Attributes:
        p: share of the weights pruned for ever. r: share locked in.
        allocation: how shares are dealt out over the layers: "uniform", "erk", "epl" or "igq".
        rule: how p and r make two shares of a layer: "sparsity_distribution",
            "density_distribution" or "proportional"; see `allocate`.

    Raises:
        InferKitError: shares outside [0, 1), or that leave nothing to search; an unknown
            allocation or rule.
    """

    p: float = 0.0
    r: float = 0.0
    allocation: str = "epl"
    rule: str = "sparsity_distribution"

    def __post_init__(self) -> None:
        if not (self.p >= 0 and self.r >= 0 and self.p + self.r < 1):
            raise InferKitError(
                f"Freeze(p={self.p}, r={self.r}): the shares pruned and locked must not be "
                "negative, and must leave weights to search.",
                "Choose p + r below 1.",
            )
        for what, given, known in (
            ("allocation", self.allocation, ALLOCATIONS),
            ("rule", self.rule, RULES),
        ):
            if given not in known:
                raise InferKitError(
                    f"Freeze has no {what} {given!r}.", f"Use one of {', '.join(known)}."
                )

    def counts(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, FrozenMask]:
        """How many weights of each tensor are frozen, int(n share) as in the published code.

        Raises:
            InferKitError: under this allocation a layer would have fewer frozen weights than
                pruned ones.
        """
        pruned, locked = RULES[self.rule](shapes, self.p, self.r, ALLOCATIONS[self.allocation])
        out = {}
        for name, shape in shapes.items():
            n = prod(shape)
            n_pruned, n_locked = int(n * pruned[name]), int(n * locked[name])
            if n_locked < 0 or n_pruned + n_locked > n:
                raise InferKitError(
                    f"{self} cannot be dealt out: of the {n} weights of {name!r} {n_pruned} would "
                    f"be pruned and {n_locked} locked.",
                    'rule="proportional" splits every layer in the same ratio.',
                )
            out[name] = FrozenMask(name, tuple(shape), n_pruned, n_locked)
        return out
