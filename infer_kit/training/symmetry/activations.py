"""Matching by what units do: their activations on the same inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.descent import Pair
from infer_kit.training.symmetry.matching import Match, descend
from infer_kit.training.symmetry.merging import Predict, classification
from infer_kit.training.symmetry.placed import Placed, modes
from infer_kit.training.symmetry.spec import Factor, Perms, PermSpec


def activation_match(
    model: nn.Module,
    spec: PermSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    data: Iterable[Any],
    correlation: bool = True,
    start: str | Perms | Sequence[str | Perms] = ("identity", "signature"),
    restarts: int = 0,
    seed: int = 0,
    sweeps: int = 100,
    predict: Predict = classification,
) -> Match:
    """The order of b's units in which they do on some data what a's units do.

    Maximises sum <z_a, P z_b> over what all leaf modules with units that may move put out, on the
    same inputs, each unit's activations centred and, with `correlation`, of norm 1: for a group
    that is met once in each output that is a linear assignment by the units' correlations.

    Source: activation matching of Git Re-Basin (Ainsworth et al., ICLR 2023, section 3.1), with
    correlations as in Li et al., "Convergent Learning", ICLR 2016. Different: all layers with a
    group's units count, not one.

    Args:
        model: of the states' architecture; left as it is.
        spec: `discover` of the model, traced with inputs of the same size where an axis has units;
            examples, positions and pixels may be others.
        a, b: states.
        data: batches, of any number of samples; what the modules put out on all is kept in memory.
        correlation: False for covariances.
        start, restarts, seed, sweeps: as for `match`.
        predict: how the model is called with a batch; what it returns is not used.

    Returns:
        The match; its objective is that of the activations, its distance nan.

    Raises:
        InferKitError: states of another architecture, no batch, no module whose output has units
            that may move, or an output of another size than traced, activations that are not
            finite.

    Warns:
        UserWarning: groups that no module puts out, such as those of `nn.MultiheadAttention`, or
            queries and keys that are only read within a function.
    """
    spec.check_state(a)
    spec.check_state(b)
    batches = list(data)
    if not batches:
        raise InferKitError("There is no batch to match activations on.", "Give at least one.")
    names = [n for n, axes in spec.outputs.items() if any(g for axis in axes for g, _ in axis)]
    sides = [_recorded(model, spec, state, batches, names, predict) for state in (a, b)]
    if not sides[0]:
        raise InferKitError(
            "No module that is called once puts out units that may move.",
            "Match by weights: match(spec, a, b).",
        )
    unseen = set(spec.groups)
    pairs = []
    for name in sides[0]:
        dims = (*(group for axis in spec.outputs[name] for group, _ in axis if group), None)
        unseen -= set(dims)
        first, second = (_centred(side[name], correlation) for side in sides)
        pairs.append(Pair(dims, first, second))
    if unseen:
        warnings.warn(
            f"No module puts out the units of {', '.join(map(repr, sorted(unseen)))}: their order "
            "is that of the start. Begin at match(spec, a, b).perms to match them by weights.",
            stacklevel=2,
        )
    found = descend(spec, pairs, start, restarts, seed, sweeps)
    return Match(found.perms, found.objective, float("nan"), found.history, found.start)


def _recorded(
    model: nn.Module,
    spec: PermSpec,
    state: Mapping[str, Tensor],
    batches: list[Any],
    names: list[str],
    predict: Predict,
) -> dict[str, Tensor]:
    """The units of the modules that are called once a batch, on all batches along the last axis."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    modules = dict(model.named_modules())
    hooks = []
    for name in names:

        def keep(_module: nn.Module, _args: object, out: Any, name: str = name) -> None:
            if isinstance(out, Tensor):
                found[name].append(out.detach().clone())  # which what follows may work on in place

        hooks.append(modules[name].register_forward_hook(keep))
    try:
        placed = Placed(model, state)
        with modes(model):
            for batch in batches:
                placed(predict, batch)
    finally:
        for hook in hooks:
            hook.remove()
    # A module that is called twice for a batch does two things.
    once = {name: kept for name, kept in found.items() if len(kept) == len(batches)}
    return {
        name: torch.cat([_units(name, spec.outputs[name], out) for out in kept], -1)
        for name, kept in once.items()
    }


def _units(name: str, axes: tuple[tuple[Factor, ...], ...], out: Tensor) -> Tensor:
    """One dimension for each factor of a group, then one of all that stays."""
    if not torch.isfinite(out).all():
        raise InferKitError(f"What {name!r} puts out is not finite.")
    moving: list[bool] = []
    sizes: list[int] = []
    for axis, size in zip(axes, out.shape, strict=True):
        if not any(group for group, _ in axis):
            moving.append(False)
            sizes.append(size)  # of a batch or a text, which may be others than were traced
            continue
        if size != prod(n for _, n in axis):
            raise InferKitError(
                f"What {name!r} puts out has {list(out.shape)}, and its units were traced with "
                f"{prod(n for _, n in axis)} where there are {size}.",
                "Trace the model on inputs of the size that it is matched on.",
            )
        moving += [group is not None for group, _ in axis]
        sizes += [n for _, n in axis]
    tensor = (out if out.dtype == torch.float64 else out.float()).reshape(sizes)
    move = [i for i, does in enumerate(moving) if does]
    stay = [i for i, does in enumerate(moving) if not does]
    return tensor.permute(*move, *stay).reshape(*(sizes[i] for i in move), -1)


def _centred(units: Tensor, correlation: bool) -> Tensor:
    units = units - units.mean(-1, keepdim=True)
    if not correlation:
        return units
    norm = units.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, units / norm.clamp_min(1e-30), torch.zeros_like(units))
