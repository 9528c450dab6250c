"""What is refused, with which words, and that no model ran before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    T5Config,
    TextStreamer,
)

from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError, UnsupportedArgument
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    SIGNED,
    assert_reference,
    model_of,
    text_row,
    text_rows,
)
from tests.tiny import text_model
from tests.tiny.tokenizers import tiny_tokenizer
from tests.tiny.weights import build

pytestmark = pytest.mark.usefixtures("nothing_runs")

IDS = torch.ones(1, 3, dtype=torch.long)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_cache": False}, "use_cache=False cannot work here: the cache is the state"),
    ({"prefill_chunk_size": 8}, "prefill_chunk_size=8 cannot work here: .* prefilled whole"),
    ({"guidance_scale": 1.5}, "guidance_scale=1.5 cannot work here: .* stream of weight 1 - guid"),
    (
        {"negative_prompt_ids": IDS},
        r"negative_prompt_ids=<tensor \[1, 3\]> cannot work here: make the negative prompt a",
    ),
    ({"negative_prompt_attention_mask": IDS}, "negative_prompt_attention_mask=.* cannot"),
    ({"cache_implementation": "static"}, "cache_implementation='static' cannot work here: every"),
    ({"custom_generate": "x/y"}, "custom_generate='x/y' cannot work here: it would decode one"),
    ({"token_healing": True}, "token_healing=True cannot work here: it rewrites one"),
    ({"inputs_embeds": IDS}, r"inputs_embeds=<tensor \[1, 3\]> cannot work here: rows hold"),
    ({"inputs": IDS}, r"inputs=.* cannot work here: prompts go in rows\[b\]\[k\]"),
    ({"input_ids": IDS}, r"input_ids=.* cannot work here: prompts go in rows\[b\]\[k\]"),
    ({"attention_mask": IDS}, "attention_mask=.* cannot work .* one by one and unpadded"),
    ({"position_ids": IDS}, "position_ids=.* cannot work here: positions are computed"),
    (
        {"past_key_values": object()},
        r"past_key_values=.* rows start a new state; .* generate\(None",
    ),
    ({"assistant_early_exit": 1}, "assistant_early_exit=1 cannot work here: .* assistant_model"),
    ({"use_mtp": True}, "use_mtp=True cannot work here: drafting heads see one stream"),
    (
        {"penalty_alpha": 0.6, "top_k": 4},
        "penalty_alpha=0.6 cannot work here: transformers has no contrastive",
    ),
    ({"dola_layers": "low"}, "dola_layers='low' cannot work here: it contrasts the layers"),
    ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups=2 cannot work here: transformers"),
    (
        {"force_words_ids": [[5]], "num_beams": 2},
        r"force_words_ids=\[\[5\]\] cannot work here: tra",
    ),
    ({"max_tokens": 3}, "Unknown keyword 'max_tokens'"),
    ({"pixel_values": IDS}, "Unknown keyword 'pixel_values'"),
    ({"trust_remote_code": True}, "Unknown keyword 'trust_remote_code'"),
    ({"_from_model_config": True}, "Unknown keyword '_from_model_config'"),
    ({"trace": True}, "trace=True needs return_dict_in_generate=True"),
    (
        {"prompt_lookup_num_tokens": 3},
        "prompt_lookup_num_tokens works for one request at a time, g",
    ),
    (
        {"assistant_model": model_of("llama")},
        "assistant_model works for one request at a time, got 2",
    ),
    ({"stop_strings": ["x"]}, "stop_strings needs the tokenizer"),
    ({"do_sample": True, "temperature": 0.0}, "temperature"),
    ({"num_return_sequences": 2}, "num_return_sequences"),  # greedy search writes one
    (
        {"do_sample": True, "streamer": TextStreamer(tiny_tokenizer())},
        "TextStreamer shows one answer at a time, got 2",
    ),
    (
        {"num_beams": 3, "streamer": TextStreamer(tiny_tokenizer())},
        r"A streamer cannot show beam search \(num_beams=3\)",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda v: next(iter(v), "")
                         if isinstance(v, dict) else "")  # fmt: skip
def test_refused_arguments(lm: CoupledLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArgument, match=message):
        lm.generate(text_rows(2, 2), **(GREEDY | arguments))


IN_CONFIG = ["use_cache", "prefill_chunk_size", "guidance_scale", "cache_implementation",
             "penalty_alpha", "num_beam_groups"]  # fmt: skip


@pytest.mark.parametrize("name", IN_CONFIG)
def test_refused_in_the_generation_config_too(lm: CoupledLM, name: str) -> None:
    value = next(given[name] for given, _ in REFUSED if name in given)
    with pytest.raises(UnsupportedArgument, match=f"{name}={value!r} cannot work here"):
        lm.generate(text_rows(1, 2), generation_config=GenerationConfig(**{name: value}))


@pytest.mark.parametrize("name", ["prefill_chunk_size", "guidance_scale"])
def test_refused_in_the_models_own_generation_config(name: str) -> None:
    model = text_model("llama")
    setattr(model.generation_config, name, 3)
    with pytest.raises(UnsupportedArgument, match=f"{name}=3 cannot work here"):
        CoupledLM([model] * 2).generate(text_rows(1, 2))


def test_a_near_miss_is_suggested(lm: CoupledLM) -> None:
    with pytest.raises(UnsupportedArgument, match="Unknown keyword 'max_new_token'") as error:
        lm.generate(text_rows(1, 2), max_new_token=4)
    assert error.value.hint == "Did you mean 'max_new_tokens'?"


def test_drafts_with_beams_or_recurrent_state(lm: CoupledLM) -> None:
    with pytest.raises(UnsupportedArgument, match="does not work with num_beams=2"):
        lm.generate(text_rows(1, 2), prompt_lookup_num_tokens=3, num_beams=2)
    recurrent = CoupledLM([model_of("llama"), model_of("qwen3_next")])
    with pytest.raises(UnsupportedArgument, match="take tokens back, which a model with recurrent"):
        recurrent.generate(text_rows(1, 2), prompt_lookup_num_tokens=3)


def test_drafts_for_several_answers(lm: CoupledLM) -> None:
    with pytest.raises(UnsupportedArgument, match="works for one request at a time, got 3"):
        lm.generate(text_rows(1, 2), prompt_lookup_num_tokens=3, do_sample=True,
                    num_return_sequences=3)  # fmt: skip


def test_a_model_put_back_to_training_is_refused() -> None:
    model = text_model("llama")
    lm = CoupledLM([model] * 2)
    model.train()
    for call in (lambda: lm.generate(text_rows(1, 2)), lambda: lm.score(text_rows(1, 2), [[5]])):
        with pytest.raises(InferKitError, match="Stream 0: LlamaForCausalLM is in training mode"):
            call()


def test_harmless_values_are_taken(lm: CoupledLM, may_run: None) -> None:
    harmless = {"use_cache": True, "guidance_scale": 1.0, "cache_implementation": None}
    harmless |= {"custom_generate": None, "penalty_alpha": None, "num_beam_groups": 1}
    lm.generate(text_rows(1, 2), max_new_tokens=1, **harmless)


# Models


def test_refused_models() -> None:
    with pytest.raises(InferKitError, match="CoupledLM needs at least one model"):
        CoupledLM([])
    with pytest.raises(InferKitError, match="Stream 1: expected a transformers model, got str"):
        CoupledLM([model_of("llama"), "gpt2"])  # type: ignore[list-item]
    adapted = SimpleNamespace(get_base_model=lambda: None)
    with pytest.raises(InferKitError, match="expected a transformers model, got SimpleName") as e:
        CoupledLM([adapted])  # type: ignore[list-item]
    assert "model.get_base_model()" in (e.value.hint or "")
    training = text_model("llama").train()
    with pytest.raises(InferKitError, match="Stream 0: LlamaForCausalLM is in training mode, so"):
        CoupledLM(training)
    headless = AutoModel.from_config(model_of("llama").config).eval()
    with pytest.raises(InferKitError, match="Stream 0: LlamaModel has no language-model head"):
        CoupledLM(headless)
    config = T5Config(vocab_size=160, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    seq2seq = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(InferKitError, match="T5ForConditionalGeneration is an encoder-decoder"):
        CoupledLM(seq2seq)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_models_that_keep_a_state_of_their_own(family: str) -> None:
    """Until transformers 5.24, which gave them the common cache."""
    sizes: dict[str, Any] = {"vocab_size": 160, "hidden_size": 16, "num_hidden_layers": 2}
    if family == "mamba2":
        sizes |= {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1}
    config = AutoConfig.for_model(family, **sizes)
    model = build(lambda: AutoModelForCausalLM.from_config(config), 160, 0)
    if CACHE == "cache":
        for options in (GREEDY, BEAMS):
            assert_reference(model, text_rows(2, 3), [SIGNED[:3]] * 2, **options)
        return
    with pytest.raises(InferKitError, match="ForCausalLM keeps its state in a cache of its own"):
        CoupledLM(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"primary": 2}, "primary=2 is no stream: they are numbered from 0"),
        ({"primary": -1}, "primary=-1 is no stream"),
        ({"mode": "fast"}, "Unknown mode 'fast': use 'auto', 'fused' or 'serial'"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        CoupledLM([model_of("llama")] * 2, **options)


def test_an_unknown_pool_is_refused_at_once() -> None:
    with pytest.raises(InferKitError, match="Unknown pool 'sum': use 'product', 'mixture'"):
        CoupledLM([model_of("llama")] * 2, pool="sum")


# A repetition penalty that counts padding


def test_padding_counted_as_said_is_warned_of(lm: CoupledLM, may_run: None) -> None:
    rows = [[text_row(4, 1), text_row(4, 2)], [text_row(6, 1), text_row(4, 2)]]
    options = GREEDY | {"repetition_penalty": 1.3, "pad_token_id": 2, "eos_token_id": 2}
    if version.parse(transformers.__version__) < version.parse("5.23"):
        with pytest.warns(UserWarning, match="counts the padding of shorter prompts as said"):
            lm.generate(rows, **options)
    else:
        lm.generate(rows, **options)
    lm.generate(rows, **(options | {"pad_token_id": 0}))
    lm.generate(rows[:1], **options)
