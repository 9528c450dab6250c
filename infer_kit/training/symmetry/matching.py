"""Permutations that bring one model's units nearest to another's: coordinate descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.spec import Factor, Perms, PermSpec, State

_RISE = 1e-7  # of the objective, that an order must win to be taken: above the rounding of float32


@dataclass(frozen=True)
class Match:
    """What matching found.

    Attributes:
        perms: applied to b they bring it nearest to a.
        objective: sum over pairs and weights of <a, P b>, in float64.
        distance: squared distance of a and P b over all weights.
        history: the objective at the start and after each sweep.
        start: the start that led to it: "identity", "signature", "given" or "random 1".
    """

    perms: Perms
    objective: float
    distance: float
    history: tuple[float, ...]
    start: str


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


def match(
    spec: PermSpec,
    a: State | Sequence[State],
    b: State | Sequence[State],
    start: str | Perms | Sequence[str | Perms] = ("identity", "signature"),
    restarts: int = 0,
    seed: int = 0,
    sweeps: int = 100,
) -> Match:
    """The order of b's units in which its weights are nearest to a's.

    Maximises J(P) = sum <a, P b> over the weights, and over the pairs if a and b are sequences of
    states (such as gradients): one group after the other is put into its best order by a linear
    assignment. A group that a tensor has twice makes J quadratic in its order; then the assignment
    is of the linearisation. An order is taken only if J itself rises by more than 1e-7 of it, so
    that J never falls, and groups of which no neighbour has changed are passed over.

    Source: weight matching of Git Re-Basin (Ainsworth et al., ICLR 2023, algorithm 1), over traced
    groups, with a list of pairs as in learning transfer (Chijiwa, ICLR 2024, section 3). Different:
    the signature start, the test of J, the groups passed over.

    Args:
        spec: of the architecture of a and b.
        a, b: states, or sequences of as many states. Tensors that are no parameters, such as
            running statistics, are reordered by `spec.apply` but not compared; a state may leave
            them out here.
        start: "identity", "signature" (units are paired by their sorted weights, which no order of
            the neighbours changes), permutations such as those of an earlier match, or several of
            these; the best end is returned.
        restarts: random starts besides.
        seed: of the order in which groups are visited and of the random starts; a generator of its
            own.
        sweeps: at most so often over all groups, for each start.

    Raises:
        InferKitError: states of another architecture (names the first tensor), sequences of
            different length, numbers that are not finite, an unknown start.
    """
    problem = pairs_of(spec, a, b)
    constant = sum(pair.objective for pair in problem if not any(pair.dims))
    moving = [pair for pair in problem if any(pair.dims)]
    best = descend(spec, moving, start, restarts, seed, sweeps)
    norms = sum(inner(pair.a, pair.a) + inner(pair.b, pair.b) for pair in problem)
    objective = best.objective + constant
    return Match(
        best.perms,
        objective,
        max(0.0, norms - 2 * objective),
        tuple(value + constant for value in best.history),
        best.start,
    )


def inner(a: Tensor, b: Tensor) -> float:
    """<a, b>, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


def pairs_of(spec: PermSpec, a: State | Sequence[State], b: State | Sequence[State]) -> list[Pair]:
    """The weights of all pairs of states, unfolded; the pairs along one dimension that stays."""
    first = [a] if isinstance(a, Mapping) else list(a)
    second = [b] if isinstance(b, Mapping) else list(b)
    if len(first) != len(second) or not first:
        raise InferKitError(
            f"{len(first)} states on one side and {len(second)} on the other make no pairs.",
            "Give two states, or two lists of as many.",
        )
    names = [n for n in spec.shapes if n in spec.weights and n not in spec.same]
    for state in (*first, *second):
        for name in names:
            _check(spec, name, state)
    made = []
    for name in names:
        axes = spec.axes[name]
        sides = [
            torch.stack([_real(state[name].detach(), name) for state in side])
            for side in (first, second)
        ]
        made.append(unfolded(((((None, len(first)),)), *axes), *sides))
    return made


def _check(spec: PermSpec, name: str, state: State) -> None:
    if name not in state:
        raise InferKitError(
            f"A state has no tensor {name!r}, the traced model has.",
            "Match states of the model that was traced.",
        )
    if tuple(state[name].shape) != spec.shapes[name]:
        raise InferKitError(
            f"{name!r} has shape {list(state[name].shape)} in a state and "
            f"{list(spec.shapes[name])} in the traced model.",
            "Match states of the model that was traced.",
        )


