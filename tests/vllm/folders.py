"""Folders with random tiny models that vLLM and transformers both load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.tiny.text import text_model
from tests.tiny.tokenizers import CHAT_TEMPLATE, tiny_processor, tiny_tokenizer
from tests.tiny.vision_parts import IMAGE, VOCAB, text_config, vision_config
from tests.tiny.weights import build

HEAD = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
"""vLLM's attention on CPUs takes heads of 32 numbers and more."""


def text_folder(folder: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """A text model and its tokenizer, of 160 tokens."""
    model = text_model(family, seed=seed, **(HEAD | overrides))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def llava_folder(folder: Path, seed: int = 0) -> Path:
    """A LLaVA and its processor: pictures of 12 by 12 pixels, 9 tokens each."""
    tower = {"hidden_size": 64, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "llava",
        text_config=text_config("llama", **HEAD),
        vision_config=vision_config("clip_vision_model", 12, projection_dim=64, **tower),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
    )
    model = build(
        lambda: AutoModelForImageTextToText.from_config(config, dtype=torch.float32), VOCAB, seed
    )
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    # transformers 5 saves the tower one level up; vLLM, and transformers too, load it from there
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model.")
        if "vision_model" not in name
        else name: value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    tiny_processor().save_pretrained(folder)
    return folder


def load_text(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A text folder on transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def load_llava(folder: Path) -> tuple[PreTrainedModel, LlavaProcessor]:
    """A LLaVA folder on transformers."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = tiny_processor()
    processor.chat_template = CHAT_TEMPLATE
    return model, processor
