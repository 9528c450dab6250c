"""`AdaRandLoss` against loops, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.representation import AdaRandLoss, ClassGaussianPrior, GaussianPrior


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_term_is_a_mean_of_squared_distances(seed: int, reduction: str) -> None:
    B, D = 4 + seed, 3 + 2 * seed
    features = normal(B, D, seed=seed).double().requires_grad_()
    y = torch.arange(B) % 2
    prior = ClassGaussianPrior(normal(2, D, seed=1).double(), normal(2, D, seed=2).abs().double())
    adarand = AdaRandLoss(prior, 0.7, reduction)
    term = adarand(features, y, torch.Generator().manual_seed(3))
    z = prior.sample(y, torch.Generator().manual_seed(3))
    total = 0.0
    for row, drawn in zip(features.tolist(), z.tolist(), strict=True):
        squares = [(g - t) ** 2 for g, t in zip(row, drawn, strict=True)]
        total += sum(squares) / (D if reduction == "mean" else 1)
    assert float(term.detach()) == pytest.approx(0.7 * total / B, rel=1e-12)
    term.backward()
    slope = 2 * 0.7 * (features.detach() - z) / B / (D if reduction == "mean" else 1)
    torch.testing.assert_close(features.grad, slope, rtol=1e-12, atol=0)
    assert not any(b.requires_grad for b in prior.buffers())
    assert not list(adarand.parameters())
    # As a micro-batch of 20 examples.
    part = adarand(features, y, torch.Generator().manual_seed(3), n_examples=20)
    assert float(part.detach()) == pytest.approx(0.7 * total / 20, rel=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    features = normal(6, 4).bfloat16().requires_grad_()
    adarand = AdaRandLoss(GaussianPrior(torch.zeros(4), torch.zeros(4)))
    term = adarand(features, torch.zeros(6, dtype=torch.int64))
    assert term.dtype == torch.float32
    assert float(term.detach()) == pytest.approx(
        float(features.detach().double().square().sum()) / 6, rel=1e-6
    )
    term.backward()
    assert features.grad.dtype == torch.bfloat16


def test_what_the_loss_cannot_take_is_refused() -> None:
    prior = GaussianPrior.standard(4)
    for match, args in {
        "prior is a Linear": (nn.Linear(2, 2),),
        "lam=-1": (prior, -1.0),
        "reduction='none': one of sum, mean": (prior, 1.0, "none"),
    }.items():
        with pytest.raises(InferKitError, match=re.escape(match)):
            AdaRandLoss(*args)
    adarand = AdaRandLoss(prior)
    with pytest.raises(InferKitError, match=re.escape("[6, 4] are expected")):
        adarand(normal(6, 1), torch.zeros(6, dtype=torch.int64))  # which would broadcast
    with pytest.raises(InferKitError, match=re.escape("with 5 labels")):
        adarand(normal(6, 4), torch.zeros(5, dtype=torch.int64))
