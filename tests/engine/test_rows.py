"""Chats rendered by the model's own processor, or refused by the number of the prompt."""

from __future__ import annotations

import re
from typing import Any

import pytest
from PIL import Image

from infer_kit.engine.rows import RowMaker
from infer_kit.errors import InferKitError
from tests.tiny import shared_lvlm, shared_text_model
from tests.tiny.tokenizers import CHAT_TEMPLATE, tiny_processor, tiny_tokenizer


def _chat(text: str, images: int = 0) -> list[dict[str, Any]]:
    picture = Image.new("RGB", (16, 16), "red")
    content = [{"type": "image", "image": picture} for _ in range(images)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def reader() -> RowMaker:
    return RowMaker(tiny_processor(), shared_lvlm("llava").model)


def test_a_row_is_what_the_processor_returns(reader: RowMaker) -> None:
    row = reader.row(_chat("what?", images=2), 0)
    assert row["input_ids"].shape[0] == 1
    assert row["pixel_values"].shape[0] == 2
    assert (row["input_ids"] == reader.processor.image_token_id).sum() == 2 * 9
    assert reader.tokenizer.decode(row["input_ids"][0]).endswith("what?<|bot|>")
    assert "pixel_values" not in reader.row(_chat("what?"), 0)


def test_a_tokenizer_renders_text(reader: RowMaker) -> None:
    row = RowMaker(tiny_tokenizer(), shared_text_model("llama")).row(_chat("what?"), 0)
    assert row["input_ids"].tolist() == reader.row(_chat("what?"), 0)["input_ids"].tolist()


def test_a_tokenizer_takes_no_images() -> None:
    maker = RowMaker(tiny_tokenizer(), shared_text_model("llama"))
    with pytest.raises(InferKitError, match=r"Prompt 2 has 1 image\(s\), but .* takes text only"):
        maker.row(_chat("what?", images=1), 2)


def test_placeholders_in_the_text_are_counted(reader: RowMaker) -> None:
    with pytest.raises(
        InferKitError, match=r"Prompt 1 contains 2 image placeholder\(s\) but 1 image\(s\) were"
    ):
        reader.row(_chat("what is <image>?", images=1), 1)


def test_a_template_is_needed_and_may_be_given() -> None:
    tokenizer, model = tiny_tokenizer(), shared_text_model("llama")
    tokenizer.chat_template = None
    with pytest.raises(InferKitError, match="has no chat template, and none was given"):
        RowMaker(tokenizer, model)
    given = RowMaker(tokenizer, model, CHAT_TEMPLATE).row(_chat("what?"), 0)
    own = RowMaker(tiny_tokenizer(), model).row(_chat("what?"), 0)
    assert given["input_ids"].tolist() == own["input_ids"].tolist()


def test_another_models_processor_is_refused() -> None:
    with pytest.raises(InferKitError, match="the tokenizer has 176 tokens, the model 160"):
        RowMaker(tiny_tokenizer(176), shared_text_model("llama"))
    processor = tiny_processor()
    processor.image_token_id = 99
    with pytest.raises(InferKitError, match="image placeholder is token 99 for the processor and"):
        RowMaker(processor, shared_lvlm("llava").model)


def test_what_the_processor_refuses_is_named_by_prompt(
    reader: RowMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such template function")

    monkeypatch.setattr(type(reader.processor), "apply_chat_template", broken)
    message = re.escape("Prompt 4: LlavaProcessor cannot render the chat: no such template")
    with pytest.raises(InferKitError, match=message):
        reader.row(_chat("what?"), 4)


def test_special_tokens_are_taken_out_of_texts(reader: RowMaker) -> None:
    assert reader.without_special_tokens("a<|user|>b<image>c<eos>") == "abc"
    assert reader.without_special_tokens("<|us<image>er|>x") == "x"  # removal can form another
    assert reader.without_special_tokens("plain <text>") == "plain <text>"
