"""Images with captions as batches of a CLIP-like model, and the features of such batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from infer_kit.dual_encoder import DualEncoder
from infer_kit.errors import InferKitError
from infer_kit.images import open_image
from infer_kit.training.representation.finite import check_finite

IMAGE, TEXT = "image", "text"


class CaptionedImages(Dataset[dict[str, Any]]):
    """Images with one caption or several, of which each epoch draws one.

    The draw depends on the seed, the epoch and the image alone, so that a run that is resumed sees
    what it would have seen.

    Args:
        images: PIL images, paths or URLs, or anything with a length that gives them by number.
        captions: of each image a text, or several.
        seed: of the draws.

    Raises:
        InferKitError: another number of captions than of images; an image without a caption.
    """

    def __init__(
        self, images: Sequence[Any], captions: Sequence[str | Sequence[str]], seed: int = 0
    ) -> None:
        if isinstance(captions, str) or len(images) != len(captions) or not len(images):
            captions = [captions] if isinstance(captions, str) else captions
            raise InferKitError(
                f"{len(images)} images and {len(captions)} captions are given.",
                "Give each image a caption, or a list of them.",
            )
        self.images, self.seed = images, seed
        # Shared, for workers that stay from one epoch to the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.captions: list[list[str]] = []
        for n, own in enumerate(captions):
            texts = [own] if isinstance(own, str) or not isinstance(own, Iterable) else list(own)
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise InferKitError(
                    f"Image {n} has no caption, or one without a word: {own!r}.",
                    "Give it a text, or leave the image out.",
                )
            self.captions.append(texts)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; the trainer calls it."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """Of which the captions are."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        own = self.captions[index]
        which = np.random.default_rng([self.seed, self.epoch, index]).integers(len(own))
        return {IMAGE: open_image(self.images[index], f"Image {index}"), TEXT: own[which]}


class ImageTextCollator:
    """Examples {"image", "text"} as what the model takes.

    Args:
        model: CLIP, SigLIP or their like, of transformers. processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        parts = ("image_processor", "tokenizer")
        lacking = [part for part in parts if not hasattr(processor, part)]
        if lacking:
            raise InferKitError(
                f"The processor is a {type(processor).__name__} without {' and '.join(lacking)}.",
                "Give the model's whole one: AutoProcessor.from_pretrained(model).",
            )
        self._dual = DualEncoder(model, processor)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        lacking = [key for key in (IMAGE, TEXT) if key not in examples[0]]
        if lacking:
            raise InferKitError(
                f"Examples have {', '.join(map(repr, examples[0]))}, and no "
                f"{' and no '.join(map(repr, lacking))}.",
                'CaptionedImages(images, captions) makes them; columns can be renamed to "image" '
                'and "text".',
            )
        pictures = [example[IMAGE] for example in examples]
        pixels = self._dual.processor.image_processor(images=pictures, return_tensors="pt")
        return {**pixels, **self._dual.text_inputs([example[TEXT] for example in examples])}


def features_of_pairs(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`[B, d]` features of images and of texts, not normalised, with gradients.

    The model's own forward runs, so that it may be wrapped for several processes.

    Raises:
        InferKitError: the model does not give features of pairs; features that are not finite.
    """
    outputs = model(**inputs)
    try:
        a = outputs.vision_model_output.pooler_output
        b = outputs.text_model_output.pooler_output
        units = outputs.image_embeds, outputs.text_embeds
    except AttributeError as error:
        raise InferKitError(
            f"{type(model).__name__} gives no features of images and texts: {error}",
            "Give a CLIP or SigLIP model of transformers.",
        ) from error
    for raw, unit, what in zip((a, b), units, ("image", "text"), strict=True):
        check_finite(f"The {what} features", raw)
        # Some models project after this place, or share a part of the space only.
        if raw.shape != unit.shape or not torch.allclose(
            normalize(raw.detach(), dim=1), unit.detach().to(raw), atol=1e-2
        ):
            raise InferKitError(
                f"{type(model).__name__} compares other {what} features than those that it pools.",
                "Give a CLIP or SigLIP model of transformers.",
            )
    return a, b
