"""What a tokenizer writes is never rejected; what it would not write is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from tokenizers import AddedToken, Tokenizer

from infer_kit.errors import InferKitError
from infer_kit.vocab.canonical import PairCanonicality, WindowCanonicality, canonicality_of
from infer_kit.vocab.utf8 import is_beginning, is_open_character, may_begin_character, open_tail
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import kinds, trained
from tests.vocab.reference import SlowCanonical, rejections
from tests.vocab.texts import multilingual

TEXT = multilingual(10_000, seed=11)
# Pieces of text whose tokens depend on what is before or after them.
PIECES = (
    "'", "'", "'s", "s", "t", "re", "ll", "ve", "d", "m", "'LL", "S", "l", "e", "r", "v", "they",
    "I", " I", "VE", "M",
    "1", "22", "333", "4", "²", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", ".", ",", "/",
    "-", "_", '"', "(", "a", "word", "Word", "WORD", "A", "é", "ß", "中", "文", "の", "カ", "한",
    "ع", "ل", "ُ", "،", "é", "🎉", "👍🏽", "\u200d", "\ufe0f", "\xa0", "\u3000", "…", "’",
    "=", "==", " lighthouse", " harbor", "daught", " wid", "th", "<", "think", ">", "</", "tool",
    "call", "<think>", "</think>", "<tool_call>", "grö", "ßer", "größer",
)  # fmt: skip


def pieced(count: int, seed: int = 0) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(draw.choice(PIECES) for _ in range(12))


def encoded(vocabulary: Vocabulary, text: str) -> list[int] | None:
    """Its tokens, or None where they do not spell the text."""
    if vocabulary.kind == "wordpiece":
        text = " ".join(text.split())
    try:
        ids = vocabulary.encode(text)
    except InferKitError:
        return None
    return ids if vocabulary.spell(ids) == vocabulary.prefix + text.encode() else None


def check_accepted(vocabulary: Vocabulary, texts: Iterator[str]) -> int:
    """How many tokens of encoded texts were accepted: all."""
    canonicality = canonicality_of(vocabulary)
    count = 0
    for text in texts:
        ids = encoded(vocabulary, text)
        if ids is not None:
            places = rejections(canonicality, vocabulary, ids)
            shown = [[vocabulary.tokens[id] for id in ids[max(0, n - 3) : n + 2]] for n in places]
            assert not places, shown
            count += len(ids)
    return count


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_what_is_encoded_is_accepted(kind: str) -> None:
    assert check_accepted(kinds.vocabulary(kind), iter([TEXT])) > 1_000


@pytest.mark.parametrize("kind", [*kinds.KINDS, *kinds.OTHERS])
def test_awkward_texts_are_accepted(kind: str) -> None:
    if kind.startswith("few_letters"):
        texts = ("".join(t) for t in itertools.product("abl' \n", repeat=4))
    else:
        texts = pieced(60)
    assert check_accepted(kinds.vocabulary(kind), texts) > 100


@pytest.mark.parametrize("name", ["gpt2", "o200k", "mistral", "neox"])
def test_real_tokenizers_are_accepted(name: str) -> None:
    texts = itertools.chain([TEXT[:6_000]], pieced(60))
    assert check_accepted(trained.real(name), texts) > 1_000


def test_digits_in_groups_from_the_right() -> None:
    """Each further digit moves all the splits."""
    vocabulary = kinds.vocabulary("digits")
    canonicality = canonicality_of(vocabulary)
    draw = random.Random(0)
    for _ in range(60):
        digits = "".join(draw.choice("0123499") for _ in range(draw.randint(4, 11)))
        assert not rejections(canonicality, vocabulary, vocabulary.encode(f"a {digits}(")), digits


def test_added_tokens_may_lie_across_words() -> None:
    """They are found before words are, and what is before them is read by itself."""
    vocabulary = kinds.vocabulary("added_bpe")
    for text in ("a  </think>", "$<think>", "x <tool_call>", "(</think>.", "      b", "<thinks"):
        ids = vocabulary.encode(text)
        assert not rejections(canonicality_of(vocabulary), vocabulary, ids), text


# What is rejected --------------------------------------------------------------------------------


def walk(vocabulary: Vocabulary, longest: int) -> Iterator[tuple[int, ...]]:
    """All token sequences of a small vocabulary that spell at most so many bytes."""
    ids = vocabulary.text_ids.tolist()
    stack: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while stack:
        tokens, length = stack.pop()
        if tokens:
            yield tokens
        for id in ids:
            more = length + len(vocabulary.tokens[id] or b"")
            if more <= longest:
                stack.append(((*tokens, id), more))


def judged(slow: SlowCanonical, vocabulary: Vocabulary, tokens: tuple[int, ...]) -> bool:
    """Whether all beginnings of a sequence are accepted, the tokens in progress included."""
    text = vocabulary.spell(tokens)
    ends = list(itertools.accumulate(len(vocabulary.tokens[id] or b"") for id in tokens))
    for at in range(1, len(text) + 1):
        done = tokens[: sum(end <= at for end in ends)]
        if at in ends and not slow.accepts(done, text[:at]):
            return False
        certain = slow.certain(text[:at])
        if done[: len(certain)] != certain:
            return False
    return True


def test_every_sequence_of_a_small_vocabulary_is_judged_as_from_the_whole_text() -> None:
    vocabulary = kinds.vocabulary("few_letters_bpe")
    canonicality, slow = canonicality_of(vocabulary), SlowCanonical(vocabulary, windowed=True)
    accepted = rejected = 0
    for tokens in walk(vocabulary, 4):
        wanted = judged(slow, vocabulary, tokens)
        assert wanted == (not rejections(canonicality, vocabulary, tokens)), tokens
        accepted, rejected = accepted + wanted, rejected + (not wanted)
    assert accepted > 500 and rejected > 500


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_other_cuts_of_a_text_are_rejected(kind: str) -> None:
    """A token taken apart into two, anywhere in a text."""
    vocabulary = kinds.vocabulary(kind)
    canonicality = canonicality_of(vocabulary)
    by_text: dict[bytes, list[int]] = {}
    for id in vocabulary.text_ids.tolist():
        by_text.setdefault(vocabulary.tokens[id], []).append(id)
    ids = encoded(vocabulary, TEXT[:250])
    tried = caught = 0
    for place, token in enumerate(ids):
        text = vocabulary.tokens[token]
        for cut in range(1, len(text)):
            for left, right in itertools.product(
                by_text.get(text[:cut], ()), by_text.get(text[cut:], ())
            ):
                tried += 1
                other = [*ids[:place], left, right, *ids[place + 1 :]]
                caught += bool(rejections(canonicality, vocabulary, other))
    assert tried > 10 and caught == tried


@pytest.mark.parametrize("kind", ["signed_bpe", "fallback_unigram"])
def test_bytes_stand_for_characters_that_are_no_pieces(kind: str) -> None:
    vocabulary = kinds.vocabulary(kind)
    canonicality = canonicality_of(vocabulary)
    before = vocabulary.encode("über")

    def of_bytes(text: str) -> list[int]:
        return [vocabulary.byte_ids[byte] for byte in text.encode()]

    for text in ("鬱", "鬱鬱", "🎈"):  # in no training text
        assert vocabulary.encode("über" + text) == [*before, *of_bytes(text)]
        assert not rejections(canonicality, vocabulary, [*before, *of_bytes(text)])
    # A character that is a piece: its bytes pass until it is complete.
    for text in ("ü", "ö"):
        assert rejections(canonicality, vocabulary, [*before, *of_bytes(text)]) == [
            len(before) + len(text.encode()) - 1
        ]
    assert rejections(canonicality, vocabulary, [*before, *of_bytes("a")]) == [len(before)]


# Beginning after a prompt ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_text_goes_on_after_a_prompt(kind: str) -> None:
    vocabulary = kinds.vocabulary(kind)
    canonicality = canonicality_of(vocabulary)
    ids = encoded(vocabulary, TEXT[:1_200])
    for count in range(0, 120, 7):
        _, since = canonicality.open(ids[:count])
        assert list(since) == ids[count - len(since) : count]
        assert not rejections(canonicality, vocabulary, ids[count : count + 30], ids[:count])


def test_a_prompt_decides_what_may_follow() -> None:
    for kind in ("unsplit_bpe", "byte_level_bpe", "unigram"):
        vocabulary = kinds.vocabulary(kind)
        canonicality = canonicality_of(vocabulary)
        ids = vocabulary.encode("the the the")  # the last "the" is one token after its space
        the, other = ids[-1], vocabulary.encode("the")[-1]
        assert not rejections(canonicality, vocabulary, [the], ids[:-1])
        if vocabulary.tokens[the] != vocabulary.tokens[other]:
            space = vocabulary.encode("a ")[-1]
            assert rejections(canonicality, vocabulary, [space, other], ids[:-1])


def test_a_prompt_that_the_tokenizer_would_not_write_is_not_judged() -> None:
    vocabulary = kinds.vocabulary("byte_level_bpe")
    canonicality = canonicality_of(vocabulary)
    letters = {vocabulary.tokens[id]: id for id in vocabulary.text_ids.tolist()}
    spelled = [letters[bytes([byte])] for byte in b" the and the"]
    window, since = canonicality.open(spelled)
    assert window.text == b"" and since == ()
    assert not rejections(canonicality, vocabulary, vocabulary.encode(" and it"), spelled)


# Which way is taken, and what cannot be ----------------------------------------------------------


@pytest.mark.parametrize("kind", [*kinds.KINDS, *kinds.OTHERS])
def test_only_tokenizers_that_never_split_are_judged_by_pairs(kind: str) -> None:
    found = canonicality_of(kinds.vocabulary(kind))
    wanted = PairCanonicality if kind in kinds.UNSPLIT else WindowCanonicality
    assert type(found) is wanted


def test_pairs_next_to_parts_of_characters_and_added_tokens() -> None:
    core = Tokenizer.from_str(kinds.unsplit_bpe().to_str())
    core.add_tokens([AddedToken("<think>", normalized=False), AddedToken("    ")])
    vocabulary = Vocabulary.from_hf(trained.wrapped(core))
    canonicality = canonicality_of(vocabulary)
    assert isinstance(canonicality, PairCanonicality)
    for text in ("鬱<think>鬱", "a    鬱    <think>", "🎈<think>🎈", "     b"):
        assert not rejections(canonicality, vocabulary, vocabulary.encode(text)), text


def test_a_vocabulary_without_an_encoder_cannot_be_judged() -> None:
    vocabulary = Vocabulary((b"a", b"b", None), (2,), "bytes", name="plain")
    with pytest.raises(InferKitError, match="'plain' has no encoder") as error:
        canonicality_of(vocabulary)
    assert "full" in str(error.value.hint)


# Characters in progress --------------------------------------------------------------------------


def test_beginnings_of_characters() -> None:
    # All of two bytes; of the others the first and the last with the same bytes but one.
    codes = [code for code in range(0x110000) if code % 64 in (0, 63) or code < 0x800]
    characters = [chr(code).encode() for code in codes if not 0xD800 <= code < 0xE000]
    wholes = set(characters)
    beginnings = {c[:n] for c in characters for n in range(1, len(c) + 1)}
    ends = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    second = [bytes([a, b]) for a in range(256) for b in ends]
    third = [bytes([*pair, c]) for pair in second for c in (0x7F, 0x80, 0xBF, 0xC0)]
    for text in [*(bytes([a]) for a in range(256)), *second, *third]:
        assert may_begin_character(text) == (text in beginnings)
        assert is_open_character(text) == (text in beginnings and text not in wholes)


@pytest.mark.parametrize(
    ("text", "tail", "beginning"),
    [
        (b"", b"", True),
        (b"a", b"", True),
        ("é中🎉".encode(), b"", True),
        ("é中🎉".encode()[:-1], "🎉".encode()[:3], True),
        (b"a\xe4\xb8", b"\xe4\xb8", True),
        (b"a\x80", b"", False),
        (b"\xe4\xb8a", b"", False),
        (b"\xe0\x80", b"", False),  # can never become a character
        (b"\xed\xa0", b"", False),
        (b"\xf4\x90", b"", False),
        (b"\xffa\xe4", b"\xe4", False),
    ],
)
def test_incomplete_last_characters(text: bytes, tail: bytes, beginning: bool) -> None:
    assert open_tail(text) == tail
    assert is_beginning(text) == beginning
