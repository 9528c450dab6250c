"""Partitions of demonstrations against scikit-learn, exhaustive search and naive loops."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.cluster import KMeans
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.methods.chunking import CHUNKINGS, chunk, given_chunks

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
EQUAL_SIZES = [how for how in CHUNKINGS if how != "kmeans"]


def _features(seed: int, n: int, d: int = 4, distinct: int | None = None) -> Tensor:
    """Random rows; with `distinct`, copies of so many."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator)
    if distinct is None:
        return rows
    return rows[torch.randint(0, distinct, (n,), generator=generator)]


def _blobs(seed: int, sizes: list[int]) -> tuple[Tensor, list[int]]:
    """Well separated clusters, shuffled, and the cluster of each row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = torch.eye(len(sizes)) * 10
    noise = torch.randn(len(labels), len(sizes), generator=generator) * 0.1
    return means[labels] + noise, labels.tolist()


def _by_label(labels: list[int]) -> list[list[int]]:
    """An independent grouping: by first occurrence."""
    return [[i for i, own in enumerate(labels) if own == label] for label in dict.fromkeys(labels)]


def _check_partition(parts: list[list[int]], n: int, k: int) -> None:
    assert len(parts) == k
    assert all(part and all(type(i) is int for i in part) for part in parts)
    assert all(part == sorted(part) for part in parts)
    assert [part[0] for part in parts] == sorted(part[0] for part in parts)
    assert sorted(itertools.chain(*parts)) == list(range(n))


# Every way to chunk


@pytest.mark.parametrize("how", CHUNKINGS)
@quick
@given(seed=seeds, n=st.integers(1, 40), data=st.data())
def test_a_partition_in_exactly_k(how: str, seed: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.one_of(st.just(1), st.just(n), st.integers(1, n)))
    distinct = data.draw(st.one_of(st.none(), st.integers(1, n)))
    features = _features(seed, n, distinct=distinct)
    parts = chunk(features, k, how, seed)
    _check_partition(parts, n, k)
    if how in EQUAL_SIZES:
        assert {len(part) for part in parts} <= {n // k, -(-n // k)}
    assert chunk(features, k, how, seed) == parts


@pytest.mark.parametrize("how", CHUNKINGS)
@pytest.mark.parametrize("features", [torch.zeros(7, 3), torch.full((7, 3), 0.1)])
def test_equal_demonstrations_do_not_reduce_k(how: str, features: Tensor) -> None:
    for k in range(1, 8):
        _check_partition(chunk(features, k, how), 7, k)


@pytest.mark.parametrize("how", CHUNKINGS)
def test_rows_equal_but_for_rounding(how: str) -> None:
    features = torch.full((9, 3), 0.1, dtype=torch.float64)
    features += torch.rand(9, 3, dtype=torch.float64) * 1e-16
    for k in range(1, 10):
        _check_partition(chunk(features, k, how), 9, k)


@pytest.mark.parametrize("how", CHUNKINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_and_inputs_are_left_alone(how: str, dtype: torch.dtype) -> None:
    features = _features(1, 10).to(dtype)
    before = features.clone()
    assert chunk(features, 3, how) == chunk(features.double(), 3, how)
    assert torch.equal(features, before)


@pytest.mark.parametrize("how", CHUNKINGS)
def test_the_global_seed_has_no_say(how: str) -> None:
    features = _features(2, 30)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(chunk(features, 4, how, seed=9))
    assert results[0] == results[1]


@pytest.mark.parametrize("how", CHUNKINGS)
def test_one_chunk_and_chunks_of_one(how: str) -> None:
    features = _features(3, 6)
    assert chunk(features, 1, how) == [[0, 1, 2, 3, 4, 5]]
    assert chunk(features, 6, how) == [[0], [1], [2], [3], [4], [5]]


# k-means


@quick
@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_kmeans_finds_separated_clusters_of_any_sizes(seed: int, sizes: list[int]) -> None:
    features, labels = _blobs(seed, sizes)
    parts = chunk(features, len(sizes), "kmeans")
    assert parts == _by_label(labels)
    other = KMeans(len(sizes), n_init=3, random_state=77).fit(features.numpy())
    assert parts == _by_label(other.labels_.tolist())


@quick
@given(seeds, st.integers(1, 40), st.data())
def test_kmeans_chunks_are_the_labels(seed: int, n: int, data: st.DataObject) -> None:
    """Also where no cluster stands out and N is no multiple of K."""
    k = data.draw(st.integers(1, n))
    features = _features(seed, n)
    model = KMeans(k, n_init=10, random_state=seed).fit(features.double().numpy())
    assert chunk(features, k, "kmeans", seed) == _by_label(model.labels_.tolist())


def test_kmeans_halves_the_largest_of_too_few_clusters() -> None:
    features = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0])[:, None]
    assert chunk(features, 3, "kmeans") == [[0], [1, 2, 3, 4, 5], [6, 7]]
    assert chunk(features, 4, "kmeans") == [[0], [1, 2, 3], [4, 5], [6, 7]]
    assert chunk(features, 5, "kmeans") == [[0], [1, 2], [3], [4, 5], [6, 7]]


# balanced


def _cost(features: Tensor, parts: list[list[int]]) -> float:
    x = features.double()
    return sum(float((x[part] - x[part].mean(0)).square().sum()) for part in parts)


def _balanced_partitions(n: int, k: int) -> list[tuple[int, ...]]:
    """Labels of every partition whose sizes differ by at most one."""
    sizes = {n // k, -(-n // k)}
    return [
        labels
        for labels in itertools.product(range(k), repeat=n)
        if {labels.count(j) for j in range(k)} <= sizes
    ]


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([(6, 2), (7, 2), (6, 3), (7, 3), (8, 3), (5, 4)]))
def test_balanced_assigns_to_its_means_as_cheaply_as_can_be(
    seed: int, size: tuple[int, int]
) -> None:
    """No other equal-sized assignment to the means of the chunks is cheaper, by enumeration."""
    n, k = size
    features = _features(seed, n, 2).double()
    parts = chunk(features, k, "balanced", seed)
    means = torch.stack([features[part].mean(0) for part in parts])
    costs = (features[:, None] - means).square().sum(-1)
    cheapest = min(
        sum(float(costs[i, j]) for i, j in enumerate(labels))
        for labels in _balanced_partitions(n, k)
    )
    assert _cost(features, parts) == pytest.approx(cheapest, abs=1e-9)


@quick
@given(seeds, st.integers(10, 40), st.integers(2, 6))
def test_balanced_gains_by_no_exchange(seed: int, n: int, k: int) -> None:
    """Its steps go on until, with the means held, neither a swap nor a move is cheaper."""
    features = _features(seed, n).double()
    parts = chunk(features, k, "balanced", seed)
    means = torch.stack([features[part].mean(0) for part in parts])
    costs = (features[:, None] - means).square().sum(-1)
    for a, b in itertools.permutations(range(k), 2):
        gains = costs[parts[a], a] - costs[parts[a], b]  # of each in a, if it were in b
        back = costs[parts[b], b] - costs[parts[b], a]
        assert (gains[:, None] + back <= 1e-9).all()
        if len(parts[a]) > len(parts[b]):
            assert (gains <= 1e-9).all()


def test_balanced_is_mostly_the_best_of_all_partitions() -> None:
    """Lloyd steps end in local optima; the starts make up for nearly all."""
    partitions = _balanced_partitions(7, 3)
    best = 0
    for seed in range(20):
        features = _features(seed, 7, 2)
        least = min(_cost(features, _by_label(list(labels))) for labels in partitions)
        best += math.isclose(_cost(features, chunk(features, 3, "balanced")), least, rel_tol=1e-9)
    assert best >= 18


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_balanced_finds_separated_clusters_of_one_size(seed: int, k: int, size: int) -> None:
    features, labels = _blobs(seed, [size] * k)
    assert chunk(features, k, "balanced") == _by_label(labels)


def test_balanced_moves_the_surplus_that_costs_least() -> None:
    features = torch.tensor([0.0, 0.1, 0.2, 0.3, 3.0, 10.0])[:, None]
    assert chunk(features, 2, "kmeans") == [[0, 1, 2, 3, 4], [5]]
    assert chunk(features, 2, "balanced") == [[0, 1, 2], [3, 4, 5]]


# chains


def _circle(degrees: list[float]) -> Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_similarity_follows_the_chain() -> None:
    # the mean points to some 60°: the chain starts at 170° (row 1) and goes down to 10° (row 2)
    features = _circle([30.0, 170.0, 10.0, 100.0, 20.0, 40.0, 90.0]) * 3
    assert chunk(features, 2, "similarity") == [[0, 2, 4], [1, 3, 5, 6]]
    assert chunk(features, 3, "similarity") == [[0, 5], [1, 3, 6], [2, 4]]
    assert chunk(features, 3, "diversity") == [[0, 3], [1, 2, 5], [4, 6]]


def _naive_chain(features: Tensor) -> list[int]:
    """One cosine at a time, from the row farthest from the mean of the unit rows."""
    units = [row / row.norm() for row in features.double()]
    mean = torch.stack(units).mean(0)
    chain = [min(range(len(units)), key=lambda i: float(units[i] @ mean))]
    while len(chain) < len(units):
        left = [i for i in range(len(units)) if i not in chain]
        chain.append(max(left, key=lambda i: float(units[i] @ units[chain[-1]])))
    return chain


@quick
@given(seeds, st.integers(1, 40), st.data())
def test_both_chains_are_the_naive_one(seed: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    features = _features(seed, n)
    chain = _naive_chain(features)
    cuts = [part.tolist() for part in np.array_split(np.array(chain), k)]
    assert chunk(features, k, "similarity") == sorted(map(sorted, cuts))
    dealt = [[c for place, c in enumerate(chain) if place % k == j] for j in range(k)]
    assert chunk(features, k, "diversity") == sorted(map(sorted, dealt))


@quick
@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_duplicates_stay_together_or_are_parted(seed: int, k: int, size: int) -> None:
    """K distinct rows, so many copies of each: similarity has one in a chunk, diversity all."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(k).repeat(size)[torch.randperm(k * size, generator=generator)]
    features = torch.randn(k, 4, generator=generator)[labels]
    assert chunk(features, k, "similarity") == _by_label(labels.tolist())
    if size <= k:
        for part in chunk(features, k, "diversity"):
            assert len({int(labels[i]) for i in part}) == len(part)


