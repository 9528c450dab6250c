"""Streamers, prompt lookup and assistant models: what `generate()` shows and drafts meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

from infer_kit.engine.coupled_lm import CoupledLM
from tests.engine.cases import (
    GREEDY,
    LOOKUP,
    OUTPUT,
    PRODUCT,
    SAMPLING,
    SIGNED,
    Crops,
    assert_engine,
    assert_reference,
    lookup_rows,
    model_of,
    text_rows,
)
from tests.engine.reference import ReferenceLM
from tests.tiny import text_model
from tests.tiny.tokenizers import tiny_tokenizer

LONG = GREEDY | {"max_new_tokens": 10}


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.put_ids: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.put_ids.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("options", [LONG, SAMPLING], ids=["greedy", "sampling"])
def test_a_streamer_gets_the_prompt_each_token_and_the_end(options: dict[str, Any]) -> None:
    streamer = Recorder()
    out = CoupledLM([model_of("llama")] * 2).generate(
        text_rows(1, 2), SIGNED[:2], streamer=streamer, **options
    )
    assert [token for ids in streamer.put_ids for token in ids] == out[0].tolist()
    assert len(streamer.put_ids) == options["max_new_tokens"] + 1
    assert streamer.ended == 1


def test_text_streamer(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, rows = tiny_tokenizer(), text_rows(1, 2)
    lm = CoupledLM([model_of("llama")] * 2)
    options: dict[str, Any] = LONG | {"suppress_tokens": [*range(4, 37), 131, *range(146, 160)]}
    out = lm.generate(rows, streamer=TextStreamer(tokenizer, skip_prompt=True), **options)
    new = out[0, rows[0][0]["input_ids"].shape[1] :]
    assert capsys.readouterr().out.strip() == tokenizer.decode(new).strip()


def test_text_iterator_streamer() -> None:
    tokenizer, rows = tiny_tokenizer(), text_rows(1, 2)
    lm, streamer = CoupledLM([model_of("llama")] * 2), TextIteratorStreamer(
        tokenizer, skip_prompt=True, timeout=60
    )  # fmt: skip
    out: list[Tensor] = []
    thread = threading.Thread(
        target=lambda: out.append(lm.generate(rows, streamer=streamer, **LONG))
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(out[0][0, rows[0][0]["input_ids"].shape[1] :])


# Drafts


@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
@pytest.mark.parametrize("assistant", ["another", "the same"])
def test_an_assistant_model(assistant: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = Crops(monkeypatch)
    drafter = text_model("llama", seed=0 if assistant == "the same" else 3)
    drafter.generation_config.num_assistant_tokens = 3
    drafter.generation_config.num_assistant_tokens_schedule = schedule
    rows, weights = text_rows(1, 2), [1.0, 0.1]
    out = CoupledLM([model_of("llama")] * 2).generate(
        rows, weights, assistant_model=drafter, **OUTPUT, **LONG
    )
    theirs = ReferenceLM([model_of("llama")] * 2, rows, [weights]).write(**LONG)
    assert_engine(out, "fused")
    assert torch.equal(out.sequences, theirs.sequences)
    if assistant == "another":
        assert max(crops.removed) > 0
    else:
        assert len(crops.removed) < 10  # some of its drafts are right


def test_an_assistant_of_another_family() -> None:
    rows = text_rows(1, 3)
    out = CoupledLM([model_of("gemma3_text")] * 3).generate(
        rows, SIGNED[:3], assistant_model=text_model("gpt2", seed=1), **LONG
    )
    theirs = ReferenceLM([model_of("gemma3_text")] * 3, rows, [SIGNED[:3]]).write(**LONG)
    assert torch.equal(out, theirs.sequences)


def test_drafts_with_processors() -> None:
    options = LOOKUP | {"repetition_penalty": 1.3, "max_new_tokens": 10}
    assert_reference(model_of("qwen3"), lookup_rows(3), [PRODUCT[:3]], **options)


def test_drafts_end_at_the_end_token() -> None:
    out = assert_reference(model_of("llama"), lookup_rows(2), [PRODUCT[:2]], **LOOKUP)
    end = int(out.sequences[0, -3])
    assert_reference(model_of("llama"), lookup_rows(2), [PRODUCT[:2]], **LOOKUP, eos_token_id=end)
