"""How well the phrases of an explanation fit its image, by another encoder."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infer_kit.concepts.encoders import encoder_for, image_features, text_features
from infer_kit.concepts.explanation import SHOWN, Explanation
from infer_kit.concepts.phrase_lists import filled
from infer_kit.errors import InferKitError

_FACTOR = 2.5  # of CLIPScore


def concept_score(
    explanations: Sequence[Explanation],
    images: Sequence[Any],
    second_encoder: Any,
    n: int = SHOWN,
) -> Tensor:
    r"""$2.5 \max(0, v \cdot \frac1n \sum_j t_j)$: the image against its n first phrases.

    Args:
        explanations, images: as many of each.
        second_encoder: see `encoder_for`. By the encoder that chose the phrases the score confirms
            itself; a warning says so.
        n: phrases of the largest |w|, whatever its sign, as published; fewer where fewer have
            weight.

    Returns:
        `[B]` float32; 0 without a phrase.

    Raises:
        InferKitError: the numbers of images and explanations differ.
    """
    encoder = encoder_for(second_encoder)
    if isinstance(explanations, Explanation):
        raise InferKitError("explanations and images are lists, one of each an image.")
    if len(explanations) != len(images) or not len(images):
        raise InferKitError(f"Got {len(explanations)} explanations for {len(images)} images.")
    if encoder.name == explanations[0].model.encoder.name:
        warnings.warn(
            f"The phrases were chosen by {encoder.name!r}, which scores them too: the score "
            "confirms itself. Give another encoder.",
            stacklevel=2,
        )
    prompt = explanations[0].model.bank.prompt
    phrases = sorted({phrase for one in explanations for phrase in one.phrases[:n]})
    number = {phrase: row for row, phrase in enumerate(phrases)}
    texts = text_features(encoder, filled(prompt, phrases))
    means = torch.zeros(len(images), encoder.dim)
    for b, one in enumerate(explanations):
        at = [number[phrase] for phrase in one.phrases[:n]]
        if at:
            means[b] = texts[at].mean(0)
    return _FACTOR * (image_features(encoder, images) * means).sum(1).clamp_min(0)
