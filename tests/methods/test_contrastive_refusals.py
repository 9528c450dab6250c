"""What the contrastive methods refuse: before any forward pass, in the user's terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infer_kit.errors import InferKitError, UnsupportedArgument, VocabularyMismatch
from infer_kit.methods.contrastive import CFG, ICD, VCD, ContextAware, ContrastiveDecoding
from tests.methods.conftest import chat, picture
from tests.tiny import shared_text_model, tiny_tokenizer

QUESTION = chat("what is it?", picture(0))
TEXT = chat("no picture here")
ALL: dict[str, Callable[..., Any]] = {
    "VCD": VCD, "ICD": ICD, "CFG": CFG, "ContextAware": ContextAware,
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_runs(model_calls: list[int], text_pair: tuple[Any, Any]) -> Iterator[None]:
    """Every test of this file: no forward pass before the error."""
    calls: list[int] = []
    models = (text_pair[0], shared_text_model("gpt2"))
    handles = [m.register_forward_pre_hook(lambda *_: calls.append(1)) for m in models]
    yield
    for handle in handles:
        handle.remove()
    assert not model_calls and not calls


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan, "0.1", True, None])
def test_beta(lvlm, processor, method: str, beta: Any) -> None:
    with pytest.raises(InferKitError, match="beta is the plausibility cut-off, from 0 to 1; got"):
        ALL[method](lvlm, processor, beta=beta)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("value", ["kl:-1", "0.5", "kl:", "kl:much", "kl:inf", "js:0.1"])
def test_strings_that_are_no_budget(lvlm, processor, method: str, value: str) -> None:
    name = ALL[method].knob
    with pytest.raises(InferKitError, match=f"{name}={value!r} is neither a number nor a budget"):
        ALL[method](lvlm, processor, **{name: value})


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, None, True, [1.0]])
def test_numbers_that_are_none(lvlm, processor, method: str, value: Any) -> None:
    name = ALL[method].knob
    with pytest.raises(InferKitError, match=f"{name} must be a finite number or 'kl:<nats>'"):
        ALL[method](lvlm, processor, **{name: value})


@pytest.mark.parametrize("step", [-1, 1000, 500.5, "500", True])
@pytest.mark.parametrize("method", [VCD, ICD])
def test_noise_steps(lvlm, processor, method: Any, step: Any) -> None:
    with pytest.raises(InferKitError, match="noise step is a whole number from 0 to 999, got"):
        method(lvlm, processor, noise_step=step)


def test_seeds(lvlm, processor) -> None:
    with pytest.raises(InferKitError, match="seed of the noise is a whole number, got 0.5"):
        VCD(lvlm, processor, seed=0.5)
    with pytest.raises(InferKitError, match="seed of the noise is a whole number, got 'x'"):
        ICD(lvlm, processor, noise_step=500, seed="x")


def test_no_image_to_noise(lvlm, processor) -> None:
    with pytest.raises(InferKitError, match="Prompt 1 has no image: VCD contrasts it with"):
        VCD(lvlm, processor).generate([QUESTION, TEXT])
    with pytest.raises(InferKitError, match="Prompt 1 has no image to noise"):
        ICD(lvlm, processor, noise_step=500).generate([QUESTION, TEXT])
    vcd = VCD(lvlm, processor)
    texts = ICD(lvlm, processor).group(TEXT)
    with pytest.raises(InferKitError, match="No stream of the group brings images to contrast"):
        vcd.contrast(texts)


@pytest.mark.parametrize("disturbance", ["", "  ", None, 3])
def test_disturbances(lvlm, processor, disturbance: Any) -> None:
    with pytest.raises(InferKitError, match="disturbance is a text, not empty; got"):
        ICD(lvlm, processor, disturbance=disturbance)


def test_negatives(lvlm, processor) -> None:
    cfg = CFG(lvlm, processor)
    with pytest.raises(InferKitError, match="Got 2 negative chats for 3 prompts"):
        cfg.generate([QUESTION] * 3, negative=[TEXT] * 2)
    with pytest.raises(InferKitError, match="Got 2 negative chats for 1 prompts"):
        cfg.generate(QUESTION, negative=[TEXT] * 2)
    with pytest.raises(InferKitError, match="got an empty list"):
        cfg.generate(QUESTION, negative=[])
    with pytest.raises(InferKitError, match=r"image 'absent\.png' cannot be read"):
        cfg.generate(QUESTION, negative=chat("?", "absent.png"))


def test_contexts(lvlm, processor) -> None:
    aware = ContextAware(lvlm, processor)
    with pytest.raises(InferKitError, match="Got 1 contexts for 2 prompts"):
        aware.generate([QUESTION] * 2, context="one for both")
    with pytest.raises(InferKitError, match="Got 2 contexts for 1 prompts"):
        aware.generate(QUESTION, context=["a", "b"])
    with pytest.raises(InferKitError, match="The context of prompt 0 is a int, not a text"):
        aware.generate(QUESTION, context=[3])
    for missing in (None, 7):
        with pytest.raises(InferKitError, match=f"context={missing}: the document is a text"):
            aware.generate(QUESTION, context=missing)
    with pytest.warns(UserWarning, match="Special tokens were taken out of the context of prompt"):
        group = aware.group(QUESTION, context="a <image>b")
    text = processor.tokenizer.decode(group.streams[0].context["input_ids"][0])
    assert "a b\n\nwhat is it?" in text


@pytest.mark.parametrize("template", ["no field", "{context} {context}", "{document}", 3])
def test_templates(lvlm, processor, template: Any) -> None:
    with pytest.raises(InferKitError, match=r"template must have the field \{context\} once"):
        ContextAware(lvlm, processor, template=template)


@pytest.mark.parametrize("messages", [[], chat(""), [{"role": "assistant", "content": "?"}]])
@pytest.mark.parametrize("method", ALL)
def test_messages(lvlm, processor, method: str, messages: Any) -> None:
    given = {"context": "a document"} if method == "ContextAware" else {}
    with pytest.raises(InferKitError, match="empty|must be the user's question"):
        ALL[method](lvlm, processor).generate(messages, **given)


@pytest.mark.parametrize("method", ALL)
def test_generate_arguments(lvlm, processor, method: str) -> None:
    made = ALL[method](lvlm, processor)
    with pytest.raises(UnsupportedArgument, match=r"guidance_scale=2\.0 cannot work here"):
        made.generate(QUESTION, guidance_scale=2.0)
    with pytest.raises(UnsupportedArgument, match="Unknown keyword 'max_tokens'"):
        made.generate(QUESTION, max_tokens=3)


def test_the_expert_needs_weight_where_it_cuts_off(lvlm, processor) -> None:
    with pytest.raises(InferKitError, match="Stream 0 says what is plausible .* weight 0"):
        CFG(lvlm, processor, scale=0.0, beta=0.1).generate(QUESTION, max_new_tokens=2)


# Contrastive decoding


def test_expert_and_amateur_are_two_models(text_pair) -> None:
    model, tokenizer = text_pair
    with pytest.raises(InferKitError, match="expert and amateur are the same model: they cancel"):
        ContrastiveDecoding(model, model, tokenizer)


@pytest.mark.parametrize("tau", [0, -1.0, math.nan, math.inf, "1", "kl:0.1", None, True])
def test_temperatures(text_pair, tau: Any) -> None:
    model, tokenizer = text_pair
    with pytest.raises(InferKitError, match="temperature must be a positive finite number, got"):
        ContrastiveDecoding(model, shared_text_model("gpt2"), tokenizer, temperature=tau)


@pytest.mark.parametrize("strength", ["kl:0", "0.5", math.inf, [0.5]])
def test_strengths(text_pair, strength: Any) -> None:
    model, tokenizer = text_pair
    with pytest.raises(InferKitError, match="strength(=| must be)"):
        ContrastiveDecoding(model, shared_text_model("gpt2"), tokenizer, strength)


def test_models_of_other_vocabularies(text_pair) -> None:
    model, tokenizer = text_pair
    with pytest.raises(VocabularyMismatch, match="Models disagree on vocabulary"):
        ContrastiveDecoding(
            model, shared_text_model("llama", 200), tokenizer,
            amateur_processor=tiny_tokenizer(200),
        )  # fmt: skip
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    with pytest.raises(VocabularyMismatch, match="160 and 161 tokens"):
        ContrastiveDecoding(
            model, shared_text_model("llama", 200), tokenizer, amateur_processor=other
        )


def test_an_amateur_that_is_no_model(text_pair) -> None:
    model, tokenizer = text_pair
    with pytest.raises(
        InferKitError, match="transformers model or a vllm.LLM, got builtins.object"
    ):
        ContrastiveDecoding(model, object(), tokenizer)
