"""Other implementations of matching: the published coordinate descent, and rebasin."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from infer_kit.training.symmetry import PermSpec

State = Mapping[str, Tensor]


def coordinate_descent(spec: PermSpec, a: State, b: State, seed: int = 0) -> dict[str, Tensor]:
    """Algorithm 1 of Git Re-Basin (Ainsworth et al., ICLR 2023), in PyTorch.

    Each sweep visits all groups, in a random order, reorders b's weights anew for each, solves the
    assignment, and ends after a sweep in which no group's own sum rose by more than 1e-12. For
    networks whose axes have one factor each, as its hand-written specs do.
    """
    holders: dict[str, list[tuple[str, int]]] = {group: [] for group in spec.groups}
    for name in spec.shapes:
        for dim, axis in enumerate(spec.axes[name]):
            if len(axis) == 1 and axis[0][0] is not None and name in spec.weights:
                holders[axis[0][0]].append((name, dim))
    perms = spec.identity()
    groups = list(holders)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(100):
        rose = False
        for i in torch.randperm(len(groups), generator=generator).tolist():
            group, n = groups[i], spec.groups[groups[i]]
            gain = torch.zeros(n, n)
            for name, dim in holders[group]:
                other = b[name]
                for place, axis in enumerate(spec.axes[name]):
                    if place != dim and axis and axis[0][0] is not None:
                        other = other.index_select(place, perms[axis[0][0]])
                gain += (
                    a[name].movedim(dim, 0).reshape(n, -1) @ other.movedim(dim, 0).reshape(n, -1).T
                )
            before = float(gain[torch.arange(n), perms[group]].sum())
            order = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            rose |= float(gain[torch.arange(n), order].sum()) > before + 1e-12
            perms[group] = order
        if not rose:
            break
    return perms


def rebasin(a: nn.Module, b: nn.Module, x: Any) -> dict[str, Tensor] | None:
    """b's state as rebasin (0.0.47 was run) reorders it; None where it is not installed."""
    try:
        from rebasin import PermutationCoordinateDescent
    except ImportError:
        return None
    other = deepcopy(b)
    descent = PermutationCoordinateDescent(deepcopy(a), other, x)
    descent.rebasin()
    return dict(other.state_dict())
