"""Which demonstrations share a context: partitions of 0..N-1 in K chunks."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from infer_kit.errors import InferKitError
from infer_kit.methods.selection import (
    as_features,
    check_seed,
    is_whole,
    seeded_permutation,
    unknown_name,
)

CHUNKINGS = ("kmeans", "balanced", "similarity", "diversity", "random")
_STARTS = 10  # of k-means, of which the best is kept


def chunk(features: Tensor, chunks: int, how: str = "kmeans", seed: int = 0) -> list[list[int]]:
    r"""Demonstrations in exactly K chunks, none of them empty.

    Source: Yamaguchi et al., "Parallel In-context Learning for Large Vision Language Models", CVPR
    2026, arXiv 2603.16092: k-means clusters of the features, so that chunks differ from each other.

    * "kmeans": the clusters that minimise $\sum_k \sum_{i \in C_k} |f_i - \mu_k|^2$, of whatever
      sizes they come in. Of fewer distinct rows than K the largest clusters are halved.
    * "balanced": the same sum under the condition that sizes differ by at most one; every
      assignment to the means is exact, at a cost of N³ a step.
    * "similarity": equal parts of a chain in which each demonstration is followed by its nearest
      neighbour (cosine) among those left; it starts at the one farthest from the mean.
    * "diversity": that chain dealt out in turn, so that near-duplicates are in different chunks.
    * "random": equal parts of a seeded permutation.

    Differences from the published code: it sorts the demonstrations by cluster and slices the
    list in equal parts, so that most chunks mix clusters, and N must be a multiple of K; here the
    chunks are the clusters. Its "random" keeps the order of the data set. "balanced" is new.

    Args:
        features: `[N, D]` floats, one row a demonstration; float64 inside.
        chunks: K, 1 to N.
        how: one of `CHUNKINGS`.
        seed: of the starts of k-means and of the permutation.

    Returns:
        K lists of indices; each ascends, so that demonstrations keep the user's order, and the
        lists are ordered by their first index.

    Raises:
        InferKitError: K is not 1 to N, the name is unknown, or the features are not finite rows.
    """
    points = as_features(features)
    _check_chunks(chunks, len(points))
    check_seed(seed)
    match how:
        case "kmeans":
            parts = _split_largest(_members(_kmeans(points, chunks, seed)), chunks)
        case "balanced":
            parts = _members(_balanced_kmeans(points, chunks, seed))
        case "similarity":
            parts = _cut(_chain(points), chunks)
        case "diversity":
            chain = _chain(points)
            parts = [chain[k::chunks] for k in range(chunks)]
        case "random":
            parts = _cut(seeded_permutation(len(points), seed), chunks)
        case _:
            raise unknown_name("chunking", how, CHUNKINGS)
    return _in_order(parts)


def given_chunks(chunks: Sequence[int] | Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """Chunks of the user's own, checked: lists in their order, labels by label, ascending.

    Args:
        chunks: a label for each of the n demonstrations, any whole numbers; or lists of indices.
        n: how many demonstrations there are.

    Raises:
        InferKitError: a demonstration is in no chunk or in two, or an index is not one; names it.
    """
    given: list[Any] = chunks.tolist() if hasattr(chunks, "tolist") else list(chunks)
    if given and all(is_whole(label) for label in given):
        if len(given) != n:
            raise InferKitError(f"Got {len(given)} chunk labels for {n} demonstrations.")
        return [[i for i in range(n) if given[i] == label] for label in sorted(set(given))]
    if not given or not all(isinstance(part, Iterable) and not _text(part) for part in given):
        raise InferKitError(
            f"Cannot read chunks={chunks!r}.",
            hint="Give one label a demonstration, [0, 0, 1], or lists of indices, [[0, 1], [2]].",
        )
    parts = [list(part) for part in given]
    home: dict[int, int] = {}
    for k, part in enumerate(parts):
        if not part:
            raise InferKitError(f"Chunk {k} is empty.", hint="Leave it out.")
        for i in part:
            if not is_whole(i) or not 0 <= i < n:
                raise InferKitError(
                    f"Chunk {k} names demonstration {i!r}; there are {n}, numbered from 0."
                )
            if i in home:
                where = f"twice in chunk {k}" if home[i] == k else f"in chunks {home[i]} and {k}"
                raise InferKitError(f"Demonstration {i} is {where}; each belongs in one place.")
            home[i] = k
    missing = [i for i in range(n) if i not in home]
    if missing:
        raise InferKitError(
            f"Demonstration {missing[0]} is in no chunk"
            + (f", nor are {len(missing) - 1} others." if missing[1:] else "."),
            hint="To leave some out, leave them out of the demonstrations.",
        )
    return [[int(i) for i in part] for part in parts]


def _check_chunks(chunks: int, n: int) -> None:
    if not is_whole(chunks) or chunks < 1:
        raise InferKitError(f"chunks={chunks!r}: expected a whole number, at least 1.")
    if chunks > n:
        raise InferKitError(
            f"{chunks} chunks need at least {chunks} demonstrations, got {n}.",
            hint=f"Ask for at most {n}, or give more demonstrations.",
        )


def _kmeans(points: Tensor, chunks: int, seed: int) -> list[int]:
    """`[N]` labels; fewer than K distinct ones where there are fewer distinct points."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # duplicates: the caller splits them
        model = KMeans(chunks, init="k-means++", n_init=_STARTS, random_state=int(seed))
        return model.fit(points.numpy()).labels_.tolist()


