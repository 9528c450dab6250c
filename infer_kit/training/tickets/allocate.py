"""How a sparsity is dealt out over the layers of a network.

An allocation S gives the share of each layer that is pruned when the share d of all weights is
kept (the density). With n_l weights in layer l and N in all:

    uniform   S_l = 1 - d
    erk       density_l = min(1, e sum(shape_l) / n_l), e such that d N are kept (Erdős-Rényi)
    epl       equal kept edges per layer; what a layer cannot hold is shared by the others
    igq       density_l = 1 / (1 + f n_l), f such that d N are kept (ideal gas quotas)

A rule turns the shares p (pruned) and r (locked) of all weights into two shares for each layer:

    sparsity_distribution   frozen = S(1 - (p + r)), pruned = S(1 - p), locked = frozen - pruned
    density_distribution    pruned = S(1 - p),       locked = 1 - S(r)
    proportional            frozen = S(1 - (p + r)), of which p / (p + r) is pruned, the rest locked

The first two are those of Otsuka et al., "Partially Frozen Random Networks Contain Compact Strong
Lottery Tickets", TMLR, arXiv 2402.14029; p = r does not make halves of each layer's frozen weights
there. `proportional` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from infer_kit.errors import InferKitError

Shapes = Mapping[str, Sequence[int]]
Shares = dict[str, float]
Allocation = Callable[[Shapes, float], Shares]


def uniform(shapes: Shapes, density: float) -> Shares:
    """The same pruned share 1 - d in every layer.

    Args:
        shapes: of each layer's weights, by name. density: the share of all weights kept, in [0, 1].

    Raises:
        InferKitError: a density outside [0, 1], as for every allocation here.
    """
    _check(density)
    return dict.fromkeys(shapes, 1 - density)


def erk(shapes: Shapes, density: float) -> Shares:
    """Pruned share of each layer by Erdős-Rényi-Kernel densities; see the module.

    A layer whose density would be 1 or more is dense, the densest first, and the others share what
    is left.
    """
    _check(density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    kept = density * sum(sizes.values())
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        if not sparse:
            return dict.fromkeys(shapes, 0.0)
        free = kept - sum(sizes[name] for name in dense)
        factor = free / sum(sum(shapes[name]) for name in sparse)
        most = max(raw[name] for name in sparse)
        if factor * most <= 1:
            break
        dense |= {name for name in sparse if raw[name] == most}
    return {name: 0.0 if name in dense else 1 - factor * raw[name] for name in shapes}


def epl(shapes: Shapes, density: float) -> Shares:
    """Pruned share of each layer with equal numbers of kept edges; whole edges are kept."""
    _check(density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    left, kept = density * sum(sizes.values()), dict.fromkeys(shapes, 0.0)
    # From the smallest layer on, each takes an even share of what is left, or all it can hold.
    for rank, name in enumerate(sorted(shapes, key=sizes.__getitem__)):
        kept[name] = min(float(sizes[name]), left / (len(sizes) - rank))
        left -= kept[name]
    return {name: 1 - int(kept[name]) / sizes[name] for name in shapes}


def igq(shapes: Shapes, density: float) -> Shares:
    """Pruned share of each layer by ideal gas quotas, within one weight of d N in all."""
    _check(density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    if density == 0:
        return dict.fromkeys(shapes, 1.0)

    def kept(factor: float) -> float:
        return sum(n / (1 + factor * n) for n in sizes.values())

    low, high = 0.0, 1.0
    while kept(high) > density * total:
        high *= 2
    factor = 0.0 if density == 1 else high
    while abs(kept(factor) - density * total) > 1 and low < high:
        factor = (low + high) / 2
        low, high = (factor, high) if kept(factor) > density * total else (low, factor)
    return {name: 1 - 1 / (1 + factor * n) for name, n in sizes.items()}


def sparsity_distribution(
    shapes: Shapes, p: float, r: float, allocation: Allocation
) -> tuple[Shares, Shares]:
    """(pruned, locked) shares: frozen weights are dealt out, then pruned ones; the rest lock.

    Args:
        shapes: of each layer's weights. p, r: shares of all weights pruned and locked.
        allocation: one of this module's.

    Raises:
        InferKitError: a layer would have more pruned weights than frozen ones.
    """
    frozen, pruned = allocation(shapes, 1 - (p + r)), allocation(shapes, 1 - p)
    return pruned, {name: frozen[name] - pruned[name] for name in shapes}


def density_distribution(
    shapes: Shapes, p: float, r: float, allocation: Allocation
) -> tuple[Shares, Shares]:
    """(pruned, locked) shares, each dealt out by itself; see `sparsity_distribution`."""
    kept = allocation(shapes, r)
    return allocation(shapes, 1 - p), {name: 1 - kept[name] for name in shapes}


def proportional(
    shapes: Shapes, p: float, r: float, allocation: Allocation
) -> tuple[Shares, Shares]:
    """(pruned, locked) shares, p to r in every layer; see `sparsity_distribution`.

    Not in the paper, whose two rules lock early layers and prune late ones when p = r.
    """
    frozen = allocation(shapes, 1 - (p + r))
    part = p / (p + r) if p + r else 0.0
    pruned = {name: share * part for name, share in frozen.items()}
    return pruned, {name: frozen[name] - pruned[name] for name in shapes}


ALLOCATIONS: dict[str, Allocation] = {"uniform": uniform, "erk": erk, "epl": epl, "igq": igq}
RULES = {
    "sparsity_distribution": sparsity_distribution,
    "density_distribution": density_distribution,
    "proportional": proportional,
}


def _check(density: float) -> None:
    if not 0 <= density <= 1:
        raise InferKitError(f"A density is a share of the weights, from 0 to 1: got {density!r}.")
