"""How often the symbols of two models differ on one text."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers

from infer_kit.errors import InferKitError
from infer_kit.vocab.mismatch import mismatch_report
from infer_kit.vocab.plain_texts import PLAIN_TEXTS
from infer_kit.vocab.submap import common_vocabulary
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained
from tests.vocab.texts import CODE, SENTENCES

LETTERS = {chr(code): code - 97 for code in range(97, 123)}
ENGLISH = "".join(sentence + "\n" for sentence in SENTENCES if sentence.isascii()) * 20
CHINESE = "清晨的市场里挤满了人，卖鱼的老人正在和顾客讨价还价。机器学习模型把文字切成很多小块。"


def bpe(*merges: str) -> Vocabulary:
    """BPE over small letters with these merges, "a b" for that of a and b."""
    pairs = [tuple(merge.split()) for merge in merges]
    vocab = LETTERS | {left + right: 26 + n for n, (left, right) in enumerate(pairs)}
    return Vocabulary.from_hf(Tokenizer(models.BPE(vocab, pairs)))


def test_a_mismatch_counted_by_hand() -> None:
    first, second = bpe("a b", "b c"), bpe("b c", "a b")
    assert common_vocabulary(first, second)[256:] == (b"ab", b"bc")
    report = mismatch_report(first, second, texts=["xxabcxxxabx", "", "bc"])
    # ab|c against a|bc in the first text; all else is alike
    assert report.counts == (9 + 1, 9 + 1)
    assert report.forward == report.backward == report.worst == 2 / 10
    (example,) = report.examples
    assert (example.before, example.after) == ("xx", "xxxabx")
    assert (example.first, example.second) == ((b"ab", b"c"), (b"a", b"bc"))


def test_both_directions_count() -> None:
    first, second = bpe("a b", "ab c"), bpe("x y")
    report = mismatch_report(
        first, second, symbols=[*map(str.encode, LETTERS), b"abc"], texts=["abcd"]
    )
    assert (report.forward, report.backward) == (1 / 2, 3 / 4)


def test_bytes_never_differ() -> None:
    a, b = (Vocabulary.from_hf(trained.LOSSLESS[k]()) for k in ("split_bpe", "signed_bpe"))
    texts = [ENGLISH, CHINESE, *CODE]
    report = mismatch_report(a, b, "bytes", texts)
    assert report.worst == 0 and report.examples == ()
    assert report.counts == (sum(len(t.encode()) for t in texts),) * 2
    assert mismatch_report(a, b, texts=texts).worst > 0.001


def test_a_dummy_prefix_is_not_part_of_the_text() -> None:
    a, b = (Vocabulary.from_hf(trained.LOSSLESS[k]()) for k in ("signed_bpe", "unigram"))
    with_prefix = mismatch_report(a, a, texts=["The lighthouse"])
    assert with_prefix.worst == 0
    without = Vocabulary.from_hf(_unprefixed())
    report = mismatch_report(a, without, symbols="bytes", texts=["The lighthouse"])
    assert report.counts == (14, 14) and b.prefix == b" "


def _unprefixed() -> Tokenizer:
    core = Tokenizer.from_str(trained.signed_bpe().to_str())
    core.normalizer = normalizers.Replace(" ", "▁")
    return core


def test_a_text_is_compared_as_both_read_it() -> None:
    core = Tokenizer.from_str(trained.byte_level_bpe().to_str())
    core.normalizer = normalizers.Lowercase()
    report = mismatch_report(core, trained.byte_level_bpe(), texts=[ENGLISH])
    assert report.worst == 0 and report.counts[0] > 500


def test_normalisers_that_disagree_are_refused() -> None:
    low, high = (Tokenizer.from_str(trained.byte_level_bpe().to_str()) for _ in range(2))
    low.normalizer, high.normalizer = normalizers.Lowercase(), normalizers.Replace("e", "E")
    with pytest.raises(InferKitError, match="normalisers of 'tokenizer' and 'tokenizer' make diff"):
        mismatch_report(low, high, texts=["the"])


def test_the_default_text_is_a_page_in_four_languages() -> None:
    core = trained.byte_level_bpe()
    report = mismatch_report(core, trained.split_bpe(), "bytes")
    assert report.counts == (sum(len(text.encode()) for text in PLAIN_TEXTS.values()),) * 2


def test_without_text_nothing_is_counted() -> None:
    with pytest.raises(InferKitError, match="A mismatch is counted on texts; none was given"):
        mismatch_report(bpe("a b"), bpe("b c"), texts=[""])


def test_a_real_pair() -> None:
    pair = trained.real("mistral"), trained.real("gpt2")
    assert mismatch_report(*pair, texts=[ENGLISH]).worst > 0.001
