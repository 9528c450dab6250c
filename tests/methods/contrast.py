"""What the tests of the contrastive family share: the loop that is written by hand.

Every stream reads its whole context anew at every step, unpadded, without a cache; the scores are
float64, by the formula that the test writes out; nothing here comes from `infer_kit.pool`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.chats import as_chats
from infer_kit.engine.image_noise import add_noise
from infer_kit.testing import extended_row
from tests.methods.conftest import chat, picture

Row = dict[str, Any]
Formula = Callable[..., Tensor]  # log-probabilities [V] of each stream -> scores [V]

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
SAMPLING: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "temperature": 1.0}
WAYS = {"greedy": GREEDY, "sampling": SAMPLING}
QUESTIONS = [
    chat("what is it?", picture(0)),
    chat("and which of these two?", picture(1), picture(2)),
    chat("say, where?", picture(3)),
]
TEXTS = [chat("what is it?"), chat("and where is the other one, then?"), chat("why")]


def row_of(processor: Any, messages: list[dict[str, Any]]) -> Row:
    """The processor's own rendering of a chat."""
    if getattr(processor, "tokenizer", None) is None:  # a tokenizer's template wants strings
        messages = [
            {**turn, "content": "\n".join(part["text"] for part in turn["content"])}
            for turn in messages
        ]
    return dict(
        processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True,
        )
    )  # fmt: skip


def noised_row(row: Row, step: int, seed: int = 0) -> Row:
    return row | {"pixel_values": add_noise(row["pixel_values"], step, seed)}


def last_logits(model: PreTrainedModel, row: Row, written: Sequence[int]) -> Tensor:
    """`[V]` float64 logits of the token after the prompt and what was written."""
    grown = extended_row(model, row, torch.tensor(list(written), dtype=torch.long))
    with torch.no_grad():
        return model(**grown, use_cache=False).logits[0, -1].double()


def log_p(logits: Tensor) -> Tensor:
    return logits - torch.log(torch.exp(logits - logits.max()).sum()) - logits.max()


def loop(
    streams: Sequence[tuple[PreTrainedModel, Row]],
    formula: Formula,
    beta: float,
    way: dict[str, Any],
    suppressed: Sequence[int] = (),
    seed: int = 0,
) -> list[int]:
    """The new tokens, by the plainest code: stream 0 is the expert of the cut-off."""
    end = streams[0][0].generation_config.eos_token_id
    torch.manual_seed(seed)
    written: list[int] = []
    while len(written) < way["max_new_tokens"] and (not written or written[-1] != end):
        parts = [log_p(last_logits(model, row, written)) for model, row in streams]
        scores = formula(*parts)
        if beta > 0:
            best = float(parts[0].max())
            for token, value in enumerate(parts[0].tolist()):
                if value < best + math.log(beta):
                    scores[token] = -torch.inf
        scores[list(suppressed)] = -torch.inf
        if way["do_sample"]:
            probabilities = torch.exp(log_p(scores)).float()
            written.append(int(torch.multinomial(probabilities[None], 1)))
        else:
            written.append(int(scores.argmax()))
    return written


def tokens_of(out: Any) -> list[int]:
    """The new tokens of one answer."""
    return out.trace.token_ids.tolist()


def chi_squared_z(counts: Tensor, expected: Tensor) -> float:
    """Chi-squared as a standard normal quantile (Wilson–Hilferty); rare tokens are one bin."""
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    statistic = float(((observed - wanted).square() / wanted).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5


def group_of(method: Any, messages: Any, **inputs: Any) -> Any:
    """`method.group`, for methods whose weights change with the step too."""
    return method.groups(as_chats(messages)[0], method.backend.new_memory(), **inputs)[0]
