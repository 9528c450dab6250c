"""Chats rendered by the model's own processor, or refused by the number of the prompt."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from PIL import Image

from infer_kit import demo
from infer_kit.demo.scenes import draw, held_out
from infer_kit.engine.rows import RowMaker
from infer_kit.errors import CannotContinue, InferKitError
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


# A prompt in two parts


def _answered(text: str, answer: str, colours: str = "") -> list[dict[str, Any]]:
    """A question with pictures of these colours (a letter each), and its answer."""
    names = {"r": "red", "g": "green", "b": "blue"}
    content: list[dict[str, Any]] = [
        {"type": "image", "image": Image.new("RGB", (16, 16), names[colour])} for colour in colours
    ]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def _assert_joins(maker: RowMaker, beginning: list[Any], chat: list[Any]) -> str:
    """Ids and pixels of the two parts are those of the whole; returns the second part."""
    text = maker.continuation(beginning, chat, 0)
    first, rest = maker.row(beginning, 0, answer=False), maker.continued_row(text, chat, 0)
    whole = maker.row([*beginning, *chat], 0)
    assert set(first) | set(rest) == set(whole)
    for name, value in whole.items():
        axis = 0 if name == "pixel_values" else 1
        parts = [part[name] for part in (first, rest) if name in part]
        assert torch.equal(torch.cat(parts, dim=axis), value), name
    return text


@pytest.mark.parametrize("before", ["", "r", "rgb"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_two_parts_are_the_whole(reader: RowMaker, before: str, after: int) -> None:
    beginning = [*_answered("what?", "it", before), *_answered("the other", "that", before[::-1])]
    text = _assert_joins(reader, beginning, _chat("and he?", after))
    assert text == "<|user|>" + "<image>" * after + "and he?<|bot|>"


def test_two_parts_of_text_alone() -> None:
    maker = RowMaker(tiny_tokenizer(), shared_text_model("llama"))
    _assert_joins(maker, _answered("what?", "the"), _chat("re?"))
    system = {"role": "system", "content": [{"type": "text", "text": "be brief"}]}
    _assert_joins(maker, [system, *_answered("what?", "the")], _chat("re?"))


def test_two_parts_for_the_model_that_ships() -> None:
    model, processor = demo.load()
    maker = RowMaker(processor, model)
    records = held_out(3)
    chats = [_answered(record.question, record.answer) for record in records]
    for chat, record in zip(chats, records, strict=True):
        chat[0]["content"].insert(0, {"type": "image", "image": draw(record.scene)})
    _assert_joins(maker, [*chats[0], *chats[1]], chats[2][:1])


def test_the_second_part_counts_its_images(reader: RowMaker) -> None:
    with pytest.raises(InferKitError, match="Prompt 3 contains 1 image placeholder"):
        reader.continued_row("<image>?", _chat("<image>?"), 3)


def test_a_template_that_rewrites_earlier_turns(reader: RowMaker) -> None:
    """As some do with thoughts: only the last answer keeps what it says."""
    rewriting = CHAT_TEMPLATE.replace(
        "{% if message['role'] == 'assistant' %}{{ eos_token }}",
        "{% if loop.last and message['role'] == 'assistant' %}!{{ eos_token }}",
    )
    assert rewriting != CHAT_TEMPLATE
    maker = RowMaker(tiny_processor(), shared_lvlm("llava").model, rewriting)
    with pytest.raises(CannotContinue, match="the chat template writes demonstrations otherwise"):
        maker.continuation(_answered("what?", "it", "r"), _chat("and?", 1), 0)


def test_a_tokenizer_that_joins_across_the_boundary() -> None:
    """Without a token between turns, "t" and "he" become "the"."""
    bare = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    maker = RowMaker(tiny_tokenizer(), shared_text_model("llama"), bare)
    with pytest.raises(CannotContinue, match="the tokenizer joins the last demonstration and"):
        maker.continuation(_answered("what? ", "it"), _chat("he?"), 0)
    assert maker.continuation(_answered("what? ", "it"), _chat("?"), 0) == "?:"
