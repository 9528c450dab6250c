"""The baselines are `model.generate()` on the prompts that they say."""

from typing import Any

import pytest
import torch

from infer_kit.chats import as_chats, load_images
from infer_kit.methods.baselines import ChainOfThought, Direct
from infer_kit.methods.red import RED
from infer_kit.testing import assert_zero_law
from tests.methods.conftest import SHORT, chat, picture

BATCH = [chat("what is it?", picture(0)), chat("no picture, what?"), chat("which?", picture(1))]
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
WRITING = {"max_new_tokens": 5, "min_new_tokens": 5}


def plain(model: Any, processor: Any, messages: Any) -> torch.Tensor:
    """The new ids of transformers' own generate."""
    (messages,), _ = as_chats(messages)
    row = processor.apply_chat_template(
        load_images(messages, 0), tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    return model.generate(**row, **GREEDY)[0, row["input_ids"].shape[1] :]


def test_direct_is_generate(lvlm: Any, processor: Any) -> None:
    direct = Direct(lvlm, processor)
    together = direct.generate(BATCH, **GREEDY)
    for messages, ids in zip(BATCH, together.tokens, strict=True):
        assert ids == plain(lvlm, processor, messages).tolist()
        assert direct.generate(messages, **GREEDY).tokens == [ids]
    assert together.trace[0].streams == ("prompt",)
    assert_zero_law(lvlm, [direct.group(BATCH[0]).streams[0].context])


@pytest.mark.filterwarnings("ignore:The rationale of prompt . was cut")
def test_chain_of_thought_is_generate_on_its_own_rationale(lvlm: Any, processor: Any) -> None:
    cot = ChainOfThought(lvlm, processor, prompts=SHORT, rationale_generation=WRITING)
    out = cot.generate(BATCH, **GREEDY)
    assert (
        out.rationale
        == RED(lvlm, processor, prompts=SHORT, rationale_generation=WRITING).rationales(BATCH)
        == cot.rationales(BATCH)
    )
    for messages, text, ids in zip(BATCH, out.rationale, out.tokens, strict=True):
        told = [dict(messages[0], content=[dict(part) for part in messages[0]["content"]])]
        asked = told[0]["content"][-1]["text"]
        told[0]["content"][-1]["text"] = SHORT.fill("rationale_context", asked, text)
        assert ids == plain(lvlm, processor, told).tolist()


def test_chain_of_thought_takes_a_rationale(lvlm: Any, processor: Any) -> None:
    cot = ChainOfThought(lvlm, processor, prompts=SHORT)
    one = cot.generate(BATCH[0], rationale="a cat", **GREEDY)
    assert one.rationale == "a cat" and isinstance(one.text, str)
    group = cot.group(BATCH[0], rationale="a cat")
    assert cot.run([group], **GREEDY).text == one.text
    other = cot.generate(BATCH[0], rationale="the thing in the street", **GREEDY)
    assert other.tokens != one.tokens
