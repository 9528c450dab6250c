"""A real pretrained model on the engine: SmolLM2-135M-Instruct (`conftest.py`)."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.coupled_lm import CoupledLM

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
GREEDY = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True}
TURNS = ("What is the capital of France?", "Name a large city in one word, please.")


@pytest.fixture(scope="module")
def chats(smollm2) -> tuple[PreTrainedModel, list[dict[str, Tensor]]]:
    """The model in float32 and two chat contexts."""
    model, tokenizer = smollm2
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": turn}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        for turn in TURNS
    ]
    return model, [dict(row) for row in rows]


def test_weight_one_and_zero_is_plain_generate(chats) -> None:
    model, rows = chats
    out = CoupledLM([model, model], weights=[1.0, 0.0]).generate([rows], **GREEDY)
    plain = model.generate(**rows[0], **GREEDY)
    assert out.engines == ("fused",)
    assert torch.equal(out.sequences, plain.sequences)


def test_two_copies_at_one_half_are_plain_generate(chats) -> None:
    model, rows = chats
    out = CoupledLM([model, model], weights=[0.5, 0.5]).generate([[rows[0], rows[0]]], **GREEDY)
    plain = model.generate(**rows[0], **GREEDY)
    assert out.engines == ("fused",)
    assert torch.equal(out.sequences, plain.sequences)


def test_unlike_contexts_pool_to_the_product(chats) -> None:
    model, rows = chats
    lm = CoupledLM([model, model], weights=[1.0, 0.7])
    out = lm.generate([rows], output_logits=True, **GREEDY)
    ids = [row["input_ids"] for row in rows]
    for logits, token in zip(out.logits, out.sequences[0, ids[0].shape[1] :], strict=True):
        with torch.no_grad():
            x, r = (model(i).logits[0, -1].double().log_softmax(-1) for i in ids)
        expected = (x + 0.7 * r).softmax(-1)
        assert (logits[0].double().softmax(-1) - expected).abs().max() < 1e-4
        ids = [torch.cat([i, token.reshape(1, 1)], dim=1) for i in ids]
