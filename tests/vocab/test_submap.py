"""Maps of tokens to symbols: the same bytes, by every method, and what cannot be."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from infer_kit.errors import InferKitError
from infer_kit.vocab.submap import BYTES, Method, SubwordMap, common_vocabulary
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained

METHODS: tuple[Method, ...] = ("bpe", "greedy", "shortest")


def vocabulary_of(kind: str) -> Vocabulary:
    return Vocabulary.from_hf(trained.LOSSLESS[kind]())


def spells_every_token(mapping: SubwordMap) -> bool:
    return all(
        mapping.spell(mapping.phi(id)) == (text or b"")
        for id, text in enumerate(mapping.vocabulary.tokens)
    )


@pytest.mark.parametrize("kind", trained.LOSSLESS)
def test_bytes(kind: str) -> None:
    mapping = SubwordMap(vocabulary_of(kind))
    assert mapping.is_bytes and mapping.symbols == BYTES
    assert spells_every_token(mapping)
    assert mapping.flat.dtype == np.int32 and mapping.offsets[-1] == len(mapping.flat)
    assert mapping.phi(0) == ()  # <unk>


def test_bytes_of_a_large_vocabulary_are_fast() -> None:
    data = np.random.default_rng(0).bytes(151_643 + 13)
    tokens = tuple(data[at : at + 1 + at % 12] for at in range(151_643))
    vocabulary = Vocabulary(tokens, (), "bpe")
    start = time.process_time()
    mapping = SubwordMap(vocabulary)
    assert time.process_time() - start < 0.3  # 0.05 seen
    assert mapping.spell(mapping.phi(151_642)) == tokens[-1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("first", "second"), [("byte_level_bpe", "signed_bpe"), ("signed_bpe", "split_bpe")]
)
def test_a_common_vocabulary_spells_every_token(first: str, second: str, method: Method) -> None:
    vocabularies = vocabulary_of(first), vocabulary_of(second)
    symbols = common_vocabulary(*vocabularies)
    assert 300 < len(symbols) < len(set(vocabularies[0].tokens))
    for vocabulary in vocabularies:
        mapping = SubwordMap(vocabulary, symbols, method)
        assert not mapping.is_bytes and spells_every_token(mapping)
        for id, text in enumerate(vocabulary.tokens):
            assert text not in mapping.index or mapping.phi(id) == (mapping.index[text],)


@pytest.mark.parametrize("method", ["greedy", "shortest"])
def test_methods_by_spelling_need_no_merges(method: Method) -> None:
    symbols = common_vocabulary(vocabulary_of("unigram"), vocabulary_of("signed_bpe"))
    mapping = SubwordMap(vocabulary_of("unigram"), symbols, method)
    assert spells_every_token(mapping)
    assert (
        method != "greedy"
        or (mapping.flat == SubwordMap(vocabulary_of("unigram"), symbols).flat).all()
    )


def test_the_common_vocabulary_is_bytes_then_what_all_have() -> None:
    a = Vocabulary((b"the", b"t", None, b"\xff\xfe", b"zz"), (), "bpe")
    b = Vocabulary((b"zz", b"the", b"he", b"\xff\xfe"), (), "bpe")
    assert (
        common_vocabulary(a, b) == common_vocabulary(b, a) == (*BYTES, b"the", b"zz", b"\xff\xfe")
    )
    assert common_vocabulary(a, b, Vocabulary((b"the",), (), "bpe")) == (*BYTES, b"the")
    tokenizers = trained.wrapped(trained.split_bpe()), trained.unigram()
    expected = common_vocabulary(vocabulary_of("split_bpe"), vocabulary_of("unigram"))
    assert common_vocabulary(*tokenizers) == expected


@pytest.mark.parametrize(
    ("pair", "size"),
    [(("qwen", "dolma2"), 99_156), (("cl100k", "o200k"), 85_033), (("gpt2", "neox"), 36_950),
     (("mistral", "qwen"), 29_234)],
)  # fmt: skip
def test_common_vocabularies_of_real_files(pair: tuple[str, str], size: int) -> None:
    assert len(common_vocabulary(*map(trained.real, pair))) == size


# Methods ----------------------------------------------------------------------------------------


def cut(text: bytes, symbols: list[bytes], method: Method) -> list[bytes]:
    """How a vocabulary of one token, `text`, is cut."""
    vocabulary = Vocabulary((text,), (), "bpe")
    mapping = SubwordMap(vocabulary, [*BYTES, *symbols], method)
    return [mapping.symbols[index] for index in mapping.phi(0)]


def test_greedy_takes_the_longest_from_the_left() -> None:
    assert cut(b"abcdx", [b"ab", b"abc", b"bcdx"], "greedy") == [b"abc", b"d", b"x"]


def test_shortest_takes_the_fewest_the_longer_first() -> None:
    assert cut(b"abcdx", [b"ab", b"abc", b"bcdx"], "shortest") == [b"a", b"bcdx"]
    assert cut(b"abcd", [b"abc", b"bcd"], "shortest") == [b"abc", b"d"]


def test_shortest_is_shortest_on_random_vocabularies() -> None:
    draw = random.Random(0)
    for _ in range(60):
        symbols = {bytes(draw.choices(b"ab", k=draw.randint(2, 4))) for _ in range(5)}
        text = bytes(draw.choices(b"ab", k=9))
        fewest = [0]
        for end in range(1, len(text) + 1):
            steps = [s for s in range(end) if end - s == 1 or text[s:end] in symbols]
            fewest.append(min(fewest[s] + 1 for s in steps))
        found = cut(text, sorted(symbols), "shortest")
        assert len(found) == (1 if text in symbols else fewest[-1])


def test_bpe_applies_the_merges_whose_parts_and_whole_are_symbols() -> None:
    vocabulary = vocabulary_of("byte_level_bpe")
    chain = {text for text in vocabulary.tokens if text is not None} - {b"the", b" the"}
    mapping = SubwordMap(vocabulary, [*BYTES, *sorted(t for t in chain if len(t) > 1)], "bpe")
    token = vocabulary.tokens.index(b" the")
    merges = {vocabulary.spell([whole]): (a, b) for a, b, whole in vocabulary.merges.tolist()}
    left, right = (vocabulary.spell([part]) for part in merges[b" the"])
    assert [mapping.symbols[i] for i in mapping.phi(token)] == [left, right]


def test_bpe_starts_from_characters_where_the_tokenizer_does() -> None:
    vocabulary = vocabulary_of("signed_bpe")
    token = next(
        id for id, text in enumerate(vocabulary.tokens)
        if text is not None and len(text.decode("utf-8", "ignore").encode()) == len(text)
        and len(text.decode()) == 2 and len(text) == 4
    )  # fmt: skip
    letters = vocabulary.spell([token]).decode()
    mapping = SubwordMap(vocabulary, [*BYTES, letters[0].encode()], "bpe")
    last = letters[1].encode()
    assert [mapping.symbols[i] for i in mapping.phi(token)] == [
        letters[0].encode(), last[:1], last[1:]
    ]  # fmt: skip


def test_symbols_of_a_text_are_those_of_its_tokens() -> None:
    vocabulary = vocabulary_of("split_bpe")
    mapping = SubwordMap(vocabulary, common_vocabulary(vocabulary, vocabulary_of("signed_bpe")))
    ids = vocabulary.encode("größere Vögel flohen")
    assert mapping.spell(mapping.of_tokens(ids)) == "größere Vögel flohen".encode()
    assert mapping.of_tokens([]).shape == (0,)


# A map of one's own ------------------------------------------------------------------------------


def test_a_map_of_ones_own_is_checked() -> None:
    vocabulary = Vocabulary((b"ab", None, b"b"), (1,), "bpe")
    symbols = [b"a", b"b", b"ab"]
    for phi in ([(0, 1), (), (1,)], {0: [0, 1], 2: [1]}):
        mapping = SubwordMap.from_phi(vocabulary, symbols, phi)  # type: ignore[arg-type]
        assert [mapping.phi(id) for id in range(3)] == [(0, 1), (), (1,)]
    with pytest.raises(InferKitError, match="phi of token 2 spells b'a', the token b'b'"):
        SubwordMap.from_phi(vocabulary, symbols, [(2,), (), (0,)])
    with pytest.raises(InferKitError, match="phi of token 1 spells b'a', the token None"):
        SubwordMap.from_phi(vocabulary, symbols, [(2,), (0,), (1,)])
    with pytest.raises(InferKitError, match="phi has indices beyond the 3 symbols"):
        SubwordMap.from_phi(vocabulary, symbols, [(3,), (), (1,)])


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_byte_that_cannot_be_spelt_is_named_with_its_token(method: Method) -> None:
    vocabulary = vocabulary_of("byte_level_bpe")
    token = next(id for id, text in enumerate(vocabulary.tokens) if text and b"z" in text)
    symbols = [symbol for symbol in BYTES if symbol != b"z"]
    message = f"cannot spell byte b'z' of token {token} "
    with pytest.raises(InferKitError, match=message):
        SubwordMap(vocabulary, symbols, method)


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ([], "Symbols are byte strings that are not empty; got None"),
        ([b"a", b""], "not empty; got b''"),
        ([b"a", "b"], "not empty; got 'b'"),
        ([b"a", b"b", b"a"], "Symbol b'a' is there twice"),
        ("letters", "symbols='letters'; expected \"bytes\" or a list of byte strings"),
    ],
)
def test_symbols_that_cannot_be(symbols: list[bytes], message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        SubwordMap(Vocabulary((b"a",), (), "bpe"), symbols)


def test_bpe_needs_merges() -> None:
    with pytest.raises(InferKitError, match="The unigram vocabulary 'tokenizer' has no merges"):
        SubwordMap(vocabulary_of("unigram"), [*BYTES, b"the"], "bpe")


def test_methods_have_their_names() -> None:
    with pytest.raises(InferKitError, match="method='longest'; expected"):
        SubwordMap(Vocabulary((b"a",), (), "bpe"), [b"a"], "longest")  # type: ignore[arg-type]


def test_a_common_vocabulary_is_of_something() -> None:
    with pytest.raises(InferKitError, match="needs at least one tokenizer"):
        common_vocabulary()
