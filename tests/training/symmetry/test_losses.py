"""Whether two means of losses differ: against what is drawn many times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infer_kit.training.symmetry.losses import Losses


def losses(logits: Tensor, targets: Tensor, size: int) -> Losses:
    sizes = [len(part) for part in targets.split(size)]
    return Losses.of(logits, targets, sizes)


def sure(n: int, wrong: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two logits of about 8 with which a share is wrong: most losses are 0, a few are large."""
    targets = torch.randint(0, 2, (n,), generator=generator)
    said = torch.where(torch.rand(n, generator=generator) < wrong, 1 - targets, targets)
    size = 8 + torch.randn(n, generator=generator)
    return torch.nn.functional.one_hot(said, 2) * size[:, None], targets


def test_it_is_the_mean_and_the_pooled_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(50, 3, generator=generator), torch.arange(50) % 3
    each = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    one, other = losses(logits[:30], targets[:30], 30), losses(logits[30:], targets[30:], 20)
    assert (one.count, other.count) == (30, 20)
    assert one.mean == pytest.approx(float(each[:30].mean()), rel=1e-6)
    error = each.std(correction=0) * (1 / 30 + 1 / 20) ** 0.5
    expected = float((each[:30].mean() - each[30:].mean()) / error)
    assert one.above(other) == pytest.approx(expected, rel=1e-5)
    assert one.above(one) == 0


@pytest.mark.parametrize(
    ("n", "m", "wrong"), [(1000, 50, 0.02), (1000, 50, 0.01), (300, 200, 0.03)]
)
def test_data_of_one_kind_are_hardly_ever_told_apart(n: int, m: int, wrong: float) -> None:
    generator = torch.Generator().manual_seed(0)
    told = sum(
        losses(*sure(n, wrong, generator), n).above(losses(*sure(m, wrong, generator), m)) > 3
        for _ in range(300)
    )
    assert told <= 3


def test_data_without_a_mistake_are_told_from_others() -> None:
    generator = torch.Generator().manual_seed(0)
    told = sum(
        losses(*sure(300, 0.05, generator), 300).above(losses(*sure(300, 0, generator), 300)) > 3
        for _ in range(100)
    )
    assert told >= 90


def test_targets_of_one_text_are_alike() -> None:
    """Texts of different difficulty, 64 tokens each, one a batch."""
    generator = torch.Generator().manual_seed(0)

    def texts(n: int) -> Losses:
        hard = torch.randn(n, 1, generator=generator).expand(n, 64).reshape(-1)
        logits = torch.stack([torch.zeros_like(hard), 3 * hard], 1)
        return losses(logits, torch.zeros(len(hard), dtype=torch.int64), 64)

    told = sum(texts(20).above(texts(20)) > 3 for _ in range(200))
    assert told <= 4
