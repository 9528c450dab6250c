"""Coordinate descent over pairs of tensors: one group after the other in its best order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

RISE = 1e-7
"""Share of the objective that an order must win to be taken: above the rounding of float32."""

_SMALL = 96  # units from which on SciPy's solver is helped: below it takes no time
_SWEEPS = 2  # over all rows, to better the potentials that help it
_SOME = 3  # gains are brought up to date if at most one unit of so many has moved, else made anew


@dataclass
class Pair:
    """Two tensors with one dimension for each atom.

    Attributes:
        dims: the group of each dimension, None for one that stays.
        a, b: [size of each dimension], float32 or float64; b in its present order.
        objective: <a, b> of the present order.
    """

    dims: tuple[str | None, ...]
    a: Tensor
    b: Tensor
    objective: float = 0.0

    def __post_init__(self) -> None:
        self.objective = inner(self.a, self.b)


def inner(a: Tensor, b: Tensor) -> float:
    """<a, b>, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


def rows(tensor: Tensor, dim: int) -> Tensor:
    """[size of the dimension, all the rest]."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def reordered(tensor: Tensor, dims: Sequence[str | None], perms: Mapping[str, Tensor]) -> Tensor:
    """An unfolded tensor with the groups that are given in their new order."""
    for dim, group in enumerate(dims):
        if group is not None and group in perms:
            tensor = tensor.index_select(dim, perms[group].to(tensor.device))
    return tensor


class Descent:
    """Pairs in their present order, and what each group could win.

    The gain of unit j of b in the place of unit i is <a_i, b_j> with all other groups as they are
    now. The gains of a group are kept: when a neighbour's order changes, they change by the units
    that moved, which soon are few.

    Attributes:
        pairs: unfolded, each with a group; their b is changed.
        having: the pairs of each group.
    """

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.having: dict[str, list[Pair]] = {}
        for pair in pairs:
            for group in dict.fromkeys(g for g in pair.dims if g is not None):
                self.having.setdefault(group, []).append(pair)
        self._gains: dict[str, Tensor] = {}
        self._potentials: dict[str, Tensor] = {}

    def objective(self) -> float:
        """J of the present order, the rises added up."""
        return sum(pair.objective for pair in self.pairs)

    def changed(self, group: str) -> set[str]:
        """The groups that may win something after this one has changed."""
        return {
            other
            for pair in self.having[group]
            for other in pair.dims
            if other is not None and (other != group or pair.dims.count(group) > 1)
        }

    def improve(self, group: str) -> Tensor | None:
        """Put one group into its best order; None, and nothing is changed, if J does not rise."""
        gain = self._gains.get(group)
        if gain is None:
            gain = self._gain(group)
        order, potential = assignment(gain, self._potentials.get(group))
        if order is None:
            self._gains[group], self._potentials[group] = gain, potential
            return None
        floor = RISE * abs(self.objective())
        if any(pair.dims.count(group) > 1 for pair in self.having[group]):
            return order if self._replace(group, order, floor) else None
        moved = (order != torch.arange(len(order))).nonzero()[:, 0]
        steps = []
        for pair in self.having[group]:
            dim = pair.dims.index(group)
            places = moved.to(pair.b.device)
            new = pair.b.index_select(dim, order[moved].to(pair.b.device))
            step = new - pair.b.index_select(dim, places)
            a = pair.a.index_select(dim, places)
            steps.append((pair, dim, places, new, step, a, inner(a, step)))
        if sum(rise for *_, rise in steps) <= floor:
            self._gains[group], self._potentials[group] = gain, potential
            return None
        few = _SOME * len(moved) <= len(order)
        for pair, dim, places, new, step, a, rise in steps:
            pair.b.index_copy_(dim, places, new)
            pair.objective += rise
            for place, other in enumerate(pair.dims):
                if other is None or other == group or other not in self._gains:
                    continue
                if few and pair.dims.count(other) == 1:
                    found = rows(a, place) @ rows(step, place).T
                    self._gains[other] += found.to(self._gains[other].device)
                else:
                    del self._gains[other]
        self._gains[group] = gain.index_select(1, order.to(gain.device))
        self._potentials[group] = potential[order]
        return order

    def _gain(self, group: str) -> Tensor:
        total: Tensor | None = None
        for pair in self.having[group]:
            for dim, other in enumerate(pair.dims):
                if other == group:
                    found = rows(pair.a, dim) @ rows(pair.b, dim).T
                    total = found if total is None else total + found.to(total.device)
        assert total is not None
        return total

    def _replace(self, group: str, order: Tensor, floor: float) -> bool:
        """Of a group that a tensor has twice, where gains are a linearisation: J itself decides."""
        having = self.having[group]
        new = [reordered(pair.b, pair.dims, {group: order}) for pair in having]
        values = [inner(pair.a, b) for pair, b in zip(having, new, strict=True)]
        if sum(values) - sum(pair.objective for pair in having) <= floor:
            return False
        for pair, b, value in zip(having, new, values, strict=True):
            pair.b, pair.objective = b, value
            for other in pair.dims:
                self._gains.pop(other or "", None)
        return True


def assignment(gain: Tensor, potential: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
    """The order q with the largest sum of gain[i, q[i]].

    Args:
        gain: [n, n].
        potential: [n], of the columns, from an earlier solution of a similar problem; they help the
            solver and change nothing of what is found.

    Returns:
        q, int64 [n], or None if the present order is the best; and potentials for the next time.
    """
    n = gain.shape[0]
    here = torch.arange(n)
    table = gain.cpu().double()
    if potential is None:
        potential = torch.zeros(n, dtype=torch.float64)
    best = table.argmax(1)
    if torch.equal(best, here):
        return None, potential
    if len(torch.unique(best)) == n:
        return best, potential  # each row has its own largest entry: nothing can be better
    if n < _SMALL:
        columns = linear_sum_assignment(table.numpy(), maximize=True)[1]
        order = torch.from_numpy(columns)
        return (None if torch.equal(order, here) else order), potential
    # Potentials under which as many rows as may be like their present column best. They are those
    # of the dual problem if none is left: then the present order is the best.
    over = table - table.diagonal()[:, None]
    rows_left, rising = _SWEEPS * n, here
    while rows_left > 0:
        raised = (over[rising] + potential[rising, None]).amax(0)
        rows_left -= len(rising)
        rising = (raised > potential).nonzero()[:, 0]
        if not len(rising):
            return None, potential
        potential = torch.maximum(potential, raised)
    table = table - potential  # which may be the caller's
    # The solver adds row after row; those that are content come first, in no one's way.
    content = table.amax(1) <= table.diagonal()
    rows_first = torch.argsort((~content).int(), stable=True)
    order = torch.empty(n, dtype=torch.int64)
    columns = linear_sum_assignment(table[rows_first].numpy(), maximize=True)[1]
    order[rows_first] = torch.from_numpy(columns)
    return (None if torch.equal(order, here) else order), potential
