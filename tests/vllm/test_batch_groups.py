"""Pooling inside a batch, without an engine, against the formulas in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm", reason="vLLM is not installed")

from infer_kit.token_statistics import TokenStatistics
from infer_kit.vllm.batch_groups import BatchGroups
from infer_kit.vllm.description import Member, PoolRule

SIZE = 50
INF = math.inf
CPU = torch.device("cpu")


def members_of(name: str, weights: list[float], rule: PoolRule, seed: int | None = None):
    return [
        Member(name, len(weights), k, w, *((rule, seed) if k == 0 else ()))
        for k, w in enumerate(weights)
    ]


def formula(rows: Tensor, weights: list[float], rule: PoolRule) -> Tensor:
    """`[V]` log π of `[K, V]` logits: every number by itself."""
    logprobs = rows.double().log_softmax(-1)
    pooled = torch.zeros(rows.shape[1], dtype=torch.float64)
    for v in range(rows.shape[1]):
        parts = [(w, float(row[v])) for w, row in zip(weights, logprobs, strict=True) if w != 0]
        if rule.mode == "mixture":
            total = sum(w * math.exp(p) for w, p in parts)
            pooled[v] = math.log(total) if total > 0 else -INF
        elif any(p == -INF for _, p in parts):
            pooled[v] = -INF  # whatever the sign of the weight
        else:
            pooled[v] = sum(w * p for w, p in parts)
    if rule.plausibility:
        shares = [weights[e] for e in rule.experts]
        expert = sum(
            s / sum(shares) * logprobs[e] for s, e in zip(shares, rule.experts, strict=True)
        )
        pooled[expert < expert.max() + math.log(rule.plausibility)] = -INF
    return pooled.log_softmax(0)


GROUPS: dict[str, tuple[list[float], PoolRule]] = {
    "product": ([1.0, 0.5, -0.7], PoolRule()),
    "alone": ([0.4], PoolRule()),
    "idle": ([1.0, 0.0], PoolRule()),
    "idle leader": ([0.0, 1.0, -0.2], PoolRule()),
    "mixture": ([0.2, 0.8], PoolRule("mixture")),
    "mixture of three": ([0.2, 0.0, 1.8], PoolRule("mixture")),
    "cut": ([1.5, -0.5], PoolRule(plausibility=0.5)),
    "cut by the second": ([1.5, 0.5], PoolRule(plausibility=0.4, experts=(1,))),
    "cut by two": ([1.5, 0.5, -0.4], PoolRule(plausibility=0.6, experts=(1, 0))),
    "cut behind an idle one": ([1.0, 0.0, 0.5], PoolRule(plausibility=0.5, experts=(2,))),
}


def scattered(seed: int = 0) -> tuple[dict[int, Member], dict[str, list[int]], Tensor]:
    """All groups in one batch, their rows shuffled, with plain rows between."""
    rng = random.Random(seed)
    every = [m for n, (weights, rule) in GROUPS.items() for m in members_of(n, weights, rule)]
    total = len(every) + 5
    rows = rng.sample(range(total), len(every))
    batch = dict(zip(rows, every, strict=True))
    places = {name: [0] * len(weights) for name, (weights, _) in GROUPS.items()}
    for row, member in batch.items():
        places[member.id][member.index] = row
    logits = torch.randn(total, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 + 3
    return batch, places, logits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("holes", [False, True])
def test_pools(seed: int, holes: bool) -> None:
    batch, places, logits = scattered(seed)
    if holes:
        for row in range(len(logits)):
            logits[row, (row * 7) % SIZE] = -INF
    given = logits.clone()
    BatchGroups(batch, CPU).pool(logits)
    for name, (weights, rule) in GROUPS.items():
        want = formula(given[places[name]], weights, rule)
        found = logits[places[name][0]]
        assert torch.equal(found.isneginf(), want.isneginf()), name
        assert not found.isnan().any()
        kept = ~want.isneginf()
        assert torch.allclose(found.double().log_softmax(0)[kept], want[kept], atol=1e-5), name
    leaders = {rows[0] for rows in places.values()}
    for row in set(range(len(logits))) - leaders:
        assert torch.equal(logits[row], given[row])


def test_the_scale_is_that_of_logits() -> None:
    """Equal streams whose weights sum to 1 give back their own logits: penalties see a scale."""
    row = torch.randn(SIZE) + 5
    for mode in ("product", "mixture"):
        batch = dict(enumerate(members_of("g", [0.25, 0.75], PoolRule(mode))))
        logits = row.repeat(2, 1)
        BatchGroups(batch, CPU).pool(logits)
        assert torch.allclose(logits[0], row, atol=1e-5)


@pytest.mark.parametrize("budget", [0.05, 0.7])
def test_budgets(budget: float) -> None:
    """KL(π ‖ π₀) is the budget in each group; two groups of one budget in one batch."""
    rule = PoolRule(kl_budget=budget, direction=(0.0, 1.0))
    batch = dict(
        enumerate([*members_of("a", [1.0, 0.0], rule), *members_of("b", [1.0, 0.0], rule)])
    )
    logits = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1))
    given = logits.double().log_softmax(-1)
    (pooled,) = BatchGroups(batch, CPU).pool(logits)
    for row, group in ((0, 0), (2, 1)):
        pi = logits[row].double().log_softmax(-1)
        assert float((pi.exp() * (pi - given[row])).sum()) == pytest.approx(budget, abs=1e-4)
        weight = float(pooled.weights[group, 1, 0])
        want = (given[row] + weight * given[row + 1]).log_softmax(-1)
        assert weight > 0 and torch.allclose(pi, want, atol=1e-5)


def test_an_incomplete_group_is_left_alone() -> None:
    every = members_of("g", [1.0, 0.5], PoolRule())
    for part in ({0: every[0]}, {0: every[1]}, {}):
        groups = BatchGroups(part, CPU)
        logits = torch.randn(2, SIZE)
        given = logits.clone()
        assert not groups and groups.pool(logits) == []
        groups.share(torch.zeros(2, 1, dtype=torch.int32), {})
        assert torch.equal(logits, given)


def test_members_get_their_leaders_token() -> None:
    batch, places, _ = scattered(2)
    groups = BatchGroups(batch, CPU)
    sampled = torch.arange(len(batch) + 5, dtype=torch.int32)[:, None]
    groups.share(sampled, {})
    expected = list(range(len(sampled)))
    for rows in places.values():
        for row in rows:
            expected[row] = rows[0]
    assert sampled[:, 0].tolist() == expected
    assert groups.leader_rows == {name: rows[0] for name, rows in places.items()}


def test_seeds_are_the_leaders() -> None:
    every = [*members_of("a", [1.0, 1.0], PoolRule(), seed=7), *members_of("b", [2.0], PoolRule())]
    assert BatchGroups({4: every[0], 2: every[1], 3: every[2]}, CPU).seeds == {4: 7}


def test_forced_tokens_and_their_scores() -> None:
    tables = ((1.0, 0.0), (0.5, -0.5), (0.0, 1.0))
    rule = PoolRule(trace="t", forced=(9, 4), tables=tables)
    batch = {3: members_of("g", [1.0, 1.0], rule)[0], 1: members_of("g", [1.0, 1.0], rule)[1]}
    groups = BatchGroups(batch, CPU)
    for step, token in enumerate((9, 4, 4)):
        logits = torch.randn(5, SIZE)
        rows = logits[[3, 1]].clone()
        (pooled,) = groups.pool(logits)
        sampled = torch.zeros(5, 1, dtype=torch.int32)
        groups.share(sampled, {"g": step})
        assert sampled[:, 0].tolist() == [0, token, 0, token, 0]
        scores = pooled.figures(sampled[:, 0])["g"]
        want = [float(formula(rows, list(table), PoolRule())[token]) for table in tables]
        assert isinstance(scores, Tensor) and scores.tolist() == pytest.approx(want, abs=1e-5)
    sampled = torch.full((5, 1), 2, dtype=torch.int32)
    groups.share(sampled, {})  # a draw that does not count
    assert sampled[:, 0].tolist() == [2] * 5


def test_figures() -> None:
    """Log-probabilities of the streams and the pool; only of the groups that ask."""
    traced, silent = PoolRule(trace="t"), PoolRule()
    weights = [1.0, 0.6, -0.3]
    every = [*members_of("a", weights, silent), *members_of("b", weights, traced)]
    batch = dict(enumerate(every))
    logits = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(3))
    given = logits.clone()
    (pooled,) = BatchGroups(batch, CPU).pool(logits)
    sampled = torch.tensor([1, 1, 1, 17, 17, 17])
    figures = pooled.figures(sampled)
    assert list(figures) == ["b"]
    found = figures["b"]
    assert isinstance(found, TokenStatistics)
    want, rows = formula(given[3:], weights, traced), given[3:].double().log_softmax(-1)
    assert found.chosen.tolist() == [[17]]
    assert float(found.pooled) == pytest.approx(float(want[17]), abs=1e-5)
    assert found.logprobs[0, 0].tolist() == pytest.approx(rows[:, 17].tolist(), abs=1e-5)
    assert found.weights[0, 0].tolist() == pytest.approx(weights)
    assert found.top[0, 0].tolist() == rows.argmax(-1).tolist()
    assert int(found.runner_up) == int(want.argmax())
