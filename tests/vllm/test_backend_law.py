"""The backend law: every method answers on vLLM what it answers on transformers, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import infer_kit as ik
from infer_kit.explanation import explain
from infer_kit.explanation.recomputed import recomputed
from tests.vllm.laws import Heard, chat, check_same, demonstrations, picture

pytest.importorskip("vllm", reason="vLLM is not installed")

from tests.vllm.engines import check_idle, engine
from tests.vllm.folders import llava_folder, load_llava

CHATS = [
    chat("what is in it? the thing", picture(0)),
    chat("and in this one, the second?", picture(1)),
    chat("say it in the end", picture(2)),
]
TEXTS = [chat("hello the thing"), chat("is the ring in the street on a plane?")]
RATIONALES = ["there is a cat", "the red thing, and another", "nothing in the thing"]
NEGATIVE = chat("another thing in it", picture(3))
GREEDY: dict[str, Any] = {"max_new_tokens": 12}

METHODS: dict[str, tuple[Any, dict[str, Any], list[Any], dict[str, Any]]] = {
    "RED": (ik.RED, {"weight": 0.7}, CHATS, {"rationale": RATIONALES}),
    "RED, weight 0": (ik.RED, {"weight": 0.0}, CHATS, {"rationale": RATIONALES}),
    "RED, one weight a chat": (
        ik.RED,
        {},
        CHATS,
        {"rationale": RATIONALES, "weight": [0.0, 1.5, -0.4]},
    ),
    "RED, normalised": (
        ik.RED,
        {"weight": 1.5, "normalize": True},
        CHATS,
        {"rationale": RATIONALES},
    ),
    "RED, rationale alone": (
        ik.RED,
        {"weight": 1.0, "image_weight": 0.0},
        CHATS,
        {"rationale": RATIONALES},
    ),
    "RED, budget": (ik.RED, {"weight": "kl:0.3"}, CHATS, {"rationale": RATIONALES}),
    "RED, text": (ik.RED, {"weight": 0.7}, TEXTS, {"rationale": RATIONALES[:2]}),
    "RED, own rationales": (
        ik.RED,
        {"weight": 0.7, "rationale_generation": {"max_new_tokens": 8}},
        CHATS,
        {},
    ),
    "VCD": (ik.VCD, {}, CHATS, {}),
    "VCD, two pictures": (
        ik.VCD,
        {"noise_step": 300, "seed": 3},
        [chat("which one?", picture(4), picture(5)), CHATS[0]],
        {},
    ),
    "VCD, budget": (ik.VCD, {"alpha": "kl:0.2", "beta": 0.2}, CHATS, {}),
    "CFG": (ik.CFG, {"scale": 2.0}, CHATS, {}),
    "CFG, text": (ik.CFG, {}, TEXTS, {}),
    "CFG, negative": (ik.CFG, {"scale": 2.0, "beta": 0.1}, CHATS, {"negative": NEGATIVE}),
    "CFG, text, budget": (ik.CFG, {"scale": "kl:0.4"}, TEXTS, {}),
    "ICD": (ik.ICD, {}, CHATS, {}),
    "ICD, noise": (ik.ICD, {"noise_step": 300, "alpha": 0.5}, CHATS, {}),
    "ContextAware": (ik.ContextAware, {}, CHATS, {"context": RATIONALES}),
    "ContextAware, text": (ik.ContextAware, {"alpha": 1.0}, TEXTS, {"context": RATIONALES[:2]}),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The engine, transformers' model, and the processor of both."""
    folder = llava_folder(tmp_path_factory.mktemp("llava"))
    model, processor = load_llava(folder)
    with engine(folder, max_model_len=1024, kv_cache_memory_bytes=80_000_000) as llm:
        yield SimpleNamespace(llm=llm, model=model, processor=processor)


@pytest.fixture(autouse=True)
def idle(both: Any) -> Iterator[None]:
    yield
    check_idle(both.llm)


def made(both: Any, kind: Any, **arguments: Any) -> tuple[Any, Any]:
    """A method on vLLM and on transformers."""
    return tuple(kind(model, both.processor, **arguments) for model in (both.llm, both.model))


@pytest.mark.filterwarnings("ignore:The rationale of prompt")
@pytest.mark.parametrize("name", list(METHODS))
def test_methods(name: str, both: Any) -> None:
    kind, arguments, chats, given = METHODS[name]
    on_vllm, on_transformers = made(both, kind, **arguments)
    ours = on_vllm.generate(chats, **given, **GREEDY)
    theirs = on_transformers.generate(chats, **given, **GREEDY)
    check_same(ours, theirs)
    assert ours.engines == ("vllm",)
    if kind is ik.RED:
        assert ours.rationale == theirs.rationale
    alone = on_vllm.generate(chats[0], **{k: _first(v) for k, v in given.items()}, **GREEDY)
    assert alone.text == ours.text[0]


