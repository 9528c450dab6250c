"""What Parallel-ICL refuses: in the user's terms, before any forward pass; and what it warns of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from infer_kit.engine.backend import TransformersBackend
from infer_kit.engine.context_prefix import prompt_length
from infer_kit.errors import (
    CannotContinue,
    InferKitError,
    PromptTooLong,
    UnsupportedArgument,
)
from infer_kit.methods.parallel_icl import ParallelICL
from tests.methods.conftest import chat, picture
from tests.methods.icl_cases import (
    GREEDY,
    LOGITS,
    QUERIES,
    QUERY,
    assert_same,
    demonstrations,
    texts,
    turns,
)
from tests.tiny import tiny_lvlm
from tests.tiny.tokenizers import CHAT_TEMPLATE, tiny_tokenizer

Make = Callable[..., ParallelICL]
DEMOS = demonstrations(5)
SIMPLE: dict[str, Any] = {"chunks": 2, "chunking": "random", "weighting": "uniform"}


@pytest.fixture
def icl(lvlm: PreTrainedModel, processor: Any) -> Make:
    return lambda **options: ParallelICL(lvlm, processor, **options)


@pytest.fixture
def nothing_runs(model_calls: list[int]) -> Iterator[list[int]]:
    """No pass through the model or its tower, but for what a test takes off the list."""
    yield model_calls
    assert not model_calls


def _limited(lvlm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(lvlm.config.text_config, "max_position_embeddings", tokens)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "chunks is a number from 1 on, or chunks of your own; got 0"),
        ({"chunks": True}, "chunks is a number from 1 on, or chunks of your own; got True"),
        ({"chunks": 2.0}, "chunks is a number from 1 on, or chunks of your own; got 2.0"),
        ({"chunks": "kmeans"}, "chunks is a number from 1 on, .*; got 'kmeans'"),
        ({"chunking": "k-means"}, "Unknown chunking 'k-means': use one of 'kmeans', "),
        ({"weighting": "cosine"}, "Unknown weighting 'cosine': use one of"),
        ({"weighting": [1.0, math.nan]}, "weighting must be a name or K numbers, got"),
        ({"weighting": 3}, "weighting must be a name or K numbers, got 3"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"temperature": math.inf}, "temperature must be positive, got inf"),
        ({"pool": "sum"}, "pool is 'product' or 'mixture', got 'sum'"),
        ({"selection": "best", "shots": 3}, "Unknown selection 'best': use one of"),
        ({"selection": "diverse"}, "selection='diverse' and shots=None go together"),
        ({"shots": 3}, "selection=None and shots=3 go together"),
        ({"selection": "random", "shots": 0}, "shots is a number from 1 on, got 0"),
        ({"selection": "random", "shots": "3"}, "shots is a number from 1 on, got '3'"),
        (
            {"selection": "nearest", "shots": 3, "bank": True},
            "'nearest' picks anew for every query",
        ),
        (
            {"selection": "random", "shots": 3, "chunks": [0, 1, 0]},
            "selection='random' picks demonstrations, and chunks= of your own holds all",
        ),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"system": 3}, "system is a text, got a int"),
        ({"encoder": 3}, "encoder is a int; expected None, 'text', the path"),
        ({"mode": "fast"}, "Unknown mode 'fast'"),
    ],
)
def test_constructor(icl: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        icl(**options)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("options", "demos", "message"),
    [
        ({}, [], "No demonstrations: the list is empty."),
        ({}, [*DEMOS, {"question": "what?"}], "Demonstration 5 has no answer: got None"),
        ({"chunks": 6}, DEMOS, "6 chunks need at least 6 demonstrations, got 5."),
        ({"chunks": 4, "selection": "random", "shots": 3}, DEMOS, "4 chunks need at least 4 .* 3."),
        ({"selection": "random", "shots": 6}, DEMOS, "shots=6, but there are 5 demonstrations."),
        ({"chunks": [0, 1]}, DEMOS, "Got 2 chunk labels for 5 demonstrations."),
        ({"chunks": [[0, 1], [3, 4]]}, DEMOS, "Demonstration 2 is in no chunk."),
        ({"chunks": 2, "weighting": [1.0]}, DEMOS, "Got 1 weights for 2 chunks."),
        ({"chunks": [0] * 5, "weighting": [0.5, 0.5]}, DEMOS, "Got 2 weights for 1 chunks."),
        ({}, [DEMOS[0] | {"image": "absent.png"}], "Demonstration 0: image 'absent.png' cannot"),
        (
            {"chunks": 1},
            [[{"role": "system", "content": "be brief"}, *turns(DEMOS[0])]],
            "Demonstration 0 has a system turn.",
        ),
    ],
)
def test_fit(icl: Make, options: dict[str, Any], demos: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        icl(**options).fit(demos)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "features", [torch.zeros(4, 3), torch.zeros(5), torch.full((5, 2), math.nan)]
)
def test_features_of_the_wrong_size(icl: Make, features: Any) -> None:
    shape = re.escape(str(list(features.shape)))
    with pytest.raises(InferKitError, match=rf"features have shape {shape}; expected \[5, D\]"):
        icl(chunks=2).fit(DEMOS, features=features)


def test_a_tokenizer_reads_no_pictures(lvlm: PreTrainedModel, nothing_runs: list[int]) -> None:
    picl = ParallelICL(lvlm, tiny_tokenizer(), chunks=2)
    with pytest.raises(InferKitError, match=r"Prompt 1 has 1 image\(s\), but .* takes text only"):
        picl.fit([*texts(1), *DEMOS])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (chat("and without?"), "Query 0 has no image, but every demonstration has one."),
        (
            [{"role": "system", "content": "be brief"}, *QUERY],
            "Query 0 has a system turn, which must come before the demonstrations.",
        ),
        ([QUERY, chat("", picture(0))], "The question of prompt 1 is empty."),
        ([QUERY, turns(DEMOS[0])], "Prompt 1 ends with a turn of 'assistant'"),
        ([QUERY, chat("?", "absent.png")], "Query 1: image 'absent.png' cannot be read"),
        (chat("what is <image>?", picture(0)), r"Prompt 0 contains 2 image placeholder\(s\) but 1"),
        ([], "got an empty list"),
    ],
)
def test_queries(icl: Make, nothing_runs: list[int], query: Any, message: str) -> None:
    picl = icl(chunks=2).fit(DEMOS)
    nothing_runs.clear()
    with pytest.raises(InferKitError, match=message):
        picl.generate(query)


@pytest.mark.parametrize("given", [None, torch.zeros(4), torch.zeros(2, 3)])
def test_features_of_queries(icl: Make, nothing_runs: list[int], given: Any) -> None:
    picl = icl(chunks=2).fit(DEMOS, features=torch.eye(5)[:, :3])
    nothing_runs.clear()
    message = (
        "were fitted with features of your own; pass those of the queries too"
        if given is None
        else r"features of the queries have shape .*; expected \[1, 3\]"
    )
    with pytest.raises(InferKitError, match=message):
        picl.generate(QUERY, features=given)
    picl = icl(chunks=2).fit(DEMOS)
    nothing_runs.clear()
    with pytest.raises(InferKitError, match="need those of the demonstrations"):
        picl.generate(QUERY, features=torch.zeros(3))


def test_keywords_of_generate(icl: Make, nothing_runs: list[int]) -> None:
    picl = icl(**SIMPLE).fit(DEMOS)
    nothing_runs.clear()
    with pytest.raises(UnsupportedArgument, match="Unknown keyword 'max_tokens'"):
        picl.generate(QUERY, max_tokens=3)
    with pytest.raises(UnsupportedArgument, match="use_cache=False cannot work here"):
        picl.generate(QUERY, use_cache=False)


@pytest.mark.usefixtures("nothing_runs")
def test_not_fitted(icl: Make, tmp_path: Path) -> None:
    picl = icl()
    for call in (lambda: picl.generate(QUERY), lambda: picl.group(QUERY),
                 lambda: picl.save(tmp_path)):  # fmt: skip
        with pytest.raises(InferKitError, match="There are no demonstrations yet") as caught:
            call()
        assert caught.value.hint == "Call fit(demonstrations) first."


# Chunks that are too long


def _proposed(error: InferKitError) -> int:
    found = re.search(r"Use chunks=(\d+)", error.hint or "")
    assert found is not None, error.hint
    return int(found[1])


@pytest.mark.parametrize("chunking", ["random", "kmeans", "balanced"])
@pytest.mark.parametrize("bank", [None, False])
@pytest.mark.parametrize("system", [None, "answer in one word, please"])
def test_a_chunk_that_is_too_long(
    icl: Make,
    lvlm: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    chunking: str,
    bank: bool | None,
    system: str | None,
) -> None:
    """The chunk is named, and the number of chunks that is proposed does fit."""
    _limited(lvlm, monkeypatch, 115)
    options: dict[str, Any] = {"chunking": chunking, "bank": bank, "system": system}
    options |= {"weighting": "uniform"}
    demos = demonstrations(9)
    runs: list[int] = []
    handle = lvlm.register_forward_pre_hook(lambda *_: runs.append(1))
    message = r"Chunk \d of \d is longer than the model takes: about .* at most 115"
    try:
        for chunks in (1, 2):
            runs.clear()
            with pytest.raises(PromptTooLong, match=message) as caught:
                icl(chunks=chunks, **options).fit(demos).generate(QUERY, max_new_tokens=1)
            assert not runs or (chunks, bank) == (2, None)  # that one fits without a query
            proposed = _proposed(caught.value)
            assert chunks < proposed <= 9
            fits = icl(chunks=proposed, **options).fit(demos)
            assert len(fits.generate(QUERY, max_new_tokens=1).chunks) == proposed
    finally:
        handle.remove()


@pytest.mark.parametrize("bank", [None, False])
def test_a_query_that_does_not_fit_behind_its_chunk(
    icl: Make, lvlm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, bank: bool | None
) -> None:
    picl = icl(chunks=[[0], [1, 2, 3, 4]], weighting="uniform", bank=bank).fit(DEMOS)
    longest = prompt_length(picl.group(QUERY).streams[1].context)
    _limited(lvlm, monkeypatch, longest + 1)
    picl.generate(QUERY, max_new_tokens=1)
    question = chat("what is it, in so many more words than that?", picture(3))
    with pytest.raises(PromptTooLong, match="Chunk 1 of 2 is longer") as caught:
        picl.generate(question, max_new_tokens=1)
    proposed = _proposed(caught.value)
    icl(chunks=proposed, weighting="uniform").fit(DEMOS).generate(question, max_new_tokens=1)


@pytest.mark.usefixtures("nothing_runs")
def test_no_chunk_is_read_where_a_later_one_is_too_long(
    icl: Make, lvlm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limited(lvlm, monkeypatch, 80)
    parts = [[0], [1, 2, 3, 4]]
    with pytest.raises(PromptTooLong, match="Chunk 1 of 2 is longer") as caught:
        icl(chunks=parts, weighting="uniform", chunking="random").fit(DEMOS)
    assert _proposed(caught.value) in (3, 4, 5)


@pytest.mark.usefixtures("nothing_runs")
def test_where_no_number_of_chunks_fits(
    icl: Make, lvlm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limited(lvlm, monkeypatch, 40)
    with pytest.raises(PromptTooLong, match="Chunk . of 2 is longer") as caught:
        icl(**SIMPLE).fit(DEMOS)
    assert caught.value.hint == "Even one demonstration a chunk does not fit."


def test_a_query_that_is_too_long_by_itself(
    icl: Make, lvlm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    picl = icl(**SIMPLE).fit(DEMOS)
    _limited(lvlm, monkeypatch, 120)
    with pytest.raises(PromptTooLong, match=r"The query alone is \d+ tokens, the model takes 120"):
        picl.generate(chat("why? " * 60, picture(3)), max_new_tokens=1)


# Pools on disk


def test_a_pool_of_another_model(
    icl: Make, processor: Any, tmp_path: Path, nothing_runs: list[int]
) -> None:
    icl(chunks=2).fit(DEMOS).save(tmp_path)
    nothing_runs.clear()
    other = tiny_lvlm("llava", seed=1).model
    with pytest.raises(InferKitError, match="was fitted with another model: its features and"):
        ParallelICL.load(tmp_path, other, processor)


def test_what_made_the_chunks_is_fixed(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path, nothing_runs: list[int]
) -> None:
    icl(**SIMPLE).fit(DEMOS).save(tmp_path)
    nothing_runs.clear()
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"chunks": 3}, r"\['chunks'\] made the saved chunks and cannot be changed"),
        ({"seed": 3, "chunking": "kmeans"}, r"\['chunking', 'seed'\] made the saved chunks"),
        ({"selection": "random", "shots": 3}, r"\['selection', 'shots'\] made the saved"),
        ({"weighting": "similarity"}, "was saved without features, which similarity weights need"),
        ({"weighting": [0.2, 0.3, 0.5]}, "Got 3 weights for 2 chunks."),
    ]
    for arguments, message in refusals:
        with pytest.raises(InferKitError, match=message):
            ParallelICL.load(tmp_path, lvlm, processor, **arguments)


@pytest.mark.parametrize("missing", ["pool.json", "demonstrations.jsonl", "features.safetensors"])
def test_files_that_are_missing(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path, missing: str
) -> None:
    icl(**SIMPLE).fit(DEMOS).save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(InferKitError, match=f"holds no fitted pool: {missing} not found"):
        ParallelICL.load(tmp_path, lvlm, processor)


def test_a_picture_that_is_missing(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    icl(**SIMPLE).fit(DEMOS).save(tmp_path)
    (tmp_path / "images" / "3-0.png").unlink()
    with pytest.raises(InferKitError, match=r"Demonstration 3: image '.*3-0.png' cannot be read"):
        ParallelICL.load(tmp_path, lvlm, processor)


def test_another_encoder_for_the_queries(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    icl(chunks=2).fit(DEMOS).save(tmp_path)
    with pytest.raises(InferKitError, match="'encoder'. made the saved chunks and cannot be"):
        ParallelICL.load(tmp_path, lvlm, processor, encoder="text")


def test_features_of_queries_are_checked_where_nobody_needs_them(icl: Make) -> None:
    own = icl(chunks=2, weighting="uniform").fit(DEMOS)
    with pytest.raises(InferKitError, match="features of queries need those of the demonstrat"):
        own.generate(QUERY, features=[1.0, 2.0])
    given = icl(chunks=2, weighting="uniform").fit(DEMOS, features=torch.eye(len(DEMOS)))
    with pytest.raises(InferKitError, match="features of the queries have shape"):
        given.generate(QUERY, features=[1.0, 2.0])
    with pytest.raises(InferKitError, match="features are not a table of numbers"):
        icl(chunks=2).fit(DEMOS, features=[[1.0], [1.0, 2.0]])


def test_weights_that_cannot_be(icl: Make) -> None:
    with pytest.raises(InferKitError, match="All weights are 0"):
        icl(weighting=[0, 0])
    with pytest.raises(InferKitError, match="The weights of a mixture are at least 0 and sum to 1"):
        icl(weighting=[0.5, 0.6], pool="mixture")
    picl = icl(chunks=2).fit(DEMOS)
    picl.weighting = "unifrm"
    with pytest.raises(InferKitError, match="Unknown weighting 'unifrm'"):
        picl.generate(QUERY)


def test_an_encoder_that_is_not_there(icl: Make) -> None:
    with pytest.raises(InferKitError, match="No encoder at './no/clip'"):
        icl(encoder="./no/clip")


# The bank, where it cannot be


def test_no_bank_is_said_or_refused(
    icl: Make, monkeypatch: pytest.MonkeyPatch, nothing_runs: list[int]
) -> None:
    expected = icl(bank=False, **SIMPLE).fit(DEMOS).generate(QUERIES, **LOGITS, **GREEDY)
    monkeypatch.setattr(TransformersBackend, "why_whole", lambda *_: "of a reason")
    nothing_runs.clear()
    with pytest.raises(CannotContinue, match="not from the bank: of a reason.") as caught:
        icl(bank=True, **SIMPLE).fit(DEMOS)
    assert caught.value.hint == "Leave out bank=True."
    assert not nothing_runs
    with pytest.warns(UserWarning, match="bank: of a reason. Pass bank=False to say that this"):
        picl = icl(**SIMPLE).fit(DEMOS)
    out = picl.generate(QUERIES, **LOGITS, **GREEDY)
    assert out.banked == [False] * 2
    assert_same(out, expected)
    nothing_runs.clear()


def test_no_bank_for_some_queries(
    icl: Make, monkeypatch: pytest.MonkeyPatch, nothing_runs: list[int]
) -> None:
    """Only queries with two images are read whole here."""
    reason = lambda self, before, after: "two of them" if after > 1 else None  # noqa: E731
    monkeypatch.setattr(TransformersBackend, "why_whole", reason)
    picl = icl(**SIMPLE).fit(DEMOS)
    with pytest.warns(UserWarning, match="bank: two of them. Pass bank=False"):
        out = picl.generate(QUERIES, **LOGITS, **GREEDY)
    assert out.banked == [True, False]
    assert_same(out, icl(bank=False, **SIMPLE).fit(DEMOS).generate(QUERIES, **LOGITS, **GREEDY))
    strict = icl(bank=True, **SIMPLE).fit(DEMOS)
    nothing_runs.clear()
    with pytest.raises(CannotContinue, match="bank: two of them"):
        strict.generate(QUERIES)


def test_a_template_that_rewrites_demonstrations(icl: Make, nothing_runs: list[int]) -> None:
    rewriting = CHAT_TEMPLATE.replace(
        "{% if message['role'] == 'assistant' %}{{ eos_token }}",
        "{% if loop.last and message['role'] == 'assistant' %}!{{ eos_token }}",
    )
    options = SIMPLE | {"chat_template": rewriting}
    picl = icl(**options).fit(DEMOS)
    with pytest.warns(UserWarning, match="the chat template writes demonstrations otherwise"):
        out = picl.generate(QUERY, **LOGITS, **GREEDY)
    assert not out.banked
    off = icl(bank=False, **options).fit(DEMOS)
    assert_same(out, off.generate(QUERY, **LOGITS, **GREEDY))
    strict = icl(bank=True, **options).fit(DEMOS)
    nothing_runs.clear()
    with pytest.raises(CannotContinue, match="the chat template writes demonstrations otherwise"):
        strict.generate(QUERY)
