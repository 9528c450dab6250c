"""Families whose images are one flat list of patches with a grid each: Qwen-VL and GLM-4V."""

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
    IMAGE_START,
    MARK_A,
    MARK_B,
    VIDEO,
    Inputs,
    Recipe,
    pixels,
    second_size,
    text_config,
)

_PATCH, _MERGE, _FRAMES = 4, 2, 2


def _grid(image: int) -> tuple[int, int, int]:
    return (1, 4, 6) if second_size(image) else (1, 4, 4)


def _span(image: int, count: int) -> list[int]:
    t, h, w = _grid(image)
    return [IMAGE_START, *[IMAGE] * (t * h * w // _MERGE**2), IMAGE_END]


def _pixels(images: Sequence[int]) -> Inputs:
    grids = [_grid(image) for image in images]
    width = 3 * _FRAMES * _PATCH**2
    patches = [pixels(i, t * h * w, width) for i, (t, h, w) in zip(images, grids, strict=True)]
    return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}


def _extras(ids: Tensor, images: Sequence[int]) -> Inputs:
    return {"mm_token_type_ids": (ids == IMAGE).long()}


def _config(
    family: str, text: dict[str, Any], vision: dict[str, Any], marks: dict[str, int]
) -> PreTrainedConfig:
    tower = {
        "depth": 2,
        "num_heads": HEADS,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "out_hidden_size": HIDDEN,
        "patch_size": _PATCH,
        "spatial_merge_size": _MERGE,
        "temporal_patch_size": _FRAMES,
    } | vision
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=tower,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
        **marks,
    )


def _recipe(
    family: str, text: dict[str, Any], vision: dict[str, Any], marks: dict[str, int]
) -> Recipe:
    return Recipe(partial(_config, family, text, vision, marks), _span, _pixels, _extras)


def _mrope(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **more}


_QWEN = {"vision_start_token_id": IMAGE_START, "vision_end_token_id": IMAGE_END}
_GLM = {
    "image_start_token_id": IMAGE_START,
    "image_end_token_id": IMAGE_END,
    "video_start_token_id": MARK_A,
    "video_end_token_id": MARK_B,
}

RECIPES: dict[str, Recipe] = {
    "qwen2_vl": _recipe(
        "qwen2_vl",
        text_config("qwen2_vl_text", rope_parameters=_mrope([1, 1, 2])),
        {"embed_dim": HIDDEN, "mlp_ratio": 2},
        _QWEN,
    ),
    "qwen2_5_vl": _recipe(
        "qwen2_5_vl",
        text_config("qwen2_5_vl_text", rope_parameters=_mrope([1, 1, 2])),
        {"window_size": 16, "fullatt_block_indexes": [1]},
        _QWEN,
    ),
    "qwen3_vl": _recipe(
        "qwen3_vl",
        text_config("qwen3_vl_text", rope_parameters=_mrope([2, 1, 1], mrope_interleaved=True)),
        {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        _QWEN,
    ),
    "qwen3_5": _recipe(
        "qwen3_5",
        text_config(
            "qwen3_5_text",
            head_dim=16,
            layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters=_mrope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.5),
        ),
        {"num_position_embeddings": 64},
        _QWEN,
    ),
    "glm4v": _recipe(
        "glm4v",
        text_config("glm4v_text", rope_parameters=_mrope([1, 1, 2])),
        {"image_size": 32},
        _GLM,
    ),
}
