"""Every contrastive method is a loop written by hand, token for token; groups compose."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.methods.contrastive import CFG, ICD, VCD, ContextAware, ContrastiveDecoding
from infer_kit.methods.prompts import Prompts
from infer_kit.methods.red import RED
from tests.methods.conftest import SHORT, chat, picture
from tests.methods.contrast import (
    GREEDY,
    QUESTIONS,
    TEXTS,
    WAYS,
    loop,
    noised_row,
    row_of,
    tokens_of,
)
from tests.tiny import lvlm_available, shared_lvlm, shared_text_model, tiny_tokenizer
from tests.tiny.tokenizers import tiny_processor
from tests.tiny.vision_parts import SPECIAL as SUPPRESSED

ways = pytest.mark.parametrize("way", WAYS)
questions = pytest.mark.parametrize("question", range(len(QUESTIONS)))
texts = pytest.mark.parametrize("text", range(len(TEXTS)))
TEXT_MODELS = (("llama", 0), ("gpt2", 1), ("gemma3_text", 2))
text_models = pytest.mark.parametrize(
    "family, seed", TEXT_MODELS, ids=[family for family, _ in TEXT_MODELS]
)


def agree(method: Any, out: Any, streams: Any, formula: Any, way: str, **more: Any) -> None:
    """The method's tokens are the loop's."""
    expected = loop(streams, formula, method.plausibility, WAYS[way], **more)
    assert tokens_of(out) == expected
    assert len(expected) >= 2


def seeded(call: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return call()


@ways
@questions
@pytest.mark.parametrize("alpha, beta, step", [(1.0, 0.1, 500), (0.5, 0.4, 999), (2.0, 0.0, 900)])
def test_vcd(
    lvlm, processor, question: int, alpha: float, beta: float, step: int, way: str
) -> None:
    messages = QUESTIONS[question]
    vcd = VCD(lvlm, processor, alpha, beta, noise_step=step, seed=4)
    out = seeded(lambda: vcd.generate(messages, **WAYS[way]), 7)
    clean = row_of(processor, messages)
    streams = [(lvlm, clean), (lvlm, noised_row(clean, step, 4))]

    def formula(image, noised):
        return (1 + alpha) * image - alpha * noised

    agree(vcd, out, streams, formula, way, suppressed=SUPPRESSED, seed=7)
    assert out.trace.streams == ("image", "image, noised")


@ways
@questions
def test_icd(lvlm, processor, question: int, way: str) -> None:
    messages = QUESTIONS[question]
    icd = ICD(lvlm, processor, alpha=1.5, beta=0.2, disturbance="You are confused.")
    out = seeded(lambda: icd.generate(messages, **WAYS[way]))
    asked = messages[0]["content"][-1]["text"]
    images = [part["image"] for part in messages[0]["content"][:-1]]
    disturbed = row_of(processor, chat(f"You are confused.\n{asked}", *images))
    streams = [(lvlm, row_of(processor, messages)), (lvlm, disturbed)]

    def formula(plain, confused):
        return 2.5 * plain - 1.5 * confused

    agree(icd, out, streams, formula, way, suppressed=SUPPRESSED)


@ways
@questions
def test_icd_with_a_noised_image(lvlm, processor, question: int, way: str) -> None:
    messages = QUESTIONS[question]
    icd = ICD(lvlm, processor, alpha=0.7, beta=0.1, disturbance="Guess.", noise_step=950, seed=2)
    out = seeded(lambda: icd.generate(messages, **WAYS[way]))
    asked = messages[0]["content"][-1]["text"]
    images = [part["image"] for part in messages[0]["content"][:-1]]
    clean = row_of(processor, messages)
    disturbed = row_of(processor, chat(f"Guess.\n{asked}", *images))
    streams = [(lvlm, clean), (lvlm, disturbed), (lvlm, noised_row(clean, 950, 2))]

    def formula(plain, confused, noised):
        return (2 + 2 * 0.7) * plain - 0.7 * confused - 0.7 * noised

    agree(icd, out, streams, formula, way, suppressed=SUPPRESSED)


def negatives(processor, messages: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What CFG is given as negative, and the row that it should read."""
    asked = messages[0]["content"][-1]["text"]
    told, other = chat("say something vague"), chat(asked, picture(9))
    return {
        "none": (None, row_of(processor, chat(asked))),
        "chat": (told, row_of(processor, told)),
        "another image": (other, row_of(processor, other)),
    }


