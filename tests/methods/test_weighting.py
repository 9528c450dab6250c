"""Weights against the formulas in plain float arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.methods.weighting import entropy_weights, similarity_weights, uniform_weights
from infer_kit.pool import Step

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 4)
temperatures = st.floats(0.05, 20.0)
TINY = 5e-324  # the smallest float: dividing by it overflows


def _softmax(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


@quick
@given(seeds, st.integers(1, 40), temperatures, st.data())
def test_similarity_weights_are_the_softmax_of_means(
    seed: int, n: int, temperature: float, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(n, generator=generator) * 4 - 2
    labels = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    chunks = [[i for i in range(n) if labels[i] == label] for label in sorted(set(labels))]
    weights = similarity_weights(similarity, chunks, temperature)
    exact = [sum(Fraction(float(similarity[i])) for i in c) / len(c) for c in chunks]
    assert weights == pytest.approx(_softmax([float(s) for s in exact], temperature), abs=1e-12)
    assert sum(weights) == pytest.approx(1.0, abs=1e-14)
    assert all(type(w) is float for w in weights)


@pytest.mark.parametrize("gap, larger", [(0.05, 0.5125), (0.2, 0.5498)])
def test_published_weights_are_nearly_uniform(gap: float, larger: float) -> None:
    weights = similarity_weights(torch.tensor([gap, 0.0]), [[0], [1]], 1.0)
    assert weights == pytest.approx([larger, 1 - larger], abs=1e-4)


def test_a_mean_and_not_a_sum() -> None:
    similarity = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert similarity_weights(similarity, [[0, 1, 3], [2]], 0.1) == [0.5, 0.5]


@pytest.mark.parametrize("temperature", [TINY, 1e-300, 1e-6])
def test_a_tiny_temperature_takes_the_likest(temperature: float) -> None:
    similarity = torch.tensor([-1.5, 1.0, 1.9, 1.9])
    assert similarity_weights(similarity, [[0], [1], [2], [3]], temperature) == [0, 0, 0.5, 0.5]


def test_a_huge_temperature_is_uniform() -> None:
    weights = similarity_weights(torch.tensor([2.0, -2.0]), [[0], [1]], 1e300)
    assert weights == uniform_weights(2) == [0.5, 0.5]


def test_similarity_in_half_precision_is_pooled_in_double() -> None:
    similarity = torch.rand(31, generator=torch.Generator().manual_seed(0)).bfloat16()
    chunks = [list(range(16)), list(range(16, 31))]
    assert similarity_weights(similarity, chunks, 0.1) == similarity_weights(
        similarity.double(), chunks, 0.1
    )


@pytest.mark.parametrize("k", [1, 3, 7])
def test_uniform(k: int) -> None:
    assert uniform_weights(k) == [1 / k] * k
    assert sum(uniform_weights(k)) == pytest.approx(1.0, abs=1e-15)


# Entropy


def _step(logprobs: Tensor) -> Step:
    rows, _, n, _ = logprobs.shape
    return Step(logprobs, torch.arange(n), torch.arange(rows))


def _random(seed: int, r: int, k: int, n: int, v: int = 11, exclude: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(r, k, n, v, generator=generator) * 3
    if exclude:
        excluded = torch.rand(r, k, n, v, generator=generator) < 0.5
        excluded[..., 0] = False
        logits = logits.masked_fill(excluded, -torch.inf)
    return logits.log_softmax(-1)


@quick
@given(seeds, sizes, sizes, sizes, temperatures, st.booleans())
def test_entropy_weights_are_the_softmax_of_negative_entropies(
    seed: int, r: int, k: int, n: int, temperature: float, exclude: bool
) -> None:
    logprobs = _random(seed, r, k, n, exclude=exclude)
    before = logprobs.clone()
    weights = entropy_weights(temperature)(_step(logprobs))
    assert weights.shape == (r, k, n) and weights.dtype == torch.float32
    assert torch.equal(logprobs, before)
    for i in range(r):
        for t in range(n):
            entropies = [
                -sum(math.exp(x) * x for x in logprobs[i, j, t].tolist() if x > -math.inf)
                for j in range(k)
            ]
            expected = _softmax([-h for h in entropies], temperature)
            assert weights[i, :, t].tolist() == pytest.approx(expected, abs=2e-5)


def test_entropy_is_in_nats() -> None:
    flat, sure = torch.zeros(4), torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
    logprobs = torch.stack([flat, sure]).log_softmax(-1)[None, :, None]
    weights = entropy_weights(1.0)(_step(logprobs)).flatten()
    assert weights.tolist() == pytest.approx([0.2, 0.8], abs=1e-6)  # e^{-ln 4} : e^0


@pytest.mark.parametrize("temperature", [TINY, 1e-50, 1e-4])
def test_a_tiny_temperature_takes_the_surest(temperature: float) -> None:
    logprobs = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    weights = entropy_weights(temperature)(_step(logprobs.log_softmax(-1)[None, :, None]))
    assert weights.flatten().tolist() == [0.0, 0.5, 0.5]


def test_an_absent_stream_is_left_out_by_normalising() -> None:
    """The engine zeroes the weight of a uniform filler and divides by the sum."""
    logprobs = _random(3, 2, 2, 1)
    filler = torch.zeros(2, 1, 1, 11).log_softmax(-1)
    ragged = entropy_weights(0.7)(_step(torch.cat([logprobs, filler], 1)))
    assert (ragged[:, 2] > 0).all()
    kept = ragged[:, :2] / ragged[:, :2].sum(1, keepdim=True)
    torch.testing.assert_close(kept, entropy_weights(0.7)(_step(logprobs)), atol=1e-6, rtol=0)


# Refusals


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.inf, math.nan, "1", None, True])
def test_a_temperature_that_is_none(temperature: object) -> None:
    match = f"temperature={temperature!r}: expected a positive, finite number"
    with pytest.raises(InferKitError, match=match) as error:
        similarity_weights(torch.ones(2), [[0], [1]], temperature)  # type: ignore[arg-type]
    assert error.value.hint == 'For equal weights use weighting="uniform".'
    with pytest.raises(InferKitError, match=match):
        entropy_weights(temperature)  # type: ignore[arg-type]


@pytest.mark.parametrize("similarity", [torch.ones(1, 2), torch.tensor([0.0, math.nan])])
def test_similarities_that_are_none(similarity: Tensor) -> None:
    with pytest.raises(InferKitError, match=r"Similarities \[.*2\]: expected finite numbers"):
        similarity_weights(similarity, [[0], [1]], 1.0)
