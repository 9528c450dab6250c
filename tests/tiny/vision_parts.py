"""Pieces that the recipes of the vision-language families share: ids, sizes, pixels, configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from tests.tiny.weights import BOS, EOS, PAD

VOCAB = 160
FIRST_TEXT, LAST_TEXT = 4, 131  # ids of ordinary text; the ASCII characters in `tiny_tokenizer`

IMAGE, IMAGE_START, IMAGE_END, VIDEO = 150, 151, 152, 153
MARK_A, MARK_B, MARK_C, MARK_D = 154, 155, 156, 157  # separators, tags: named by each family
SPECIAL = (IMAGE, IMAGE_START, IMAGE_END, VIDEO, MARK_A, MARK_B, MARK_C, MARK_D)
NEWLINE = FIRST_TEXT + ord("\n")

HIDDEN, HEADS = 32, 4

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one family is built, and what its processor returns.

    Attributes:
        config: makes the model's config.
        span: (image, number of images in the prompt) -> the ids that stand for this image.
        pixels: images -> the vision inputs.
        extras: (ids [1, S], images) -> further inputs that come with every prompt.
        arrange: (spans, chunks of text) -> ids; None: text, image, text, image, ..., text.
        special_ids: ids that a random model must not generate.
    """

    config: Callable[[], PreTrainedConfig]
    span: Callable[[int, int], list[int]]
    pixels: Callable[[Sequence[int]], Inputs]
    extras: Callable[[Tensor, Sequence[int]], Inputs] = field(default=lambda ids, images: {})
    arrange: Callable[[list[list[int]], list[list[int]]], list[int]] | None = None
    special_ids: tuple[int, ...] = SPECIAL


def second_size(image: int) -> bool:
    """Odd images have the family's second size."""
    return image % 2 == 1


def pixels(image: int, *shape: int) -> Tensor:
    """The normalised pixels of an image: the same int, the same pixels."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + image))


def interleave(spans: list[list[int]], chunks: list[list[int]]) -> list[int]:
    """BOS, text, image, text, image, ..., text."""
    ids = [BOS, *chunks[0]]
    for span, chunk in zip(spans, chunks[1:], strict=True):
        ids += span + chunk
    return ids


def pad_stack(items: Sequence[Tensor], dims: int) -> Tensor:
    """Stack, after padding the first `dims` dimensions with zeros at the end to the largest."""
    size = [max(item.shape[d] for item in items) for d in range(dims)]
    out = items[0].new_zeros(len(items), *size, *items[0].shape[dims:])
    for slot, item in zip(out, items, strict=True):
        slot[tuple(slice(n) for n in item.shape[:dims])] = item
    return out


def text_config(model_type: str, **special: Any) -> dict[str, Any]:
    """The text half of a config."""
    return {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    } | special


def vision_config(model_type: str, image_size: int, **special: Any) -> dict[str, Any]:
    """The vision half, for towers with the usual field names. Patches are 4 pixels wide."""
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_channels": 3,
        "image_size": image_size,
        "patch_size": 4,
    } | special
