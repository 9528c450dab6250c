"""Selection against naive loops and exhaustive search."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.methods import selection
from infer_kit.methods.selection import SELECTIONS, diverse, nearest, random_selection, select

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)


def _features(seed: int, n: int, d: int = 5, grid: bool = False) -> Tensor:
    """Random rows; on a grid many are equal or equally far apart."""
    generator = torch.Generator().manual_seed(seed)
    if grid:
        rows = torch.randint(-1, 2, (n, d), generator=generator).float()
        rows[rows.eq(0).all(1), 0] = 1.0
        return rows
    return torch.randn(n, d, generator=generator)


def _cosine_distance(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def _naive_diverse(features: Tensor, n: int) -> list[int]:
    """Three loops, one distance at a time; a later index wins only if it is clearly farther."""
    rows = features.double().tolist()
    picks: list[int] = []
    while len(picks) < n:
        best, farthest = -1, -math.inf
        for i in range(len(rows)):
            if i in picks:
                continue
            smallest = math.inf
            for j in picks or range(len(rows)):
                if i != j:
                    smallest = min(smallest, _cosine_distance(rows[i], rows[j]))
            if best < 0 or smallest > farthest + 1e-9:
                best, farthest = i, smallest
        picks.append(best)
    return picks


@quick
@given(seeds, st.integers(1, 12), st.booleans(), st.data())
def test_diverse_is_the_naive_loop(seed: int, total: int, grid: bool, data: st.DataObject) -> None:
    features = _features(seed, total, 3, grid)
    n = data.draw(st.integers(1, total))
    assert diverse(features, n) == _naive_diverse(features, n)


def test_diverse_in_blocks_is_the_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_BLOCK", 4)
    for seed in range(20):
        features = _features(seed, 11, 3)
        assert diverse(features, 5) == _naive_diverse(features, 5)


def test_diverse_on_a_case_by_hand() -> None:
    degrees = torch.tensor([0.0, 10.0, 90.0, 95.0, 200.0])
    features = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)
    features *= torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0])[:, None]  # lengths do not matter
    # 200° is 105° from its nearest; then 10° is 170° from it; then 95° is 85° from 10°
    assert diverse(features, 3) == [4, 1, 3]
    assert select(features, 3, "diverse") == [1, 3, 4]


@quick
@given(seeds, st.integers(2, 9), st.booleans(), st.data())
def test_diverse_has_half_of_the_best_smallest_distance(
    seed: int, total: int, grid: bool, data: st.DataObject
) -> None:
    """In the Euclidean distance of unit vectors, a metric that orders pairs as cosine does."""
    features = _features(seed, total, 3, grid).double()
    n = data.draw(st.integers(2, total))
    units = features / features.norm(dim=1, keepdim=True)
    distance = (units[:, None] - units[None]).norm(dim=2)

    def smallest(subset: tuple[int, ...]) -> float:
        return min(float(distance[i, j]) for i, j in itertools.combinations(subset, 2))

    best = max(smallest(subset) for subset in itertools.combinations(range(total), n))
    assert smallest(tuple(diverse(features, n))) >= best / 2 - 1e-9


@pytest.mark.parametrize("how", SELECTIONS)
@pytest.mark.parametrize("kind", ["equal", "pairs", "zeros", "random"])
def test_exactly_n_distinct_picks(how: str, kind: str) -> None:
    for total in (1, 2, 7, 40):
        features = _features(total, total)
        if kind == "equal":
            features = features[:1].expand(total, -1)
        elif kind == "pairs":
            features = features[: (total + 1) // 2].repeat(2, 1)[:total]
        elif kind == "zeros":
            features = torch.zeros_like(features)
        for n in sorted({1, (total + 1) // 2, max(total - 1, 1), total}):
            picks = select(features, n, how, query=torch.ones(5))
            assert len(picks) == len(set(picks)) == n
            assert picks == sorted(picks) and picks[0] >= 0 and picks[-1] < total
            assert picks == select(features, n, how, query=torch.ones(5))
        assert picks == list(range(total))


def test_duplicates_come_last() -> None:
    distinct = torch.eye(4)
    features = torch.cat([distinct, distinct, distinct])
    assert sorted(i % 4 for i in diverse(features, 4)) == [0, 1, 2, 3]
    assert sorted(diverse(features, 12)) == list(range(12))


def test_the_lower_index_of_equals() -> None:
    rows = _features(3, 1, 48)
    features = rows.expand(37, -1).contiguous()
    assert nearest(features, rows[0], 5) == [0, 1, 2, 3, 4]
    assert diverse(features, 5) == [0, 1, 2, 3, 4]
    assert diverse(_features(4, 2, 48), 2) == [0, 1]


@quick
@given(seeds, st.integers(1, 40), st.booleans(), st.data())
def test_nearest_has_the_largest_dot_products(
    seed: int, total: int, grid: bool, data: st.DataObject
) -> None:
    features, query = _features(seed, total, grid=grid), _features(seed + 1, 1)[0]
    n = data.draw(st.integers(1, total))
    scores = [round(float((row.double() * query.double()).sum()), 9) for row in features]
    expected = sorted(range(total), key=lambda i: (-scores[i], i))[:n]
    assert nearest(features, query, n) == expected
    assert select(features, n, "nearest", query) == sorted(expected)
    assert nearest(features * 1e-20, query, n) == expected


def test_nearest_is_a_dot_product_and_not_a_cosine() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    assert nearest(features, torch.tensor([1.0, 0.0]), 1) == [1]


def test_random_is_seeded_and_uniform() -> None:
    assert random_selection(40, 7, seed=3) == random_selection(40, 7, seed=3)
    assert random_selection(40, 7, seed=3) != random_selection(40, 7, seed=4)
    assert random_selection(40, 9, seed=3)[:7] == random_selection(40, 7, seed=3)
    counts = torch.zeros(5)
    for seed in range(2000):
        counts[random_selection(5, 2, seed)] += 1
    chi2 = float(((counts - 800) ** 2 / 800).sum())
    assert chi2 < 18.5  # 0.1 % point for 4 degrees of freedom


def test_select_passes_the_seed_and_ignores_the_global_one() -> None:
    features = _features(0, 30)
    torch.manual_seed(0)
    first = select(features, 6, "random", seed=5)
    torch.manual_seed(1)
    assert select(features, 6, "random", seed=5) == first == sorted(random_selection(30, 6, 5))
    assert select(features, 6, "random", seed=6) != first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_and_inputs_are_left_alone(dtype: torch.dtype) -> None:
    features = _features(8, 9).to(dtype)
    before = features.clone()
    assert diverse(features, 4) == _naive_diverse(features, 4)
    assert nearest(features, features[2] * 100, 1) == nearest(features.double(), features[2], 1)
    assert torch.equal(features, before)


# Refusals


@pytest.mark.parametrize("how", SELECTIONS)
@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_a_count_below_one(how: str, n: object) -> None:
    with pytest.raises(InferKitError, match=rf"Cannot select {n} demonstrations: expected a whole"):
        select(_features(0, 3), n, how, query=torch.ones(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", SELECTIONS)
def test_a_count_above_the_total(how: str) -> None:
    with pytest.raises(InferKitError, match="Cannot select 4 demonstrations out of 3.") as error:
        select(_features(0, 3), 4, how, query=torch.ones(5))
    assert error.value.hint == "Select at most 3, or give more demonstrations."


def test_an_unknown_name() -> None:
    known = "use one of 'nearest', 'diverse', 'random'"
    with pytest.raises(InferKitError, match=f"Unknown selection 'diversity': {known}") as error:
        select(_features(0, 3), 2, "diversity")
    assert error.value.hint == "Did you mean 'diverse'?"
    with pytest.raises(InferKitError, match=f"Unknown selection None: {known}"):
        select(_features(0, 3), 2, None)  # type: ignore[arg-type]


def test_nearest_without_a_query() -> None:
    with pytest.raises(InferKitError, match='"nearest" needs a query') as error:
        select(_features(0, 3), 2, "nearest")
    assert error.value.hint == 'Without a query use "diverse" or "random".'


@pytest.mark.parametrize("query", [torch.ones(4), torch.ones(1, 5), torch.tensor(1.0)])
def test_a_query_of_another_size(query: Tensor) -> None:
    match = rf"features are \[{', '.join(map(str, query.shape))}\]; .* so \[5\] was expected"
    with pytest.raises(InferKitError, match=match):
        nearest(_features(0, 3), query, 2)


def test_a_query_that_is_no_tensor_or_not_finite() -> None:
    with pytest.raises(InferKitError, match="The query's features are list"):
        nearest(_features(0, 3), [1.0] * 5, 2)  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match="query's features hold NaN or infinity"):
        nearest(_features(0, 3), torch.full((5,), torch.nan), 2)


@pytest.mark.parametrize("how", SELECTIONS)
def test_features_that_are_no_rows(how: str) -> None:
    with pytest.raises(InferKitError, match=r"Features are \[3\]; expected a tensor \[N, D\]"):
        select(torch.ones(3), 1, how, query=torch.ones(3))
    with pytest.raises(InferKitError, match=r"Features are \[0, 5\]"):
        select(torch.ones(0, 5), 1, how, query=torch.ones(5))
    with pytest.raises(InferKitError, match="Features are list"):
        select([[1.0]], 1, how, query=torch.ones(1))  # type: ignore[arg-type]
    broken = _features(0, 4)
    broken[2, 1] = torch.inf
    with pytest.raises(InferKitError, match="demonstration 2 hold NaN or infinity"):
        select(broken, 1, how, query=torch.ones(5))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_a_seed_that_is_none(seed: object) -> None:
    with pytest.raises(InferKitError, match=f"seed={seed}: expected a whole number from 0"):
        random_selection(4, 2, seed)  # type: ignore[arg-type]
