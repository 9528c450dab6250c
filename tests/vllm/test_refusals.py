# ruff: noqa: E402
"""What cannot work raises, and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import infer_kit as ik
from infer_kit.errors import InferKitError, PromptTooLong, UnsupportedArgument
from infer_kit.streams import Group, Stream

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.exceptions import VLLMValidationError

from infer_kit.vllm import names
from infer_kit.vllm.description import KEY, InvalidGroup
from infer_kit.vllm.names import PROCESSOR, SCHEDULER, WORKER
from infer_kit.vllm.processor import CoupledLogitsProcessor
from infer_kit.vllm.settings import (
    CannotCouple,
    check_active,
    check_scheduler,
    check_settings,
    engine_arguments,
    is_active,
)
from tests.vllm.engines import check_idle, engine
from tests.vllm.folders import load_text, text_folder
from tests.vllm.laws import chat, picture

CHAT = chat("hello the thing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("refused"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[Any]:
    with engine(folder, max_num_seqs=3, max_model_len=128) as made:
        yield made
        check_idle(made)


@pytest.fixture
def red(llm: Any) -> Any:
    return ik.RED(llm, llm.get_tokenizer(), weight=0.5)


def settings(**changes: Any) -> Any:
    """A configuration with which groups run, but for what is changed."""
    config = {
        "parallel_config.pipeline_parallel_size": 1,
        "scheduler_config.policy": "fcfs",
        "scheduler_config.scheduler_cls": SCHEDULER,
        "speculative_config": None,
        "kv_transfer_config": None,
        "ec_transfer_config": None,
        "shard_sampling_batch": False,
        "model_config.return_sampling_mask": False,
        "model_config.runner_type": "generate",
        "model_config.logits_processors": [PROCESSOR],
    } | changes
    made: Any = SimpleNamespace()
    for name, value in config.items():
        holder, _, last = name.rpartition(".")
        if holder and not hasattr(made, holder):
            setattr(made, holder, SimpleNamespace())
        setattr(getattr(made, holder) if holder else made, last, value)
    return made


REFUSED = {
    "speculative_config": (object(), "speculative decoding"),
    "parallel_config.pipeline_parallel_size": (2, "pipeline parallelism"),
    "scheduler_config.policy": ("priority", "the priority policy"),
    "kv_transfer_config": (object(), "a KV connector"),
    "ec_transfer_config": (object(), "an encoder connector"),
    "shard_sampling_batch": (True, "batch-sharded sampling"),
    "model_config.return_sampling_mask": (True, "returned sampling masks"),
    "model_config.runner_type": ("pooling", "pooling models"),
}


def test_settings_that_work() -> None:
    check_settings(settings())
    check_scheduler(settings())
    check_active(settings())
    assert is_active(settings())


@pytest.mark.parametrize("name", list(REFUSED))
def test_settings(name: str) -> None:
    value, what = REFUSED[name]
    with pytest.raises(CannotCouple, match=f"Groups of streams do not run with {what}"):
        check_settings(settings(**{name: value}))


def test_several_settings_are_all_named() -> None:
    several = {name: REFUSED[name][0] for name in ("speculative_config", "kv_transfer_config")}
    with pytest.raises(CannotCouple, match=r"speculative decoding .*, a KV connector\."):
        check_settings(settings(**several))


def test_one_plug_in_alone(folder: Path) -> None:
    """The scheduler without the processor, and the reverse; by stand-in and by an engine."""
    bare = settings(**{"model_config.logits_processors": None})
    with pytest.raises(CannotCouple, match=r"the logits processor of groups is not") as error:
        check_settings(bare)
    assert f"--logits-processors {PROCESSOR}" in error.value.hint
    for theirs, said in ((None, "vLLM’s"), ("my.Scheduler", "my.Scheduler")):
        other = settings(**{"scheduler_config.scheduler_cls": theirs})
        with pytest.raises(CannotCouple, match=f"but the scheduler is {said}") as error:
            check_scheduler(other)
        assert f"--scheduler-cls {SCHEDULER}" in error.value.hint
    common: dict[str, Any] = {"enforce_eager": True, "dtype": "float32", "max_model_len": 64}
    common |= {"kv_cache_memory_bytes": 10_000_000}
    with pytest.raises(CannotCouple, match="logits processor of groups is not"):
        vllm.LLM(str(folder), scheduler_cls=SCHEDULER, **common)
    with pytest.raises(CannotCouple, match="but the scheduler is"):
        vllm.LLM(str(folder), logits_processors=[PROCESSOR], **common)


def test_somebody_elses_scheduler_or_worker(folder: Path) -> None:
    with pytest.raises(CannotCouple, match=r"scheduler_cls='my.Scheduler' is set, but groups need"):
        ik.vllm.CoupledLLM(str(folder), scheduler_cls="my.Scheduler")
    with pytest.raises(CannotCouple, match=r"worker_extension_cls='my.Worker' is set"):
        engine_arguments(worker_extension_cls="my.Worker")
    other = settings(**{"scheduler_config.scheduler_cls": "my.Scheduler"})
    with pytest.raises(CannotCouple, match=r"The engine's scheduler is 'my.Scheduler', but"):
        check_active(other)


def test_arguments_are_added_once() -> None:
    once = engine_arguments(model="m", logits_processors=["a:B"])
    assert once["logits_processors"] == ["a:B", PROCESSOR]
    assert engine_arguments(**once) == once
    assert (once["scheduler_cls"], once["worker_extension_cls"]) == (SCHEDULER, WORKER)


def test_an_engine_without_the_plug_ins() -> None:
    plain = object.__new__(vllm.LLM)
    bare = {"scheduler_config.scheduler_cls": None, "model_config.logits_processors": None}
    plain.llm_engine = SimpleNamespace(vllm_config=settings(**bare))
    with pytest.raises(CannotCouple, match="started without the plug-ins of groups") as error:
        ik.RED(plain, None)
    assert "infer_kit.vllm.CoupledLLM(...)" in error.value.hint
    assert "infer-kit serve MODEL" in error.value.hint


def test_other_engines_of_vllm() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    with pytest.raises(InferKitError, match=r"Expected a vllm.LLM, got vllm.*AsyncLLM") as error:
        ik.RED(object.__new__(AsyncLLM), None)
    assert "stream_group" in error.value.hint


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.29.1", "0.34.0", "1.0"):
        monkeypatch.setattr(vllm, "__version__", version)
        with pytest.raises(RuntimeError, match=f"vLLM 0.30 to 0.33 supported, found {version}"):
            names.check_version()
    for version in ("0.30.0", "0.33.2+cpu"):
        monkeypatch.setattr(vllm, "__version__", version)
        names.check_version()
    monkeypatch.setattr(names, "_SCHEDULER_NAMES", ("_gone",))
    with pytest.raises(RuntimeError, match=r"no Scheduler\._gone"):
        names.check_version()
    with pytest.raises(RuntimeError, match=r"no SimpleNamespace\.waiting"):
        names.check_attributes(SimpleNamespace(running=1), ("running", "waiting"))


KEYWORDS: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"num_beams": 4}, r"num_beams=4 does not work on vLLM"),
    "n-grams": ({"no_repeat_ngram_size": 2}, r"no_repeat_ngram_size=2 does not work on vLLM"),
    "bias": ({"sequence_bias": {(5,): 1.0}}, r"sequence_bias=.* does not work on vLLM"),
    "scores": ({"output_scores": True}, r"output_scores=True does not work on vLLM"),
    "typical": ({"do_sample": True, "typical_p": 0.5}, r"typical_p=0.5 does not work on vLLM"),
    "processors": ({"logits_processor": [print]}, r"logits_processor does not work on vLLM"),
    "criteria": ({"stopping_criteria": [print]}, r"stopping_criteria does not work on vLLM"),
    "prefix": ({"prefix_allowed_tokens_fn": print}, r"prefix_allowed_tokens_fn does not work"),
    "assistant": ({"assistant_model": object()}, r"assistant_model"),
    "unknown": ({"max_tokens": 3}, r"max_tokens"),
    "sampling params": ({"sampling_params": {"n": 2}}, r"sampling_params is a dict; expected"),
    "beside": (
        {"sampling_params": vllm.SamplingParams(), "max_new_tokens": 3},
        r"\['max_new_tokens'\] beside sampling_params, which says it all",
    ),
}


@pytest.mark.parametrize("name", list(KEYWORDS))
def test_keywords(name: str, red: Any) -> None:
    kwargs, message = KEYWORDS[name]
    with pytest.raises((UnsupportedArgument, InferKitError, ValueError), match=message):
        red.generate(CHAT, rationale="a", **kwargs)


def test_penalties_in_groups_of_ones_own(llm: Any) -> None:
    """vLLM's penalties act on the pool too; prompts' log-probabilities are of one stream."""
    group = [Group((Stream([5, 6]), Stream([7, 8])))]
    with pytest.raises(InvalidGroup, match="prompt_logprobs are of one stream"):
        llm.generate_groups(group, vllm.SamplingParams(prompt_logprobs=1))


def test_functions(llm: Any, red: Any) -> None:
    groups = [red.group(CHAT, rationale="a")]
    with pytest.raises(InferKitError, match="A pool that is a function does not run on vLLM"):
        red.backend.generate(groups, pool=lambda logprobs, weights: logprobs[:, 0])
    with pytest.raises(InferKitError, match="Weights that are a function of the step do not run"):
        red.backend.generate(groups, weights=lambda step: torch.ones(1, 2))
    demos = [{"question": f"q {n}", "answer": "a"} for n in range(4)]
    picl = ik.ParallelICL(llm, llm.get_tokenizer(), chunks=2, weighting="entropy", encoder="text")
    with pytest.raises(InferKitError, match="function of the step do not run on vLLM"):
        picl.fit(demos).generate(CHAT)


def test_two_models(llm: Any, folder: Path) -> None:
    other, tokenizer = load_text(folder)
    for pair in ((llm, other), (other, llm)):
        with pytest.raises(InferKitError) as error:
            ik.ContrastiveDecoding(*pair, tokenizer)
        assert "vLLM" in str(error.value) or "transformers" in str(error.value)
    twin = object.__new__(type(llm))
    twin.__dict__.update(llm.__dict__)
    with pytest.raises(InferKitError, match="One vLLM engine runs one model") as error:
        ik.ContrastiveDecoding(llm, twin, tokenizer)
    assert "composite_overrides([amateur]" in error.value.hint


def test_prompts(llm: Any, red: Any) -> None:
    with pytest.raises(InferKitError, match=r"Prompt 0 .*image.*"):
        red.generate(chat("what is it?", picture(0)), rationale="a")
    with pytest.raises(PromptTooLong, match=r"Prompt 0: the prompt is [\d,]+ tokens, the engine"):
        red.generate(chat("what is it? " * 40), rationale="a")
    with pytest.raises(PromptTooLong, match=r"Prompt 1: the prompt is"):
        red.generate([CHAT, CHAT], rationale=["a", "b " * 200])
    demos = [{"question": f"q {n}", "answer": "a"} for n in range(5)]
    picl = ik.ParallelICL(llm, llm.get_tokenizer(), chunks=5, encoder="text").fit(demos)
    with pytest.raises(
        InferKitError, match=r"Request 0 has 5 streams; this engine runs 3"
    ) as error:
        picl.generate(CHAT)
    assert "max_num_seqs=5" in error.value.hint


GROUPS: dict[str, tuple[list[Group], dict[str, Any], str]] = {
    "none": ([], {}, "the list of groups is empty"),
    "pool": ([Group((Stream([5]), Stream([6])))], {"pool": "sum"}, r"pool is .* got 'sum'"),
    "weights": ([Group((Stream([5], 0.0), Stream([6], 0.0)))], {}, r"All weights of request 0"),
    "mixture": (
        [Group((Stream([5], 1.5), Stream([6], -0.5)))],
        {"pool": "mixture"},
        r"A mixture needs weights ≥ 0",
    ),
    "nan": ([Group((Stream([5], float("nan")),))], {}, r"Weights of request 0 are not finite"),
    "prompt": ([Group((Stream([5]), Stream(3.5)))], {}, r"Group 0, stream 1"),
    "empty": ([Group((Stream([5]), Stream([])))], {}, r"Group 0, stream 1: the prompt is empty"),
    "parameters": (
        [Group((Stream([5]), Stream([6])))],
        {"sampling_params": [vllm.SamplingParams()] * 2},
        r"Got 2 sampling parameters for 1 groups",
    ),
}


@pytest.mark.parametrize("name", list(GROUPS))
def test_groups_of_ones_own(name: str, llm: Any) -> None:
    groups, options, message = GROUPS[name]
    with pytest.raises(InferKitError, match=message):
        llm.generate_groups(groups, **options)
    check_idle(llm)


BAD: dict[str, tuple[dict[str, Any], Any, str]] = {
    "n": ({"n": 2}, {"id": "a", "size": 2, "index": 0}, r"n=2 with a group made of several"),
    "prompt_logprobs": (
        {"prompt_logprobs": 2},
        {"members": [{"prompt_token_ids": [1]}]},
        "prompt_logprobs are of one stream",
    ),
    "grammar of a mixture": (
        {"structured_outputs": vllm.sampling_params.StructuredOutputsParams(regex="a")},
        {"mode": "mixture", "members": [{"prompt_token_ids": [1]}]},
        "use mode 'product'",
    ),
    "grammar without the first": (
        {"structured_outputs": vllm.sampling_params.StructuredOutputsParams(regex="a")},
        {"weight": 0, "members": [{"prompt_token_ids": [1]}]},
        "need a first stream whose weight is not 0",
    ),
    "description": ({}, '{"members": 3}', "'members' is a list, not empty; got 3"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_validation(name: str, llm: Any) -> None:
    """A server answers these with HTTP 400; the engine core never sees them."""
    options, value, message = BAD[name]
    params = vllm.SamplingParams(**options, max_tokens=2, extra_args={KEY: value})
    with pytest.raises(InvalidGroup, match=message):
        CoupledLogitsProcessor.validate_params(params)
    with pytest.raises(VLLMValidationError, match=message):
        llm.generate([{"prompt_token_ids": [5]}], params, use_tqdm=False)
    check_idle(llm)
