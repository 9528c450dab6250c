r"""Features that stay as they are when an image is augmented: PCR, and the augmentation for it.

For an extractor g, samples x of any source and a random augmentation T,

$$PCR = E\,\|g(T(x)) - g(x)\|^2$$

Source: Yamaguchi et al., "Regularizing Neural Networks with Meta-Learning Generative Models" (MGR),
NeurIPS 2023, arXiv 2307.13899, where x are samples of a generator: they train the extractor alone,
by what needs no label.
Differs from the paper, or is not told there: the augmentation is one of tensors, see
`StrongAugment`; sum or mean over features, and whether g(x) has a gradient, are options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import isfinite, pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.representation.finite import check_finite
from infer_kit.training.symmetry.calling import called_with
from infer_kit.training.symmetry.placed import Placed

Reduction = Literal["mean", "sum"]
Augment = Callable[[Tensor, torch.Generator | None], Tensor]
"""Of images `[B, C, H, W]` and a generator the augmented images, each on its own."""


def pcr_loss(augmented: Tensor, plain: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Mean squared distance of the features of augmented images from those of the images.

    Args:
        augmented, plain: `[B, d]` g(T(x)) and g(x); of half precision computed in float32.
        reduction: "sum" is the paper's norm, summed over d and averaged over B; "mean" is averaged
            over both, d times less, so that a weight means the same for all networks.

    Returns:
        A tensor with one number.

    Raises:
        InferKitError: features of other shapes, or not finite; an unknown reduction.
    """
    if augmented.shape != plain.shape or plain.dim() != 2 or not plain.numel():
        raise InferKitError(
            f"Features are {list(augmented.shape)} of augmented and {list(plain.shape)} of plain "
            "images; [B, d] of both are expected.",
            "Flatten the features of each example.",
        )
    _check_reduction(reduction)
    check_finite("Features", augmented, plain)
    wide = torch.promote_types(plain.dtype, torch.float32)
    squares = (augmented.to(wide) - plain.to(wide)).square()
    return squares.mean() if reduction == "mean" else squares.sum(1).mean()


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise InferKitError(f"reduction={reduction!r}: 'mean' or 'sum' is expected.")


