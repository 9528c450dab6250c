"""Prompts and weights that cannot be streams: refused by request and stream, before any forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError, PromptTooLong
from tests.engine.cases import GREEDY, model_of, text_row, text_rows
from tests.tiny import shared_lvlm

pytestmark = pytest.mark.usefixtures("nothing_runs")


def _padded(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"attention_mask": torch.tensor([[0, 0, 1, 1]])}


PROMPTS: list[tuple[Any, str]] = [
    ([], "No requests: rows is empty"),
    ([text_row(4, 1)], r"rows\[0\] is a dict; expected a list with one processor output"),
    ([torch.ones(2, 2)], r"rows\[0\] is a Tensor; expected a list"),
    ([[text_row(4, 1)] * 3], "Request 0 has 3 streams, but there are 2 models"),
    ([[text_row(4, 1)], []], "Request 1 lacks its primary stream 0"),
    ([[None, text_row(4, 1)]], "Request 0 lacks its primary stream 0, whose prompt the output"),
    (
        [[text_row(4, 1), "hello"]],
        "Request 0, stream 1: expected what the processor returns .* str",
    ),
    ([[text_row(4, 1), {"input_ids": [[1]]}]], "Request 0, stream 1: expected .* input_ids tensor"),
    (
        [[text_row(4, 1)], [{"input_ids": torch.ones(2, 4, dtype=torch.long)}]],
        r"Request 1, stream 0: input_ids has shape \[2, 4\]; expected \[1, S\], one prompt",
    ),
    ([[{"input_ids": torch.ones(4, dtype=torch.long)}]], r"has shape \[4\]; expected \[1, S\]"),
    (
        [[{"input_ids": torch.ones(1, 0, dtype=torch.long)}]],
        "Request 0, stream 0: the prompt is em",
    ),
    (
        [[text_row(4, 1)], [text_row(4, 1), _padded(text_row(4, 2))]],
        r"Request 1, stream 1: the prompt is padded \(2 of 4 positions are masked\). Pass each",
    ),
    (
        [[{"input_ids": torch.tensor([[3, 160]])}]],
        "Request 0, stream 0: token id 160 is outside the model's vocabulary of 160. Was the pro",
    ),
    (
        [[{"input_ids": torch.tensor([[3, -1]])}]],
        "token id -1 is outside the model's vocabulary of 160",
    ),
    (
        [[text_row(4, 1), text_row(4, 1) | {"pixel_values": torch.ones(1)}]],
        "Request 0, stream 1: LlamaForCausalLM does not take 'pixel_values'. Was the prompt made",
    ),
]


@pytest.mark.parametrize(
    ("rows", "message"), PROMPTS, ids=lambda v: v[:40] if type(v) is str else ""
)
def test_refused_prompts(lm: CoupledLM, rows: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        lm.generate(rows, **GREEDY)


def test_a_prompt_longer_than_the_model_takes(lm: CoupledLM) -> None:
    with pytest.raises(PromptTooLong, match="Request 1, stream 0: the prompt is 1,234 tokens, the "
                                            "model takes 512"):  # fmt: skip
        lm.generate([[text_row(4, 1)], [text_row(1234, 1)]], **GREEDY)


def test_an_answer_beyond_the_models_positions_is_warned_of(lm: CoupledLM, may_run: None) -> None:
    with pytest.warns(UserWarning, match="Request 0, stream 1: 508 prompt tokens and 6 new ones "
                                         "exceed the 512 positions"):  # fmt: skip
        lm.generate([[text_row(4, 1), text_row(508, 1)]], **GREEDY)


def test_placeholders_and_images_belong_together() -> None:
    tiny = shared_lvlm("llava")
    lm = CoupledLM([tiny.model] * 2)
    row, text = tiny.row((0,), 6, 1), tiny.row((), 6, 1)
    blind = {k: v for k, v in row.items() if k != "pixel_values"}
    with pytest.raises(InferKitError, match="Request 1, stream 1: the prompt contains 9 image plac"
                                            "eholder tokens but no image was given"):  # fmt: skip
        lm.generate([[row, text], [text, blind]], **GREEDY)
    with pytest.raises(InferKitError, match="Request 0, stream 1: an image was given but the promp"
                                            "t has no placeholder"):  # fmt: skip
        lm.generate([[row, text | {"pixel_values": row["pixel_values"]}]], **GREEDY)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, float("nan")], "Weights of request 0 are not finite"),
        ([[1.0, 0.5], [1.0, float("inf")]], "Weights of request 1 are not finite"),
        ([0.0, 0.0], "All weights of request 0 are 0"),
        ([1.0, 0.5, 0.2], r"Weights have shape \[3\]; expected \[2\]"),
    ],
)
def test_refused_weights(lm: CoupledLM, weights: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        lm.generate(text_rows(2, 2), weights, **GREEDY)
    with pytest.raises(InferKitError, match=message):
        lm.score(text_rows(2, 2), [[5], [6]], weights)
    with pytest.raises(InferKitError, match="A mixture needs weights ≥ 0"):
        CoupledLM([model_of("llama")] * 2, pool="mixture").generate(text_rows(1, 2), [1.5, -0.5])