# random


def test_random_is_seeded_and_not_in_the_order_given() -> None:
    features = _features(5, 20)
    parts = {str(chunk(features, 4, "random", seed)) for seed in range(10)}
    assert len(parts) == 10
    assert str([list(range(i, i + 5)) for i in range(0, 20, 5)]) not in parts


def test_random_puts_any_two_together_equally_often() -> None:
    together = torch.zeros(6, 6)
    for seed in range(1000):
        for part in chunk(torch.ones(6, 1), 2, "random", seed):
            for i, j in itertools.combinations(part, 2):
                together[i, j] += 1
    counts = together[torch.ones(6, 6).triu(1).bool()]  # 15 pairs, 400 expected of each
    assert ((counts - 400).abs() < 4.5 * math.sqrt(1000 * 0.4 * 0.6)).all()


# chunks of one's own


@quick
@given(seeds, st.integers(1, 20), st.data())
def test_given_labels_and_given_lists(seed: int, n: int, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(-2, 4), min_size=n, max_size=n))
    expected = [[i for i in range(n) if labels[i] == label] for label in sorted(set(labels))]
    assert given_chunks(labels, n) == expected
    assert given_chunks(np.array(labels, dtype=np.int32), n) == expected
    assert given_chunks(torch.tensor(labels), n) == expected
    lists = data.draw(st.permutations([data.draw(st.permutations(part)) for part in expected]))
    assert given_chunks(lists, n) == lists
    assert given_chunks(tuple(np.array(part) for part in lists), n) == lists