@ways
@questions
@pytest.mark.parametrize("kind", ["none", "chat", "another image"])
def test_cfg_with_images(lvlm, processor, question: int, kind: str, way: str) -> None:
    messages = QUESTIONS[question]
    negative, row = negatives(processor, messages)[kind]
    cfg = CFG(lvlm, processor, scale=1.8, beta=0.15)
    out = seeded(lambda: cfg.generate(messages, negative=negative, **WAYS[way]))

    def formula(prompt, other):
        return other + 1.8 * (prompt - other)

    streams = [(lvlm, row_of(processor, messages)), (lvlm, row)]
    agree(cfg, out, streams, formula, way, suppressed=SUPPRESSED)


@ways
@texts
@text_models
@pytest.mark.parametrize("kind", ["none", "chat"])
def test_cfg_of_text(family: str, seed: int, text: int, kind: str, way: str) -> None:
    model, tokenizer = shared_text_model(family, seed=seed), tiny_tokenizer()
    messages, negative = TEXTS[text], chat("no.") if kind == "chat" else None
    cfg = CFG(model, tokenizer, scale=2.5)
    out = seeded(lambda: cfg.generate(messages, negative=negative, **WAYS[way]), seed)
    row = row_of(tokenizer, messages)
    other = {"input_ids": row["input_ids"][:, -1:]}
    if negative is not None:
        other = row_of(tokenizer, negative)

    def formula(prompt, without):
        return 2.5 * prompt - 1.5 * without

    agree(cfg, out, [(model, row), (model, other)], formula, way, seed=seed)


def test_cfg_of_text_alone_on_a_vision_language_model(lvlm, processor) -> None:
    """Where the chat has no image the negative is its last token."""
    cfg = CFG(lvlm, processor, scale=2.0)
    out = cfg.generate(TEXTS[1], **GREEDY)
    row = row_of(processor, TEXTS[1])
    streams = [(lvlm, row), (lvlm, {"input_ids": row["input_ids"][:, -1:]})]
    agree(cfg, out, streams, lambda a, b: 2 * a - b, "greedy", suppressed=SUPPRESSED)


@ways
@texts
@text_models
def test_context_aware(family: str, seed: int, text: int, way: str) -> None:
    model, tokenizer = shared_text_model(family, seed=seed), tiny_tokenizer()
    asked = TEXTS[text][0]["content"][0]["text"]
    aware = ContextAware(model, tokenizer, alpha=1.0, beta=0.1, template="[{context}] ")
    out = seeded(lambda: aware.generate(asked, context="it is red", **WAYS[way]), seed)
    streams = [
        (model, row_of(tokenizer, chat(f"[it is red] {asked}"))),
        (model, row_of(tokenizer, chat(asked))),
    ]

    def formula(informed, ignorant):
        return 2 * informed - ignorant

    agree(aware, out, streams, formula, way, seed=seed)


def test_context_aware_with_an_image(lvlm, processor) -> None:
    aware = ContextAware(lvlm, processor)
    out = aware.generate(QUESTIONS[0], context="it is red", **GREEDY)
    with_document = chat("it is red\n\nwhat is it?", picture(0))
    streams = [(lvlm, row_of(processor, m)) for m in (with_document, QUESTIONS[0])]
    agree(aware, out, streams, lambda c, q: 1.5 * c - 0.5 * q, "greedy", suppressed=SUPPRESSED)