@pytest.mark.parametrize("name", ["RED, one weight a chat", "RED, budget", "VCD", "CFG, text"])
def test_candidates_of_a_trace(name: str, both: Any) -> None:
    kind, arguments, chats, given = METHODS[name]
    on_vllm, on_transformers = made(both, kind, trace=4, **arguments)
    ours = on_vllm.generate(chats, **given, **GREEDY)
    check_same(ours, on_transformers.generate(chats, **given, **GREEDY))
    assert all(len(several) >= 4 for trace in ours.trace for several in trace.candidates)


def test_prompts_are_shown_as_on_transformers(both: Any) -> None:
    shown = []
    for method in made(both, ik.VCD):
        context = method.group(CHATS[0]).streams[0].context
        shown.append(method.backend.prompt_ids(context))
        assert "what is in it?" in method.backend.decoded(shown[-1])
    assert shown[0] == shown[1]


def test_an_answer_explained(both: Any) -> None:
    shown = [explain(method, CHATS[0], **GREEDY) for method in made(both, ik.VCD)]
    ours, theirs = shown
    assert ours.text == theirs.text and ours.contexts == theirs.contexts
    assert ours.controls.sliders[0].stops == theirs.controls.sliders[0].stops
    check_same(ours.output, theirs.output)
    for stop in (0.0, 0.5, 1.0, 2.0):
        chosen = [
            [c.token_id for c in recomputed(e.trace, e.controls.weights([stop]))] for e in shown
        ]
        assert chosen[0] == chosen[1]
    facts = dict(ours.facts)
    assert "vllm" in facts["streams ran"] and "vllm" in facts["versions"]
    assert "LLM, " in facts["model"] and "/" not in facts["model"]
    assert ours.html().startswith("<!doctype html>")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and not isinstance(value[0], dict) else value


OPTIONS: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.4},
    "suppressed": {"suppress_tokens": list(range(30, 150))},
    "config": {"generation_config": GenerationConfig(max_new_tokens=7, repetition_penalty=1.2)},
    "length": {"max_length": 120, "max_new_tokens": None},
    "copies": {"do_sample": True, "top_k": 1, "num_return_sequences": 3},
    "untraced": {},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_options(name: str, both: Any) -> None:
    options = (GREEDY if name != "config" else {}) | OPTIONS[name]
    options = {k: v for k, v in options.items() if v is not None}
    arguments = {"weight": 0.6, "trace": name != "untraced"}
    ours, theirs = (
        method.generate(CHATS[:2], rationale=RATIONALES[:2], **options)
        for method in made(both, ik.RED, **arguments)
    )
    check_same(ours, theirs)
    if name == "copies":
        assert len(ours.output.requests) == 6


def test_ends(both: Any) -> None:
    """End tokens, the least number of tokens, and stop strings."""
    on_vllm, on_transformers = made(both, ik.RED, weight=0.6)

    def check(**options: Any) -> Any:
        given = {"rationale": RATIONALES, "max_new_tokens": 12} | options
        ours, theirs = (m.generate(CHATS, **given) for m in (on_vllm, on_transformers))
        check_same(ours, theirs)
        return ours

    free = check()
    written = [trace.token_ids.tolist() for trace in free.trace]
    ends = [written[0][4], written[1][7]]
    stopped = check(eos_token_id=ends)
    assert {len(trace) for trace in stopped.trace} != {12}
    longer = check(eos_token_id=ends, min_new_tokens=9)
    assert min(len(trace) for trace in longer.trace) >= 9
    piece = "".join(free.trace[0].tokens[5:7])
    cut = check(stop_strings=[piece])
    assert len(cut.trace[0]) <= 7 and cut.trace[0].tokens[-1] == free.trace[0].tokens[6]


def test_a_streamer_hears_the_same(both: Any) -> None:
    heard = [Heard(), Heard()]
    for method, streamer in zip(made(both, ik.VCD), heard, strict=True):
        method.generate(CHATS[0], streamer=streamer, **GREEDY)
    ours, theirs = heard
    assert ours.tokens == theirs.tokens and len(ours.tokens) == 12
    assert ours.ended and ours.prompt == theirs.prompt


PARALLEL: dict[str, dict[str, Any]] = {
    "clusters of pictures": {"chunks": 3},
    "texts": {"chunks": 2, "encoder": "text"},
    "mixture": {"chunks": 3, "pool": "mixture", "temperature": 0.1},
    "own chunks": {"chunks": [[0, 2], [1, 3, 6], [4, 5]], "weighting": [0.7, -0.2, 0.5]},
    "nearest": {"chunks": 2, "selection": "nearest", "shots": 4},
}


