"""The untrained CLIP, its processor, and the folder that both are saved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.demo import build
from infer_kit.demo.build import PATCH
from infer_kit.demo.clip.world import ATTRIBUTES, EMPTY, THINGS
from infer_kit.demo.scenes import BACKGROUNDS

# </s> is not 2: for that id transformers reads a text's feature at its largest id
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>")
PAD, BOS, UNK, EOS = range(4)
WORDS: tuple[str, ...] = (
    *SPECIAL,
    *("a", "photo", "of", "and", "the", "with", "on"),
    *dict.fromkeys(word for phrase in ATTRIBUTES for word in phrase.split()),
)
LONGEST = 16
WIDTH, LAYERS, DIM = 64, 2, 64


def make_model(seed: int) -> Any:
    """A stock CLIP, whose vision tower sees each cell as one patch."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "projection_dim": DIM,
    }
    text = {
        **sizes,
        "vocab_size": len(WORDS),
        "max_position_embeddings": LONGEST,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    vision = {**sizes, "image_size": 3 * PATCH, "patch_size": PATCH}
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM))


def make_processor() -> Any:
    """Word-level tokenizer (lower-casing, with <s> and </s>) and image processor."""
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPProcessor

    words = build.word_level(WORDS)
    words.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer = build.fast_tokenizer(words, LONGEST)
    return CLIPProcessor(build.image_processor(3 * PATCH), tokenizer)


def cell_pixels(processor: Any) -> Tensor:
    """`[backgrounds, things + 1, 3, 16, 16]`: what the processor makes of one cell.

    No thing reaches the border of its cell, so a picture is the pixels of its nine cells, but for
    rounding by one level in 255. The last thing is none.
    """
    from infer_kit.demo.clip.world import Sample

    rows = []
    for ground in BACKGROUNDS:
        for thing in (*THINGS, None):
            picture = Sample("", ground, (thing,) * 9, ()).picture
            pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
            rows.append(pixels[0, :, PATCH:-PATCH, PATCH:-PATCH])
    return torch.stack(rows).view(len(BACKGROUNDS), EMPTY + 1, 3, PATCH, PATCH)


def save(model: Any, processor: Any, folder: Path) -> None:
    """Save in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    half = make_model(0).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
    build.tidy_tokenizer_config(folder)
