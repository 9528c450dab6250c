"""Random tiny CLIP and SigLIP models, saved with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.tokenizers import tiny_tokenizer

_TEXT = {
    "vocab_size": 160, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 24, "projection_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4, "projection_dim": 8,
}  # fmt: skip


def save_dual_encoder(kind: Literal["clip", "siglip"], folder: Path, seed: int = 0) -> Path:
    """A model of two layers, on disk with its processor."""
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "clip":
            model = CLIPModel(
                CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=8)
            )
            CLIPProcessor(pixels, tiny_tokenizer()).save_pretrained(folder)
        else:
            model = SiglipModel(SiglipConfig(text_config=_TEXT, vision_config=_VISION))
            SiglipProcessor(pixels, tiny_tokenizer()).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
