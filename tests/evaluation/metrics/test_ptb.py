"""Tokens of captions: those of Java, on stored captions and, where Java is there, on its own."""

import random
import shutil
from pathlib import Path

import pytest

from infer_kit.evaluation.metrics.captions import cider, ptb_tokens
from infer_kit.evaluation.metrics.ptb import PUNCTUATION

HERE = Path(__file__).parent


def lines(name: str) -> list[str]:
    return (HERE / name).read_text(encoding="utf-8").split("\n")[:-1]


CAPTIONS = lines("captions.txt")


def java_tokens(captions: list[str]) -> list[str]:
    """Through pycocoevalcap, as the COCO evaluation does it."""
    package = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("no java, which pycocoevalcap's tokeniser needs")
    given = {n: [{"caption": caption}] for n, caption in enumerate(captions)}
    return [tokens for (tokens,) in package.PTBTokenizer().tokenize(given).values()]


def test_enough_captions_of_many_kinds() -> None:
    assert len(CAPTIONS) > 300
    for odd in ("st.", "a.m.", "t-shirt", "#1", "&", "50%", "5'4\"", "🐶", "and/or", "“", "é"):
        assert any(odd in caption for caption in CAPTIONS), odd


@pytest.mark.parametrize(
    ("caption", "tokens"), list(zip(CAPTIONS, lines("captions_java.txt"), strict=True))
)
def test_as_stored_from_java(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(caption)) == tokens


def test_as_java_says_now() -> None:
    assert [" ".join(ptb_tokens(caption)) for caption in CAPTIONS] == java_tokens(CAPTIONS)


def test_as_java_on_captions_put_together_at_random() -> None:
    """From pieces, so that words, marks and numbers meet that nobody thought of."""
    rng = random.Random(0)
    words = [word for caption in CAPTIONS[:330] for word in caption.split()]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(3000)]
    # What Java makes of a letter and full stop at the end depends on the caption that follows.
    texts = [f"{text} here" for text in texts]
    assert [" ".join(ptb_tokens(text)) for text in texts] == java_tokens(texts)


def test_cider_is_that_of_java_tokens() -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.cider.cider import Cider

    tokens = lines("captions_java.txt")
    rng = random.Random(1)
    chosen = [rng.sample(range(330, len(CAPTIONS)), 6) for _ in range(60)]
    score, each = cider(
        [CAPTIONS[c[0]] for c in chosen], [[CAPTIONS[i] for i in c[1:]] for c in chosen]
    )
    predicted = {n: [tokens[c[0]]] for n, c in enumerate(chosen)}
    true = {n: [tokens[i] for i in c[1:]] for n, c in enumerate(chosen)}
    expected, expected_each = Cider().compute_score(true, predicted)
    assert score == expected > 0.1
    assert each.tolist() == list(expected_each)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("Don't, it's; I cannot!", "do n't it 's i can not"),
        ("He's gonna (maybe) go", "he 's gon na -lrb- maybe -rrb- go"),
        ("A U.S. flag at 5 p.m. on Main St.", "a u.s. flag at 5 p.m. on main st."),
        ("black-and-white and/or 1,000.5 for $5", "black-and-white and/or 1,000.5 for $ 5"),
        ("", ""),
        ("... ?! -- ''", "?!"),  # two marks in one are not on the list of pycocoevalcap
    ],
)
def test_by_hand(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(caption)) == tokens


def test_punctuation_is_the_list_of_the_package() -> None:
    package = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    assert set(package.PUNCTUATIONS) == PUNCTUATION


def test_a_line_break_is_a_space() -> None:
    assert ptb_tokens("a dog\nruns") == ["a", "dog", "runs"]