@pytest.mark.parametrize("name", list(PARALLEL))
def test_parallel_icl(name: str, both: Any) -> None:
    images = name != "texts"
    demos = demonstrations(7, images)
    if images:
        queries = [chat("what is in it?", picture(70)), chat("and in it?", picture(51))]
    else:
        queries = [chat("what is in 9?"), chat("what is in the ring?")]
    on_vllm, on_transformers = made(both, ik.ParallelICL, **PARALLEL[name])
    if name != "nearest":
        on_vllm, on_transformers = on_vllm.fit(demos), on_transformers.fit(demos)
        ours, theirs = (m.generate(queries, **GREEDY) for m in (on_vllm, on_transformers))
    else:
        ours, theirs = (
            m.fit(demos).generate(queries, **GREEDY) for m in (on_vllm, on_transformers)
        )
    check_same(ours, theirs)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        assert list(a) == pytest.approx(list(b), abs=1e-4)
    again = on_vllm.generate(queries[1], **GREEDY)
    assert again.text == ours.text[1]


def test_sweeps(both: Any) -> None:
    given = {"rationale": RATIONALES, "progress": False}
    weights, answers = [0.0, 0.5, 1.5], ["the cat", "a", "in"]
    swept = [
        method.sweep(CHATS, answers, weights, candidates=answers, **given)
        for method in made(both, ik.RED)
    ]
    assert swept[0].scores == pytest.approx(swept[1].scores, abs=1e-4)
    assert swept[0].predictions == swept[1].predictions
    free = [
        method.sweep(CHATS, answers, weights, max_new_tokens=6, **given)
        for method in made(both, ik.RED)
    ]
    assert free[0].predictions == free[1].predictions
    assert len({str(row) for row in free[0].predictions}) > 1


def test_composed_methods(both: Any) -> None:
    """RED whose image stream is contrasted: four streams, the primary not the only expert."""
    outs = []
    for model in (both.llm, both.model):
        red, vcd = ik.RED(model, both.processor, weight=0.5), ik.VCD(model, both.processor)
        group = vcd.contrast(red.group(CHATS[0], rationale=RATIONALES[0]))
        outs.append(vcd.run([group], **GREEDY))
    check_same(*outs)
    assert len(outs[0].trace.streams) == 3


def test_experts_behind_the_primary(both: Any) -> None:
    """The primary stream is not the first, nor the expert: the cut-off is by the expert's place."""
    outs = []
    for model in (both.llm, both.model):
        method = ik.CFG(model, both.processor, scale=1.5, beta=0.8)
        group = method.group(CHATS[0])
        first, second = group.streams
        third = method.group(CHATS[1]).streams[0]
        streams = (second, third, first)
        for primary, experts in ((2, (1,)), (1, (2, 1)), (0, (2,))):
            moved = ik.Group(streams, primary=primary, experts=experts, memories=group.memories)
            outs.append(method.run([moved], **GREEDY))
    for ours, theirs in zip(outs[:3], outs[3:], strict=True):
        check_same(ours, theirs)
    assert len({out.text for out in outs[:3]}) == 3


def test_experts_behind_an_idle_stream(both: Any) -> None:
    """A stream of weight 0 is left out, and the places behind it move up."""
    outs = []
    for model in (both.llm, both.model):
        method = ik.CFG(model, both.processor, scale=1.5, beta=0.8)
        first, second = method.group(CHATS[0]).streams
        third = method.group(CHATS[1]).streams[0]
        group = ik.Group((first, replace(third, weight=0.0), second, third), experts=(2,))
        outs.append(method.run([group], **GREEDY))
    check_same(*outs)
    assert outs[0].trace.idle


def test_pictures_count(both: Any) -> None:
    """A changed pixel changes what is drawn; the tower sees each distinct picture once."""
    seen: list[int] = []

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        values = [*args, *kwargs.values()]
        seen.append(next(v.shape[0] for v in values if isinstance(v, torch.Tensor)))

    model = both.llm.llm_engine.model_executor.driver_worker.model_runner.get_model()
    handle = model.vision_tower.register_forward_hook(hook, with_kwargs=True)
    red = ik.RED(both.llm, both.processor, weight=0.3)
    shown = picture(90)
    changed = shown.copy()
    changed.putpixel((9, 9), tuple(255 - value for value in shown.getpixel((9, 9))))
    chats = [chat("what is it?", shown), chat("where is it?", shown), chat("what is it?", changed)]
    given = {"rationale": ["a thing"] * 3, **GREEDY}
    first = red.generate(chats, **given)
    assert sum(seen) == 2
    a, b = first.trace[0].logprobs[0, 0], first.trace[2].logprobs[0, 0]
    assert abs(a - b) > 1e-4 or first.trace[0].tokens[0] != first.trace[2].tokens[0]
    red.generate(chats[:2], rationale=["another thing", "one"], weight=[0.3, 0.5], **GREEDY)
    assert sum(seen) == 2
    noised = ik.VCD(both.llm, both.processor).generate(chats[:2], **GREEDY)
    assert sum(seen) == 3
    assert not torch.equal(
        torch.tensor(noised.trace[0].logprobs[:, 0]), torch.tensor(noised.trace[0].logprobs[:, 1])
    )
    handle.remove()
