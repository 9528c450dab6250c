"""CIDEr, BLEU and ROUGE-L against their definitions, written out slowly in float64."""

import math
import random
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.evaluation.metrics.captions import bleu, cider, ptb_tokens, rouge_l

pytest.importorskip("pycocoevalcap")

WORDS = ["a", "the", "dog", "cat", "isn't", "runs,", "on", "grass.", "U.S.", "t-shirt", "(red)"]


def random_data(seed: int, samples: int = 12) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)

    def text(least: int = 4) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, 9)))

    return (
        [text() for _ in range(samples)],
        [[text() for _ in range(rng.randint(1, 5))] for _ in range(samples)],
    )


def ngrams(tokens: list[str], n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def slow_cider(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """From the formula of the paper, with the clipping and length penalty of CIDEr-D."""
    tokens = [ptb_tokens(p) for p in predictions]
    true = [[ptb_tokens(r) for r in several] for several in references]

    def weights(words: list[str], n: int) -> dict:
        total = {}
        for gram, count in ngrams(words, n).items():
            seen = sum(any(gram in ngrams(r, n) for r in several) for several in true)
            total[gram] = count * math.log(len(true) / max(1, seen))
        return total

    scores = []
    for words, several in zip(tokens, true, strict=True):
        score = 0.0
        for n in range(1, 5):
            g = weights(words, n)
            for reference in several:
                r = weights(reference, n)
                dot = sum(min(value, r[gram]) * r[gram] for gram, value in g.items() if gram in r)
                norm = math.hypot(*g.values()) * math.hypot(*r.values())
                # pycocoevalcap measures length in bigrams, so in tokens less one
                apart = max(0, len(words) - 1) - max(0, len(reference) - 1)
                score += math.exp(-(apart**2) / 72) * (dot / norm if norm else 0.0) / len(several)
        scores.append(10 * score / 4)
    return np.array(scores)


def slow_bleu(tokens: list[list[str]], true: list[list[list[str]]], order: int) -> float:
    matched, total = [0] * order, [0] * order
    length = closest = 0
    for words, several in zip(tokens, true, strict=True):
        length += len(words)
        closest += min((abs(len(r) - len(words)), len(r)) for r in several)[1]
        for n in range(1, order + 1):
            grams = ngrams(words, n)
            total[n - 1] += max(0, len(words) - n + 1)
            for gram, count in grams.items():
                matched[n - 1] += min(count, max(ngrams(r, n)[gram] for r in several))
    precision = math.prod((m / t) ** (1 / order) for m, t in zip(matched, total, strict=True))
    return precision * min(1.0, math.exp(1 - closest / length))


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """By trying every subsequence of the first."""

    def within(part: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(word in rest for word in part)

    return max(n for n in range(len(a) + 1) if any(within(part) for part in combinations(a, n)))


def slow_rouge(words: list[str], several: list[list[str]]) -> float:
    common = [longest_common_subsequence(words, r) for r in several]
    p = max(c / len(words) for c in common)
    r = max(c / len(reference) for c, reference in zip(common, several, strict=True))
    return (1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_cider_is_the_formula(seed: int) -> None:
    predictions, references = random_data(seed)
    score, each = cider(predictions, references)
    expected = slow_cider(predictions, references)
    np.testing.assert_allclose(each, expected, rtol=1e-10, atol=1e-12)
    assert score == pytest.approx(expected.mean(), rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_the_formula(seed: int) -> None:
    predictions, references = random_data(seed)
    tokens = [ptb_tokens(p) for p in predictions]
    true = [[ptb_tokens(r) for r in several] for several in references]
    scores, each = bleu(predictions, references)
    for order in range(1, 5):
        assert scores[order - 1] == pytest.approx(slow_bleu(tokens, true, order), rel=1e-6)
    assert each.shape == (len(predictions), 4)
    assert each[0, 0] == pytest.approx(slow_bleu(tokens[:1], true[:1], 1), rel=1e-6, abs=1e-6)


def test_bleu_4_is_that_of_sacrebleu_on_the_tokens() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, references = random_data(7, samples=60)
    references = [(several * 5)[:5] for several in references]  # as many for each
    scores, _ = bleu(predictions, references)
    theirs = sacrebleu.corpus_bleu(
        [" ".join(ptb_tokens(p)) for p in predictions],
        [[" ".join(ptb_tokens(several[k])) for several in references] for k in range(5)],
        tokenize="none",
        force=True,
    )
    assert 100 * scores[3] == pytest.approx(theirs.score, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_is_the_formula(seed: int) -> None:
    predictions, references = random_data(seed)
    score, each = rouge_l(predictions, references)
    expected = [
        slow_rouge(ptb_tokens(p), [ptb_tokens(r) for r in several])
        for p, several in zip(predictions, references, strict=True)
    ]
    np.testing.assert_allclose(each, expected, rtol=1e-12)
    assert score == pytest.approx(np.mean(expected))


def test_raw_strings_are_tokenised() -> None:
    """The known trap: "grass." is not "grass" for the scorers, which gave a CIDEr of 0."""
    written = ["A dog runs on grass.", "The cat sleeps!", "Two birds (fly)."]
    true = [["a dog runs on grass"], ["the cat sleeps"], ["two birds ( fly )"]]
    for metric in (cider, rouge_l):
        score, each = metric(written, true)
        assert score == metric([several[0] for several in true], true)[0] > 0.9
        assert (each > 0.9).all()
    assert bleu(written, true)[0][0] == pytest.approx(1)


def test_punctuation_alone_scores_nothing_and_does_not_fail() -> None:
    predictions, references = ["...", "a dog runs here"], [["a cat"], ["a dog runs here"]]
    assert cider(predictions, references)[1][0] == 0
    assert rouge_l(predictions, references)[1][0] == 0
    assert bleu(predictions, references)[1][0, 0] < 1e-6


@pytest.mark.parametrize("metric", [cider, bleu, rouge_l])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "Got 0 captions"),
        (["a"], [], "Got 1 captions and references for 0 samples"),
        (["a"], [[]], r"references\[0\] must be a list of at least one caption"),
        (["a"], ["a dog"], r"references\[0\] must be a list of at least one caption"),
    ],
)
def test_refused(metric, predictions, references, message) -> None:
    with pytest.raises(InferKitError, match=message):
        metric(predictions, references)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(MissingExtra, match="pycocoevalcap is not installed") as error:
        cider(["a"], [["a"]])
    assert error.value.hint == "pip install 'infer-kit[evals]'"
