"""Reading a class from a feature: zero-shot by class names, or by a trained linear probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from infer_kit.concepts.encoders import Encoder, text_features
from infer_kit.concepts.phrase_lists import filled
from infer_kit.errors import InferKitError

TEMPLATE = "a photo of a {}"


class Head(Protocol):
    """What reads classes: `ZeroShotHead`, `LinearProbe`, or an object of one's own.

    Attributes:
        classes: their names, in the order of the logits.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    def logits(self, z: Tensor) -> Tensor:
        """`[B, C]` of features `[B, d]`."""
        ...


@dataclass(frozen=True)
class ZeroShotHead:
    r"""$s \cdot T z$: zero-shot CLIP.

    Attributes:
        classes: their names. features: T, `[C, d]` unit rows. scale: s, the encoder's logit scale.
    """

    classes: tuple[str, ...]
    features: Tensor
    scale: float

    @classmethod
    def of(
        cls, encoder: Encoder, classes: Sequence[str], template: str | Sequence[str] = TEMPLATE
    ) -> "ZeroShotHead":
        """From class names.

        Args:
            template: what a name is put in; of several the mean of the unit features counts.

        Raises:
            InferKitError: names are fewer than two, or not unlike; a template has not one "{}".
        """
        names = checked_classes(classes)
        templates = [template] if isinstance(template, str) else list(template)
        if not templates:
            raise InferKitError("No template is given.")
        every = torch.stack([text_features(encoder, filled(one, names)) for one in templates])
        mean = torch.nn.functional.normalize(every.mean(0), dim=1)
        return cls(names, mean, encoder.logit_scale)

    def logits(self, z: Tensor) -> Tensor:
        return self.scale * z @ self.features.to(z).T


def checked_classes(classes: Any) -> tuple[str, ...]:
    """Class names as a tuple.

    Raises:
        InferKitError: they are no names, fewer than two, or not unlike.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise InferKitError(f"classes is a {type(classes).__name__}; expected a list of names.")
    if not all(isinstance(name, str) and name.strip() for name in classes):
        raise InferKitError("classes has something that is no name.")
    if len(set(classes)) < max(len(classes), 2):
        raise InferKitError(
            f"classes has {len(classes)} names, {len(set(classes))} unlike; expected two or more, "
            "each once."
        )
    return tuple(classes)
