"""Prompts that a user can give though no text has them."""

import pytest
from transformers import TopPLogitsWarper

from infer_kit import Ensemble, InferKitError, ReducedLM
from infer_kit.demo import text


@pytest.fixture(scope="module")
def members() -> list:
    return [text.load(name) for name in text.NAMES]


def test_half_of_an_emoji_is_named(members) -> None:
    ens = Ensemble(members)
    with pytest.raises(InferKitError, match=r"prompt has half of a character \('\\ud83d'"):
        ens.generate("I like \ud83d", max_new_tokens=3)
    with pytest.raises(InferKitError, match=r"Text 0 to score has half of a character .* place 7"):
        ens.logprob("I like \ud83d")


def test_warpers_that_leave_no_token_for_the_prompt_are_named(members) -> None:
    lm = ReducedLM(*members[0], token_warpers=[TopPLogitsWarper(0.1)])
    with pytest.raises(InferKitError, match="token_warpers leave .* no token for the end of the"):
        lm.generate("Once upon a ti", max_new_tokens=4)
    reads = ReducedLM(*members[0], token_warpers=[TopPLogitsWarper(0.9)], healing=0)
    assert reads.generate("Once upon a ti", max_new_tokens=4).text


def test_a_prompt_cut_in_a_word_is_read_up_to_the_words_beginning(members) -> None:
    """Unigram cuts "pla" into pieces that "played" does not have."""
    lm = ReducedLM(*members[1], eps=0)
    assert lm.law("One morning, Mia and Emma pla")[ord("y")] > 0.9
