"""The laws of `infer_kit.testing` on the text families, and that each law can fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from infer_kit.engine import coupled_lm
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.stream_cache import StreamCache
from infer_kit.pooling import Pooling
from infer_kit.testing import (
    assert_batch_law,
    assert_chain_law,
    assert_copy_law,
    assert_limit_law,
    assert_order_law,
    assert_pool_law,
    assert_zero_law,
)
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    MIXTURE,
    SAMPLING,
    SIGNED,
    lookup_rows,
    model_of,
    text_row,
    text_rows,
)
from tests.tiny import TEXT_GRID, reference_logits

families = pytest.mark.parametrize("family", TEXT_GRID)
WAYS: dict[str, dict[str, Any]] = {"greedy": GREEDY, "sampling": SAMPLING, "beams": BEAMS}


@families
@pytest.mark.parametrize("way", WAYS)
def test_zero_law(family: str, way: str) -> None:
    """Bitwise; plain `generate` runs the prompt once for each beam, in a batch, we once."""
    tolerance = 1e-5 if way == "beams" else 0.0
    assert_zero_law(model_of(family), text_rows(1, 4)[0], tolerance, **WAYS[way])


@families
def test_zero_law_of_one_stream_and_of_drafts(family: str) -> None:
    assert_zero_law(model_of(family), text_rows(1, 1)[0], **GREEDY)
    # drafts of plain `generate` share one forward with the prompt, so not bitwise
    assert_zero_law(model_of(family), lookup_rows(2)[0], tolerance=1e-5, **LOOKUP)


def test_a_stream_of_weight_zero_is_not_run() -> None:
    model, rows = model_of("llama"), text_rows(1, 3)
    calls: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        CoupledLM([model] * 3).generate(rows, weights=[1.0, 0.0, 0.5], **GREEDY)
    finally:
        handle.remove()
    assert calls == [1, 1] + [2] * (GREEDY["max_new_tokens"] - 1)


@families
def test_limit_law(family: str) -> None:
    assert_limit_law(model_of(family), text_rows(1, 3)[0])
    assert_limit_law(model_of(family), text_rows(1, 2)[0], **SAMPLING)


@families
@pytest.mark.parametrize("streams", [2, 4])
@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_copy_law(family: str, streams: int, pool: str) -> None:
    model, row = model_of(family), text_row(11, 3)
    assert_copy_law(model, row, streams, pool, max_new_tokens=12, repetition_penalty=1.3)
    assert_copy_law(model, row, streams, pool, **SAMPLING, repetition_penalty=1.3)


def test_copy_law_under_a_repetition_penalty() -> None:
    """A penalty is not shift invariant: it shows at what scale the pooled logits are."""
    _copies_under_a_penalty()


def _copies_under_a_penalty() -> None:
    for seed in range(10):
        row = text_row(20, 70 + seed)
        for pool in ("product", "mixture"):
            assert_copy_law(model_of("gpt2"), row, 2, pool, max_new_tokens=10,
                            repetition_penalty=1.3)  # fmt: skip


@families
@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_order_law(family: str, pool: str) -> None:
    row = text_rows(1, 4)[0]
    weights = SIGNED if pool == "product" else MIXTURE[4]
    assert_order_law(model_of(family), row, weights, pool, **GREEDY)


@families
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_batch_law_with_ragged_requests(family: str, way: str) -> None:
    """Unequal lengths, unequally many streams, gaps, weights of each request's own."""
    a, b, c = text_rows(3, 4)
    rows = [a, [b[0], None, b[2]], [c[0]], [c[0], None, None, a[3]]]
    weights = [SIGNED, [0.7, 9.0, -0.2, 9.0], [2.0, 0.0, 0.0, 0.0], [0.5, 1.0, 1.0, 0.5]]
    assert_batch_law([model_of(family)] * 4, rows, weights, **WAYS[way])


def test_batch_law_of_a_mixture() -> None:
    a, b, c = text_rows(3, 4)
    rows = [a[:2], [b[0], None, b[2]], c[:1]]
    weights = [[0.3, 0.7, 0.0], [0.6, 0.0, 0.4], [1.0, 0.0, 0.0]]
    assert_batch_law([model_of("llama")] * 3, rows, weights, pool="mixture", **GREEDY)


@families
@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_pool_law(family: str, pool: str) -> None:
    model, row = model_of(family), text_rows(1, 3)[0]
    weights = torch.tensor(SIGNED[:3] if pool == "product" else MIXTURE[3])
    first, pooled = _first_step(model, row, weights, pool)
    assert_pool_law(first.log_softmax(-1), weights, pooled, pool)


