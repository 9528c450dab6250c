"""VQA accuracy (VQAv2, TextVQA): agreement with ten annotators.

Source: Antol et al. 2015, arXiv 1505.00468, and the normalisation of the EvalAI server that scores
TextVQA and VQAv2.

Differs from the evaluator of VQAv2: it normalises true answers only where annotators disagree, and
has no first step that takes out commas and question marks. Here both sides are always normalised
alike, as the server does.
"""

import re
from collections.abc import Sequence

from infer_kit.errors import InferKitError

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = r';/[]"{}()=+\_-><@`!'
# Meant as "not behind a digit", but `(?!<=…)` only says that no "<=" follows. Kept: with a true
# look-behind "3." would keep its full stop and no longer equal the evaluator's "3".
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)  # 32: the evaluator passes this flag where `sub` takes a count

_CONTRACTED = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
# From the word with one apostrophe left out; the last is the evaluator's, the wrong way round.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_vqa(text: str) -> str:
    """An answer without what annotators write differently: case, articles, punctuation.

    >>> normalize_vqa("The two cats, dont!")
    "2 cats don't"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (_DIGITS.get(word, word) for word in _without_punctuation(text).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    r"""$\frac{1}{n}\sum_i \min(1, m_i / 3)$, $m_i$ the matches among answers other than $i$.

    Three annotators who agree are enough for a full score. Where there is but one answer, equality
    counts, as leaving it out would leave nothing. With two or three the best score is below 1, as
    the formula has it.

    As with the official evaluator, which drops articles, an empty prediction is right where the
    answers are articles alone (options that are called "a", say):

    >>> vqa_accuracy("", ["a"] * 10)
    1.0

    Args:
        prediction: what was answered. answers: n answers, of an annotator each.
    """
    if isinstance(answers, str) or not len(answers):
        raise InferKitError(f"answers must be a list of at least one text, got {answers!r}.")
    given = normalize_vqa(prediction)
    matches = [normalize_vqa(answer) == given for answer in answers]
    if len(matches) == 1:
        return float(matches[0])
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def _without_punctuation(text: str) -> str:
    """Marks beside a space go, others become spaces, and then most full stops go.

    The evaluator also looks for commas in numbers here, but its first step has taken them out.
    """
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)
