"""Requests for the tests of the engine, and the comparison with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.cache_name import cache_of
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.stream_cache import StreamCache
from tests.engine.reference import Pool, ReferenceLM, Row, StepWeights, Table
from tests.tiny import available, shared_text_model

Rows = Sequence[Sequence[Row | None]]
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "top_k": 20, "temperature": 1.5}
BEAMS: dict[str, Any] = GREEDY | {"num_beams": 4, "num_return_sequences": 2}
LOOKUP: dict[str, Any] = GREEDY | {"max_new_tokens": 8, "prompt_lookup_num_tokens": 3}
ALPHABET = (11, 12, 13, 14, 15, 16)
LOOKUP |= {"suppress_tokens": [i for i in range(160) if i not in ALPHABET]}
OUTPUT: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}

PRODUCT = [1.0, 0.5, 0.25, 0.4]
SIGNED = [1.5, -0.6, 0.5, -0.3]
MIXTURE = {1: [1.0], 2: [0.7, 0.3], 3: [0.5, 0.2, 0.3], 4: [0.4, 0.1, 0.3, 0.2]}
LENGTHS = ((5, 17, 2, 11), (12, 7, 9, 7), (3, 3, 14, 8))  # ragged; both sides of a window of 8


def text_row(length: int, seed: int, alphabet: Sequence[int] = range(3, 160)) -> dict[str, Tensor]:
    """One unpadded prompt of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(alphabet), (length,), generator=generator).tolist()
    ids = torch.tensor([[alphabet[i] for i in picks]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def text_rows(requests: int, streams: int, seed: int = 0) -> list[list[Row | None]]:
    """Random prompts of unequal length."""
    return [
        [text_row(LENGTHS[b][k], 100 * seed + 10 * b + k) for k in range(streams)]
        for b in range(requests)
    ]


def lookup_rows(streams: int) -> list[list[Row | None]]:
    """One request whose primary prompt repeats a few tokens, so that drafts are often wrong."""
    return [[text_row(24 - 5 * k, 50 + k, ALPHABET) for k in range(streams)]]


def model_of(family: str) -> PreTrainedModel:
    """The shared tiny text model, or a skip with the reason."""
    found, why = available(family)
    if not found:
        pytest.skip(why)
    return shared_text_model(family)


def seeded(call: Any) -> Any:
    """What `call` returns when the global generator starts from 0."""
    torch.manual_seed(0)
    return call()


def assert_reference(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    rows: Rows,
    weights: Table | None = None,
    pool: Pool = "product",
    mode: str = "auto",
    engine: str = "fused",
    primary: int = 0,
    reference_weights: StepWeights | None = None,
    tolerance: float = 1e-5,
    lm: CoupledLM | None = None,
    **generate: Any,
) -> Any:
    """Run both; tokens equal, logits and beam scores close, the named engine ran.

    Args:
        weights: `[B][K]`, for both, or a function of the step, for ours.
        reference_weights: what a function of the step gives at each new token.
        lm: an engine made already. generate: keywords of `generate`.

    Returns:
        The engine's output.
    """
    width = max(len(row) for row in rows)
    each = [models] * width if isinstance(models, PreTrainedModel) else models
    reference = ReferenceLM(each, rows, reference_weights or weights, pool, primary)
    lm = lm or CoupledLM(each, pool=pool, mode=mode, primary=primary)
    beams = generate.get("num_beams", 1) > 1
    extra = {"output_scores": True} if beams else {}
    ours = seeded(lambda: lm.generate(rows, weights=weights, **OUTPUT, **extra, **generate))
    generate = {k: v for k, v in generate.items() if k not in ("prompt_lookup_num_tokens", "trace")}
    theirs = seeded(lambda: reference.write(**extra, **generate))
    assert_engine(ours, engine)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.logits) == len(theirs.logits)
    for step, (a, b) in enumerate(zip(ours.logits, theirs.logits, strict=True)):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0, msg=lambda m, s=step: f"{s}: {m}")
    if beams:
        torch.testing.assert_close(
            ours.sequences_scores, theirs.sequences_scores, atol=tolerance, rtol=0
        )
    return ours


def assert_engine(output: Any, engine: str) -> None:
    """The streams of every model ran on this engine, on an engine's cache."""
    assert isinstance(cache_of(output), StreamCache)
    assert set(cache_of(output).engines) == {engine}


def state_of(lm: CoupledLM, rows: Rows, sequences: int) -> StreamCache:
    """The state of a call with weights 1 after its prefill, for so many sequences in all."""
    out = lm.generate(
        rows, [1.0] * len(lm._models_of(rows)), max_new_tokens=1, do_sample=True,
        num_return_sequences=sequences // len(rows), return_dict_in_generate=True,
    )  # fmt: skip
    return cache_of(out)


class Crops:
    """How many tokens each `StreamCache.crop` took back, while installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.removed: list[int] = []
        crop = StreamCache.crop

        def counted(cache: StreamCache, tokens_to_remove: int) -> None:
            self.removed.append(-tokens_to_remove)
            crop(cache, tokens_to_remove)

        monkeypatch.setattr(StreamCache, "crop", counted)
