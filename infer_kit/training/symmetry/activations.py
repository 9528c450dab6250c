"""Matching by what units do: their activations on the same inputs."""

from __future__ import annotations

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
        spec: `discover` of the model, traced with inputs of the same size but for the first axis.
        a, b: states.
        data: batches, of any number of samples; what the modules put out on all is kept in memory.
        correlation: False for covariances.
        start, restarts, seed, sweeps: as for `match`.
        predict: how the model is called with a batch; what it returns is not used.

    Returns:
        The match; its objective is that of the activations, its distance nan.

    Raises:
        InferKitError: states of another architecture, no batch, no module whose output has units
            that may move, activations that are not finite.
    """
    spec.check_state(a)
    spec.check_state(b)
    batches = list(data)
    if not batches:
        raise InferKitError("There is no batch to match activations on.", "Give at least one.")
    names = [n for n, axes in spec.outputs.items() if any(g for axis in axes for g, _ in axis)]
    sides = [_recorded(model, state, batches, names, predict) for state in (a, b)]
    if not sides[0]:
        raise InferKitError(
            "No module that is called once puts out units that may move.",
            "Match by weights: match(spec, a, b).",
        )
    pairs = []
    for name in names:
        if name not in sides[0]:
            continue  # it is called twice for a batch, and so does two things
        for side in sides:
            if not torch.isfinite(side[name]).all():
                raise InferKitError(f"What {name!r} puts out is not finite.")
        dims, first = _units(name, spec.outputs[name], sides[0][name], correlation)
        _, second = _units(name, spec.outputs[name], sides[1][name], correlation)
        pairs.append(Pair(dims, first, second))
    found = descend(spec, pairs, start, restarts, seed, sweeps)
    return Match(found.perms, found.objective, float("nan"), found.history, found.start)


def _recorded(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: list[Any],
    names: list[str],
    predict: Predict,
) -> dict[str, Tensor]:
    """What the modules put out on all batches, along the first axis; those called once a batch."""
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
    return {
        name: torch.cat(kept) for name, kept in found.items() if len(kept) == len(batches)
    }  # a module that is called twice does two things


def _units(
    name: str, axes: tuple[tuple[Factor, ...], ...], out: Tensor, correlation: bool
) -> tuple[tuple[str | None, ...], Tensor]:
    """One dimension for each group, then one of all that stays, centred along it."""
    kinds: list[str | None] = []
    sizes: list[int] = []
    for axis, size in zip(axes, out.shape, strict=True):
        if not any(group for group, _ in axis):
            kinds.append(None)
            sizes.append(size)  # of a batch or a text, which may be others than were traced
            continue
        if size != prod(n for _, n in axis):
            raise InferKitError(
                f"What {name!r} puts out has {list(out.shape)}, and its units were traced with "
                f"{prod(n for _, n in axis)} where there are {size}.",
                "Trace the model on inputs of the size that it is matched on.",
            )
        kinds += [group for group, _ in axis]
        sizes += [n for _, n in axis]
    tensor = (out if out.dtype == torch.float64 else out.float()).reshape(sizes)
    move = [i for i, group in enumerate(kinds) if group is not None]
    stay = [i for i, group in enumerate(kinds) if group is None]
    tensor = tensor.permute(*move, *stay).reshape(*(tensor.shape[i] for i in move), -1)
    tensor = tensor - tensor.mean(-1, keepdim=True)
    if correlation:
        norm = tensor.norm(dim=-1, keepdim=True)
        tensor = torch.where(norm > 0, tensor / norm.clamp_min(1e-30), torch.zeros_like(tensor))
    return (*(kinds[i] for i in move), None), tensor
