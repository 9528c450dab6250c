"""Permutations that bring one model's units nearest to another's: coordinate descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.descent import (
    RISE,
    Descent,
    Pair,
    assignment,
    inner,
    reordered,
)
from infer_kit.training.symmetry.numbers import check_numbers
from infer_kit.training.symmetry.placed import check_is_state
from infer_kit.training.symmetry.spec import Factor, Perms, PermSpec, State


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


def pairs_of(spec: PermSpec, a: State | Sequence[State], b: State | Sequence[State]) -> list[Pair]:
    """The weights of all pairs of states, unfolded; the pairs along one dimension that stays."""
    first, second = _states(a), _states(b)
    if len(first) != len(second) or not first:
        raise InferKitError(
            f"{len(first)} states on one side and {len(second)} on the other make no pairs.",
            "Give two states, or two lists of as many.",
        )
    names = [n for n in spec.shapes if n in spec.weights and n not in spec.same]
    made = []
    for name in names:
        axes = spec.axes[name]
        sides = [
            torch.stack([_real(_check(spec, name, state), name) for state in side])
            for side in (first, second)
        ]
        if spec.tensor(first[0], name).is_complex():  # type: ignore[union-attr]
            axes = (*axes, ((None, 2),))
        made.append(unfolded((((None, len(first)),), *axes), *sides))
    return made


def _states(given: State | Sequence[State]) -> list[State]:
    states = [given] if not isinstance(given, (tuple, list)) else given
    for state in states:
        check_is_state(state)
    return list(states)


def _check(spec: PermSpec, name: str, state: State) -> Tensor:
    """The state's tensor of that name."""
    tensor = spec.tensor(state, name)
    if tensor is None:
        raise InferKitError(
            f"A state has no tensor {name!r}, the traced model has.",
            "Match states of the model that was traced.",
        )
    if tuple(tensor.shape) != spec.shapes[name]:
        raise InferKitError(
            f"{name!r} has shape {list(tensor.shape)} in a state and "
            f"{list(spec.shapes[name])} in the traced model.",
            "Match states of the model that was traced.",
        )
    return tensor.detach()


def _real(tensor: Tensor, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise InferKitError(f"{name!r} has numbers that are not finite.")
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
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
    check_numbers({"restarts": restarts, "sweeps": sweeps})
    starts = list(start) if isinstance(start, (tuple, list)) else [start]
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
                f"There is no start {value if isinstance(value, str) else type(value).__name__!r}.",
                'Starts are "identity", "signature" and permutations of the groups.',
            )
    named += [(f"random {i + 1}", spec.random(seed + i)) for i in range(restarts)]
    if not named:
        raise InferKitError("There is no start.", 'Give start="identity", or restarts=1.')
    best: Match | None = None
    for name, perms in named:
        found = _from(spec, pairs, perms, name, seed, sweeps)
        if best is None or found.objective > best.objective + RISE * abs(best.objective):
            best = found
    assert best is not None
    return best


def _from(
    spec: PermSpec, pairs: list[Pair], perms: Perms, name: str, seed: int, sweeps: int
) -> Match:
    spec.check_perms(perms)
    descent = Descent(
        [Pair(pair.dims, pair.a, reordered(pair.b, pair.dims, perms)) for pair in pairs]
    )
    perms = dict(perms)
    generator = torch.Generator().manual_seed(seed)
    groups = list(descent.having)
    dirty = set(groups)
    history = [descent.objective()]
    for _ in range(sweeps):
        for i in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[i]
            if group not in dirty:
                continue
            dirty.discard(group)
            order = descent.improve(group)
            if order is None:
                continue
            perms[group] = perms[group][order]
            dirty |= descent.changed(group)
        history.append(descent.objective())
        if not dirty:
            break
    objective = sum(inner(pair.a, pair.b) for pair in descent.pairs)
    return Match(perms, objective, 0.0, tuple(history), name)


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
        order, _ = assignment(gain)
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