@ways
@texts
@pytest.mark.parametrize("amateur", [("llama", 5), ("gpt2", 0)], ids=["llama", "gpt2"])
@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("strength", [None, 0.5])
def test_contrastive_decoding(
    strength: float | None, tau: float, amateur: tuple[str, int], text: int, way: str
) -> None:
    expert, weak = shared_text_model("llama"), shared_text_model(amateur[0], seed=amateur[1])
    tokenizer, messages = tiny_tokenizer(), TEXTS[text]
    method = ContrastiveDecoding(expert, weak, tokenizer, strength, temperature=tau)
    out = seeded(lambda: method.generate(messages, **WAYS[way]))

    def formula(strong, feeble):
        cooled = torch.log_softmax(feeble / tau, -1)
        return strong - cooled if strength is None else 1.5 * strong - 0.5 * cooled

    row = row_of(tokenizer, messages)
    agree(method, out, [(expert, row), (weak, row)], formula, way)
    assert out.engines == ("fused", "fused")


def test_an_amateur_with_a_padded_head() -> None:
    """Heads of unequal size, one tokenizer: the ids that both have are pooled."""
    expert, weak = shared_text_model("llama"), shared_text_model("llama", 192, seed=3)
    method = ContrastiveDecoding(expert, weak, tiny_tokenizer(), 0.5)
    out = method.generate(TEXTS[1], **GREEDY)
    row = row_of(tiny_tokenizer(), TEXTS[1])
    streams = [(expert, row), (weak, row)]
    agree(method, out, streams, lambda a, b: 1.5 * a - 0.5 * b[:160], "greedy")


def test_contrastive_decoding_of_two_vision_language_models(lvlm, processor) -> None:
    weak = shared_lvlm("llava", seed=1).model
    method = ContrastiveDecoding(lvlm, weak, processor, 0.5)
    out = method.generate(QUESTIONS[0], **GREEDY)
    row = row_of(processor, QUESTIONS[0])
    streams = [(lvlm, row), (weak, row)]
    agree(method, out, streams, lambda a, b: 1.5 * a - 0.5 * b, "greedy", suppressed=SUPPRESSED)


@ways
@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "idefics3"])
@pytest.mark.parametrize("image", [0, 1])
def test_a_noised_image_in_other_families(family: str, image: int, way: str) -> None:
    found, why = lvlm_available(family)
    if not found:
        pytest.skip(why)
    tiny = shared_lvlm(family)
    clean = tiny.row((image,), 9, seed=image)
    noised = noised_row(clean, 950, 1)
    lm = CoupledLM(tiny.model, [1.8, -0.8], plausibility=0.1)
    options = WAYS[way] | {"suppress_tokens": tiny.image_token_ids}
    out = seeded(lambda: lm.generate([[clean, noised]], return_dict_in_generate=True, **options), 3)
    streams = [(tiny.model, clean), (tiny.model, noised)]
    expected = loop(
        streams, lambda a, b: 1.8 * a - 0.8 * b, 0.1, WAYS[way], tiny.image_token_ids, seed=3
    )
    assert out.sequences[0, clean["input_ids"].shape[1] :].tolist() == expected
    assert out.engines == ("fused",)


# Composed with RED


RATIONALE = "it is red"
PLAIN = Prompts("{question}", "{question}", "notes: {rationale} {question}")


@ways
@pytest.mark.parametrize("place", ["image", 0])
def test_vcd_in_red(lvlm, processor, place: str | int, way: str) -> None:
    red = RED(lvlm, processor, weight=0.6, prompts=PLAIN)
    vcd = VCD(lvlm, processor, alpha=0.5, beta=0.2, noise_step=900)
    messages = QUESTIONS[0]
    group = red.group(messages, rationale=RATIONALE).replace(place, vcd.group(messages))
    assert [s.name for s in group.streams] == ["image", "image, noised", "rationale"]
    assert [s.weight for s in group.streams] == [1.5, -0.5, 0.6]
    assert group.primary == 0 and group.experts == (0,)
    out = seeded(lambda: vcd.run([group], **WAYS[way]))
    clean = row_of(processor, messages)
    notes = row_of(processor, chat(f"notes: {RATIONALE} what is it?"))
    streams = [(lvlm, row) for row in (clean, noised_row(clean, 900), notes)]

    def formula(image, noised, rationale):
        return 1.5 * image - 0.5 * noised + 0.6 * rationale

    agree(vcd, out, streams, formula, way, suppressed=SUPPRESSED)
    without_cut_off = seeded(lambda: red.run([group], **WAYS[way]))
    agree(red, without_cut_off, streams, formula, way, suppressed=SUPPRESSED)


