"""Which demonstrations are used, where there are more of them than a context should hold.

Features are `[N, D]`, one row a demonstration; the arithmetic is float64 on the CPU.
"""

import difflib
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import normalize

from infer_kit.errors import InferKitError

SELECTIONS = ("nearest", "diverse", "random")
_BLOCK = 1024


def select(
    features: Tensor, n: int, how: str, query: Tensor | None = None, seed: int = 0
) -> list[int]:
    """The n demonstrations to use, in the order in which the user gave them.

    Args:
        features: `[N, D]` floats.
        n: how many, 1 to N.
        how: "nearest" to the query, "diverse" or "random"; see the functions of this module.
        query: `[D]`, for "nearest".
        seed: for "random".

    Returns:
        n distinct indices, ascending.

    Raises:
        InferKitError: n is not 1 to N, the name is unknown, or "nearest" has no query.
    """
    match how:
        case "nearest":
            if query is None:
                raise InferKitError(
                    'Selection "nearest" needs a query to be near to, and there is none.',
                    hint='Without a query use "diverse" or "random".',
                )
            picks = nearest(features, query, n)
        case "diverse":
            picks = diverse(features, n)
        case "random":
            picks = random_selection(len(as_features(features)), n, seed)
        case _:
            raise unknown_name("selection", how, SELECTIONS)
    return sorted(picks)


def nearest(features: Tensor, query: Tensor, n: int) -> list[int]:
    r"""The n largest dot products $f_i \cdot q$, largest first; of equals the lower index.

    With a unit image feature beside a unit text feature it is $\cos_{image} + \cos_{text}$.

    Args:
        features: `[N, D]` floats. query: `[D]` floats. n: 1 to N.
    """
    points = as_features(features)
    _check_count(n, len(points))
    if not isinstance(query, Tensor) or query.shape != points.shape[1:]:
        got = list(query.shape) if isinstance(query, Tensor) else type(query).__name__
        raise InferKitError(
            f"The query's features are {got}; the demonstrations' are {list(points.shape)}, so "
            f"[{points.shape[1]}] was expected.",
            hint="Make both with the same encoder.",
        )
    if not query.isfinite().all():
        raise InferKitError("The query's features hold NaN or infinity.")
    scores = points @ query.detach().to(points)
    scores = _tied(scores / scores.abs().max().clamp_min(torch.finfo(scores.dtype).tiny))
    return scores.argsort(descending=True, stable=True)[:n].tolist()


def diverse(features: Tensor, n: int) -> list[int]:
    r"""Greedy max–min diversity: every pick is as far as can be from the picks before it.

    The first pick is the demonstration whose nearest other one is farthest; then
    $\arg\max_i \min_{j \in S} d(i, j)$ joins S until it has n, with the cosine distance
    $d(i, j) = 1 - \cos(f_i, f_j)$; of equals the lower index. In a metric that orders pairs as d
    does (Euclidean between unit vectors), the smallest distance within S is at least half of what
    any n demonstrations have. The first pick costs N² distances, the others N each.

    Source: Alvar et al., "DivPrune", CVPR 2025, arXiv 2503.02175, there for visual tokens. A row
    of zeros counts as at right angles to everything.

    Args:
        features: `[N, D]` floats. n: 1 to N.

    Returns:
        n distinct indices in the order of picking.
    """
    points = as_features(features)
    _check_count(n, len(points))
    units = normalize(points, dim=1)
    picks = [int(_nearest_other(units).argmax())]
    gap = _tied(1 - units @ units[picks[0]])  # of each to its nearest pick
    for _ in range(1, n):
        gap[picks[-1]] = -torch.inf  # the gap of a duplicate is 0 too: a pick must rank below it
        picks.append(int(gap.argmax()))
        gap = torch.minimum(gap, _tied(1 - units @ units[picks[-1]]))
    return picks


def random_selection(total: int, n: int, seed: int) -> list[int]:
    """The first n of a seeded permutation of 0..total-1; a larger n only adds to a smaller one."""
    _check_count(n, total)
    return seeded_permutation(total, seed)[:n]


def seeded_permutation(total: int, seed: int) -> list[int]:
    """0..total-1 in an order that the seed alone decides."""
    check_seed(seed)
    return torch.randperm(total, generator=torch.Generator().manual_seed(int(seed))).tolist()


def as_features(features: Tensor) -> Tensor:
    """Features as `[N, D]` float64 on the CPU; refused where they are not finite rows."""
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.numel():
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InferKitError(
            f"Features are {got}; expected a tensor [N, D], one row a demonstration."
        )
    finite = features.isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InferKitError(f"The features of demonstration {row} hold NaN or infinity.")
    return features.detach().to("cpu", torch.float64)


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes."""
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise InferKitError(f"seed={seed!r}: expected a whole number from 0 to {2**32 - 1}.")


def is_whole(value: object) -> bool:
    """Whether it is an integer (True and False are not)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def unknown_name(what: str, name: object, known: Sequence[str]) -> InferKitError:
    """The error for a misspelt choice: all choices, and the one probably meant."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return InferKitError(
        f"Unknown {what} {name!r}: use one of {', '.join(map(repr, known))}.",
        hint=f"Did you mean {close[0]!r}?" if close else None,
    )


def _check_count(n: int, total: int) -> None:
    if not is_whole(n) or n < 1:
        raise InferKitError(f"Cannot select {n!r} demonstrations: expected a whole number, 1 up.")
    if n > total:
        raise InferKitError(
            f"Cannot select {n} demonstrations out of {total}.",
            hint=f"Select at most {total}, or give more demonstrations.",
        )


def _nearest_other(units: Tensor) -> Tensor:
    """`[N]`, the cosine distance of each to the nearest other one; infinite if there is none."""
    distances = []
    for start in range(0, len(units), _BLOCK):  # the N x N matrix is never held whole
        cosines = units[start : start + _BLOCK] @ units.T
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -torch.inf
        distances.append(1 - cosines.amax(1))
    return _tied(torch.cat(distances))


def _tied(values: Tensor) -> Tensor:
    """Values of size 1, those that differ by rounding made equal: ties are broken by the index,
    not by the order in which a matrix product sums."""
    return values.round(decimals=12)
