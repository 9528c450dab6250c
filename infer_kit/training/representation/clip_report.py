"""What a CLIP-like model is worth, before and after it is refined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infer_kit.concepts.classes import TEMPLATE, ZeroShotHead
from infer_kit.concepts.encoders import encoder_for, image_features, text_features
from infer_kit.errors import InferKitError
from infer_kit.training.representation.modality import ModalityReport


@dataclass(frozen=True)
class CLIPReport:
    """Figures of one model.

    Attributes:
        modality: gap, alignment, uniformity and recalls on the pairs.
        zero_shot: accuracy over the classes, from 0 to 1; None without classes.
    """

    modality: ModalityReport
    zero_shot: float | None = None

    def to_dict(self) -> dict[str, object]:
        """All of it as JSON can have it."""
        return self.modality.to_dict() | {"zero_shot": self.zero_shot}

    def __str__(self) -> str:
        zero_shot = "" if self.zero_shot is None else f"; zero-shot {100 * self.zero_shot:.1f}"
        return f"{self.modality}{zero_shot}"


def measure_clip(
    encoder: Any,
    images: Sequence[Any],
    captions: Sequence[str],
    classes: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    template: str | Sequence[str] = TEMPLATE,
    ks: Sequence[int] = (1, 5, 10),
) -> CLIPReport:
    """Retrieval, modality gap and zero-shot accuracy of a model on held-out images.

    Args:
        encoder: (model, processor), a folder or name, or an encoder of `infer_kit.concepts`.
        images: PIL images, paths or URLs. captions: one of each.
        classes: names. labels: of each image the name of its class.
        template: what a class's name is put in; of several the mean feature counts.
        ks: of recall.

    Raises:
        InferKitError: images, captions and labels do not fit each other; a label that is no class.
    """
    if len(images) != len(captions):
        raise InferKitError(
            f"{len(images)} images and {len(captions)} captions are given.",
            "Give each image one caption.",
        )
    several = next((one for one in captions if not isinstance(one, str)), None)
    if several is not None:
        raise InferKitError(
            f"A caption is {several!r}; a text is expected.",
            "Choose one of each image's captions: recall is of pairs.",
        )
    if (classes is None) != (labels is None):
        raise InferKitError("classes and labels go together.", "Give both, or neither.")
    encoder = encoder_for(encoder)
    a, b = image_features(encoder, images), text_features(encoder, captions)
    report = ModalityReport.of(a, b, ks)
    if classes is None or labels is None:
        return CLIPReport(report)
    if len(labels) != len(images):
        raise InferKitError(f"{len(images)} images and {len(labels)} labels are given.")
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise InferKitError(f"{unknown[0]!r} is a label, and no class: {', '.join(classes)}.")
    head = ZeroShotHead.of(encoder, classes, template)
    expected = torch.tensor([head.classes.index(label) for label in labels])
    right = head.logits(a).argmax(1) == expected
    return CLIPReport(report, float(right.double().mean()))
