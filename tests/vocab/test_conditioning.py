"""What each model reads of a prompt, and what is left to be read as bytes."""

from __future__ import annotations

import itertools

import pytest

from infer_kit.errors import InferKitError
from infer_kit.vocab.conditioning import (
    answer_ids,
    condition_on_chat,
    condition_on_ids,
    condition_on_text,
    split_ids,
    text_ids,
    unsettled,
)
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import kinds, trained

BYTE_BPE = Reduction(kinds.vocabulary("unsplit_bpe"))
SPLIT = Reduction(kinds.vocabulary("split_bpe"))
SIGNED = Reduction(kinds.vocabulary("signed_bpe"))
TEXT = "The lighthouse keeper's daughter hadn't seen"
CHAT = (
    "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>helper:{% endif %}"
)


@pytest.mark.parametrize("reduction", [BYTE_BPE, SPLIT, SIGNED], ids=lambda r: r.vocabulary.kind)
def test_what_is_read_and_what_is_forced_is_the_prompt(reduction: Reduction) -> None:
    vocabulary = reduction.vocabulary
    for length, healing in itertools.product(range(1, len(TEXT)), (0, 1, 2, 5)):
        made = condition_on_text(reduction, TEXT[:length], healing)
        begin = tuple(vocabulary.begin_ids)
        ids = (*begin, *vocabulary.encode(TEXT[:length]))
        body = made.ids[len(begin) :] if made.before or begin else ()
        assert (*begin, *body, *made.forced) == ids and made.prefix == b""
        assert made.before == body and made.ids
        text = vocabulary.spell([*made.before, *made.forced])
        assert text == vocabulary.prefix + TEXT[:length].encode()
        if healing:
            assert len(made.forced) >= min(healing, len(ids) - len(begin))
        else:
            assert made.forced == ()


def test_nothing_is_read_before_an_empty_prompt_but_what_begins_a_text() -> None:
    for reduction in (BYTE_BPE, SIGNED):
        vocabulary = reduction.vocabulary
        made = condition_on_text(reduction, "")
        assert (made.ids, made.before, made.forced) == (vocabulary.empty_ids, (), ())
        assert made.prefix == vocabulary.prefix
    assert SIGNED.vocabulary.prefix == b" "


def test_a_short_prompt_is_all_given_back_and_the_model_begins_anew() -> None:
    made = condition_on_text(BYTE_BPE, "a", 2)
    assert made.ids == BYTE_BPE.vocabulary.empty_ids and made.before == ()
    assert BYTE_BPE.vocabulary.spell(made.forced) == b"a"


def test_a_model_without_a_token_to_begin_with_needs_a_longer_prompt() -> None:
    letters = tuple(bytes([byte]) for byte in range(256))
    vocabulary = Vocabulary(letters, (), "bytes", name="letters")
    with pytest.raises(InferKitError, match="'letters' has no token to begin a text with"):
        condition_on_ids(vocabulary, [97, 98], 2)
    made = condition_on_ids(vocabulary, [97, 98, 99], 2)
    assert (made.ids, made.before, made.forced) == ((97,), (97,), (98, 99))


def test_no_more_is_given_back_than_since_the_last_special_token() -> None:
    vocabulary = SPLIT.vocabulary
    end = vocabulary.end_ids[0]
    ids = [*vocabulary.encode("The sea"), end, *vocabulary.encode("hadn't")]
    made = condition_on_ids(vocabulary, ids, 99)
    assert made.ids == tuple(ids[: ids.index(end) + 1]) and made.before == ()
    assert vocabulary.spell(made.forced) == b"hadn't"
    assert unsettled(SPLIT, ids, 99) == 99 and unsettled(SPLIT, ids, 0) == 0


def test_more_is_given_back_where_a_token_may_cover_it() -> None:
    """The end of the prompt may be the beginning of one long token."""
    vocabulary = BYTE_BPE.vocabulary
    spellings = [text.decode() for text in vocabulary.tokens if text and text.isalpha()]
    word = max(spellings, key=lambda text: len(vocabulary.encode(text[:-1])))
    ids = vocabulary.encode("The " + word[:-1])
    count = unsettled(BYTE_BPE, ids, 1)
    assert count > len(vocabulary.encode(word[:-1])) > 2
    assert len(vocabulary.spell(ids[: len(ids) - count])) <= len("The ")


def test_names_of_special_tokens_in_a_prompt_are_those_tokens() -> None:
    tokenizer = trained.wrapped(trained.split_bpe())
    vocabulary = SPLIT.vocabulary
    end = vocabulary.end_ids[0]
    assert end in text_ids(vocabulary, "The</s>sea", tokenizer)
    assert end not in text_ids(vocabulary, "The</s>sea")
    assert vocabulary.spell(text_ids(vocabulary, "The</s>sea")) == b"The</s>sea"
    with pytest.raises(InferKitError, match="A prompt is a text, got bytes"):
        text_ids(vocabulary, b"The")  # type: ignore[arg-type]


def test_a_chat_is_read_in_the_template_up_to_the_answer() -> None:
    tokenizer = trained.wrapped(trained.split_bpe())
    tokenizer.chat_template = CHAT
    turns = [{"role": "user", "content": [{"type": "text", "text": part} for part in ("Hi ", "x")]}]
    made = condition_on_chat(SPLIT, tokenizer, turns, healing=2)
    spelled = [SPLIT.vocabulary.tokens[id] for id in (*made.ids, *made.forced)]
    specials = [place for place, text in enumerate(spelled) if text is None]
    assert len(specials) == 3 and specials[0] == 0
    assert b"".join(t for t in spelled[: specials[1]] if t) == b"Hi x"
    assert b"".join(spelled[specials[2] + 1 :]) == b"helper:"
    assert len(made.forced) >= 2 and len(made.ids) > specials[2]


@pytest.mark.parametrize("reduction", [BYTE_BPE, SPLIT, SIGNED], ids=lambda r: r.vocabulary.kind)
def test_a_token_across_the_cut_belongs_to_the_text(reduction: Reduction) -> None:
    vocabulary = reduction.vocabulary
    whole = "The lighthouse keeper's 清晨 größer"
    crossed = 0
    for cut in range(1, len(whole)):
        head, tail = split_ids(vocabulary, whole[cut:], whole[:cut])
        begin = len(vocabulary.begin_ids)
        if head == list(vocabulary.empty_ids):
            head = [*vocabulary.begin_ids]
        assert [*head, *tail] == text_ids(vocabulary, whole)
        text = vocabulary.spell(tail)
        assert text.decode() and vocabulary.spell(head[begin:]) + text == (
            vocabulary.prefix + whole.encode()
        )
        assert text.endswith(whole[cut:].encode())
        crossed += len(text) > len(whole[cut:].encode())
    assert crossed > 5


def test_an_answer_has_no_dummy_prefix() -> None:
    vocabulary = SIGNED.vocabulary
    assert vocabulary.spell(vocabulary.encode("daughter")) == b" daughter"
    assert vocabulary.spell(answer_ids(vocabulary, "daughter")) == b"daughter"
