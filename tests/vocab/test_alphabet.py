"""Which alphabet members share, and how their tokens are cut over it."""

from __future__ import annotations

import pytest

import infer_kit as ik
from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.vocab.alphabet import MOST_MISMATCH, choose_alphabet
from infer_kit.vocab.mismatch import mismatch_report
from infer_kit.vocab.submap import BYTES
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import kinds

SPLIT, SIGNED = kinds.vocabulary("split_bpe"), kinds.vocabulary("signed_bpe")
UNIGRAM = kinds.vocabulary("fallback_unigram")


def test_what_is_chosen_where_nothing_is_asked_for() -> None:
    """Tokens where several members have the same; else bytes, of one model too."""
    name, symbols, method = choose_alphabet([SPLIT, SPLIT, SPLIT], None)
    assert (name, method) == ("tokens", None)
    assert set(symbols) == set(SPLIT.tokens) - {None} and list(symbols) == sorted(set(symbols))
    for vocabularies in ([SPLIT], [SPLIT, SIGNED], [SPLIT, SPLIT, UNIGRAM]):
        assert choose_alphabet(vocabularies, None) == ("bytes", "bytes", None)


def test_the_same_tokenizer_is_known_by_what_its_tokens_spell() -> None:
    """Neither its size nor its name says so."""
    twin = Vocabulary(SPLIT.tokens, SPLIT.end_ids, SPLIT.kind, SPLIT.encoder, name="twin")
    assert choose_alphabet([SPLIT, twin], None)[0] == "tokens"
    turned = Vocabulary((*SPLIT.tokens[:3], *SPLIT.tokens[:2:-1]), SPLIT.end_ids, SPLIT.kind)
    assert turned.size == SPLIT.size
    assert choose_alphabet([SPLIT, turned], None)[0] == "bytes"
    with pytest.raises(VocabularyMismatch, match="tokenizers differ"):
        choose_alphabet([SPLIT, turned], "tokens")


def test_what_is_asked_for_is_taken() -> None:
    assert choose_alphabet([SPLIT, SPLIT], "bytes") == ("bytes", "bytes", None)
    assert choose_alphabet([SPLIT], "tokens")[0] == "tokens"
    symbols = ik.common_vocabulary(SPLIT)
    assert choose_alphabet([SPLIT, SPLIT], list(symbols)) == ("symbols", symbols, None)


def test_a_common_vocabulary_must_fit_every_member() -> None:
    """The one that fits worst counts, wherever it stands."""
    symbols = ik.common_vocabulary(SPLIT, UNIGRAM)
    assert mismatch_report(SPLIT, UNIGRAM, symbols, method="greedy").worst > MOST_MISMATCH
    for vocabularies in ([SPLIT, UNIGRAM], [UNIGRAM, SPLIT], [SPLIT, SPLIT, UNIGRAM]):
        with pytest.raises(VocabularyMismatch, match=r"cut \d+\.\d\d% of the symbols"):
            choose_alphabet(vocabularies, symbols)
        name, taken, method = choose_alphabet(vocabularies, symbols, force=True)
        assert (name, taken, method) == ("symbols", symbols, "greedy")  # Unigram has no merges
    assert choose_alphabet([SPLIT, UNIGRAM], BYTES)[:2] == ("symbols", BYTES)  # these always fit


def test_tokens_are_cut_the_way_that_agrees_best() -> None:
    symbols = ik.common_vocabulary(SPLIT, SIGNED)
    shares = {m: mismatch_report(SPLIT, SIGNED, symbols, method=m).worst for m in ("bpe", "greedy")}
    assert shares["bpe"] != shares["greedy"]
    best = min(shares, key=shares.__getitem__)
    assert choose_alphabet([SPLIT, SIGNED], symbols, force=True)[2] == best


def test_symbols_that_are_no_byte_strings() -> None:
    for symbols in ([b"a", "b"], [b"a", b""], [b"a", 3]):
        with pytest.raises(InferKitError, match="expected non-empty byte strings"):
            choose_alphabet([SPLIT], symbols)
