"""Vocabularies of every kind: what tokens spell, what is encoded, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from infer_kit.errors import InferKitError
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained
from tests.vocab.texts import multilingual

TEXT = multilingual(300_000)
# To a tokenizer it is a special token, in a text it is text.
NAMES_IN_TEXT = "It wrote <s> and </s>, <unk> and <|endoftext|>, even <0x41> or ▂."


def from_trained(make: object) -> Vocabulary:
    return Vocabulary.from_hf(trained.wrapped(make()))  # type: ignore[operator]


@pytest.mark.parametrize("kind", trained.LOSSLESS)
def test_joined_spellings_are_the_text(kind: str) -> None:
    vocabulary = from_trained(trained.LOSSLESS[kind])
    ids = vocabulary.encode(TEXT)
    assert vocabulary.spell(ids) == vocabulary.prefix + TEXT.encode()
    assert vocabulary.conditioned(TEXT) == TEXT


@pytest.mark.parametrize("name", trained.FILES)
def test_joined_spellings_are_the_text_in_real_files(name: str) -> None:
    vocabulary = trained.real(name)
    assert vocabulary.spell(vocabulary.encode(TEXT)) == vocabulary.prefix + TEXT.encode()
    assert vocabulary.conditioned(NAMES_IN_TEXT) == NAMES_IN_TEXT


def test_words_spell_their_space() -> None:
    vocabulary = from_trained(trained.wordpiece)
    assert vocabulary.kind == "wordpiece" and vocabulary.prefix == b" "
    assert vocabulary.conditioned(TEXT) == " ".join(TEXT.split())
    assert vocabulary.spell(vocabulary.encode("der Zug")) == b" der Zug"


@pytest.mark.parametrize("kind", trained.LOSSLESS)
def test_encode_is_the_tokenizers_own(kind: str) -> None:
    core = trained.LOSSLESS[kind]()
    vocabulary = from_trained(lambda: core)
    for line in filter(str.strip, TEXT[:20_000].splitlines()):
        if "<s>" in line or (vocabulary.prefix and line.startswith(" ")):
            continue  # it finds special tokens, and Metaspace puts no second space before one
        assert vocabulary.encode(line) == core.encode(line, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["split_bpe", "signed_bpe"])
def test_names_of_special_tokens_in_a_text_are_text(kind: str) -> None:
    vocabulary = from_trained(trained.LOSSLESS[kind])
    assert vocabulary.conditioned(NAMES_IN_TEXT) == NAMES_IN_TEXT


def test_names_of_special_tokens_are_not_pieces_of_a_unigram_text() -> None:
    vocabulary = from_trained(trained.unigram)
    assert vocabulary.conditioned("the <s> and the </s>") == "the <s> and the </s>"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("byte_level_bpe", "byte_bpe"),
        ("split_bpe", "byte_bpe"),
        ("signed_bpe", "bpe"),
        ("unigram", "unigram"),
    ],
)
def test_kinds_have_their_names(kind: str, name: str) -> None:
    assert from_trained(trained.LOSSLESS[kind]).kind == name


def test_byte_fallback_tokens_spell_their_byte() -> None:
    vocabulary = from_trained(trained.signed_bpe)
    assert sorted(vocabulary.byte_ids) == list(range(256))
    assert all(vocabulary.tokens[id] == bytes([b]) for b, id in vocabulary.byte_ids.items())
    rare = vocabulary.encode("\U0002070e")
    assert bytes(vocabulary.tokens[id][0] for id in rare[-4:]) == "\U0002070e".encode()  # type: ignore[index]
    assert set(rare[-4:]) <= set(vocabulary.byte_ids.values())
    assert not from_trained(trained.byte_level_bpe).byte_ids


def test_tokens_that_spell_the_same_are_all_kept() -> None:
    vocabulary = from_trained(trained.split_bpe)
    four = [id for id, text in enumerate(vocabulary.tokens) if text == b"    "]
    assert len(four) == 2
    assert len(vocabulary.text_ids) == vocabulary.size - len(trained.SPECIAL)


def test_duplicates_of_real_vocabularies_are_kept() -> None:
    assert _duplicates(trained.real("mistral")) == 125
    assert _duplicates(trained.real("neox")) == 23


def _duplicates(vocabulary: Vocabulary) -> int:
    texts = [text for text in vocabulary.tokens if text is not None]
    return len(texts) - len(set(texts))


def test_ids_are_of_text_or_end_or_banned() -> None:
    vocabulary = from_trained(trained.unigram)
    parts = (vocabulary.text_ids, np.array(vocabulary.end_ids), vocabulary.banned_ids)
    assert sorted(np.concatenate(parts).tolist()) == list(range(vocabulary.size))
    assert vocabulary.end_ids == (2,) and vocabulary.banned_ids.tolist() == [0, 1]


def test_fingerprint_is_of_the_table() -> None:
    one = Vocabulary((b"ab", b"c", None), (2,), "bpe", name="one")
    assert one.fingerprint == Vocabulary((b"ab", b"c", None), (), "bytes", name="two").fingerprint
    others = [
        (b"a", b"bc", None),
        (b"ab", b"c", None, None),
        (b"ab", None, b"c"),
        (b"c", b"ab", None),
    ]
    assert len({one.fingerprint, *(Vocabulary(t, (), "bpe").fingerprint for t in others)}) == 5


def test_vocabulary_sizes_do_not_tell_tokenizers_apart() -> None:
    a, b = from_trained(trained.byte_level_bpe), from_trained(trained.signed_bpe)
    padded = Vocabulary((*a.tokens, *[None] * (b.size - a.size)), (), "byte_bpe")
    assert padded.size == b.size and padded.fingerprint != b.fingerprint


def test_merges_make_their_whole() -> None:
    for kind in ("byte_level_bpe", "split_bpe", "signed_bpe"):
        vocabulary = from_trained(trained.LOSSLESS[kind])
        assert len(vocabulary.merges) > 300
        for left, right, whole in vocabulary.merges.tolist():
            parts = vocabulary.spell([left]) + vocabulary.spell([right])
            assert parts == vocabulary.tokens[whole]
    assert from_trained(trained.unigram).merges.shape == (0, 3)


def test_scores_are_those_of_unigram() -> None:
    core = trained.unigram()
    vocabulary = from_trained(lambda: core)
    assert np.isnan(vocabulary.scores[:3]).all()
    assert (vocabulary.scores[3:] <= 0).all()
    assert np.isnan(from_trained(trained.split_bpe).scores).all()


def test_a_vocabulary_of_bytes_encodes_without_a_tokenizer() -> None:
    tokens = (None, *(bytes([byte]) for byte in range(256)))
    vocabulary = Vocabulary(tokens, (0,), "bytes")
    assert vocabulary.encode("é!") == [1 + 0xC3, 1 + 0xA9, 1 + 0x21]
    assert vocabulary.conditioned(TEXT) == TEXT


def test_what_to_feed_where_there_is_no_text() -> None:
    assert Vocabulary((b"a", None, None), (2,), "bpe").empty_ids == (2,)
    assert Vocabulary((b"a", None, None), (2,), "bpe", begin_ids=(1,)).empty_ids == (1,)
    assert Vocabulary((b"a",), (), "bpe").empty_ids == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((b"a", b""), (), "bpe"), "Token 1 of '' spells nothing"),
        (((b"a", None), (2,), "bpe"), "end_ids has 2, but '' has 2 tokens"),
        (((b"a", None), (0,), "bpe"), "Token 0 cannot end a text of '': it spells b'a'"),
        (((b"a",), (), "letters"), "Unknown kind of vocabulary 'letters'"),
    ],
)
def test_tables_that_cannot_be(arguments: tuple, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        Vocabulary(*arguments)


def test_tokens_without_text_are_not_spelt() -> None:
    vocabulary = from_trained(trained.unigram)
    for id in (1, -1, vocabulary.size):
        with pytest.raises(InferKitError, match=f"Token {id} of 'tokenizer' has no text"):
            vocabulary.spell([5, id])


def test_a_character_without_token_is_named() -> None:
    with pytest.raises(InferKitError, match="has no token for 'ꙮ'"):
        from_trained(trained.unigram).encode("the ꙮ sign")
    with pytest.raises(InferKitError, match="cannot spell byte 0xa9"):
        Vocabulary((b"a", b"\xc3"), (), "bytes").encode("aé")


def test_without_a_tokenizer_nothing_is_encoded() -> None:
    with pytest.raises(InferKitError, match="'toy' has no tokenizer to encode with"):
        Vocabulary((b"a",), (), "bpe", name="toy").encode("a")


def test_the_users_tokenizer_stays_as_it_is() -> None:
    core = Tokenizer.from_str(trained.signed_bpe().to_str())
    core.enable_truncation(3)
    before = core.to_str()
    vocabulary = Vocabulary.from_hf(core)
    assert core.to_str() == before
    assert vocabulary.conditioned("the lighthouse keeper") == "the lighthouse keeper"
