"""Groups of chats on `CoupledLM`: texts, ends, traces, and what groups must have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infer_kit.engine.backend import TransformersBackend
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError, PromptTooLong, UnsupportedArgument
from infer_kit.streams import Group, Stream
from tests.engine.cases import GREEDY, model_of
from tests.tiny import shared_text_model
from tests.tiny.tokenizers import tiny_tokenizer


def _chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(model_of("llama"), tiny_tokenizer())


def _group(backend: TransformersBackend, *texts: str, primary: int = 0) -> Group:
    weights = (1.0, 0.6, -0.3)
    names = ("question", "notes", "noise")
    return Group(
        tuple(
            Stream(backend.render(_chat(text), 0), weights[k], names[k])
            for k, text in enumerate(texts)
        ),
        primary,
    )


def test_answers_are_those_of_the_engine(backend: TransformersBackend) -> None:
    groups = [_group(backend, "what?", "it is the one"), _group(backend, "and where is it?")]
    answers = backend.generate(groups, **GREEDY)
    rows = [[stream.context for stream in group.streams] for group in groups]
    expected = CoupledLM(model_of("llama")).generate(rows, [[1.0, 0.6], [1.0, 0.0]], **GREEDY)
    longest = max(row[0]["input_ids"].shape[1] for row in rows)
    assert torch.equal(answers.output.sequences, expected)
    tokenizer = backend.rows.tokenizer
    for b in range(2):
        assert answers.tokens[b] == expected[b, longest:].tolist()[: len(answers.tokens[b])]
        assert answers.texts[b] == tokenizer.decode(answers.tokens[b], skip_special_tokens=True)
    assert answers.engines == ("fused",) and answers.traces is None


@pytest.mark.parametrize("beams", [1, 3])
def test_traces_name_streams_and_stop_at_the_end(backend: TransformersBackend, beams: int) -> None:
    groups = [_group(backend, "what?", "it is", "no"), _group(backend, "and where is it?")]
    options = GREEDY | {"num_beams": beams, "num_return_sequences": beams}
    first = backend.generate(groups, **options).tokens[0]
    answers = backend.generate(groups, trace=True, eos_token_id=first[2], **options)
    assert answers.traces is not None and len(answers.traces) == 2 * beams
    names = [("question", "notes", "noise")] * beams + [("question",)] * beams
    for tokens, trace, streams in zip(answers.tokens, answers.traces, names, strict=True):
        assert trace.token_ids.tolist() == tokens
        assert trace.streams == streams
        assert trace.pool == "product"
        assert abs(trace.parts.sum(1) - trace.margin).max() < 1e-5
    assert answers.tokens[0][-1] == first[2]
    assert answers.ended == [tokens[-1] == first[2] for tokens in answers.tokens]


def test_weights_of_the_call_come_before_those_of_the_streams(
    backend: TransformersBackend,
) -> None:
    group = _group(backend, "what?", "it is")
    alone = backend.generate([_group(backend, "what?")], **GREEDY)
    assert backend.generate([group], weights=[[1.0, 0.0]], **GREEDY).tokens == alone.tokens
    assert backend.generate([group], **GREEDY).tokens != alone.tokens


def test_a_stream_with_a_model_of_its_own(backend: TransformersBackend) -> None:
    other = shared_text_model("gpt2", seed=1)
    contexts = [backend.render(_chat(text), 0) for text in ("what?", "it is")]
    group = Group((Stream(contexts[0]), Stream(contexts[1], 0.5, model=other)))
    answers = backend.generate([group], **GREEDY)
    assert answers.engines == ("fused", "fused")
    lm = CoupledLM([model_of("llama"), other], [1.0, 0.5])
    assert torch.equal(answers.output.sequences, lm.generate([contexts], **GREEDY))
    swapped = Group((Stream(contexts[1], model=other), Stream(contexts[0])))
    with pytest.raises(InferKitError, match="Stream 0 of request 1 runs on another model"):
        backend.generate([group, swapped], **GREEDY)


def test_groups_have_one_primary_stream(backend: TransformersBackend) -> None:
    groups = [_group(backend, "a", "b"), _group(backend, "a", "b", primary=1)]
    with pytest.raises(InferKitError, match="Group 1 has another primary stream than group 0"):
        backend.generate(groups, **GREEDY)


def test_arguments_and_prompts_are_checked_before(backend: TransformersBackend) -> None:
    with pytest.raises(UnsupportedArgument, match="guidance_scale=2"):
        backend.check(guidance_scale=2)
    with pytest.raises(UnsupportedArgument, match="one request at a time, got 2"):
        backend.check(2, prompt_lookup_num_tokens=3)
    with pytest.raises(PromptTooLong, match="Prompt 3: the prompt is 603 tokens, the model takes"):
        backend.render(_chat("?" * 600), 3)


def test_room_is_what_the_context_leaves(backend: TransformersBackend) -> None:
    context = backend.render(_chat("what?"), 0)
    assert backend.room(context) == 512 - context["input_ids"].shape[1]
