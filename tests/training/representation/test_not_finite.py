"""Features and logits that are not finite are refused where they come in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    AdaRandLoss,
    ClassGaussianPrior,
    GaussianPrior,
    UDALoss,
    align_loss,
    hycd_loss,
    natural_similarity,
    pcr_loss,
    rafa_loss,
    similarities,
)

GOOD = torch.ones(3, 4)
LABELS = torch.tensor([0, 1, 1])
SQUARE = torch.ones(3, 3)


def fixed() -> ClassGaussianPrior:
    return ClassGaussianPrior(torch.ones(2, 4), torch.ones(2, 4), adapt=False)


CALLS: dict[str, Callable[[Tensor], object]] = {
    "rafa image": lambda x: rafa_loss(x, GOOD, GOOD),
    "rafa text": lambda x: rafa_loss(GOOD, x, GOOD),
    "align": lambda x: align_loss(x, GOOD),
    "similarities": lambda x: similarities(x, GOOD, "raw"),
    "natural": lambda x: natural_similarity(GOOD, x, 1.0),
    "hycd student": lambda x: hycd_loss(x[:, :3], SQUARE),
    "hycd teacher": lambda x: hycd_loss(SQUARE, x[:, :3]),
    "pcr": lambda x: pcr_loss(x, GOOD),
    "pcr plain": lambda x: pcr_loss(GOOD, x),
    "uda": lambda x: UDALoss()(x, GOOD),
    "uda augmented": lambda x: UDALoss()(GOOD, x),
    "adarand": lambda x: AdaRandLoss(GaussianPrior.standard(4))(x, LABELS),
    "prior": lambda x: fixed().update(x, LABELS),
    "statistics": lambda x: ClassGaussianPrior.from_features(x, LABELS, 2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(call: str, value: float) -> None:
    x = GOOD.clone()
    CALLS[call](x)
    x[1, 2] = value
    with pytest.raises(InferKitError, match="numbers that are not finite"):
        CALLS[call](x)