@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_sampled_frequencies(pool: str) -> None:
    """4000 first tokens pass a chi-squared test against the pool in float64."""
    model, row, draws = model_of("llama"), text_rows(1, 2)[0], 4000
    weights = torch.tensor([0.4, 0.3] if pool == "product" else MIXTURE[2])
    first, _ = _first_step(model, row, weights, pool)
    p = first.double().softmax(-1)
    if pool == "product":
        expected = (p ** weights[:, None]).prod(0)
        expected = expected / expected.sum()
    else:
        expected = (weights[:, None] * p).sum(0)
    torch.manual_seed(1)
    out = CoupledLM([model] * 2, weights.tolist(), pool).generate(
        [row], max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=draws
    )
    counts = torch.bincount(out[:, -1], minlength=160).double()
    assert _chi_squared_z(counts, draws * expected) < 4
    uniform_streams = (p.mean(0) ** 0.9) / (p.mean(0) ** 0.9).sum()
    assert _chi_squared_z(counts, draws * uniform_streams) > 4, "the test has no power"


@families
def test_chain_law(family: str) -> None:
    lm = CoupledLM([model_of(family)] * 3, SIGNED[:3])
    assert_chain_law(lm, text_rows(1, 3), torch.tensor([5, 40, 9, 77, 31, 8]))


def test_probabilities_sum_to_one() -> None:
    lm = CoupledLM([model_of("llama")] * 2, [1.0, -0.4])
    rows = text_rows(1, 2) * 160
    scores = lm.score(rows, [[token] for token in range(160)])
    total = sum(float(s.exp()) for s in scores.pooled)
    assert total == pytest.approx(1.0, abs=1e-5)


# That each law can fail.


def test_zero_and_limit_laws_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position off by one after the prompt."""
    model, streams = model_of("llama"), text_rows(1, 2)[0]
    step = StreamCache.step

    def shifted(cache: StreamCache, ids: Tensor) -> Tensor:
        for group in cache._groups:
            group.position = group.position + (cache.new_tokens == 0)
        return step(cache, ids)

    monkeypatch.setattr(StreamCache, "step", shifted)
    with pytest.raises(AssertionError, match="differ by|gave"):
        assert_zero_law(model, streams)
    with pytest.raises(AssertionError, match="gave"):
        assert_limit_law(model, streams, max_new_tokens=30)


def test_a_law_fails_on_the_wrong_engine() -> None:
    with pytest.raises(AssertionError, match=r"Expected the serial engine, but \['fused'\] ran"):
        assert_zero_law(model_of("llama"), text_rows(1, 2)[0], engine="serial")


def test_copy_law_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare log-probabilities, not at the scale of raw logits."""
    pool = Pooling.__call__
    monkeypatch.setattr(Pooling, "__call__", lambda *args: pool(*args).log_softmax(-1))
    with pytest.raises(AssertionError, match="2 copies gave"):
        _copies_under_a_penalty()


def test_order_and_pool_laws_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stream's weight counts for all."""
    resolve = coupled_lm.resolve_pooling

    def first_weight(*args: Any) -> Pooling:
        pooling = resolve(*args)
        return dataclasses.replace(pooling, weights=pooling.weights[:, :1].expand(-1, 3))

    monkeypatch.setattr(coupled_lm, "resolve_pooling", first_weight)
    model, row = model_of("llama"), text_rows(1, 3)[0]
    with pytest.raises(AssertionError, match="gave|differ by"):
        assert_order_law(model, row, SIGNED[:3])
    weights = torch.tensor(SIGNED[:3])
    first, pooled = _first_step(model, row, weights, "product")
    with pytest.raises(AssertionError, match="pooled probabilities, product: they differ"):
        assert_pool_law(first.log_softmax(-1), weights, pooled)


def test_batch_law_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request gets the first one's weights."""
    resolve = coupled_lm.resolve_pooling

    def shared(*args: Any) -> Pooling:
        pooling = resolve(*args)
        return dataclasses.replace(pooling, weights=pooling.weights[:1].expand_as(pooling.weights))

    monkeypatch.setattr(coupled_lm, "resolve_pooling", shared)
    with pytest.raises(AssertionError, match="Request 1|request 1"):
        assert_batch_law([model_of("llama")] * 2, text_rows(2, 2), [[1.0, 0.2], [0.2, 1.0]])


def test_chain_law_can_fail() -> None:
    """Weights that depend on the position within a call do not chain."""
    lm = CoupledLM(
        [model_of("llama")] * 2,
        lambda step: torch.tensor([[[1.0], [1.0]]]) * (1 + step.position),
    )
    with pytest.raises(AssertionError, match="chain of log-probabilities: they differ"):
        assert_chain_law(lm, text_rows(1, 2), torch.tensor([5, 40, 9, 77]))


def _first_step(model: Any, row: Any, weights: Tensor, pool: str) -> tuple[Tensor, Tensor]:
    """Logits of the streams `[K, V]`, without a cache, and the engine's pooled scores `[V]`."""
    nothing = torch.zeros(1, 0, dtype=torch.long)
    streams = torch.stack([reference_logits(model, dict(r), nothing)[-1] for r in row])
    out = CoupledLM([model] * len(row), weights.tolist(), pool).generate(
        [row], max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return streams, out.logits[0][0]


def _chi_squared_z(counts: Tensor, expected: Tensor) -> float:
    """Chi-squared as a standard normal quantile (Wilson–Hilferty); rare tokens are one bin."""
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    statistic = float(((observed - wanted).square() / wanted).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
