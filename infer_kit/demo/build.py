"""The untrained teaching model, its processor, and the folder that both are saved to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.demo import scenes

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(5)
WORDS: tuple[str, ...] = (
    *SPECIAL,
    *("user", "assistant", ":", ".", ",", "?"),
    *("notes", "explain", "start", "at", "the", "go", "what", "color", "shape", "is", "there"),
    *("background", "has", "a"),
    *scenes.COLORS,
    *scenes.SHAPES,
    *scenes.BACKGROUNDS,
    *scenes.CELLS,
    *scenes.MOVES,
)
TEMPLATE = (
    "<s>{% for m in messages %} {{ m['role'] }} :{% if m['content'] is string %}"
    " {{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    " <image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)
IMAGE_TOKENS = len(scenes.CELLS)
PATCH = 16
INIT_STD = 0.08


def make_config() -> Any:
    """A stock LLaVA: a CLIP tower that sees each cell as one patch, and a small Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=3 * PATCH,
        patch_size=PATCH,
        initializer_range=INIT_STD,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
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


def make_model(seed: int, sizes: Any = None) -> Any:
    """The untrained model. `sizes`: its LlavaConfig, of `make_config` if None."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config() if sizes is None else sizes)
    match_init(model)
    config = model.generation_config
    config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, EOS, PAD
    config.max_new_tokens, config.do_sample = 40, False
    config._from_model_config = False  # else loading may take it from the model's config again
    return model


@torch.no_grad()
def match_init(model: Any) -> None:
    """Start attention as "look for what is like me, and copy it".

    Keys are a multiple of queries, and the output projection is a multiple of the transposed value
    projection. From a plain initialisation a model of this size does not learn to look at the
    image within some hundred steps.
    """
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(1.3 * attention.q_proj.weight)
        attention.o_proj.weight.copy_(0.2 * attention.v_proj.weight.T)
        layer.mlp.down_proj.weight.mul_(0.2)


def make_processor(
    vocabulary: Sequence[str] = WORDS, pixels: int = 3 * PATCH, longest: int = 1024
) -> Any:
    """Word-level tokenizer (lower-casing), image processor and chat template.

    Args:
        vocabulary: the words in the order of their ids, `SPECIAL` first.
        pixels: side of the processed picture.
        longest: the model's longest context.
    """
    from transformers import LlavaProcessor

    tokenizer = fast_tokenizer(
        word_level(vocabulary), longest, extra_special_tokens={"image_token": "<image>"}
    )
    return LlavaProcessor(
        image_processor=image_processor(pixels),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def word_level(vocabulary: Sequence[str]) -> Any:
    """A tokenizer of lower-cased words and punctuation marks, the first ones special."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    return words


def fast_tokenizer(words: Any, longest: int, **special: Any) -> Any:
    """The tokenizer of transformers around `word_level`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def image_processor(pixels: int) -> Any:
    """Pictures of `pixels` by `pixels`, without a crop."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = {"height": pixels, "width": pixels}
    return CLIPImageProcessorPil(
        size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def encode(text: str) -> list[int]:
    """Ids of a text of known words with single spaces; the tokenizer gives the same."""
    return [_IDS[word] for word in text.split()]


_IDS = {word: i for i, word in enumerate(WORDS)}


def cell_patches(processor: Any) -> dict[tuple[str, str, str], Tensor]:
    """(background, colour, shape) to the pixels `[3, 16, 16]` of one cell, from the processor.

    No shape reaches the border of its cell, so a picture is the pixels of its nine cells, but for
    rounding by one level in 255.
    """
    table = {}
    for ground in scenes.BACKGROUNDS:
        for color in scenes.COLORS:
            for shape in scenes.SHAPES:
                picture = scenes.draw(scenes.Scene(ground, ((color, shape),) * 9))
                pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
                table[ground, color, shape] = pixels[0, :, PATCH:-PATCH, PATCH:-PATCH]
    return table


def save(model: Any, processor: Any, folder: Path) -> None:
    """Save in half precision, under the weight names of the published LLaVA checkpoints."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = model.config.text_config.dtype = torch.float16
    model.config.vision_config.dtype = torch.float16
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = {
        _published_name(name): value.detach().half().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("lm_head.") and not name.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tidy_tokenizer_config(folder)


def tidy_tokenizer_config(folder: Path) -> None:
    """Keys in the order of the alphabet: the file is the same in every run."""
    card = folder / "tokenizer_config.json"
    card.write_text(json.dumps(json.loads(card.read_text()), indent=2, sort_keys=True) + "\n")


def _published_name(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name
