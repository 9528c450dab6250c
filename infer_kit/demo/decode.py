"""What the teaching model writes, in batches, from pixels that are at hand already.

`infer_kit.RED` does the same from chats and pictures; training and evaluation skip both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infer_kit.demo import PROMPTS
from infer_kit.demo.lessons import prompt_ids
from infer_kit.demo.scenes import Record
from infer_kit.engine.coupled_lm import CoupledLM

ROWS_AT_ONCE = 128


class Turn(NamedTuple):
    """One user turn. pixels: what the image processor made of its picture, `[3, 48, 48]`."""

    text: str
    pixels: Tensor | None = None

    def row(self) -> dict[str, Tensor]:
        """What the processor returns for it."""
        row = {"input_ids": torch.tensor([prompt_ids(self.text, self.pixels is not None)])}
        return row if self.pixels is None else row | {"pixel_values": self.pixels[None]}


def pixels_of(processor: Any, records: Sequence[Record]) -> list[Tensor]:
    """The pixels of every record's picture."""
    return [
        processor.image_processor(record.picture, return_tensors="pt")["pixel_values"][0]
        for record in records
    ]


def write_rationales(
    model: Any, processor: Any, records: Sequence[Record], pixels: Sequence[Tensor]
) -> list[str]:
    """What the model itself writes about each question (step 1 of RED), greedily."""
    texts = [PROMPTS.fill("rationale_request", record.question) for record in records]
    turns = [Turn(text, image) for text, image in zip(texts, pixels, strict=True)]
    return greedy_product(model, processor, [turns], [1.0], max_new_tokens=40)


def greedy_product(
    model: Any,
    processor: Any,
    streams: Sequence[Sequence[Turn]],
    weights: Sequence[float],
    max_new_tokens: int = 4,
) -> list[str]:
    r"""Texts that maximise $\sum_k w_k \log p_k(y_t \mid \text{turn}_k, y_{<t})$ token by token.

    Args:
        streams: `streams[k][i]`, the turn that stream k reads for question i.
        weights: one of each stream.
    """
    answers = []
    for new, _ in _generated(model, streams, weights, max_new_tokens):
        answers += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers


def confidence(model: Any, turns: Sequence[Turn]) -> list[float]:
    """The probability of the likeliest first token after each turn."""
    top = []
    for _, logits in _generated(model, [turns], [1.0], max_new_tokens=1):
        top += logits.softmax(-1).amax(-1).tolist()
    return top


def _generated(
    model: Any, streams: Sequence[Sequence[Turn]], weights: Sequence[float], max_new_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """New ids `[R, n]`, padded, and the first token's pooled logits `[R, V]`, batch by batch."""
    lm = CoupledLM([model] * len(streams), weights=list(weights))
    rows = [[turn.row() for turn in turns] for turns in zip(*streams, strict=True)]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[start : start + ROWS_AT_ONCE]
        output = lm.generate(
            batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        longest = max(row[0]["input_ids"].shape[1] for row in batch)
        yield output.sequences[:, longest:], output.logits[0]
