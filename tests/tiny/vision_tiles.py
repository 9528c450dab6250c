"""Families with tiles of one size: LLaVA, Gemma 3, PaliGemma, InternVL, Aya Vision, Llama 4."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from tests.tiny.vision_parts import (
    HIDDEN,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    MARK_A,
    MARK_B,
    MARK_C,
    NEWLINE,
    VIDEO,
    VOCAB,
    Inputs,
    Recipe,
    pad_stack,
    pixels,
    second_size,
    text_config,
    vision_config,
)
from tests.tiny.weights import BOS

LLAVA_IMAGE_SIZE = 12
_TILE_TOKENS = 4  # 16 pixels, patches of 4, 2 by 2 merged


def _config(family: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    return AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=False, **more
    )


def _one_tile(size: int, images: Sequence[int]) -> Inputs:
    return {"pixel_values": torch.stack([pixels(image, 3, size, size) for image in images])}


def _tiles(images: Sequence[int]) -> Inputs:
    """Tiles of all images in one list: one tile, or two and a thumbnail."""
    tiles = [pixels(image, _tile_count(image), 3, 16, 16) for image in images]
    return {"pixel_values": torch.cat(tiles)}


def _tile_count(image: int) -> int:
    return 3 if second_size(image) else 1


# LLaVA


def _llava_config() -> PreTrainedConfig:
    vision = vision_config("clip_vision_model", LLAVA_IMAGE_SIZE, projection_dim=HIDDEN)
    return _config("llava", text_config("llama"), vision, image_token_index=IMAGE)


def _llava_span(image: int, count: int) -> list[int]:
    return [IMAGE] * (LLAVA_IMAGE_SIZE // 4) ** 2


# LLaVA-NeXT and LLaVA-OneVision: a base tile of 8 pixels, then the tiles of a grid

_PINPOINTS = [[8, 16], [16, 8], [16, 16]]


def _anyres_size(image: int) -> tuple[int, int]:
    return (16, 16) if second_size(image) else (8, 16)


def _anyres_tiles(image: int) -> int:
    height, width = _anyres_size(image)
    return 1 + height * width // 64


def _anyres_span(image: int, count: int) -> list[int]:
    """Base features, features of the grid, one newline a row of the grid."""
    height, width = _anyres_size(image)
    return [IMAGE] * (4 + height * width // 16 + height // 4)


def _anyres_pixels(images: Sequence[int]) -> Inputs:
    tiles = [pixels(image, _anyres_tiles(image), 3, 8, 8) for image in images]
    sizes = torch.tensor([_anyres_size(image) for image in images])
    return {"pixel_values": pad_stack(tiles, 1), "image_sizes": sizes}


def _next_config() -> PreTrainedConfig:
    vision = vision_config("clip_vision_model", 8, projection_dim=HIDDEN)
    grid = {"image_grid_pinpoints": _PINPOINTS, "image_token_index": IMAGE}
    return _config("llava_next", text_config("llama"), vision, **grid)


def _onevision_config() -> PreTrainedConfig:
    vision = vision_config("siglip_vision_model", 8, vision_use_head=False)
    grid = {"image_grid_pinpoints": _PINPOINTS, "image_token_index": IMAGE}
    return _config("llava_onevision", text_config("qwen2"), vision, video_token_index=VIDEO, **grid)


def _onevision_span(image: int, count: int) -> list[int]:
    """One image is cut into tiles; of several, each is its base tile and a newline."""
    return _anyres_span(image, count) if count == 1 else [IMAGE] * (4 + 1)


def _onevision_pixels(images: Sequence[int]) -> Inputs:
    inputs = _anyres_pixels(images)
    if len(images) > 1:
        inputs["pixel_values"] = torch.stack([pixels(image, 1, 3, 8, 8) for image in images])
    return inputs | {"batch_num_images": torch.tensor([len(images)])}


# Gemma 3 and PaliGemma


def _gemma3_config() -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    text = text_config("gemma3_text", sliding_window=8, layer_types=layers)
    return _config(
        "gemma3",
        text,
        vision_config("siglip_vision_model", 16, vision_use_head=False),
        mm_tokens_per_image=_TILE_TOKENS,
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
        image_token_index=IMAGE,
    )


def _gemma3_span(image: int, count: int) -> list[int]:
    inner = [IMAGE_START, *[IMAGE] * _TILE_TOKENS, IMAGE_END]
    return [NEWLINE, NEWLINE, *inner, NEWLINE, NEWLINE]


def _gemma3_extras(ids: Tensor, images: Sequence[int]) -> Inputs:
    return {"token_type_ids": (ids == IMAGE).long()}


def _paligemma_config() -> PreTrainedConfig:
    vision = vision_config("siglip_vision_model", 8, vision_use_head=False)
    more = {"projection_dim": HIDDEN, "hidden_size": HIDDEN, "vocab_size": VOCAB}
    return _config("paligemma", text_config("gemma"), vision, image_token_index=IMAGE, **more)


def _paligemma_arrange(spans: list[list[int]], chunks: list[list[int]]) -> list[int]:
    """All images, BOS, the text, a newline: the whole prompt is the bidirectional prefix."""
    return [*chain.from_iterable(spans), BOS, *chain.from_iterable(chunks), NEWLINE]


def _paligemma_extras(ids: Tensor, images: Sequence[int]) -> Inputs:
    return {"token_type_ids": torch.zeros_like(ids), "labels": torch.full_like(ids, -100)}


# InternVL, Aya Vision, Llama 4


def _internvl_config() -> PreTrainedConfig:
    vision = vision_config("internvl_vision", 16)
    text = text_config("qwen2")
    return _config("internvl", text, vision, image_token_id=IMAGE, image_seq_length=_TILE_TOKENS)


def _internvl_span(image: int, count: int) -> list[int]:
    return [IMAGE_START, *[IMAGE] * (_TILE_TOKENS * _tile_count(image)), IMAGE_END]


def _aya_config() -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    text = text_config("cohere2", sliding_window=8, layer_types=layers)
    vision = vision_config("siglip_vision_model", 16, vision_use_head=False)
    return _config("aya_vision", text, vision, image_token_index=IMAGE, downsample_factor=2)


def _aya_span(image: int, count: int) -> list[int]:
    """MARK_A is TILE_1, MARK_B TILE_2, MARK_C TILE_GLOBAL."""
    tile = [IMAGE] * _TILE_TOKENS
    cut = [MARK_A, *tile, MARK_B, *tile] if second_size(image) else []
    return [IMAGE_START, *cut, MARK_C, *tile, IMAGE_END]


def _llama4_config() -> PreTrainedConfig:
    text = text_config(
        "llama4_text",
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=512,
    )
    vision = vision_config(
        "llama4_vision_model",
        16,
        intermediate_size=4 * HIDDEN,  # what the pixel shuffle gives
        vision_output_dim=HIDDEN,
        projector_input_dim=HIDDEN,
        projector_output_dim=HIDDEN,
    )
    marks = {"boi_token_index": IMAGE_START, "eoi_token_index": IMAGE_END}
    return _config("llama4", text, vision, image_token_index=IMAGE, **marks)


def _llama4_span(image: int, count: int) -> list[int]:
    """MARK_A between tiles of a row, MARK_B after a row, MARK_C before the whole image."""
    tile = [IMAGE] * _TILE_TOKENS
    cut = [*tile, MARK_A, *tile, MARK_B] if second_size(image) else []
    return [IMAGE_START, *cut, MARK_C, *tile, IMAGE_END]


RECIPES: dict[str, Recipe] = {
    "llava": Recipe(_llava_config, _llava_span, partial(_one_tile, LLAVA_IMAGE_SIZE)),
    "llava_next": Recipe(_next_config, _anyres_span, _anyres_pixels),
    "llava_onevision": Recipe(_onevision_config, _onevision_span, _onevision_pixels),
    "gemma3": Recipe(_gemma3_config, _gemma3_span, partial(_one_tile, 16), _gemma3_extras),
    "paligemma": Recipe(
        _paligemma_config,
        lambda image, count: [IMAGE] * 4,
        partial(_one_tile, 8),
        _paligemma_extras,
        _paligemma_arrange,
    ),
    "internvl": Recipe(_internvl_config, _internvl_span, _tiles),
    "aya_vision": Recipe(_aya_config, _aya_span, _tiles),
    "llama4": Recipe(_llama4_config, _llama4_span, _tiles),
}
