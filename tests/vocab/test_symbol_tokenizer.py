"""What streamers see of an alphabet: ids decoded, incomplete characters held back."""

from __future__ import annotations

import torch

from infer_kit.vocab.symbol_lm import SymbolTokenizer

BYTES = SymbolTokenizer([bytes([byte]) for byte in range(256)])
WORDS = SymbolTokenizer([b"caf", b"\xc3", b"\xa9", b" \xf0\x9f", b"\x8e\x89!", None])


def test_ids_beyond_the_symbols_have_no_text() -> None:
    assert (BYTES.eos_token_id, BYTES.bos_token_id, BYTES.wait_token_id) == (256, 257, 258)
    assert BYTES.pad_token_id == BYTES.bos_token_id and len(BYTES) == 259
    assert BYTES.spell([257, *b"ab", 258, *b"c", 256, 257]) == b"abc"
    assert BYTES.spell(torch.tensor([104, 256, 105])) == b"hi" and BYTES.spell([]) == b""
    assert WORDS.spell([0, 5, 1, 2, 6, 7]) == "café".encode()  # a symbol without text, END


def test_an_incomplete_character_is_held_back() -> None:
    whole = "é 🎉ß"
    data, shown = whole.encode(), []
    for count in range(len(data) + 1):
        shown.append(BYTES.decode(list(data[:count])))
        assert whole.startswith(shown[-1]) and "\ufffd" not in shown[-1]
        assert shown[-1].encode() == data[: len(shown[-1].encode())]
        assert count - len(shown[-1].encode()) < 4
    assert shown == ["", "", "é", "é ", "é ", "é ", "é ", "é 🎉", "é 🎉", "é 🎉ß"]
    assert WORDS.decode([0, 1]) == "caf" and WORDS.decode([0, 1, 2, 3]) == "café "
    assert WORDS.decode([3, 4]) == " 🎉!"


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert BYTES.decode([*b"a", 0x80, *b"b"]) == "a\ufffdb"
    assert BYTES.decode([*b"a", 0xC0]) == "a\ufffd"  # no character begins so


def test_batches_and_what_other_tokenizers_are_asked() -> None:
    rows = torch.tensor([[104, 105, 256], [257, 0xC3, 0xA9]])
    assert BYTES.batch_decode(rows, skip_special_tokens=True) == ["hi", "é"]
    assert BYTES.decode(rows[0], clean_up_tokenization_spaces=False) == "hi"