def _real(tensor: Tensor, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise InferKitError(f"{name!r} has numbers that are not finite.")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unfolded(axes: Sequence[Sequence[Factor]], a: Tensor, b: Tensor) -> Pair:
    """Two tensors with one dimension for each factor; neighbours that stay are one dimension."""
    dims: list[str | None] = []
    sizes: list[int] = []
    for group, size in (part for axis in axes for part in axis):
        if group is None and dims and dims[-1] is None:
            sizes[-1] *= size
        else:
            dims.append(group)
            sizes.append(size)
    return Pair(tuple(dims), a.reshape(sizes), b.reshape(sizes).to(a.device, a.dtype))


def descend(
    spec: PermSpec,
    pairs: list[Pair],
    start: str | Perms | Sequence[str | Perms],
    restarts: int,
    seed: int,
    sweeps: int,
) -> Match:
    """Coordinate descent over the groups from each start; the best end, the first of equals."""
    starts = [start] if isinstance(start, (str, Mapping)) else list(start)
    named: list[tuple[str, Perms]] = []
    for value in starts:
        if isinstance(value, Mapping):
            named.append(("given", dict(value)))
        elif value == "identity":
            named.append((value, spec.identity()))
        elif value == "signature":
            named.append((value, signature(spec, pairs)))
        else:
            raise InferKitError(
                f"There is no start {value!r}.",
                'Starts are "identity", "signature" and permutations of the groups.',
            )
    named += [(f"random {i + 1}", spec.random(seed + i)) for i in range(restarts)]
    if not named:
        raise InferKitError("There is no start.", 'Give start="identity", or restarts=1.')
    best: Match | None = None
    for name, perms in named:
        found = _from(spec, pairs, perms, name, seed, sweeps)
        if best is None or found.objective > best.objective + _RISE * abs(best.objective):
            best = found
    assert best is not None
    return best


def _from(
    spec: PermSpec, pairs: list[Pair], perms: Perms, name: str, seed: int, sweeps: int
) -> Match:
    spec.check_perms(perms)
    pairs = [Pair(pair.dims, pair.a, reordered(pair.b, pair.dims, perms)) for pair in pairs]
    perms = dict(perms)
    having: dict[str, list[Pair]] = {}
    for pair in pairs:
        for group in dict.fromkeys(g for g in pair.dims if g is not None):
            having.setdefault(group, []).append(pair)
    generator = torch.Generator().manual_seed(seed)
    groups = list(having)
    dirty = set(groups)
    history = [sum(pair.objective for pair in pairs)]
    for _ in range(sweeps):
        for i in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[i]
            if group not in dirty:
                continue
            dirty.discard(group)
            order = _improve(group, having[group], history[-1])
            if order is None:
                continue
            perms[group] = perms[group][order]
            for pair in having[group]:
                dirty.update(g for g in pair.dims if g is not None and g != group)
                if pair.dims.count(group) > 1:
                    dirty.add(group)
        history.append(sum(pair.objective for pair in pairs))
        if not dirty:
            break
    return Match(perms, history[-1], 0.0, tuple(history), name)


def _improve(group: str, pairs: list[Pair], objective: float) -> Tensor | None:
    """Put one group into its best order; None, and nothing is changed, if J does not rise."""
    cost: Tensor | None = None
    for pair in pairs:
        for dim, other in enumerate(pair.dims):
            if other == group:
                found = rows(pair.a, dim) @ rows(pair.b, dim).T
                cost = found if cost is None else cost + found.to(cost.device)
    assert cost is not None
    order = assignment(cost)
    if order is None:
        return None
    step = {group: order}
    new = [reordered(pair.b, pair.dims, step) for pair in pairs]
    values = [inner(pair.a, b) for pair, b in zip(pairs, new, strict=True)]
    rise = sum(values) - sum(pair.objective for pair in pairs)
    if rise <= _RISE * abs(objective):
        return None
    for pair, b, value in zip(pairs, new, values, strict=True):
        pair.b, pair.objective = b, value
    return order


def assignment(gain: Tensor) -> Tensor | None:
    """The order q with the largest sum of gain[i, q[i]], int64 [n]; None for the present one."""
    n = gain.shape[0]
    here = torch.arange(n)
    best = gain.argmax(1).cpu()
    if torch.equal(best, here):
        return None
    if len(torch.unique(best)) == n:
        return best  # each row has its own largest entry: nothing can be better
    _, columns = linear_sum_assignment(gain.cpu().double().numpy(), maximize=True)
    order = torch.from_numpy(columns)
    return None if torch.equal(order, here) else order


def rows(tensor: Tensor, dim: int) -> Tensor:
    """[size of the dimension, all the rest]."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def reordered(tensor: Tensor, dims: Sequence[str | None], perms: Mapping[str, Tensor]) -> Tensor:
    """An unfolded tensor with the groups that are given in their new order."""
    for dim, group in enumerate(dims):
        if group is not None and group in perms:
            tensor = tensor.index_select(dim, perms[group].to(tensor.device))
    return tensor


def signature(spec: PermSpec, pairs: list[Pair]) -> Perms:
    """Units paired by their weights in sorted order, which no order of the neighbours changes.

    The weights are sorted over the dimensions of the other groups, and stay as they are along those
    that no group reorders: a unit that reads the input is known by the very weights it reads with.
    """
    gains: dict[str, Tensor] = {}
    for pair in pairs:
        for dim, group in enumerate(pair.dims):
            if group is None:
                continue
            sides = [_sorted_rows(tensor, dim, pair.dims) for tensor in (pair.a, pair.b)]
            # Squared distance is |a|^2 + |b|^2 - 2 <a, b>, and each unit is used once.
            found = sides[0] @ sides[1].T
            gains[group] = gains[group] + found.to(gains[group].device) if group in gains else found
    perms = spec.identity()
    for group, gain in gains.items():
        order = assignment(gain)
        perms[group] = perms[group] if order is None else order
    return perms


def _sorted_rows(tensor: Tensor, dim: int, dims: Sequence[str | None]) -> Tensor:
    stay = [i for i, group in enumerate(dims) if group is None and i != dim]
    move = [i for i, group in enumerate(dims) if group is not None and i != dim]
    sizes = [tensor.shape[dim], prod(tensor.shape[i] for i in stay), -1]
    if not move:
        return tensor.permute(dim, *stay).reshape(tensor.shape[dim], -1)
    parts = tensor.permute(dim, *stay, *move).reshape(sizes)
    return parts.sort(-1)[0].reshape(tensor.shape[dim], -1)
