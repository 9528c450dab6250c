"""`explain` on real methods: what it keeps, against a pass over the whole vocabulary."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

import infer_kit as ik
from infer_kit import demo
from infer_kit.demo import icl
from infer_kit.demo.scenes import held_out
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError
from infer_kit.explanation import Explanation, explain
from infer_kit.explanation.recomputed import recomputed

LENGTH = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return demo.load()


def chat(seed: int = 0, picture: bool = True) -> list[dict[str, Any]]:
    record = held_out(seed + 1, 0)[seed]
    content: list[dict[str, Any]] = [{"type": "text", "text": record.question}]
    if picture:
        content.insert(0, {"type": "image", "image": record.picture})
    return [{"role": "user", "content": content}]


METHODS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "RED": (ik.RED, {"weight": 1.0, "prompts": demo.PROMPTS}, {}),
    "RED, normalised": (
        ik.RED, {"weight": 2.0, "prompts": demo.PROMPTS, "normalize": True}, {},
    ),
    "RED, budget": (ik.RED, {"weight": "kl:0.3", "prompts": demo.PROMPTS}, {}),
    "VCD": (ik.VCD, {}, {}),
    "VCD, no cut-off": (ik.VCD, {"beta": 0.0}, {}),
    "ICD": (ik.ICD, {"disturbance": "red"}, {}),
    "ICD, noise": (ik.ICD, {"disturbance": "red", "noise_step": 300}, {}),
    "CFG": (ik.CFG, {"scale": 2.0}, {}),
    "CFG, budget": (ik.CFG, {"scale": "kl:0.2"}, {}),
    "ContextAware": (ik.ContextAware, {}, {"context": "the circle is red ."}),
}  # fmt: skip


def rows_of(recipe: Any, seed: int, inputs: dict[str, Any], out: Any) -> list[Any]:
    if isinstance(recipe, ik.RED):
        inputs = {**inputs, "rationale": out.rationale}
        groups = recipe.groups([chat(seed)], recipe.backend.new_memory(), **inputs)
    else:
        groups = recipe.groups([chat(seed)], recipe.backend.new_memory(), **inputs)
    return [stream.context for stream in groups[0].streams]


@pytest.mark.parametrize("name", METHODS)
def test_choices_against_the_whole_vocabulary(name: str, model: Any) -> None:
    kind, arguments, inputs = METHODS[name]
    recipe = kind(*model, **arguments)
    certified = 0
    for seed in range(3):
        made = explain(recipe, chat(seed), candidates=4, **inputs, **LENGTH)
        trace, ids = made.trace, made.trace.token_ids
        assert made.text == recipe.generate(chat(seed), do_sample=False, **inputs, **LENGTH).text
        assert [c.token_id for c in recomputed(trace)] == ids.tolist()
        rows = rows_of(recipe, seed, inputs, made.output)
        (slider,) = made.controls.sliders
        stops = [slider.stops[i] for i in np.linspace(0, len(slider.stops) - 1, 7).astype(int)]
        for stop in (slider.neutral, *stops):
            weights = made.controls.weights([stop])
            if weights is None or not weights.any():
                continue
            lm = CoupledLM(
                [model[0]] * len(rows), weights.tolist(), plausibility=recipe.plausibility
            )
            try:
                scored = lm.score([rows], [ids.tolist()]).statistics
            except InferKitError as error:
                if "says what is plausible" not in str(error):  # an expert of weight 0 is refused
                    raise
                continue
            ahead = scored.pooled[0] >= scored.runner_up_pooled[0]
            best = torch.where(ahead, scored.chosen[0], scored.runner_up[0]).tolist()
            for t, choice in enumerate(recomputed(trace, weights)):
                certified += choice.certain
                if choice.certain:
                    assert choice.token_id == best[t]
    assert certified > 12
    assert recipe.trace is True  # the caller's method is left alone


def data_of(made: Explanation) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', made.html(), re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_what_there_is_to_know(model: Any) -> None:
    recipe = ik.RED(*model, weight=1.0, prompts=demo.PROMPTS)
    made = explain(recipe, chat(), candidates=4, **LENGTH)
    page, question = made.html(), chat()[0]["content"][1]["text"]
    assert made.question == question and question in page
    assert [c.name for c in made.contexts] == ["image", "rationale"]
    assert made.output is not None
    assert made.output.rationale in made.contexts[1].begin + made.contexts[1].rest
    placeholder = model[1].image_token
    assert f"{placeholder} (× 9)" in made.contexts[0].begin + made.contexts[0].rest
    ids = [recipe.backend.prompt_ids(row) for row in rows_of(recipe, 0, {}, made.output)]
    assert [c.tokens for c in made.contexts] == [len(i) for i in ids]
    shared = made.contexts[0].shared
    assert ids[0][:shared] == ids[1][:shared] and ids[0][shared] != ids[1][shared]
    facts = dict(made.facts)
    assert facts["method"] == "RED(weight=1.0, normalize=False, image_weight=1.0)"
    assert facts["weights"] == "image 1; rationale 1"
    assert facts["decoding"] == "greedy, max_new_tokens=8"
    assert "/" not in facts["model"] and "LlavaForConditionalGeneration" in facts["model"]
    assert f"infer-kit {ik.__version__}" in facts["versions"]
    (picture,) = made.pictures
    pixels = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))
    assert np.array_equal(np.asarray(pixels), np.asarray(chat()[0]["content"][0]["image"]))
    data = data_of(made)
    assert data["streams"] == ["image", "rationale"]
    assert len(data["tokens"]) == len(made.trace)


def test_without_a_picture(model: Any) -> None:
    made = explain(ik.RED(*model, prompts=demo.PROMPTS), chat(picture=False), **LENGTH)
    assert made.pictures == () and "<img" not in made.html()
    assert len(made.controls.sliders) == 1


def test_a_plain_text_is_a_chat(model: Any) -> None:
    recipe = ik.RED(*model, prompts=demo.PROMPTS)
    assert explain(recipe, "what color is the background ?", **LENGTH).text


@pytest.mark.parametrize("arguments", [{}, {"pool": "mixture"}, {"weighting": "entropy"}], ids=str)
def test_parallel_icl_has_a_slider_for_each_chunk(arguments: dict[str, Any]) -> None:
    episode = icl.held_out(1, shots=16)[0]
    picl = ik.ParallelICL(*icl.load(), chunks=4, **arguments).fit(episode.records())
    made = explain(picl, [episode.query.turn()], max_new_tokens=2)
    assert made.text == picl.generate([episode.query.turn()], max_new_tokens=2).text
    assert [s.name for s in made.controls.sliders] == [f"chunk {k}" for k in range(4)]
    assert [c.token_id for c in recomputed(made.trace)] == made.trace.token_ids.tolist()
    alone = recomputed(made.trace, [0.0, 0.0, 1.0, 0.0])
    assert [c.text for c in alone] == [tops[2] for tops in made.trace.top]
    first = made.contexts[0]
    assert first.tokens > 50 and episode.query.question in first.rest
    assert len(made.html()) > 20_000


def test_contrastive_decoding_reads_both_models(model: Any) -> None:
    amateur, _ = demo.load()
    for strength, sliders in ((None, 2), (0.5, 1)):
        recipe = ik.ContrastiveDecoding(model[0], amateur, model[1], strength=strength)
        made = explain(recipe, chat(), **LENGTH)
        assert len(made.controls.sliders) == sliders
        assert made.trace.streams == ("expert", "amateur") and made.trace.plausibility == 0.1
        assert made.contexts[0].shared == made.contexts[0].tokens and not made.contexts[0].rest


def test_streams_that_did_not_run_are_said(model: Any) -> None:
    recipe = ik.RED(*model, weight=0.0, prompts=demo.PROMPTS)
    made = explain(recipe, chat(), rationale="red", **LENGTH)
    assert made.trace.idle == ("rationale",) and not made.controls.sliders
    page = made.html()
    assert "there is nothing to slide" in page and "not run, having weight 0" in page


def test_sampled_and_penalised_tokens(model: Any) -> None:
    recipe = ik.RED(*model, weight=1.0, prompts=demo.PROMPTS)
    torch.manual_seed(3)
    made = explain(recipe, chat(), do_sample=True, temperature=20.0, top_k=0, **LENGTH)
    choices = recomputed(made.trace)
    assert [c.token_id for c in choices] != made.trace.token_ids.tolist()
    assert "greedy" not in dict(made.facts)["decoding"]
    assert "temperature=20.0" in dict(made.facts)["decoding"]
    other = explain(recipe, chat(), bad_words_ids=[[int(made.trace.candidate_ids[0][0])]], **LENGTH)
    assert other.html()


def test_what_cannot_be_explained_is_refused(model: Any) -> None:
    recipe = ik.RED(*model, prompts=demo.PROMPTS)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([chat(), chat()], {}, "explain takes one chat, got a list of 2"),
        (chat(), {"num_beams": 2}, "num_beams=2 cannot be explained: beams"),
        (chat(), {"num_return_sequences": 3, "do_sample": True}, "num_return_sequences=3 cannot"),
        (chat(), {"generation_config": GenerationConfig(num_beams=4)}, "num_beams=4 cannot"),
        (chat(), {"candidates": 0}, "how many candidates"),
        (chat(), {"candidates": True}, "candidates is a number from 1 on, got True"),
        (chat(), {"candidates": "3"}, "how many candidates"),
        (chat(), {"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
        (" ", {}, "question of prompt 0 is empty"),
    ]
    for messages, options, message in wrong:
        with pytest.raises(InferKitError, match=message):
            explain(recipe, messages, **options)
    with pytest.raises(InferKitError, match="explain takes a method .* got <class"):
        explain(ik.RED, chat())  # type: ignore[arg-type]
    recipe.pool = lambda p, w: p.mean(1)  # type: ignore[assignment]
    with pytest.raises(InferKitError, match="A pool that is a function cannot be explained"):
        explain(recipe, chat())


def test_an_engine_without_traces(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ik.VCD(*model)
    generate = recipe.backend.generate

    def untraced(groups: Any, **given: Any) -> Any:
        return generate(groups, **{**given, "trace": False})

    monkeypatch.setattr(recipe.backend, "generate", untraced)
    with pytest.raises(InferKitError, match="The engine keeps no traces"):
        explain(recipe, chat(), **LENGTH)
