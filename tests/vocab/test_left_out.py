"""Symbols that are left out of a pooled law, and what that does to its bound."""

from __future__ import annotations

import numpy as np
import pytest

from infer_kit.vocab.pooled_text import PooledText
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.weighting import Weighting
from tests.vocab import kinds
from tests.vocab.reference import hashed, read
from tests.vocab.taught import is_utf8_so_far


def test_the_bound_is_of_the_law_without_them() -> None:
    """Given that a symbol is none of those, laws differ by that much more."""
    vocabulary = kinds.vocabulary("split_bpe")
    reduction = Reduction(vocabulary)
    reader = Reader(reduction, hashed(vocabulary.size), None)
    reducer = CertifiedReducer(reduction, 0.2)
    reducer.open(reader.begin([vocabulary.end_ids[:1]])[0])
    least = 1.0
    for place, byte in enumerate(data := "größe le the ".encode()):
        own = reducer.next()
        law = PooledText([reducer], Weighting((1.0,)), "mixture")
        so_far = data[:place]
        kept = [is_utf8_so_far(so_far + bytes([s])) for s in range(256)]
        kept.append(is_utf8_so_far(so_far) and not is_open(so_far))
        total = own[np.array(kept)].sum()
        assert set(np.flatnonzero(law.law())) == set(np.flatnonzero(own * kept))
        assert law.tv_bound == pytest.approx(min(1.0, reducer.tv_bound / total), abs=1e-12)
        if reducer.tv_bound > 0:
            least = min(least, total)
        read(reducer, reader, [byte])
    assert least < 0.9


def is_open(text: bytes) -> bool:
    """Whether the last character has begun and not ended."""
    return bool(text) and text.decode("utf-8", "ignore").encode() != text