@dataclass(frozen=True)
class StrongAugment:
    """Turns, shears, scales, moves, dims and erases each image on its own, as tensors.

    Each number says how far it goes, evenly to both sides; 0 turns it off. What comes into the
    image from outside is its edge. Differentiable in the image. The paper has RandAugment.

    Args:
        rotate: degrees. shear: of a side. scale: share of the size. translate: shares of the sides.
        brightness: in standard deviations of the image. contrast: share of the deviation from the
            image's mean.
        erase: largest sides of a rectangle that becomes the image's mean, as shares of the image's.

    Raises:
        InferKitError: a number below 0, or not finite; scale, contrast or erase above 1.
    """

    rotate: float = 20.0
    shear: float = 0.2
    scale: float = 0.2
    translate: float = 0.1
    brightness: float = 0.3
    contrast: float = 0.3
    erase: float = 0.3

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            number = getattr(self, name)
            most = 1 if name in ("scale", "contrast", "erase") else float("inf")
            if not (isfinite(number) and 0 <= number <= most) or (name == "scale" and number == 1):
                raise InferKitError(
                    f"{name}={number}: a number from 0 on is expected"
                    + (", up to 1." if most == 1 else ".")
                )

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented images.

        Args:
            x: `[B, C, H, W]` floating, on any scale.
            generator: of the draws, on any device; None for PyTorch's own of x's device.

        Returns:
            `[B, C, H, W]` of x's dtype; half precision is computed in float32.

        Raises:
            InferKitError: no floating images.
        """
        if x.dim() != 4 or not x.is_floating_point():
            raise InferKitError(
                f"Images are {list(x.shape)} of {x.dtype}; floating [B, C, H, W] are expected."
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        device = x.device if generator is None else generator.device
        drawn = torch.rand(len(x), 11, generator=generator, device=device).to(wide)
        moved = self._moved(wide, 2 * drawn[:, :5] - 1)
        return self._erased(self._dimmed(moved, 2 * drawn[:, 5:7] - 1), drawn[:, 7:]).to(x.dtype)

    def _moved(self, x: Tensor, u: Tensor) -> Tensor:
        """u: `[B, 5]` in (-1, 1)."""
        height, width = x.shape[2:]
        angle, zoom = u[:, 0] * self.rotate * pi / 180, 1 + self.scale * u[:, 1]
        cos, sin, shear = zoom * angle.cos(), zoom * angle.sin(), self.shear * u[:, 2]
        # Where each place of the result comes from; affine_grid counts from -1 to 1 along both
        # sides, so that a turn of an image that is not square needs their ratio.
        ratio = height / width
        rows = [
            cos, (shear * cos - sin) * ratio, 2 * self.translate * u[:, 3],
            sin / ratio, shear * sin + cos, 2 * self.translate * u[:, 4],
        ]  # fmt: skip
        grid = affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _dimmed(self, x: Tensor, u: Tensor) -> Tensor:
        """u: `[B, 2]` in (-1, 1)."""
        mean = x.mean((1, 2, 3), keepdim=True)
        # A variance has a gradient also where an image is one colour; a deviation has none there.
        spread = (x - mean).square().mean((1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
        brightness = self.brightness * u[:, 0].view(-1, 1, 1, 1)
        contrast = 1 + self.contrast * u[:, 1].view(-1, 1, 1, 1)
        return mean + contrast * (x - mean) + brightness * spread

    def _erased(self, x: Tensor, u: Tensor) -> Tensor:
        """u: `[B, 4]` in (0, 1): place and size."""

        def inside(n: int, middle: Tensor, size: Tensor) -> Tensor:
            at = (torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n
            return (at - middle[:, None]).abs() < self.erase * size[:, None] / 2

        rows = inside(x.shape[2], u[:, 0], u[:, 1])
        columns = inside(x.shape[3], u[:, 2], u[:, 3])
        hole = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(hole, x.mean((2, 3), keepdim=True), x)


@dataclass(frozen=True)
class FeatureConsistency:
    """PCR through a model, on samples of any source.

    Augmented and plain images go through the model as one batch, so that a batch norm sees both.
    Its running statistics stay as they are: those of the real batches. The head, which reads the
    features, gets no gradient; nor do images that require none.

    With DistributedDataParallel the model within is called, so that a step has one forward of the
    wrapper; gradients are averaged by its backward as always.

    Args:
        augment: T, called as augment(x, rng) with `[B, C, H, W]` and a torch.Generator or None; of
            one that takes images alone give lambda x, rng: T(x).
        reduction: see `pcr_loss`.
        stop_gradient: g(x) is a target without a gradient, which only g(T(x)) follows. Off, as the
            formula reads: on digits it cost 15 points, and 70 with the sum.
        layer: name of the module whose output is g(x); None for the input of the last `nn.Linear`.
    """

    augment: Augment = field(default_factory=StrongAugment)
    reduction: Reduction = "mean"
    stop_gradient: bool = False
    layer: str | None = None

    def __post_init__(self) -> None:
        _check_reduction(self.reduction)

    def __call__(
        self, model: nn.Module, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """PCR of images.

        Args:
            model: called with images alone; its mode is kept.
            x: `[B, C, H, W]`. generator: of the augmentation.

        Returns:
            A tensor with one number.

        Raises:
            InferKitError: no such layer, or one that does not run once.
        """
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        return self.of(*self.features(inner, x, self.augment(x, generator)))

    def of(self, augmented: Tensor, plain: Tensor) -> Tensor:
        """PCR of features `[B, d]`."""
        target = plain.detach() if self.stop_gradient else plain
        return pcr_loss(augmented, target, self.reduction)

    def features(self, model: nn.Module, x: Tensor, augmented: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, d]` of augmented images and of images, through the model as one batch."""
        state = {name: p for name, p in model.named_parameters()}
        placed = Placed(model, state | dict(model.named_buffers()))  # whose buffers are copies
        return self.features_in(placed, model, x, augmented)

    def features_in(
        self, placed: Placed, model: nn.Module, x: Tensor, augmented: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with other tensors in the place of the model's."""
        with FeatureTap(model, self.layer) as tap:
            placed.run(called_with, torch.cat([augmented, x]))
            first, second = tap.take().chunk(2)
        return first, second
