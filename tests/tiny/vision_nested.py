"""Families with nested or masked images: Idefics 2 and 3, SmolVLM, Mistral 3, Mllama."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from tests.tiny.vision_parts import (
    HEADS,
    HIDDEN,
    IMAGE,
    IMAGE_END,
    MARK_A,
    MARK_B,
    MARK_C,
    MARK_D,
    NEWLINE,
    Inputs,
    Recipe,
    interleave,
    pad_stack,
    pixels,
    second_size,
    text_config,
    vision_config,
)
from tests.tiny.weights import PAD

_FAKE = MARK_A  # <fake_token_around_image>


# Idefics 2: one picture an image, of its own size


def _idefics2_config() -> PreTrainedConfig:
    perceiver = {
        "hidden_size": HIDDEN,
        "resampler_n_latents": 3,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 8,
        "num_key_value_heads": 2,
    }
    return AutoConfig.for_model(
        "idefics2",
        text_config=text_config("mistral", sliding_window=None),
        vision_config=vision_config("idefics2_vision", 16),
        perceiver_config=perceiver,
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )


def _idefics2_arrange(spans: list[list[int]], chunks: list[list[int]]) -> list[int]:
    """Between images that touch, one boundary token stands for two."""
    ids = interleave(spans, chunks)
    return [t for n, t in enumerate(ids) if not (n and t == _FAKE and ids[n - 1] == _FAKE)]


def _masked(pictures: list[Tensor]) -> Inputs:
    """Pictures [H, W, 3] -> pixel_values [1, n, 3, H', W'], pixel_attention_mask [1, n, H', W']."""
    masks = [torch.ones(picture.shape[:2], dtype=torch.long) for picture in pictures]
    stacked = pad_stack(pictures, 2).permute(0, 3, 1, 2).contiguous()
    return {"pixel_values": stacked[None], "pixel_attention_mask": pad_stack(masks, 2)[None]}


def _idefics2_pixels(images: Sequence[int]) -> Inputs:
    return _masked([pixels(i, *((8, 16) if second_size(i) else (16, 16)), 3) for i in images])


# Idefics 3 and SmolVLM: one tile, or two tiles and the whole


def _idefics3_config(family: str) -> PreTrainedConfig:
    return AutoConfig.for_model(
        family,
        text_config=text_config("llama"),
        vision_config=vision_config(f"{family}_vision", 16),
        image_token_id=IMAGE,
        pad_token_id=PAD,
        scale_factor=2,
        tie_word_embeddings=False,
    )


def _idefics3_span(image: int, count: int) -> list[int]:
    """MARK_B is <global-img>, MARK_C <row_1_col_1>, MARK_D <row_1_col_2>."""
    tile = [IMAGE] * 4
    whole = [_FAKE, MARK_B, *tile, _FAKE]
    if not second_size(image):
        return whole
    return [_FAKE, MARK_C, *tile, _FAKE, MARK_D, *tile, NEWLINE, NEWLINE, *whole]


def _idefics3_pixels(images: Sequence[int]) -> Inputs:
    tiles = [pixels(image, 3 if second_size(image) else 1, 16, 16, 3) for image in images]
    return _masked([picture for group in tiles for picture in group])


# Mistral 3: pictures padded to the largest, with their sizes


def _mistral3_size(image: int) -> tuple[int, int]:
    return (8, 24) if second_size(image) else (16, 16)


def _mistral3_config() -> PreTrainedConfig:
    return AutoConfig.for_model(
        "mistral3",
        text_config=text_config("mistral", sliding_window=None),
        vision_config=vision_config("pixtral", 32, head_dim=8),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _mistral3_span(image: int, count: int) -> list[int]:
    """Rows of image tokens; MARK_A breaks a row, IMAGE_END closes the last."""
    height, width = (side // 8 for side in _mistral3_size(image))
    ids = [*[IMAGE] * width, MARK_A] * height
    return [*ids[:-1], IMAGE_END]


def _mistral3_pixels(images: Sequence[int]) -> Inputs:
    pictures = [pixels(image, *_mistral3_size(image), 3) for image in images]
    sizes = torch.tensor([_mistral3_size(image) for image in images])
    stacked = pad_stack(pictures, 2).permute(0, 3, 1, 2).contiguous()
    return {"pixel_values": stacked, "image_sizes": sizes}


# Mllama: one token an image, cross-attention to its tiles

_MAX_TILES = 4


def _mllama_tiles(image: int) -> int:
    return 2 if second_size(image) else 1


def _mllama_config() -> PreTrainedConfig:
    vision: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": HEADS,
        "image_size": 16,
        "patch_size": 4,
        "max_num_tiles": _MAX_TILES,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": HIDDEN * 3,
    }
    text = text_config("mllama_text_model", num_hidden_layers=3, cross_attention_layers=[1])
    del text["head_dim"]
    return AutoConfig.for_model(
        "mllama", text_config=text, vision_config=vision, image_token_index=IMAGE
    )


def _mllama_pixels(images: Sequence[int]) -> Inputs:
    """Aspect ratio 1 is 1x1, 2 is 1x2; absent tiles are zero."""
    values = torch.zeros(1, len(images), _MAX_TILES, 3, 16, 16)
    mask = torch.zeros(1, len(images), _MAX_TILES, dtype=torch.long)
    for slot, image in enumerate(images):
        tiles = _mllama_tiles(image)
        values[0, slot, :tiles] = pixels(image, tiles, 3, 16, 16)
        mask[0, slot, :tiles] = 1
    ratios = torch.tensor([[_mllama_tiles(image) for image in images]])
    return {"pixel_values": values, "aspect_ratio_ids": ratios, "aspect_ratio_mask": mask}


def _mllama_extras(ids: Tensor, images: Sequence[int]) -> Inputs:
    """cross_attention_mask [1, S, n, tiles]: a token sees the image that came last before it.

    Images that touch are seen together.
    """
    if not images:
        return {}
    length = ids.shape[1]
    starts = (ids[0] == IMAGE).nonzero()[:, 0].tolist()
    ends = [*starts[1:], length]
    for slot in reversed(range(len(images) - 1)):
        if ends[slot] == starts[slot] + 1:
            ends[slot] = ends[slot + 1]
    mask = torch.zeros(1, length, len(images), _MAX_TILES, dtype=torch.long)
    for slot, (start, end) in enumerate(zip(starts, ends, strict=True)):
        mask[0, start:end, slot, : _mllama_tiles(images[slot])] = 1
    return {"cross_attention_mask": mask}


RECIPES: dict[str, Recipe] = {
    "idefics2": Recipe(
        _idefics2_config,
        lambda image, count: [_FAKE, IMAGE, IMAGE, IMAGE, _FAKE],
        _idefics2_pixels,
        arrange=_idefics2_arrange,
    ),
    "idefics3": Recipe(partial(_idefics3_config, "idefics3"), _idefics3_span, _idefics3_pixels),
    "smolvlm": Recipe(partial(_idefics3_config, "smolvlm"), _idefics3_span, _idefics3_pixels),
    "mistral3": Recipe(_mistral3_config, _mistral3_span, _mistral3_pixels),
    "mllama": Recipe(_mllama_config, lambda image, count: [IMAGE], _mllama_pixels, _mllama_extras),
}
