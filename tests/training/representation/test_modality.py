"""Gap, alignment, uniformity and recall against loops."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    ModalityReport,
    alignment,
    modality,
    modality_gap,
    recall_at_k,
    uniformity,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(x: Tensor) -> list[list[float]]:
    return [[float(v / row.norm()) for v in row] for row in x]


def squared(u: list[float], v: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(u, v, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_they_are_what_loops_give(seed: int) -> None:
    a, b = 5 * normal(9, 6, seed=seed) + 1, normal(9, 6, seed=10 + seed)
    u, v = units(a), units(b)
    means = [[sum(row[j] for row in x) / 9 for j in range(6)] for x in (u, v)]
    assert modality_gap(a, b) == pytest.approx(squared(*means), rel=1e-12)
    aligned = sum(squared(p, q) for p, q in zip(u, v, strict=True)) / 9
    assert alignment(a, b) == pytest.approx(aligned, rel=1e-12)
    even = []
    for x in (u, v):
        pairs = [(i, j) for i in range(9) for j in range(i)]
        even.append(log(sum(exp(-2 * squared(x[i], x[j])) for i, j in pairs) / len(pairs)))
    assert uniformity(a) == pytest.approx(even[0], rel=1e-10)
    assert uniformity(a, b) == pytest.approx(sum(even) / 2, rel=1e-10)
    assert modality_gap(a.float(), b.float()) == pytest.approx(squared(*means), rel=1e-5)


def test_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(23, 5), normal(23, 5, seed=1)
    whole = uniformity(a, b), recall_at_k(a, b, 3)
    monkeypatch.setattr(modality, "_CHUNK", 4)
    assert (uniformity(a, b), recall_at_k(a, b, 3)) == pytest.approx(whole)


def test_recall_is_that_of_sorting() -> None:
    a, b = normal(12, 4), normal(30, 4, seed=1)
    owner = torch.arange(30) % 12
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    for k in (1, 3, 10):
        best = cosines.argsort(1, descending=True)[:, :k]
        right = [bool((owner[best[i]] == i).any()) for i in range(12)]
        found = recall_at_k(a, b, k, gallery_owner=owner)
        assert found == pytest.approx(sum(right) / 12)
        back = cosines.T.argsort(1, descending=True)[:, :k]
        right = [int(owner[i]) in back[i].tolist() for i in range(30)]
        assert recall_at_k(b, a, k, query_owner=owner) == pytest.approx(sum(right) / 30)


def test_a_model_that_says_the_same_of_all_gets_nothing() -> None:
    same = torch.ones(10, 3)
    assert recall_at_k(same, same, 9) == 0 and recall_at_k(same, same, 10) == 1
    found = modality_gap(same, same), alignment(same, same), uniformity(same)
    assert found == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_report_has_both_forms() -> None:
    a, b = normal(20, 8), normal(20, 8, seed=1)
    report = ModalityReport.of(a, b, ks=(1, 5))
    assert report.gap_as_printed == pytest.approx(1000 * report.gap / 8)
    assert report.uniformity_as_printed == pytest.approx(exp(report.uniformity))
    assert set(report.image_to_text) == {1, 5} and report.pairs == 20
    assert report.to_dict()["gap_as_printed"] == report.gap_as_printed
    assert "I2T R@1" in str(report) and f"gap {report.gap:.3f}" in str(report)


def test_what_does_not_fit_is_refused() -> None:
    a = normal(4, 3)
    with pytest.raises(InferKitError, match="4 images and 5 texts are no pairs"):
        alignment(a, normal(5, 3))
    with pytest.raises(InferKitError, match="3 and 2 numbers"):
        modality_gap(a, normal(4, 2))
    with pytest.raises(InferKitError, match="not finite"):
        modality_gap(a, a.log())
    with pytest.raises(InferKitError, match="text feature is zero"):
        modality_gap(a, 0 * a)
    with pytest.raises(InferKitError, match=r"\[N, d\] is expected"):
        uniformity(a[0])
    with pytest.raises(InferKitError, match="two or more"):
        uniformity(a[:1])
    with pytest.raises(InferKitError, match="k=0"):
        recall_at_k(a, a, 0)
    with pytest.raises(InferKitError, match="belongs to the query of owner 3"):
        recall_at_k(a, a, 1, gallery_owner=torch.tensor([0, 1, 2, 2]))
    with pytest.raises(InferKitError, match="Owners are"):
        recall_at_k(a, a, 1, gallery_owner=torch.tensor([0, 1]))
