"""The reported leak is the share of each law that turned out to be no tokenizer's."""

from __future__ import annotations

import math

import pytest

from infer_kit.vocab.reduction import Reduction
from tests.vocab import kinds
from tests.vocab.reference import hashed, opened, read


@pytest.mark.parametrize("kind", ["few_letters_bpe", "unsplit_bpe", "signed_bpe", "split_bpe"])
def test_leak_is_what_the_law_gave_and_the_text_did_not_get(kind: str) -> None:
    """1 - P(ys) / (P(y) q(s|y)), added up over the symbols of a text."""
    vocabulary = kinds.vocabulary(kind)
    reducer, reader = opened(Reduction(vocabulary), hashed(vocabulary.size), (2,))
    expected, most = 0.0, 0.0
    for byte in vocabulary.prefix + b"all  ab'll ba'l \n\nlab":
        law, before = reducer.next()[byte], reducer.logprob()[0]
        read(reducer, reader, [byte])
        lost = 1 - math.exp(reducer.logprob()[0] - before) / law
        expected, most = expected + lost, max(most, lost)
        assert reducer.stats.leak == pytest.approx(expected, abs=1e-9)
    assert most > 0.01


def test_nothing_leaks_where_every_segmentation_counts() -> None:
    vocabulary = kinds.vocabulary("few_letters_bpe")
    reducer, reader = opened(Reduction(vocabulary, mode="full"), hashed(vocabulary.size), (2,))
    assert read(reducer, reader, b"ab'll ").stats.leak == 0.0
