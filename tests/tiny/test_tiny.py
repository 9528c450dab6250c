"""The tiny models are worth testing on: they build, generate, and see every image and token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tiny import (
    LVLM_FUSED,
    LVLM_SERIAL,
    TEXT_GRID,
    TEXT_SWEEP,
    TinyLVLM,
    available,
    lvlm_available,
    reference_logits,
    shared_lvlm,
    shared_text_model,
    text_model,
    tiny_processor,
    tiny_tokenizer,
)
from tests.tiny.vision_parts import IMAGE
from tests.tiny.weights import BOS, EOS, PAD

# transformers 5.16 to 5.19: Mllama's vision tower calls its own layers by a deprecated name
pytestmark = pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated:FutureWarning")

NEW_TOKENS = 4
WINDOWED = (
    "gemma3_text", "mistral", "gemma2", "cohere2", "starcoder2", "mixtral", "gpt_oss",
    "gemma3n_text", "gemma4_text",
)  # fmt: skip
UNPOSITIONED = ("bloom", "mpt", "jamba", "granitemoehybrid")  # ALiBi, or no positions at all
POSITIONED = [family for family in TEXT_GRID + TEXT_SWEEP if family not in UNPOSITIONED]
IMAGES = {"text": (), "one": (0,), "one of the second size": (1,), "two": (0, 1)}


def _text(family: str):
    found, why = available(family)
    if not found:
        pytest.skip(why)
    return shared_text_model(family)


def _lvlm(family: str) -> TinyLVLM:
    found, why = lvlm_available(family)
    if not found:
        pytest.skip(why)
    return shared_lvlm(family)


def _text_row(seed: int, length: int = 14) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 160, (1, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _change(model, row: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest change of the last position's logits."""
    nothing = row["input_ids"][:, :0]
    difference = reference_logits(model, row, nothing) - reference_logits(model, other, nothing)
    return difference.abs().max().item()


def _assert_generate_is_reference(model, row: dict[str, Tensor], suppress: list[int]) -> None:
    """Greedy `generate` = one cache-free forward a token; and one forward gives all of them."""
    options = {"suppress_tokens": suppress} if suppress else {}
    out = model.generate(**row, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
    generated = out[:, row["input_ids"].shape[1] :]
    loop = generated[:, :0]
    rows = []
    for _ in range(generated.shape[1]):
        logits = reference_logits(model, row, loop)[-1].clone()
        rows.append(logits.clone())
        logits[suppress] = -torch.inf
        loop = torch.cat([loop, logits.argmax().view(1, 1)], dim=1)
    assert loop.tolist() == generated.tolist()
    assert generated.shape[1] == NEW_TOKENS or generated[0, -1] == EOS
    at_once = reference_logits(model, row, loop[:, :-1])
    torch.testing.assert_close(at_once, torch.stack(rows), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", TEXT_GRID + TEXT_SWEEP)
def test_text_generate_is_the_reference(family: str) -> None:
    _assert_generate_is_reference(_text(family), _text_row(1), [])


@pytest.mark.parametrize("family", TEXT_GRID + TEXT_SWEEP)
def test_text_logits_depend_on_every_token(family: str) -> None:
    model = _text(family)
    row = _text_row(1)
    logits = reference_logits(model, row, row["input_ids"][:, :0])
    assert logits.std() > 0.5
    for position in (0, 6, 12):
        ids = row["input_ids"].clone()
        ids[0, position] = 7 if ids[0, position] != 7 else 8
        assert _change(model, row, row | {"input_ids": ids}) > 0.01


@pytest.mark.parametrize("family", WINDOWED)
def test_prompts_cross_the_sliding_window(family: str) -> None:
    windowed, row = _text(family), _text_row(1)
    layers = getattr(windowed.config, "layer_types", None)
    wide = text_model(family, sliding_window=64, layer_types=layers)
    nothing = row["input_ids"][:, :0]
    near, far = (reference_logits(model, row, nothing) for model in (windowed, wide))
    assert (near - far).abs().max() > 0.05


@pytest.mark.parametrize("family", POSITIONED)
def test_positions_change_the_logits(family: str) -> None:
    """A last token that is one further on is predicted from differently."""
    model, row = _text(family), _text_row(1)
    moved = torch.arange(row["input_ids"].shape[1])[None].clone()
    moved[:, -1] += 1
    assert _change(model, row, row | {"position_ids": moved}) > 0.01


@pytest.mark.parametrize("family", TEXT_GRID + TEXT_SWEEP)
def test_text_weights_differ_by_seed(family: str) -> None:
    _text(family)
    row = _text_row(1)
    nothing = row["input_ids"][:, :0]
    first, second = (
        reference_logits(shared_text_model(family, 176, seed), row, nothing) for seed in (0, 1)
    )
    assert first.shape == (1, 176)
    assert (first - second).abs().max() > 0.3


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("family", LVLM_FUSED + LVLM_SERIAL)
def test_lvlm_generate_is_the_reference(family: str, images: tuple[int, ...]) -> None:
    tiny = _lvlm(family)
    _assert_generate_is_reference(tiny.model, tiny.row(images, 11, seed=5), tiny.image_token_ids)


@pytest.mark.parametrize("images", list(IMAGES.values())[1:], ids=list(IMAGES)[1:])
@pytest.mark.parametrize("family", LVLM_FUSED + LVLM_SERIAL)
def test_pixels_change_the_logits(family: str, images: tuple[int, ...]) -> None:
    """Every image of the prompt counts, and so does the text."""
    tiny = _lvlm(family)
    row = tiny.row(images, 11, seed=5)
    for slot in range(len(images)):
        changed = [image + 2 * (n == slot) for n, image in enumerate(images)]
        other = tiny.row(changed, 11, seed=5)
        assert torch.equal(row["input_ids"], other["input_ids"])
        assert _change(tiny.model, row, other) > 1e-2
    assert _change(tiny.model, row, tiny.row(images, 11, seed=6)) > 1e-2


@pytest.mark.parametrize("family", LVLM_FUSED + LVLM_SERIAL)
def test_rows_are_deterministic(family: str) -> None:
    tiny = _lvlm(family)
    first, second = tiny.row((0, 1), 11, seed=5), tiny.row((0, 1), 11, seed=5)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tokenizer_is_lossless_on_ascii() -> None:
    tokenizer = tiny_tokenizer()
    text = "".join(map(chr, range(128))) + " the thing in there"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text)  # some pieces are merged
    assert (len(tokenizer), len(tiny_tokenizer(176))) == (160, 176)
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (PAD, BOS, EOS)


def test_chat_with_an_image_from_end_to_end() -> None:
    processor, tiny = tiny_processor(), _lvlm("llava")
    image = Image.fromarray(np.arange(20 * 31 * 3, dtype=np.uint8).reshape(20, 31, 3))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    by_hand = tiny.row((0,), 11, seed=5)
    assert inputs.keys() == by_hand.keys()
    assert inputs["pixel_values"].shape == by_hand["pixel_values"].shape
    assert (inputs["input_ids"] == IMAGE).sum() == (by_hand["input_ids"] == IMAGE).sum()
    assert inputs["input_ids"][0, 0] == BOS
    assert inputs["input_ids"][0, 1] != BOS
    _assert_generate_is_reference(tiny.model, dict(inputs), tiny.image_token_ids)
