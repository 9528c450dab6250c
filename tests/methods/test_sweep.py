"""Sweeps: what they count, and that one pass gives what single runs give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from infer_kit.chats import as_chats
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError
from infer_kit.methods.contrastive import CFG, VCD, ContextAware
from infer_kit.methods.recipe import KLBudget, parse_weight
from infer_kit.methods.red import RED
from infer_kit.methods.sweep import Sweep, same_text
from tests.methods.conftest import SHORT, chat, picture
from tests.tiny import reference_logits

CHATS = [
    chat("what is it?", picture(0)),
    chat("and here, what is to be seen?", picture(1)),
    chat("which one?", picture(2), picture(3)),
]
WEIGHTS = [0.0, 0.5, 1.0, 2.0]
NOTES = ["it is red", "two cats", "the first"]
BEAMS = GenerationConfig(num_return_sequences=2, num_beams=2)
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture
def red(lvlm, processor) -> RED:
    return RED(lvlm, processor, prompts=SHORT, trace=False)


def test_free_text_is_what_single_runs_write(red: RED, lvlm, processor) -> None:
    sweep = red.sweep(CHATS, ["a"] * 3, WEIGHTS, rationale=NOTES, batch_size=2, **GREEDY)
    for w, weight in enumerate(WEIGHTS):
        single = RED(lvlm, processor, weight=weight, prompts=SHORT, trace=False)
        answers = single.generate(CHATS, rationale=NOTES, **GREEDY).text
        assert list(sweep.predictions[w]) == answers
    assert len({texts for texts in sweep.predictions}) > 1  # the weight does something


def test_every_prompt_is_read_once(red: RED, lvlm, tower_calls: list[int]) -> None:
    forwards: list[int] = []
    language = lvlm.model.language_model
    handle = language.register_forward_pre_hook(
        lambda _, __, kwargs: forwards.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        red.sweep(
            CHATS[:1], ["a"], WEIGHTS, rationale=NOTES[:1], max_new_tokens=3,
            min_new_tokens=3, do_sample=False,
        )  # fmt: skip
    finally:
        handle.remove()
    assert len([n for n in forwards if n > 1]) == 2  # image prompt and rationale prompt
    assert len(forwards) == 2 + 2  # and a step for each further token, all weights as one batch
    assert len(tower_calls) == 1


def test_candidates_are_scored_as_the_reference_scores_them(red: RED, lvlm, processor) -> None:
    candidates = [["cat", "a dog", "x"], ["one", "two"], ["the first", "no"]]
    answers = ["cat", "two", "no"]
    sweep = red.sweep(CHATS, answers, WEIGHTS, candidates, rationale=NOTES)
    assert sweep.scores is not None and sweep.scores.shape == (4, 3, 3)
    for b, messages in enumerate(CHATS):
        streams = red.group(messages, rationale=NOTES[b], weight=1.0).streams
        for c, text in enumerate(candidates[b]):
            words = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*words, processor.tokenizer.eos_token_id]])
            logits = [reference_logits(lvlm, s.context, ids[:, :-1]).double() for s in streams]
            x, r = (values.log_softmax(-1) for values in logits)
            for w, weight in enumerate(WEIGHTS):
                log_pi = (x + weight * r).log_softmax(-1).gather(-1, ids[0, :, None]).sum()
                assert abs(sweep.scores[w, b, c] - float(log_pi)) < 2e-5
        assert np.isneginf(sweep.scores[:, b, len(candidates[b]) :]).all()
    for w in range(4):
        for b in range(3):
            best = candidates[b][int(sweep.scores[w, b].argmax())]
            assert sweep.predictions[w][b] == best
            assert sweep.correct[w, b] == (best == answers[b])


def test_candidates_of_many_tokens_are_read_in_parts(red: RED) -> None:
    """Longer than the recorder's chunk of 16 positions; `score` reads the same."""
    long = ["abcdefgh ijklmnop qrstuvw xyz", "z" * 40]
    sweep = red.sweep(CHATS[:2], [long[0]] * 2, [0.0, 1.0], long, rationale=NOTES[:2])
    assert sweep.scores is not None
    tokenizer = red.backend.rows.tokenizer  # type: ignore[attr-defined]
    ids = [*tokenizer(long[1], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len(ids) > 32
    row = [s.context for s in red.group(CHATS[0], rationale=NOTES[0], weight=1.0).streams]
    scored = CoupledLM(red.backend.model).score([row], [ids], weights=[1.0, 1.0])
    assert abs(float(scored.pooled[0].sum()) - sweep.scores[1, 0, 1]) < 1e-4


def test_a_cut_off_does_not_exclude_candidates(lvlm, processor) -> None:
    """Those to be compared are compared, whatever the expert thinks of others."""
    candidates = list("abcdefgh")
    a, b = (
        VCD(lvlm, processor, beta=beta, trace=False).sweep(CHATS[:1], ["a"], [0.5], candidates)
        for beta in (0.0, 1.0)
    )
    assert a.scores is not None and np.isfinite(a.scores).all()
    assert np.array_equal(a.scores, b.scores)


def test_a_candidate_is_scored_as_the_template_writes_it(text_pair) -> None:
    """With the space that some templates put before an answer, and with its end."""
    model, tokenizer = text_pair
    spaced = tokenizer.chat_template.replace(
        "{% if message['content'] is string %}",
        "{% if message['role'] == 'assistant' %}{{ ' ' }}{% endif %}"
        "{% if message['content'] is string %}",
    )
    messages = as_chats("why?")[0][0]
    plain = tokenizer("ab", add_special_tokens=False)["input_ids"]
    after = tokenizer(" ab", add_special_tokens=False)["input_ids"]
    for template, ids in ((None, plain), (spaced, after)):
        rows = RED(model, tokenizer, prompts=SHORT, chat_template=template).backend.rows  # type: ignore[attr-defined]
        end = tokenizer.eos_token_id
        assert rows.answer_ids(messages, "ab", {end}) == [*ids, end]
    one, other = (
        CFG(model, tokenizer, scale=1.0, trace=False).sweep(["why?"], ["a"], [1.0], texts)
        for texts in (["a"], ["ab", "a"])
    )
    assert one.scores is not None and other.scores is not None
    assert one.scores[0, 0, 0] == pytest.approx(other.scores[0, 0, 1], abs=1e-5)


def test_more_chats_than_a_batch_with_one_negative_for_all(lvlm, processor) -> None:
    cfg = CFG(lvlm, processor, scale=2.0, trace=False)
    for negative in (CHATS[0], [CHATS[0]], "say no"):
        swept = cfg.sweep(CHATS, ["a"] * 3, [2.0], batch_size=2, negative=negative, **GREEDY)
        assert list(swept.predictions[0]) == cfg.generate(CHATS, negative=negative, **GREEDY).text


def test_other_knobs(lvlm, processor) -> None:
    cfg = CFG(lvlm, processor, trace=False).sweep(CHATS, ["a"] * 3, [1.0, 2.0], **GREEDY)
    assert (cfg.method, cfg.knob) == ("CFG", "scale")
    aware = ContextAware(lvlm, processor, trace=False)
    swept = aware.sweep(CHATS, ["a"] * 3, [0.0, 1.0], context=NOTES, **GREEDY)
    expected = ContextAware(lvlm, processor, alpha=1.0, trace=False)
    assert list(swept.predictions[1]) == expected.generate(CHATS, context=NOTES, **GREEDY).text


def test_a_sweep_with_a_budget_set_is_of_numbers_all_the_same(lvlm, processor) -> None:
    budget = RED(lvlm, processor, weight="kl:0.1", prompts=SHORT, trace=False)
    plain = RED(lvlm, processor, weight=0.0, prompts=SHORT, trace=False)
    a, b = (
        r.sweep(CHATS, ["a"] * 3, WEIGHTS, rationale=NOTES, **GREEDY).predictions
        for r in (budget, plain)
    )
    assert a == b


def test_counts_table_figure_and_json(tmp_path: Path) -> None:
    correct = np.array([[True, False, True, False], [True, True, True, False]])
    sweep = Sweep("RED", "weight", (1.0, 0.0), (("a",) * 4, ("b",) * 4), correct, ("c",) * 4)
    assert sweep.accuracy.tolist() == [0.5, 0.75]
    assert sweep.standard_error == pytest.approx([0.25, (0.75 * 0.25 / 4) ** 0.5])
    assert sweep.best == 0.0
    assert sweep.table().row_count == 2
    assert sweep.figure(tmp_path / "s.png").stat().st_size > 1000
    again = json.loads(json.dumps(sweep.to_dict()))
    assert again["accuracy"] == [0.5, 0.75] and again["predictions"][0] == ["a"] * 4
    scores = np.array([[[-1.0, -np.inf, -2.0], [-3.0, -4.0, -np.inf]]])
    scored = Sweep("RED", "weight", (1.0,), (("a", "d"),), np.ones((1, 2), bool), ("a", "d"),
                   scores, (("a", "b", "c"), ("d", "e")))  # fmt: skip
    assert scored.to_dict()["scores"] == [[[-1.0, None, -2.0], [-3.0, -4.0]]]
    assert scored.to_dict()["candidates"] == [["a", "b", "c"], ["d", "e"]]


def test_same_text() -> None:
    assert same_text(" Red.", "red") and same_text("two  cats", "Two cats.")
    assert not same_text("red cat", "red")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, 0.5), (-1, -1.0), ("kl:0.1", KLBudget(0.1)), ("kl:2", KLBudget(2))],
)
def test_parse_weight(value, expected) -> None:
    assert parse_weight(value) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answers": ["a"]}, "Got 1 answers for 3 chats"),
        ({"weights": []}, "weights must be finite numbers"),
        ({"weights": [0.1, float("nan")]}, "weights must be finite numbers"),
        ({"weights": ["kl:0.1"]}, "weights must be finite numbers"),
        ({"candidates": []}, "candidates must be a list of texts"),
        ({"candidates": "ab"}, "candidates must be a list of texts"),
        ({"candidates": ["b", "c"]}, "The answer of request 0, 'a', is not among ['b', 'c']"),
        ({"candidates": [["a"]] * 2}, "Got candidates for 2 requests and 3 answers"),
        ({"candidates": ["a", "b"], "max_new_tokens": 3}, "Candidates are scored, not generated"),
        ({"num_return_sequences": 2}, "one answer a request"),
        ({"generation_config": BEAMS}, "one answer a request"),
        ({"answers": ["a", "b", 3]}, "answers must be a list of texts"),
        ({"rationale": ["x"] * 2}, "Got 2 items of 'rationale' for 3 chats"),
        ({"max_tokens": 2}, "Unknown keyword 'max_tokens'"),
    ],
)
def test_refused_before_anything_runs(red: RED, model_calls, arguments, message) -> None:
    options = {"answers": ["a"] * 3, "weights": [0.0, 1.0]} | arguments
    with pytest.raises(InferKitError, match=re.escape(message)):
        red.sweep(CHATS, **options)
    assert not model_calls


def test_weights_that_sum_to_zero_or_are_all_zero(lvlm, processor, model_calls) -> None:
    red = RED(lvlm, processor, prompts=SHORT, normalize=True)
    with pytest.raises(InferKitError, match="At weight=-1 the weights sum to 0"):
        red.sweep(CHATS, ["a"] * 3, [0.0, -1.0])
    alone = RED(lvlm, processor, prompts=SHORT, image_weight=0.0)
    with pytest.raises(InferKitError, match="At weight=0 every stream has weight 0"):
        alone.sweep(CHATS, ["a"] * 3, [1.0, 0.0])
    assert not model_calls
