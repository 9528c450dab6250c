"""The noise of VCD against a slow cumulative product, and what it depends on."""

from __future__ import annotations

import math

import pytest
import torch

from infer_kit.engine.image_noise import add_noise
from infer_kit.errors import InferKitError


def factors(step: int) -> tuple[float, float]:
    """√ᾱ and √(1 − ᾱ), in plain Python: ᾱ_t is the product of 1 − variance up to and with t."""
    kept = 1.0
    for t in range(step + 1):
        x = -6 + 12 * t / 999
        variance = 1 / (1 + math.exp(-x)) * (5e-3 - 1e-5) + 1e-5
        kept *= 1 - variance
    return math.sqrt(kept), math.sqrt(1 - kept)


@pytest.mark.parametrize("step", [0, 1, 250, 500, 750, 999])
def test_signal_and_noise(step: int) -> None:
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5))
    signal, spread = factors(step)
    expected = signal * pixels.double() + spread * noise.double()
    ours = add_noise(pixels, step, seed=5)
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=0)
    assert ours.dtype == pixels.dtype


def test_the_factors_are_the_papers() -> None:
    assert factors(500)[0] == pytest.approx(0.863, abs=1e-3)
    assert factors(999)[0] == pytest.approx(0.285, abs=1e-3)
    ones = torch.ones(4, 50, 50)
    for step in (500, 999):
        difference = add_noise(ones, step, 3) - add_noise(0 * ones, step, 3)
        assert float(difference.mean()) == pytest.approx(factors(step)[0], abs=1e-5)
        noise = add_noise(0 * ones, step, 3)
        assert float(noise.std()) == pytest.approx(factors(step)[1], rel=0.02)
        assert abs(float(noise.mean())) < 0.03


def test_it_depends_on_seed_shape_and_step_alone() -> None:
    pixels = torch.randn(3, 8, 8)
    before, state = pixels.clone(), torch.get_rng_state()
    first = add_noise(pixels, 700, 2)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(pixels, before)
    torch.manual_seed(99)
    assert torch.equal(first, add_noise(pixels, 700, 2))
    assert not torch.equal(first, add_noise(pixels, 700, 3))
    other = torch.randn(3, 8, 8)
    same_noise = first.double() - factors(700)[0] * pixels.double()
    torch.testing.assert_close(
        add_noise(other, 700, 2).double() - factors(700)[0] * other.double(), same_noise,
        atol=1e-5, rtol=0,
    )  # fmt: skip


def test_half_precision_is_rounded_once() -> None:
    pixels = torch.randn(3, 8, 8).bfloat16()
    exact = add_noise(pixels.double(), 600, 0)
    ours = add_noise(pixels, 600, 0)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16())


@pytest.mark.parametrize("step", [-1, 1000, 1.5, "3", True, None])
def test_steps_that_there_are_not(step: object) -> None:
    with pytest.raises(InferKitError, match="noise step is a whole number from 0 to 999, got"):
        add_noise(torch.zeros(3), step, 0)


def test_seeds_that_are_none() -> None:
    with pytest.raises(InferKitError, match="seed of the noise is a whole number, got None"):
        add_noise(torch.zeros(3), 3, None)
