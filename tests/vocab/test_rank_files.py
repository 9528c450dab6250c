"""Files of BPE ranks: merges recovered, words split, and the encoding that ranks define."""

from __future__ import annotations

import base64
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex

from infer_kit.errors import InferKitError
from infer_kit.vocab.rank_files import PATTERNS, merges_of_ranks
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained
from tests.vocab.texts import multilingual


def ranks_of(vocabulary: Vocabulary) -> dict[bytes, int]:
    return {text: id for id, text in enumerate(vocabulary.tokens) if text is not None}


def by_ranks(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """What ranks define: in each word, merge the pair whose whole has the least rank."""
    ids = []
    for word in regex.findall(pattern, text):
        data = word.encode()
        parts = [data] if data in ranks else [data[i : i + 1] for i in range(len(data))]
        while len(parts) > 1:
            wholes = [a + b for a, b in pairwise(parts)]
            best = min(range(len(wholes)), key=lambda i: ranks.get(wholes[i], 1 << 30))
            if wholes[best] not in ranks:
                break
            parts[best : best + 2] = [wholes[best]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def small() -> dict[bytes, int]:
    """Ranks as tiktoken has them: the bytes, then the wholes of a trained tokenizer's merges."""
    vocabulary = Vocabulary.from_hf(trained.split_bpe())
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _, _, whole in vocabulary.merges.tolist():
        ranks.setdefault(vocabulary.spell([whole]), len(ranks))
    return ranks


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items())
    path.write_text("\n".join(lines))
    return path


def test_merges_are_recovered(small: dict[bytes, int]) -> None:
    vocabulary = Vocabulary.from_hf(trained.split_bpe())
    spell = vocabulary.spell
    trained_merges = [(spell([a]), spell([b])) for a, b, _ in vocabulary.merges.tolist()]
    assert merges_of_ranks(small) == trained_merges


@pytest.mark.parametrize("name", PATTERNS)
def test_encoding_is_what_ranks_define(name: str, small: dict[bytes, int], tmp_path: Path) -> None:
    path = write(tmp_path / f"{name}_small.tiktoken", small)
    vocabulary = Vocabulary.from_tiktoken(path, specials={"<end>": 2000})
    text = multilingual(40_000, seed=3)
    assert vocabulary.encode(text) == by_ranks(text, small, PATTERNS[name].pattern)
    assert vocabulary.conditioned(text) == text
    assert (vocabulary.kind, vocabulary.size, vocabulary.end_ids) == ("byte_bpe", 2001, (2000,))


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k", "qwen"])
def test_real_files_encode_as_ranks_define(name: str) -> None:
    vocabulary = trained.real(name)
    text = multilingual(30_000, seed=4)
    expected = by_ranks(text, ranks_of(vocabulary), PATTERNS[name].pattern)
    assert vocabulary.encode(text) == expected


@pytest.mark.parametrize(
    ("name", "size", "end"),
    [("gpt2", 50257, 50256), ("cl100k", 100277, 100257), ("o200k", 200019, 199999),
     ("qwen", 151646, 151643)],
)  # fmt: skip
def test_real_files_have_their_special_tokens(name: str, size: int, end: int) -> None:
    vocabulary = trained.real(name)
    assert vocabulary.size == size and vocabulary.end_ids == vocabulary.empty_ids == (end,)
    assert vocabulary.begin_ids == ()


def test_gpt2_has_its_known_ids() -> None:
    assert trained.real("gpt2").encode("Hello world") == [15496, 995]


def test_qwen_composes_characters_as_it_does() -> None:
    assert trained.real("qwen").conditioned("e\u0301") == unicodedata.normalize("NFC", "e\u0301")


def test_an_encoding_object(small: dict[bytes, int]) -> None:
    pattern = r"\p{L}++|\p{N}{1,3}+|[^\p{L}\p{N}]++"  # possessive, as tiktoken writes them
    small = small | {b"1234567": len(small)}
    encoding = SimpleNamespace(
        name="mine",
        _mergeable_ranks=small,
        _pat_str=pattern,
        _special_tokens={"<|end|>": len(small), "<|pad|>": len(small) + 1},
    )
    vocabulary = Vocabulary.from_tiktoken(encoding)
    assert vocabulary.name == "mine" and vocabulary.end_ids == (len(small),)
    text = "the 1234567 lighthouses"
    assert vocabulary.encode(text) == by_ranks(text, small, pattern)


def test_a_token_that_no_merges_make_is_found_as_a_word(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    assert merges_of_ranks(ranks) == []
    vocabulary = Vocabulary.from_tiktoken(write(tmp_path / "x.tiktoken", ranks), pattern=r"\S+|\s+")
    assert vocabulary.encode("abc abcd") == [256, 32, 97, 98, 99, 100]


def test_a_file_without_known_pattern_is_refused(small: dict[bytes, int], tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="How 'x.tiktoken' splits text into words is not known"):
        Vocabulary.from_tiktoken(write(tmp_path / "x.tiktoken", small))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("IQ== 0\nthis is no rank\n", "line 2 is b'this is no rank'"),
        ("IQ== 0\nI?== 1\n", "line 2 is b'I?== 1'"),
        ("IQ== 0\n", "has no token for byte 0"),
        ("#version: 0.2\na b\na b c\n", "no file of BPE merges: line 3 is 'a b c'"),
    ],
)
def test_files_of_something_else_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gpt2.tiktoken"
    path.write_text(content)
    with pytest.raises(InferKitError, match=re.escape(message)):
        Vocabulary.from_tiktoken(path)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InferKitError, match="No file 'no/such.tiktoken'"):
        Vocabulary.from_tiktoken("no/such.tiktoken")


def test_a_special_token_on_the_id_of_text_is_refused(
    small: dict[bytes, int], tmp_path: Path
) -> None:
    path = write(tmp_path / "gpt2.tiktoken", small)
    with pytest.raises(InferKitError, match="Special token '<end>' has id 65, which is b'A'"):
        Vocabulary.from_tiktoken(path, specials={"<end>": 65})
