"""The untrained in-context model and its processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infer_kit.demo import build
from infer_kit.demo.build import IMAGE, INIT_STD, PATCH
from infer_kit.demo.icl import episodes
from infer_kit.demo.scenes import BACKGROUNDS, COLORS, SHAPES

WORDS: tuple[str, ...] = (
    *build.SPECIAL,
    *("user", "assistant", ":", "?"),
    *episodes.ATTRIBUTES,
    *episodes.WORDS,
)
IMAGE_TOKENS = len(episodes.CELLS)
LONGEST = 4096
"""Tokens of the longest context: 340 demonstrations."""

WIDTH, HEADS, HEAD_WIDTH, LAYERS = 96, 4, 32, 3
ROPE_BASE = 1e6
SIGHTS: tuple[str, ...] = (*COLORS, *SHAPES, *BACKGROUNDS)


def make_config() -> Any:
    """A stock LLaVA: a CLIP tower that sees each cell as one patch, and a small Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=2 * PATCH,
        patch_size=PATCH,
        initializer_range=INIT_STD,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        pad_token_id=build.PAD,
        bos_token_id=build.BOS,
        eos_token_id=build.EOS,
        architectures=["LlamaForCausalLM"],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
    )


def make_model(seed: int) -> tuple[Any, dict[str, Tensor]]:
    """The untrained model, and the code `[WIDTH]` of each colour, shape and background.

    Codes and word embeddings begin at right angles to each other, all as long as usual, and with
    one direction in common. By that direction the first head of the first layer begins as a look
    at the tokens some places back (`_look_back`): a word finds the picture that it names.
    """
    model = build.make_model(seed, make_config())
    model.generation_config.max_new_tokens = 4
    number = len(WORDS) + len(SIGHTS)
    frame = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] * INIT_STD * WIDTH**0.5
    shared = frame[-1]
    vectors = frame[:number] + 0.5 * shared
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.copy_(vectors[: len(WORDS)])
        _look_back(model.model.language_model.layers[0].self_attn, shared / shared.norm())
    return model, dict(zip(SIGHTS, vectors[len(WORDS) :], strict=True))


def _look_back(attention: Any, shared: Tensor, places: float = 6.0) -> None:
    """Make head 0 attend to tokens about `places` back, whatever they are.

    Args:
        shared: unit direction `[WIDTH]` in which all embeddings agree.
    """
    half = HEAD_WIDTH // 2
    turns = ROPE_BASE ** (-torch.arange(half) / half) * places
    used = (torch.arange(half) < 5).float() * 0.9
    query = torch.cat([used, torch.zeros(half)])
    key = torch.cat([used * turns.cos(), used * turns.sin()])
    attention.q_proj.weight[:HEAD_WIDTH] = query[:, None] * shared
    attention.k_proj.weight[:HEAD_WIDTH] = key[:, None] * shared


def make_processor() -> Any:
    """As the other teaching model's, with these words and smaller pictures."""
    return build.make_processor(WORDS, 2 * PATCH, LONGEST)


def encode(text: str) -> list[int]:
    """Ids of a text of known words with single spaces; the tokenizer gives the same."""
    return [_IDS[word] for word in text.split()]


_IDS = {word: i for i, word in enumerate(WORDS)}