def test_weights_of_ones_own_go_with_the_order_given() -> None:
    """Lists keep their order, outside and inside; labels ascend."""
    assert given_chunks([[3, 1], [2, 0]], 4) == [[3, 1], [2, 0]]
    assert given_chunks([7, -1, 7, 2], 4) == [[1], [3], [0, 2]]


def test_what_chunk_returns_can_be_given() -> None:
    parts = chunk(_features(6, 11), 3)
    assert given_chunks(parts, 11) == parts


@pytest.mark.parametrize(
    "chunks, message",
    [
        ([0, 1], "Got 2 chunk labels for 4 demonstrations."),
        ([0, 1, 0, 1, 0], "Got 5 chunk labels for 4 demonstrations."),
        ([[0, 1], [3]], "Demonstration 2 is in no chunk.\n"),
        ([[2]], "Demonstration 0 is in no chunk, nor are 2 others.\n"),
        ([[0, 1], [2, 3, 1]], "Demonstration 1 is in chunks 0 and 1; each belongs in one place."),
        ([[0, 1], [2, 3, 2]], "Demonstration 2 is twice in chunk 1; each belongs in one place."),
        ([[0, 1], [2, 3, 4]], "Chunk 1 names demonstration 4; there are 4, numbered from 0."),
        ([[0, 1], [2, -1]], "Chunk 1 names demonstration -1; there are 4"),
        ([[0, 1], [2, "3"]], "Chunk 1 names demonstration '3'; there are 4"),
        ([[0, 1], [2, True]], "Chunk 1 names demonstration True; there are 4"),
        ([[0, 1], [], [2, 3]], "Chunk 1 is empty."),
        ([], r"Cannot read chunks=\[\]."),
        ([0, [1, 2, 3]], r"Cannot read chunks=\[0, \[1, 2, 3\]\]."),
        ([0.0, 1.0, 0.0, 1.0], "Cannot read chunks="),
        ("kmeans", "Cannot read chunks='kmeans'."),
    ],
)
def test_given_chunks_that_are_no_partition(chunks: list, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        given_chunks(chunks, 4)


# Refusals


@pytest.mark.parametrize("chunks", [0, -3, 2.0, "4", None, True])
def test_a_number_of_chunks_that_is_none(chunks: object) -> None:
    with pytest.raises(InferKitError, match=f"chunks={chunks!r}: expected a whole number"):
        chunk(_features(0, 5), chunks)  # type: ignore[arg-type]


def test_more_chunks_than_demonstrations() -> None:
    match = "^5 chunks need at least 5 demonstrations, got 3.\n"
    with pytest.raises(InferKitError, match=match) as error:
        chunk(_features(0, 3), 5)
    assert error.value.hint == "Ask for at most 3, or give more demonstrations."


def test_an_unknown_name() -> None:
    known = "use one of 'kmeans', 'balanced', 'similarity', 'diversity', 'random'"
    with pytest.raises(InferKitError, match=f"Unknown chunking 'k-means': {known}") as error:
        chunk(_features(0, 3), 2, "k-means")
    assert error.value.hint == "Did you mean 'kmeans'?"
    with pytest.raises(InferKitError, match="Unknown chunking 'xyz'") as error:
        chunk(_features(0, 3), 2, "xyz")
    assert error.value.hint is None


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
@pytest.mark.parametrize("how", CHUNKINGS)
def test_a_seed_that_is_none(how: str, seed: object) -> None:
    with pytest.raises(InferKitError, match=f"seed={seed}: expected a whole number from 0"):
        chunk(_features(0, 3), 2, how, seed)  # type: ignore[arg-type]


def test_features_that_are_no_rows() -> None:
    with pytest.raises(InferKitError, match=r"Features are \[2, 3, 1\]; expected .* \[N, D\]"):
        chunk(torch.ones(2, 3, 1), 1)
    with pytest.raises(InferKitError, match="Features are ndarray"):
        chunk(np.ones((2, 3)), 1)  # type: ignore[arg-type]
    broken = _features(0, 4)
    broken[3, 0] = torch.nan
    with pytest.raises(InferKitError, match="features of demonstration 3 hold NaN or infinity"):
        chunk(broken, 2)
