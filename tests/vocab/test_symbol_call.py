"""Stop texts over symbols of any length: where they are found, and where a text is cut."""

from __future__ import annotations

import torch

from infer_kit.vocab.symbol_call import StopTexts, cut_at
from infer_kit.vocab.symbol_lm import SymbolTokenizer

TOKENIZER = SymbolTokenizer([b"a", b"b", b"stop! go", b"st", b"op"])
WAIT = TOKENIZER.wait_token_id


def test_a_text_is_cut_at_the_stop_text_that_is_complete_first() -> None:
    """A symbol may complete several."""
    assert cut_at(b"stop! go", [b"go", b"stop", b"!"]) == b"stop"
    assert cut_at(b"stop! go", [b"op! g", b"p! "]) == b"stop! "
    assert cut_at(b"stop", [b"go"]) == b"stop" and cut_at(b"stop", []) == b"stop"


def test_stop_texts_are_found_across_symbols_and_waits_but_not_before_the_start() -> None:
    found = StopTexts(TOKENIZER, [b"stop", b"ba"], start=2)
    for row, expected in (
        ([0, 0, 3, 4], True),
        ([0, 0, 3, WAIT, WAIT, 4], True),
        ([0, 3, 4, 0], False),  # begins before
        ([3, 4, 0, 0], False),
        ([0, 1, 0, 0], False),
        ([0, 0, 1, 0], True),
        ([0, 0, 2, WAIT], True),
        ([0, 0, 3, 1], False),
    ):
        assert found(torch.tensor([row]), None).tolist() == [expected], row
    rows = torch.tensor([[0, 0, 3, 4], [0, 0, 4, 3]])
    assert found(rows, None).tolist() == [True, False]
