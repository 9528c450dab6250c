"""Batched greedy decoding for the teaching model: rationales, and products of streams.

The library's own engine does this for any model and any request. This module is the slow and
obvious counterpart on which the training script and its figures rest: rows whose prompts have the
same lengths run together, so that nothing is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infer_kit.demo import PROMPTS
from infer_kit.demo.build import EOS
from infer_kit.demo.lessons import prompt_ids
from infer_kit.demo.scenes import Record

ROWS_AT_ONCE = 128


class Turn(NamedTuple):
    """One user turn. pixels: what the image processor made of its picture, `[3, 48, 48]`."""

    text: str
    pixels: Tensor | None = None


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


@torch.no_grad()
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
    answers = [""] * len(streams[0])
    for rows in _alike(streams):
        logits, caches = [], []
        for stream in streams:
            output = _read(model, [stream[i] for i in rows])
            logits.append(output.logits[:, -1])
            caches.append(output.past_key_values)
        written = torch.empty(len(rows), 0, dtype=torch.long)
        for step in range(max_new_tokens):
            pooled = sum(w * x.log_softmax(-1) for w, x in zip(weights, logits, strict=True))
            assert isinstance(pooled, Tensor)
            written = torch.cat([written, pooled.argmax(-1, keepdim=True)], dim=1)
            if step == max_new_tokens - 1 or bool((written == EOS).any(1).all()):
                break
            for k, cache in enumerate(caches):
                output = model(input_ids=written[:, -1:], past_key_values=cache, use_cache=True)
                logits[k] = output.logits[:, -1]
        for i, ids in zip(rows, written.tolist(), strict=True):
            kept = ids[: ids.index(EOS)] if EOS in ids else ids
            answers[i] = processor.tokenizer.decode(kept)
    return answers


@torch.no_grad()
def confidence(model: Any, turns: Sequence[Turn]) -> list[float]:
    """The probability of the likeliest first token of each turn's answer."""
    top = [0.0] * len(turns)
    for rows in _alike([turns]):
        logits = _read(model, [turns[i] for i in rows]).logits[:, -1]
        for i, p in zip(rows, logits.softmax(-1).amax(-1).tolist(), strict=True):
            top[i] = p
    return top


def _read(model: Any, turns: Sequence[Turn]) -> Any:
    """The model's output for turns whose prompts have the same length."""
    ids = torch.tensor([prompt_ids(t.text, t.pixels is not None) for t in turns])
    pixels = [t.pixels for t in turns if t.pixels is not None]
    seen = {"pixel_values": torch.stack(pixels)} if pixels else {}
    return model(input_ids=ids, **seen, use_cache=True, logits_to_keep=1)


def _alike(streams: Sequence[Sequence[Turn]]) -> Iterator[list[int]]:
    """Row numbers, grouped by the lengths of their prompts in all streams."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in range(len(streams[0])):
        groups[tuple(len(stream[i].text.split()) for stream in streams)].append(i)
    for rows in groups.values():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield rows[start : start + ROWS_AT_ONCE]