def _split_largest(parts: list[list[int]], chunks: int) -> list[list[int]]:
    """Halve the largest part, of equals the first, until there are K."""
    parts = _in_order(parts)
    while len(parts) < chunks:
        k = max(range(len(parts)), key=lambda k: len(parts[k]))
        half = (len(parts[k]) + 1) // 2
        parts[k : k + 1] = [parts[k][:half], parts[k][half:]]
    return parts


def _balanced_kmeans(points: Tensor, chunks: int, seed: int) -> list[int]:
    r"""`[N]` labels of k-means with cluster sizes ⌊N/K⌋ or ⌈N/K⌉.

    Both halves of a step, the assignment and the means, minimise the same sum with the other
    held; it falls until it does not, which is the end.
    """
    import numpy as np
    from scipy.spatial.distance import cdist
    from sklearn.cluster import kmeans_plusplus

    x, random = points.numpy(), np.random.RandomState(seed)
    best: Any = None
    least = np.inf
    for _ in range(_STARTS):
        means, _ = kmeans_plusplus(x, chunks, random_state=random)
        labels, inertia = None, np.inf
        while True:
            new = _balanced_assignment(cdist(x, means, "sqeuclidean"))
            means = np.stack([x[new == k].mean(0) for k in range(chunks)])
            sum_ = float(((x - means[new]) ** 2).sum())
            if not sum_ < inertia:
                break
            labels, inertia = new, sum_
        if inertia < least * (1 - 1e-9):  # of starts that end alike the first, whatever rounding
            best, least = labels, inertia
    return best.tolist()


def _balanced_assignment(costs: Any) -> Any:
    """`[N]` clusters of least total cost, with sizes that differ by at most one.

    A cluster has ⌈N/K⌉ slots, one demonstration a slot. The slots that are too many go to
    fillers, which may have the last slot of a cluster only: so none lacks two.

    Args:
        costs: `[N, K]` array.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    n, k = costs.shape
    slots = -(-n // k)
    fillers = np.full((k * slots - n, k * slots), np.inf)
    fillers[:, slots - 1 :: slots] = 0.0
    _, slot = linear_sum_assignment(np.vstack([np.repeat(costs, slots, axis=1), fillers]))
    return slot[:n] // slots


def _chain(points: Tensor) -> list[int]:
    """All indices, each followed by its nearest neighbour (cosine) among those left."""
    units = normalize(points, dim=1)
    closeness = units @ units.mean(0)
    chain = [int(closeness.round(decimals=12).argmin())]
    left = torch.ones(len(units), dtype=torch.bool)
    for _ in range(1, len(units)):
        left[chain[-1]] = False
        cosines = (units @ units[chain[-1]]).round(decimals=12)  # ties go by the index
        chain.append(int(cosines.masked_fill(~left, -torch.inf).argmax()))
    return chain


def _cut(order: list[int], chunks: int) -> list[list[int]]:
    """Consecutive parts whose sizes differ by at most one, larger ones first."""
    size, more = divmod(len(order), chunks)
    starts = [k * size + min(k, more) for k in range(chunks + 1)]
    return [order[starts[k] : starts[k + 1]] for k in range(chunks)]


def _members(labels: Sequence[int]) -> list[list[int]]:
    """The indices under each label that occurs."""
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    return list(members.values())


def _in_order(parts: Iterable[Iterable[int]]) -> list[list[int]]:
    """Each part ascending, and the parts by their first index."""
    return sorted(sorted(int(i) for i in part) for part in parts)


def _text(part: object) -> bool:
    return isinstance(part, str | bytes)
