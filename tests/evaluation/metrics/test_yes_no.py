"""Yes-or-no answers, POPE's report against scikit-learn, MME's score by hand and at random."""

import random
import re

import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.yes_no import (
    COGNITION,
    PERCEPTION,
    mme_scores,
    yes_no_report,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"), ("yes.", "yes"), (" YES, there is no doubt", "yes"), ("Well, yes", "yes"),
        ("No", "no"), ("no, yes", "no"), ("There is no dog", "no"), ("There isn't one.", "no"),
        ("It is not. Yes!", "no"), ("I cannot see it", "no"), ("It doesn’t", "no"),
        ("There is a dog", None), ("", None), ("?", None), ("It is not a yes", None),
        ("nothing", None), ("nose", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_yes_or_no(text: str, said: str | None) -> None:
    assert yes_or_no(text) == said


@pytest.mark.parametrize("seed", range(5))
def test_report_is_that_of_scikit_learn(seed: int) -> None:
    """An undecided answer is the opposite for accuracy, and no "yes" for the rest."""
    rng = random.Random(seed)
    true = rng.choices(["yes", "no"], k=200)
    given = rng.choices(["Yes, it is", "No", "There is not", "a dog"], k=200)
    report = yes_no_report(given, true)
    read = [{"Y": "yes", "N": "no", "T": "no", "a": None}[text[0]] for text in given]
    opposite = {"yes": "no", "no": "yes"}
    decided = [opposite[b] if a is None else a for a, b in zip(read, true, strict=True)]
    assert report["accuracy"] == pytest.approx(accuracy_score(true, decided))
    truth, yes = [t == "yes" for t in true], [r == "yes" for r in read]
    assert report["precision"] == pytest.approx(precision_score(truth, yes))
    assert report["recall"] == pytest.approx(recall_score(truth, yes))
    assert report["f1"] == pytest.approx(f1_score(truth, yes))
    assert report["yes_share"] == sum(yes) / 200
    assert report["undecided"] == read.count(None)


def test_saying_nothing_scores_nothing() -> None:
    """POPE's own script would give 50 % for this."""
    report = yes_no_report(["a dog"] * 4, ["yes", "yes", "no", "no"])
    assert report == {
        "accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0, "undecided": 4,
    }  # fmt: skip


def test_mme_by_hand() -> None:
    """Two images of one task: both right, and one of two right: 75 + 50."""
    scores = mme_scores(
        ["Yes", "No", "Yes", "Yes", "No", "maybe"],
        ["yes", "no", "yes", "no", "no", "yes"],
        ["1.jpg", "1.jpg", "2.jpg", "2.jpg", "1.jpg", "1.jpg"],  # the same name in two tasks
        ["count"] * 4 + ["code_reasoning"] * 2,
    )
    assert scores["categories"]["count"] == {"accuracy": 75, "accuracy_plus": 50, "score": 125}
    assert scores["categories"]["code_reasoning"]["score"] == 50
    assert (scores["perception"], scores["cognition"]) == (125, 50)


def test_all_right_is_2800() -> None:
    tasks = [task for task in PERCEPTION + COGNITION for _ in range(2)]
    scores = mme_scores(["Yes", "no"] * 14, ["Yes", "No"] * 14, ["x"] * 28, tasks)
    assert (scores["perception"], scores["cognition"]) == (2000, 800)


@pytest.mark.parametrize("seed", range(5))
def test_mme_against_plain_sums(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        (task, image, truth, rng.choice(["yes", "no"]))
        for task in ("existence", "OCR", "text_translation")
        for image in range(rng.randint(1, 9))
        for truth in ("yes", "no")
    ]
    rng.shuffle(rows)
    scores = mme_scores(
        [row[3] for row in rows],
        [row[2] for row in rows],
        [str(row[1]) for row in rows],
        [row[0] for row in rows],
    )
    for task, found in scores["categories"].items():
        mine = [row for row in rows if row[0] == task]
        right = [row[2] == row[3] for row in mine]
        images = {row[1] for row in mine}
        both = [i for i in images if all(row[2] == row[3] for row in mine if row[1] == i)]
        assert found["accuracy"] == pytest.approx(100 * sum(right) / len(right))
        assert found["accuracy_plus"] == pytest.approx(100 * len(both) / len(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["yes"], [], ["1"], ["count"]), "Got 1 predictions and 0 answers"),
        (
            (["yes"], ["perhaps"], ["1"], ["count"]),
            "'perhaps' as true answer is neither",
        ),
        ((["yes"], ["yes"], ["1"], []), "Got 1 predictions, 1 images, 0 categories"),
        ((["yes"], ["yes"], ["1"], ["cats"]), "MME has no task 'cats'"),
        (
            (["yes"], ["yes"], ["1"], ["count"]),
            "about an image, got 1 about '1' (count)",
        ),
    ],
)
def test_refused(arguments, message) -> None:
    with pytest.raises(InferKitError, match=re.escape(message)):
        mme_scores(*arguments)
