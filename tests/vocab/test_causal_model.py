"""What a forest refuses to read, with what message; limits of positions."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.vocab.causal_model import position_limit
from infer_kit.vocab.language_models import BatchedKV, TreeKV, language_model
from tests.tiny import shared_lvlm, text_model
from tests.vocab.forests import OTHERS, Walk, last_logits, model_of, walk


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "xglm"])
def test_a_table_of_positions_ends(kind: Any, family: str) -> None:
    model = model_of(family, max_position_embeddings=20)
    forest = kind(model)
    (tip,), _ = forest.prefill([[5] * 20])
    with pytest.raises(PromptTooLong, match="of 21 tokens is too long for .*: it has 20 positions"):
        forest.extend([(tip, 6)])
    with pytest.raises(PromptTooLong, match="A sequence of 21 tokens is too long"):
        forest.prefill([[5], [5] * 21])
    assert forest.calls == 1


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "mamba"])
def test_other_positions_do_not(family: str) -> None:
    """Beyond those that the model was made for it says so, once, and reads on."""
    model = model_of(family, **OTHERS.get(family, ({"max_position_embeddings": 8},))[0])
    assert position_limit(model) is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert walk(language_model(model), model) <= 3e-6
    said = [str(w.message) for w in caught if "longer than the 8 positions" in str(w.message)]
    assert len(said) == (0 if family == "mamba" else 1)


def test_mpt_has_as_many_distances_as_positions() -> None:
    forest = language_model(model_of("mpt", max_seq_len=20))
    forest.prefill([[5] * 20])
    with pytest.raises(PromptTooLong, match="it has 20 positions"):
        forest.prefill([[5] * 21])


def test_rotary_positions_that_depend_on_the_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = model_of("llama", rope_parameters=rope, max_position_embeddings=24)
    forest = language_model(model)
    w = Walk(forest, model)
    tips = w.prefill([24, 3])
    w.extend(tips[1:])
    assert w.error() <= 1e-6
    with pytest.raises(PromptTooLong, match="beyond 24 it changes the keys of all tokens .dynamic"):
        forest.extend([(tips[0], 5)])
    factors = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16, **factors}
    rope |= {"rope_theta": 10000.0}
    model = model_of("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    assert position_limit(model) == (
        16,
        "beyond 16 it changes the keys of all tokens (longrope)",
    )


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
def test_inputs_that_cannot_work(kind: Any) -> None:
    forest = kind(model_of("llama"))
    with pytest.raises(InferKitError, match="Prompt 1 has no token") as caught:
        forest.prefill([[5], []])
    assert "bos" in str(caught.value.hint)
    with pytest.raises(
        InferKitError, match="LlamaForCausalLM has no token 160: its ids are 0 to 159"
    ):
        forest.prefill([[5, 160]])
    (tip,), _ = forest.prefill([[5]])
    with pytest.raises(InferKitError, match="has no token -1"):
        forest.extend([(tip, 5), (tip, -1)])
    assert forest.calls == 1


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
def test_training_mode_is_refused(kind: Any) -> None:
    model = text_model("llama").train()
    forest = kind(model)
    with pytest.raises(InferKitError, match="LlamaForCausalLM is in training mode") as caught:
        forest.prefill([[5]])
    assert "eval()" in str(caught.value.hint) and model.training
    model.eval()
    (tip,), _ = forest.prefill([[5]])
    model.train()
    with pytest.raises(InferKitError, match="training mode"):
        forest.extend([(tip, 5)])


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(InferKitError, match="T5ForConditionalGeneration is an encoder-decoder"):
        language_model(T5ForConditionalGeneration(config))


def test_models_that_read_both_ways_are_refused() -> None:
    model = model_of("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(InferKitError, match="Gemma3ForCausalLM reads a text in both directions"):
        language_model(model)
    with pytest.raises(InferKitError, match="PaliGemmaForCondit.* reads a text in both directions"):
        language_model(shared_lvlm("paligemma").model)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(InferKitError, match="LlamaModel returns no logits"):
        language_model(model_of("llama").model).prefill([[5]])


def test_positions_counted_from_the_padding_are_refused() -> None:
    model = model_of("roberta", is_decoder=True)
    with pytest.raises(InferKitError, match="RobertaForCausalLM counts positions from its padding"):
        language_model(model)


def test_half_precision_gives_float32() -> None:
    model = copy.deepcopy(model_of("gemma3_text")).bfloat16()
    for forest in (TreeKV(model), BatchedKV(model)):
        (tip, other), logits = forest.prefill([[5, 6, 7], [8]])
        more = forest.extend([(tip, 9), (other, 9)])[1]
        assert logits.dtype == more.dtype == torch.float32
        plain = last_logits(model, [5, 6, 7, 9])[-1].float()
        assert float((more[0] - plain).abs().max()) < 0.1
