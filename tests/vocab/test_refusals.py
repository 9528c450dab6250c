"""What ensembles refuse, by name and before any model runs."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

import infer_kit as ik
from infer_kit.demo import text
from infer_kit.errors import InferKitError, PromptTooLong, UnsupportedArgument, VocabularyMismatch
from infer_kit.vocab.reducer import ZeroProbability
from tests.tiny import text_model
from tests.vocab import trained
from tests.vocab.taught import Member, counted

CHAT = [{"role": "user", "content": "Who ran?"}]
PICTURE = [{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}]


@pytest.fixture(scope="module")
def members() -> list[Member]:
    return [text.load(name) for name in text.NAMES]


@pytest.fixture(scope="module")
def ensemble(members: list[Member]) -> ik.Ensemble:
    return ik.Ensemble(members)


@pytest.fixture(autouse=True)
def no_forward(members: list[Member]) -> Iterator[None]:
    """No model has run when a test ends, whatever it tried."""
    with counted(members) as calls:
        yield
    assert calls == [0, 0]


def alone(core: Tokenizer, name: str) -> Member:
    """A random model with that tokenizer."""
    tokenizer = trained.wrapped(core, name_or_path=name)
    return text_model("llama", vocab_size=len(tokenizer)), tokenizer


# Tokenizers and alphabets


def test_a_tokenizer_that_drops_spaces_is_named_with_a_token(members: list[Member]) -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1, ".": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    expected = r"'words' cannot be spelled as bytes: .* drops spaces, so that '\.' spells"
    with pytest.raises(InferKitError, match=expected):
        ik.Ensemble([members[0], alone(core, "words")])


def test_a_model_smaller_than_its_tokenizer_is_named(members: list[Member]) -> None:
    _, tokenizer = members[0]
    small = text_model("llama", vocab_size=len(tokenizer) - 1)
    sizes = rf"has {len(tokenizer) - 1:,} token rows, but its tokenizer .* has {len(tokenizer):,}"
    with pytest.raises(InferKitError, match=f"'LlamaForCausalLM' {sizes} ids"):
        ik.Ensemble([members[1], (small, tokenizer)])


def test_an_alphabet_that_lacks_a_byte_is_named_with_the_token(members: list[Member]) -> None:
    without = [bytes([byte]) for byte in range(256) if byte != ord("z")]
    with pytest.raises(InferKitError, match=r"cannot spell byte b'z' of token \d+ .* of .*/a'"):
        ik.ReducedLM(*members[0], without)
    with pytest.raises(InferKitError, match=r"cannot spell byte b'z' of token \d+"):
        ik.Ensemble(members, vocabulary=without, force=True)


def test_a_common_vocabulary_that_fits_badly_needs_force(members: list[Member]) -> None:
    symbols = ik.common_vocabulary(members[0][1], members[1][1])
    names = r"'[^']*/a' and '[^']*/b' cut \d\.\d\d% of the symbols"
    with pytest.raises(VocabularyMismatch, match=f"{names} .* more than 0.1%") as caught:
        ik.Ensemble(members, vocabulary=symbols)
    assert "pool over bytes, or give force=True" in str(caught.value.hint)
    assert ik.Ensemble(members, vocabulary=symbols, force=True).alphabet == "symbols"


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("letters", "Unknown vocabulary 'letters': use 'bytes', 'tokens' or a list"),
        ("tokens", "The members' tokenizers differ: they share no tokens"),
        ([b"a", "b"], "The vocabulary has 'b'; expected non-empty byte strings"),
        ([b"a", b""], "The vocabulary has b''; expected non-empty byte strings"),
    ],
)
def test_alphabets_that_cannot_be(members: list[Member], vocabulary: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        ik.Ensemble(members, vocabulary=vocabulary)


# Options


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("eps", (-0.1, 1, 1.5, math.nan, math.inf, "x", None, True), "; expected 0 <= eps < 1"),
        ("healing", (-1, 1.5, "2", None), "; expected a number of tokens, 0 or more"),
        ("prefetch", (0, -1, 1.5, math.nan, "x"), "; expected a share above 0, or None"),
        ("mode", ("lazy", "", None), "; expected one of full, late, early"),
    ],
)
def test_options_out_of_range(
    members: list[Member], option: str, values: tuple[Any, ...], message: str
) -> None:
    for value in values:
        with pytest.raises(InferKitError, match=f"^{option} is {re.escape(repr(value))}{message}"):
            ik.Ensemble(members, **{option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "Unknown pool 'max': use 'mixture', 'product' or a function"),
        ({"weights": [1]}, r"Got weights \(1.0,\) for 2 members"),
        ({"weights": [1, 1, 1]}, r"Got weights \(1.0, 1.0, 1.0\) for 2 members"),
        ({"weights": [1, -1]}, r"not negative, got \(1.0, -1.0\)"),
        ({"weights": [0, 0]}, "All weights are 0"),
        ({"weights": [0, 0], "pool": "product"}, "All weights are 0"),
        ({"weights": [1, math.nan]}, r"Got weights \(1.0, nan\) for 2 members"),
        ({"weights": ["a", "b"]}, r"weights is \['a', 'b'\]; expected a number for each of 2"),
        ({"weights": 1}, "weights is 1; expected a number for each of 2 members"),
        ({"weights": "bayesian"}, "Unknown weights 'bayesian'.* bayes, fixed_share, entropy"),
        ({"weights": "bayes", "pool": "product"}, "are those of a mixture, not of 'product'"),
        ({"weights": "fixed_share", "switching_rate": 2}, "switching_rate is 2; expected between"),
        (
            {"token_warpers": [RepetitionPenaltyLogitsProcessor(1.2)]},
            "token_warpers has a RepetitionPenaltyLogitsProcessor; expected warpers",
        ),
        ({"token_warpers": [TemperatureLogitsWarper]}, "token_warpers has a type; expected"),
        ({"token_warpers": ["top_p"]}, "token_warpers has a str; expected warpers"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_options_that_cannot_be(
    members: list[Member], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferKitError, match=message):
        ik.Ensemble(members, **options)


def test_members_are_pairs(members: list[Member]) -> None:
    model, tokenizer = members[0]
    for given, message in (
        ([], "needs .model, tokenizer. pairs, got none"),
        ([model], r"Member 0 is LlamaForCausalLM; expected \(model, tokenizer\)"),
        ([members[1], (model,)], r"Member 1 is tuple; expected \(model, tokenizer\)"),
        ([members[1], (tokenizer, model)], "Member 1: expected a transformers model"),
        ([(model, SimpleNamespace())], "SimpleNamespace has no Rust tokenizer behind it"),
    ):
        with pytest.raises(InferKitError, match=message):
            ik.Ensemble(given)


# Prompts, and texts to score

Act = Callable[[ik.Ensemble, Any], Any]
ACTS: dict[str, Act] = {
    "generate": lambda ensemble, prompt: ensemble.generate(prompt, max_new_tokens=2),
    "law": lambda ensemble, prompt: ensemble.law(prompt),
    "logprob": lambda ensemble, prompt: ensemble.logprob("a", prompt=prompt),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_prompts_that_are_none(ensemble: ik.Ensemble, act: Act) -> None:
    for prompt in (b"Mia", 5, [], {"role": "user"}):
        expected = f"Expected a text, a chat .* got {re.escape(repr(prompt))}"
        with pytest.raises(InferKitError, match=expected):
            act(ensemble, prompt)
    with pytest.raises(InferKitError, match="Prompt 0: .* got int"):
        act(ensemble, [5])


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_prompt_longer_than_a_member_takes(ensemble: ik.Ensemble, act: Act) -> None:
    with pytest.raises(PromptTooLong, match=r"Prompt 0 is \d,\d+ tokens to member 0 .* 1,024"):
        act(ensemble, "Mia ran to the river. " * 400)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("member", [0, 1])
def test_a_member_in_training_mode(
    members: list[Member], ensemble: ik.Ensemble, member: int, act: Act
) -> None:
    model = members[member][0]
    model.train()
    try:
        with pytest.raises(InferKitError, match=f"Member {member}: Llama.* is in training mode"):
            act(ensemble, "Mia")
    finally:
        model.eval()


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_chats_that_a_member_cannot_read(ensemble: ik.Ensemble, act: Act) -> None:
    with pytest.raises(InferKitError, match="reads text; the chat has images"):
        act(ensemble, PICTURE)
    tokenizer = ensemble._tokenizers[1]
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(InferKitError, match="/b' has no chat template") as caught:
            act(ensemble, CHAT)
        assert "tokenizer.chat_template" in str(caught.value.hint)
    finally:
        tokenizer.chat_template = template


def test_texts_that_cannot_be_scored(ensemble: ik.Ensemble) -> None:
    for given, message in (
        ("", "Text 0 to score is ''; expected some text"),
        (["a", ""], "Text 1 to score is ''"),
        (["a", b"b"], "Text 1 to score is b'b'"),
        ([], r"Expected a text or a list of texts to score, got \[\]"),
        (b"a", "Expected a text or a list of texts to score, got b'a'"),
        (None, "Expected a text or a list of texts to score, got None"),
    ):
        with pytest.raises(InferKitError, match=message):
            ensemble.logprob(given)
    with pytest.raises(InferKitError, match="Got 1 prompts for 2 texts"):
        ensemble.logprob(["a", "b"], prompt=["x"])


# Keywords of generate


@pytest.mark.parametrize("name", ["max_length", "min_length"])
def test_lengths_that_count_the_prompt(ensemble: ik.Ensemble, name: str) -> None:
    expected = f"^{name} cannot work here: it counts the prompt's tokens.* give max_new_tokens"
    with pytest.raises(UnsupportedArgument, match=expected):
        ensemble.generate("Mia", **{name: 5})


def test_an_unknown_keyword_comes_with_a_suggestion(ensemble: ik.Ensemble) -> None:
    with pytest.raises(UnsupportedArgument, match="Unknown keyword 'max_new_token'") as caught:
        ensemble.generate("Mia", max_new_token=5)
    assert caught.value.hint == "Did you mean 'max_new_tokens'?"


@pytest.mark.parametrize("name", ["input_ids", "inputs_embeds", "attention_mask", "cache"])
def test_what_the_prompt_stands_for(ensemble: ik.Ensemble, name: str) -> None:
    with pytest.raises(UnsupportedArgument, match=f"^{name} cannot work here: the prompt, a text"):
        ensemble.generate("Mia", **{name: 1})


@pytest.mark.parametrize("stops", ["", [""], [b"a"], 3])
def test_stop_strings_are_texts(ensemble: ik.Ensemble, stops: Any) -> None:
    with pytest.raises(UnsupportedArgument, match="stop_strings are texts that are not empty, got"):
        ensemble.generate("Mia", stop_strings=stops)


# What a tokenizer changes or lacks


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_prompt_that_a_normaliser_changes_is_shown_both_ways(act: Act) -> None:
    core = Tokenizer.from_str(trained.byte_level_bpe().to_str())
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    lm = ik.ReducedLM(*alone(core, "low"), mode="full")
    expected = "'low' changes the prompt: 'The CAFE\u0301' is read as 'the café'"
    with pytest.warns(UserWarning, match=expected) as caught:
        act(lm, "The CAFE\u0301")
    assert caught[0].filename == __file__  # the caller's line, not ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        act(lm, "the café")


def test_a_text_that_a_tokenizer_cannot_write_is_named_by_its_byte() -> None:
    """`ꙮ` is EA 99 AE; other characters begin with EA too."""
    lm = ik.ReducedLM(*alone(trained.unigram(), "uni"), mode="full")
    with pytest.raises(ZeroProbability, match=r"cannot write b'\\x99' after b' The \\xea'"):
        lm.logprob("The ꙮ")
    with pytest.raises(InferKitError, match="The tokenizer 'uni' has no token for 'ꙮ'"):
        lm.generate("The ꙮ", max_new_tokens=1)
