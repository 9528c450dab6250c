"""Losses of CLIP-Refine against loops in float64."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    align_loss,
    contrastive_loss,
    hycd_loss,
    natural_similarity,
    rafa_loss,
    similarities,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [exp(v - top) for v in row]
    return [p / sum(powers) for p in powers]


def slow_hycd(S: list[list[float]], S_t: list[list[float]], alpha: float, T: float) -> float:
    """Word by word."""
    n, total = len(S), 0.0
    for student, teacher in ((S, S_t), (list(zip(*S, strict=True)), list(zip(*S_t, strict=True)))):
        for i in range(n):
            p = softmax([v / T for v in student[i]])
            t = softmax([v / T for v in teacher[i]])
            q = [alpha * (i == j) + (1 - alpha) * t[j] for j in range(n)]
            total += sum(q[j] * (log(q[j]) - log(p[j])) for j in range(n) if q[j]) / n
    return total / 2


@pytest.mark.parametrize("seed", range(8))
def test_hycd_is_the_formula(seed: int) -> None:
    n, alpha, T = 2 + seed, (seed + 0.5) / 9, [0.5, 1.0, 3.0][seed % 3]
    S, S_t = 3 * normal(n, n, seed=seed), 3 * normal(n, n, seed=100 + seed)
    expected = slow_hycd(S.tolist(), S_t.tolist(), alpha, T)
    assert float(hycd_loss(S, S_t, alpha, T)) == pytest.approx(expected, rel=1e-12)
    single = hycd_loss(S.float(), S_t.float(), alpha, T)
    assert float(single) == pytest.approx(expected, rel=1e-5)


def test_alpha_one_is_contrastive_and_alpha_zero_distils() -> None:
    for seed in range(5):
        S, S_t = 5 * normal(7, 7, seed=seed), 5 * normal(7, 7, seed=50 + seed)
        both = (cross_entropy(S, torch.arange(7)) + cross_entropy(S.T, torch.arange(7))) / 2
        assert abs(float(hycd_loss(S, S_t, 1.0) - both)) < 1e-6
        assert torch.equal(contrastive_loss(S), hycd_loss(S, None, 1.0))
        assert float(hycd_loss(S, S, 0.0)) == pytest.approx(0, abs=1e-12)
        assert float(hycd_loss(S, S_t, 0.0)) > 0.1


def test_the_gradient_at_a_half_is_half_and_half() -> None:
    S_t = 4 * normal(6, 6, seed=1)

    def slope(alpha: float) -> Tensor:
        S = (4 * normal(6, 6)).requires_grad_()
        hycd_loss(S, S_t, alpha).backward()
        assert S.grad is not None
        return S.grad

    half = (slope(0.0) + slope(1.0)) / 2
    assert float((slope(0.5) - half).abs().max()) < 1e-7
    teacher = normal(6, 6).requires_grad_()
    assert not hycd_loss(normal(6, 6), teacher).requires_grad


def test_rafa_is_both_distances_and_the_papers_is_half_d_times_larger() -> None:
    a, b, z = (normal(5, 12, seed=s) for s in range(3))
    total = sum((x[i, j] - z[i, j]) ** 2 for x in (a, b) for i in range(5) for j in range(12))
    assert float(rafa_loss(a, b, z)) == pytest.approx(float(total) / 60, rel=1e-12)
    assert float(rafa_loss(a, b, z, "paper")) == pytest.approx(float(total) / 10, rel=1e-12)
    ratio = float(rafa_loss(a.float(), b.float(), z.float(), "paper")) / float(rafa_loss(a, b, z))
    assert abs(ratio / 6 - 1) < 1e-6
    z.requires_grad_()
    assert not rafa_loss(a, b, z).requires_grad


def test_in_expectation_rafa_is_a_penalty_on_norms() -> None:
    a, b = normal(1, 16), 2 * normal(1, 16, seed=1)
    z = normal(10_000, 16, seed=2)
    each = (a - z).square().sum(1) + (b - z).square().sum(1)
    expected = float(a.square().sum() + b.square().sum()) + 2 * 16
    error = float(each.std()) / 100
    assert abs(float(each.mean()) - expected) < 3 * error
    many = rafa_loss(a.expand_as(z), b.expand_as(z), z, "paper")
    assert float(2 * many) == pytest.approx(float(each.mean()), rel=1e-12)


def test_similarities_and_their_scale() -> None:
    a, b = 3 * normal(6, 8), normal(6, 8, seed=1)
    torch.testing.assert_close(similarities(a, b, "raw"), torch.einsum("id,jd->ij", a, b))
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(similarities(a, b, "scaled_cosine", 30.0), 30 * cosines)
    unit, other = (normalize(a, dim=1), normalize(b, dim=1)), "scaled_cosine"
    for norm, kind in ((10.0, "raw"), (6.0, "raw"), (4.0, other), (25.0, other)):
        found, product = natural_similarity(norm * unit[0], norm * unit[1], 100.0)
        assert (found, product) == (kind, pytest.approx(norm**2))


def test_half_precision_is_computed_in_float32() -> None:
    a, b, z = (normal(4, 8, seed=s).bfloat16() for s in range(3))
    for value in (rafa_loss(a, b, z), align_loss(a, b), hycd_loss(a @ b.T, b @ a.T)):
        assert value.dtype == torch.float32
    assert similarities(a, b, "raw").dtype == torch.float32


def test_one_pair_is_a_batch() -> None:
    assert float(hycd_loss(normal(1, 1), normal(1, 1, seed=1))) == 0
    assert float(rafa_loss(normal(1, 4), normal(1, 4), normal(1, 4))) == 0


def test_what_does_not_fit_is_refused() -> None:
    a, S = normal(4, 3), normal(4, 4)
    with pytest.raises(InferKitError, match=r"\[4, 3\] of images and \[5, 3\] of texts"):
        rafa_loss(a, normal(5, 3), a)
    with pytest.raises(InferKitError, match=r"z is \[4, 2\] and the features are \[4, 3\]"):
        rafa_loss(a, a, normal(4, 2))
    with pytest.raises(InferKitError, match='"mean" or "paper"'):
        rafa_loss(a, a, a, "sum")  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match=r"S is \[4, 3\]; \[B, B\]"):
        hycd_loss(normal(4, 3), S)
    with pytest.raises(InferKitError, match=r"S_t is \[3, 3\], and S is \[4, 4\]"):
        hycd_loss(S, normal(3, 3))
    with pytest.raises(InferKitError, match="S_t is missing"):
        hycd_loss(S, None)
    with pytest.raises(InferKitError, match=r"alpha=1.5"):
        hycd_loss(S, S, 1.5)
    with pytest.raises(InferKitError, match=r"T=0"):
        hycd_loss(S, S, 0.5, 0)
    with pytest.raises(InferKitError, match="similarity='dot'"):
        similarities(a, a, "dot")  # type: ignore[arg-type]
