"""Random tiny vision-language models, and prompts as their processors would return them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.tiny import vision_grid, vision_nested, vision_tiles
from tests.tiny.vision_parts import FIRST_TEXT, LAST_TEXT, VOCAB, Recipe, interleave
from tests.tiny.weights import build

LVLM_FUSED = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "llava", "llava_next",
    "llava_onevision", "gemma3", "paligemma", "internvl", "idefics2", "idefics3", "smolvlm",
    "mistral3", "aya_vision", "llama4",
)  # fmt: skip
LVLM_SERIAL = ("mllama",)

_BROKEN = {
    ("llama4", "5.24.0"): "Llama4ForConditionalGeneration.forward raises AttributeError on "
    "image_outputs, which its language model does not return",
}

_RECIPES = vision_grid.RECIPES | vision_tiles.RECIPES | vision_nested.RECIPES


@dataclass(frozen=True)
class TinyLVLM:
    """A tiny model with the inputs that its processor would make for it."""

    family: str
    model: PreTrainedModel
    recipe: Recipe

    @property
    def image_token_ids(self) -> list[int]:
        """Ids to suppress in generation: a random model would emit them."""
        return list(self.recipe.special_ids)

    def row(self, images: Sequence[int], text_length: int, seed: int) -> dict[str, Tensor]:
        """One unpadded prompt, batch 1.

        Args:
            images: one int an image: its pixels. Odd ints have the family's second size, where
                sizes may differ. `()` is a prompt of text alone.
            text_length: number of text tokens, at least 1, shared out around the images.
            seed: of the text.
        """
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(FIRST_TEXT, LAST_TEXT + 1, (text_length,), generator=generator)
        spans = [self.recipe.span(image, len(images)) for image in images]
        arrange = self.recipe.arrange or interleave
        ids = torch.tensor([arrange(spans, _chunks(text.tolist(), len(images) + 1))])
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            row |= self.recipe.pixels(images)
        return row | self.recipe.extras(ids, images)


def _chunks(text: list[int], count: int) -> list[list[int]]:
    """Split so that the last chunk, after the last image, is never empty."""
    share = len(text) // count
    return [text[n * share : (n + 1) * share] for n in range(count - 1)] + [
        text[(count - 1) * share :]
    ]


def lvlm_available(family: str) -> tuple[bool, str]:
    """Whether the installed transformers runs this family, and if not, why."""
    if why := _BROKEN.get((family, transformers.__version__)):
        return False, f"transformers {transformers.__version__}: {why}"
    if family in CONFIG_MAPPING and family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return True, ""
    return False, f"transformers {transformers.__version__} has no {family}"


def tiny_lvlm(family: str, seed: int = 0) -> TinyLVLM:
    """A new tiny model: eval mode, float32, logits that depend on every image and all the text.

    Args:
        family: a name of `LVLM_FUSED` or `LVLM_SERIAL`, which is the config's model type.
        seed: of the weights.
    """
    recipe = _RECIPES[family]
    config = recipe.config()
    model = build(
        lambda: AutoModelForImageTextToText.from_config(config, dtype=torch.float32), VOCAB, seed
    )
    return TinyLVLM(family, model, recipe)


@cache
def shared_lvlm(family: str, seed: int = 0) -> TinyLVLM:
    """`tiny_lvlm`, built once a process. For tests that change nothing in the model."""
    return tiny_lvlm(family, seed)
