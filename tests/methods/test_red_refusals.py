"""What RED refuses: before any forward pass, in the user's terms, naming the prompt."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

from infer_kit.errors import InferKitError, PromptTooLong, UnsupportedArgument
from infer_kit.methods.prompts import Prompts
from infer_kit.methods.red import RED
from tests.methods.conftest import chat, picture
from tests.tiny.tokenizers import tiny_tokenizer

Make = Callable[..., RED]
QUESTION = chat("what is it?", picture(0))


@pytest.fixture(autouse=True)
def nothing_runs(model_calls: list[int]):
    """Every test of this file: no forward pass before the error."""
    yield
    assert not model_calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "kl:much"}, "weight='kl:much' is neither a number nor a budget"),
        ({"weight": math.nan}, "weight must be a finite number or .kl:<nats>., got nan"),
        ({"weight": math.inf}, "weight must be a finite number or .kl:<nats>., got inf"),
        ({"image_weight": 0.0, "weight": 0.0}, "Both weights of prompt 0 are 0"),
        ({"weight": "kl:-1"}, "weight='kl:-1' is neither a number nor a budget"),
        ({"weight": "kl:0.1", "normalize": True}, "image_weight=1 and normalize=False only"),
        ({"kind": "ccot"}, "kind='ccot' and prompts= both choose texts"),
        ({"prompts": {}}, "prompts is a dict; expected `Prompts`"),
        ({"weight": "0.5"}, "weight='0.5' is neither a number nor a budget"),
        ({"normalize": True, "weight": -1.0}, "sum to 0: cannot be normalised"),
        ({"rationale_generation": {"num_return_sequences": 2}}, "Each question has one rationale"),
        (
            {
                "rationale_generation": {
                    "generation_config": GenerationConfig(num_return_sequences=2, num_beams=2)
                }
            },
            "Each question has one rationale",
        ),
        ({"prompts": None, "kind": "haiku"}, r"Unknown kind 'haiku': use one of \['ccot', 'cot'\]"),
        ({"rationale_generation": {"max_tokens": 3}}, "Unknown keyword 'max_tokens'"),
    ],
)
def test_constructor(red: Make, options: dict, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        red(**options)


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        (
            [QUESTION] * 4,
            {"rationale": ["a", "b", "c"]},
            "RED needs a rationale for every row: got 3 rationales for 4 prompts.",
        ),
        ([QUESTION] * 2, {"weight": [1.0]}, "got 1 weights for 2 prompts"),
        ([QUESTION] * 2, {"weight": [1.0, math.nan]}, "Weights must be finite numbers"),
        ([QUESTION], {"rationale": 5}, "rationale is a int; expected a text"),
        ([QUESTION], {"rationale": [3]}, "rationale of prompt 0 is a int"),
        (
            [QUESTION, chat("", picture(0))],
            {},
            "The question of prompt 1 is empty",
        ),
        (
            [
                QUESTION,
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
            ],
            {},
            r"Prompt 1 contains 1 image placeholder\(s\) but 0 image\(s\) were given",
        ),
        (
            chat("what is <image> here?"),
            {},
            r"Prompt 0 contains 1 image placeholder\(s\) but 0 image\(s\) were given",
        ),
        (
            [QUESTION, chat("?", "absent.png")],
            {},
            r"Prompt 1: image 'absent\.png' cannot be read",
        ),
        ([], {}, "got an empty list"),
    ],
)
def test_messages(red: Make, messages: list, options: dict, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        red().generate(messages, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 3}, "Unknown keyword 'max_tokens'"),
        ({"requests": 3}, "Unknown keyword 'requests'"),
        ({"trace": False}, "Unknown keyword 'trace'"),
        ({"use_cache": False}, "use_cache=False cannot work here"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 cannot work here"),
        ({"cache_implementation": "static"}, "cache_implementation='static' cannot work here"),
        ({"custom_generate": "x"}, "custom_generate='x' cannot work here"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size=4 cannot work here"),
        ({"negative_prompt_ids": torch.ones(1, 2)}, "negative_prompt_ids=<tensor"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"do_sample": True, "top_k": -1}, "top_k must be at least 0, got -1"),
        ({"do_sample": True, "top_p": 2.0}, "top_p must be above 0 and at most 1, got 2.0"),
        ({"do_sample": True, "temperature": -1.0}, "temperature must be positive, got -1.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be positive, got -1.0"),
        ({"do_sample": True, "num_return_sequences": 0}, "num_return_sequences must be at least"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"max_new_tokens": "8"}, "max_new_tokens is a whole number, got '8'"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"use_cache": None}, "use_cache=None cannot work here"),
        ({"do_sample": True, "temperature": "x"}, "temperature must be positive, got 'x'"),
        ({"do_sample": True, "min_p": 2.0}, "min_p must be between 0 and 1, got 2.0"),
        ({"bad_words_ids": [3]}, "bad_words_ids"),
        ({"sequence_bias": {}}, "sequence_bias"),
        ({"streamer": 3}, "streamer is a int; expected put"),
        ({"assistant_model": "x"}, "assistant_model is a str; expected a transformers model"),
        ({"stopping_criteria": print}, "stopping_criteria is a builtin.*expected a list"),
        ({"logits_processor": [1]}, "logits_processor is a list; expected a list of callables"),
        ({"num_beams": 2, "streamer": TextStreamer(None)}, "A streamer cannot show beam search"),
        ({"num_beams": 2, "prompt_lookup_num_tokens": 2}, "does not work with num_beams=2"),
    ],
)
def test_generate_arguments(red: Make, options: dict, message: str) -> None:
    with pytest.raises(UnsupportedArgument, match=message):
        red().generate(QUESTION, **options)


def test_a_misspelt_keyword_gets_a_suggestion(red: Make) -> None:
    with pytest.raises(UnsupportedArgument) as caught:
        red().generate(QUESTION, max_new_token=3)
    assert caught.value.hint == "Did you mean 'max_new_tokens'?"


def test_drafts_take_one_chat_at_a_time(red: Make) -> None:
    with pytest.raises(UnsupportedArgument, match="one request at a time, got 2"):
        red().generate([QUESTION] * 2, prompt_lookup_num_tokens=2)


def test_a_context_that_is_too_long_is_refused_with_both_numbers(red: Make, lvlm) -> None:
    limit = lvlm.config.get_text_config().max_position_embeddings
    with pytest.raises(
        PromptTooLong, match=rf"Prompt 1: the prompt is [\d,]+ tokens, .* {limit:,}\."
    ):
        red().generate([QUESTION, chat("x" * limit, picture(0))])


def test_a_tokenizer_cannot_read_pictures(lvlm) -> None:
    red = RED(lvlm, tiny_tokenizer())
    with pytest.raises(InferKitError, match=r"Prompt 0 has 1 image\(s\), but .* takes text only"):
        red.generate(QUESTION)


def test_a_processor_of_another_model_is_refused(lvlm, processor) -> None:
    with pytest.raises(InferKitError, match="do not belong together: the tokenizer has 500 tokens"):
        RED(lvlm, tiny_tokenizer(500))


def test_a_model_without_a_chat_template_needs_one(text_pair) -> None:
    model, _ = text_pair
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InferKitError, match="has no chat template, and none was given"):
        RED(model, tokenizer)
    template = "{{ messages[0]['content'] }}"
    out = RED(model, tokenizer, weight=0, chat_template=template).generate("hi", max_new_tokens=2)
    assert out.sequences.shape[1] >= 3


def test_a_model_of_no_known_backend_is_refused(processor) -> None:
    with pytest.raises(
        InferKitError, match="transformers model or a vllm.LLM, got builtins.object"
    ):
        RED(object(), processor)


def test_special_tokens_are_taken_out_of_a_given_rationale(red: Make) -> None:
    maker = red()
    text = "a <image>b<|bot|> c<|u<|bot|>ser|>"
    with pytest.warns(
        UserWarning, match="Special tokens were taken out of the rationale of prompt 0"
    ):
        given = maker._given(text, 1)
    assert given == ["a b c"]


def test_prompts_are_replaceable_and_reach_the_streams(red: Make, processor) -> None:
    prompts = Prompts("{question} A", "{question} B", "{rationale} C {question}")
    streams = red(prompts=prompts).group(QUESTION, rationale="notes", weight=1.0).streams
    texts = [processor.tokenizer.decode(s.context["input_ids"][0]) for s in streams]
    assert texts[0].endswith("what is it? B<|bot|>") and "<image>" in texts[0]
    assert texts[1].endswith("notes C what is it?<|bot|>") and "<image>" not in texts[1]
    assert [s.name for s in streams] == ["image", "rationale"]


def test_a_config_object_is_checked_as_generate_will_merge_it(red: Make, lvlm) -> None:
    """What the object leaves open comes from the model's own config."""
    own = lvlm.generation_config
    own.prefill_chunk_size = 2
    try:
        with pytest.raises(UnsupportedArgument, match="prefill_chunk_size=2 cannot work here"):
            red().generate(QUESTION, generation_config=GenerationConfig(max_new_tokens=4))
    finally:
        own.prefill_chunk_size = None


def test_stop_strings_that_the_tokenizer_cannot_spell() -> None:
    from infer_kit import demo

    model, processor = demo.load()
    words = RED(model, processor, prompts=demo.PROMPTS)
    with pytest.raises(UnsupportedArgument, match="transformers cannot look for stop strings"):
        words.generate("what color is the background ?", stop_strings=["green"])


def test_interventions_check_given_rationales_first(red: Make) -> None:
    with pytest.raises(InferKitError, match="got 1 rationales for 2 prompts"):
        red().intervene([QUESTION] * 2, ("own", "given"), given=["a"])
    with pytest.raises(InferKitError, match="at least two chats, got 1"):
        red().intervene(QUESTION)
    with pytest.raises(InferKitError, match=r"Unknown interventions \['none'\]"):
        red().intervene([QUESTION] * 2, "none")