def test_contrast_finds_the_streams_with_images(lvlm, processor) -> None:
    red = RED(lvlm, processor, weight=0.6, image_weight=2.0, prompts=PLAIN)
    vcd = VCD(lvlm, processor, alpha=0.5, beta=0.2, noise_step=900)
    base = red.group(QUESTIONS[1], rationale=RATIONALE)
    composed = base.replace("image", vcd.group(QUESTIONS[1]))
    found = vcd.contrast(base)
    assert [(s.name, s.weight) for s in found.streams] == [
        (s.name, s.weight) for s in composed.streams
    ]
    assert found.primary == composed.primary and found.experts == composed.experts
    for ours, theirs in zip(found.streams, composed.streams, strict=True):
        assert ours.context.keys() == theirs.context.keys()
        assert all(torch.equal(ours.context[key], theirs.context[key]) for key in ours.context)
    assert found.streams[0].weight == 3.0 and found.streams[1].weight == -1.0


def test_contrast_keeps_the_model_of_a_stream(lvlm, processor) -> None:
    weak = shared_lvlm("llava", seed=1).model
    pair = ContrastiveDecoding(lvlm, weak, processor, 0.5, beta=0.0)
    vcd = VCD(lvlm, processor, alpha=1.0, beta=0.0, noise_step=900)
    group = vcd.contrast(pair.group(QUESTIONS[0]))
    assert [s.weight for s in group.streams] == [3.0, -1.5, -1.0, 0.5]
    assert [s.model for s in group.streams] == [lvlm, lvlm, weak, weak]
    out = pair.run([group], **GREEDY)
    clean = row_of(processor, QUESTIONS[0])
    noised = noised_row(clean, 900)
    streams = [(lvlm, clean), (lvlm, noised), (weak, clean), (weak, noised)]

    def formula(a, b, c, d):
        return 1.5 * (2 * a - b) - 0.5 * (2 * c - d)

    agree(pair, out, streams, formula, "greedy", suppressed=SUPPRESSED)


def test_cfg_in_red_and_in_a_batch(lvlm, processor) -> None:
    """The rationale stream gives way to a guided one; the primary stays the image."""
    red = RED(lvlm, processor, weight=0.5, prompts=SHORT)
    cfg = CFG(lvlm, processor, scale=2.0)
    groups = []
    for messages in QUESTIONS[:2]:
        base = red.group(messages, rationale=RATIONALE)
        asked = messages[0]["content"][-1]["text"]
        guided = cfg.group(chat(f"notes: {RATIONALE} {asked}"), negative=chat(asked))
        groups.append(base.replace("rationale", guided))
    together = red.run(groups, **GREEDY)
    for b, messages in enumerate(QUESTIONS[:2]):
        asked = messages[0]["content"][-1]["text"]
        rows = [row_of(processor, m) for m in (
            messages, chat(f"notes: {RATIONALE} {asked}"), chat(asked)
        )]  # fmt: skip
        expected = loop(
            [(lvlm, row) for row in rows],
            lambda image, notes, bare: image + 0.5 * (2 * notes - bare), 0.0, GREEDY, SUPPRESSED,
        )  # fmt: skip
        assert together.trace[b].token_ids.tolist() == expected


def test_a_processor_made_anew_renders_alike(lvlm) -> None:
    """The loop's rows do not come from the method under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = VCD(lvlm, tiny_processor()).group(QUESTIONS[0])
    row = row_of(tiny_processor(), QUESTIONS[0])
    assert torch.equal(group.streams[0].context["pixel_values"], row["pixel_values"])
    difference = (group.streams[1].context["pixel_values"] - row["pixel_values"]).abs().mean()
    assert difference > 0.1
