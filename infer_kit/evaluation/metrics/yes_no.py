"""Yes-or-no answers: POPE's report and MME's score.

Sources: Li et al. 2023, POPE, arXiv 2305.10355; Fu et al. 2023, MME, arXiv 2306.13394.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

from infer_kit.errors import InferKitError

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
"""The ten tasks of MME that add up to its perception score (at most 2000)."""

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""The four tasks that add up to the cognition score (at most 800)."""

_TASKS = PERCEPTION + COGNITION
_WORDS = re.compile(r"[a-z]+(?:['’][a-z]+)?")
_NEGATIONS = frozenset(["no", "not", "cannot"])


def yes_or_no(text: str) -> str | None:
    """ "yes", "no", or None where the text does not say.

    The first word decides if it is one of the two. Otherwise the words of the first sentence do:
    "yes" or a negation ("no", "not", "isn't"), but not both.

    >>> yes_or_no("There is no dog."), yes_or_no("A dog and a cat")
    ('no', None)
    """
    words = _WORDS.findall(re.split(r"[.!?\n]", text.strip().lower(), maxsplit=1)[0])
    if words and words[0] in ("yes", "no"):
        return words[0]
    said = {"yes"} & set(words)
    if any(word in _NEGATIONS or word.endswith(("n't", "n’t")) for word in words):
        said.add("no")
    return said.pop() if len(said) == 1 else None


def yes_no_report(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", as POPE reports them.

    Differs from POPE: its script takes whatever has no negation in it for a "yes", so a model that
    answers nothing at all scores 50 %. Here an answer that says neither counts as wrong: it is no
    "yes", so it lowers recall where the truth is "yes", and accuracy in any case.

    Args:
        predictions: N free texts. answers: N times "yes" or "no".

    Returns:
        accuracy, precision, recall, f1 and yes_share between 0 and 1 (0 where not defined), and
        undecided, the number of answers that said neither.
    """
    given, true = _read(predictions, answers)
    pairs = list(zip(given, true, strict=True))
    hits = pairs.count(("yes", "yes"))
    precision = _ratio(hits, given.count("yes"))
    recall = _ratio(hits, true.count("yes"))
    return {
        "accuracy": _ratio(sum(a == b for a, b in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_share": _ratio(given.count("yes"), len(given)),
        "undecided": given.count(None),
    }


class CategoryScore(TypedDict):
    """One task of MME: both shares in percent, and their sum."""

    accuracy: float
    accuracy_plus: float
    score: float


class MMEScores(TypedDict):
    """Scores by task, and the totals over the tasks that are there."""

    categories: dict[str, CategoryScore]
    perception: float
    cognition: float


def mme_scores(
    predictions: Sequence[str],
    answers: Sequence[str],
    images: Sequence[str],
    categories: Sequence[str],
) -> MMEScores:
    """MME's score: by task, the accuracy plus the share of images with both answers right.

    Differs from the official script: it looks for "yes" and "no" in the first four characters;
    here the first sentence is read, see `yes_or_no`. Neither counts as right.

    Args:
        predictions: N free texts. answers: N times "yes" or "no".
        images: N names; every image of a task has two questions.
        categories: N tasks, of `PERCEPTION` or `COGNITION`.
    """
    given, true = _read(predictions, answers)
    if not len(given) == len(images) == len(categories):
        raise InferKitError(
            f"Got {len(given)} predictions, {len(images)} images, {len(categories)} categories."
        )
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for guess, truth, image, category in zip(given, true, images, categories, strict=True):
        if category not in PERCEPTION + COGNITION:
            raise InferKitError(
                f"MME has no task {category!r}.",
                hint=f"It has {', '.join(PERCEPTION + COGNITION)}.",
            )
        right[category][image].append(guess == truth)
    scores: dict[str, CategoryScore] = {}
    for category, by_image in right.items():
        for image, several in by_image.items():
            if len(several) != 2:
                raise InferKitError(
                    f"MME asks two questions about an image, got {len(several)} about {image!r} "
                    f"({category})."
                )
        accuracy = 50 * sum(map(sum, by_image.values())) / len(by_image)
        plus = 100 * sum(map(all, by_image.values())) / len(by_image)
        scores[category] = {
            "accuracy": accuracy,
            "accuracy_plus": plus,
            "score": accuracy + plus,
        }
    return {
        "categories": scores,
        "perception": sum(scores[name]["score"] for name in PERCEPTION if name in scores),
        "cognition": sum(scores[name]["score"] for name in COGNITION if name in scores),
    }


def _read(predictions: Sequence[str], answers: Sequence[str]) -> tuple[list[str | None], list[str]]:
    if len(predictions) != len(answers):
        raise InferKitError(f"Got {len(predictions)} predictions and {len(answers)} answers.")
    true = [yes_or_no(answer) for answer in answers]
    if None in true:
        raise InferKitError(f"{answers[true.index(None)]!r} as true answer is neither yes nor no.")
    return [yes_or_no(text) for text in predictions], [str(answer) for answer in true]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
