"""VQA accuracy against the definition, and the evaluator of another package where it is there."""

import importlib.util
import random
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.vqa import normalize_vqa, vqa_accuracy


def slow_accuracy(prediction: str, answers: list[str]) -> float:
    """The mean over all subsets of n - 1 annotators, as the paper has it."""
    given = normalize_vqa(prediction)
    subsets = list(combinations([normalize_vqa(answer) for answer in answers], len(answers) - 1))
    return sum(min(subset.count(given) / 3, 1) for subset in subsets) / len(subsets)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two cats", "2 cats"),
        ("an apple", "apple"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldntve couldnt've", "couldntve couldn't've"),  # one apostrophe may be missing
        ("somebody'd", "somebodyd"),  # the evaluator's, the wrong way round
        ("cat's", "cat 's"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one mark beside a space, and all such marks go
        ("yes!", "yes"),
        ("3.", "3"),  # with a true look-behind the full stop would stay
        ("3.5 p.m.", "3.5 pm"),
        (".5", ".5"),
        ("line\nbreak\ttab ", "line break tab"),
        ("a", ""),
        ("x" + ". x" * 40, "x" + " x" * 31 + " x. x. x. x. x. x. x. x x"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    if text.count(".") > 32:  # the evaluator takes out 32 full stops at most
        assert normalize_vqa(text).count(".") == text.count(".") - 32
    else:
        assert normalize_vqa(text) == expected


@pytest.mark.parametrize("seed", range(20))
def test_accuracy_is_the_mean_over_all_but_one(seed: int) -> None:
    rng = random.Random(seed)
    words = ["Red", "red.", "blue", "the blue", "two", "2"]
    for n in (2, 3, 5, 10):
        answers = rng.choices(words, k=n)
        assert vqa_accuracy("red", answers) == pytest.approx(slow_accuracy("red", answers))


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_annotators(matches: int, expected: float) -> None:
    answers = ["red"] * matches + ["blue", "green", "gray", "tan", "pink", *"abcde"][matches:]
    assert vqa_accuracy("Red", answers[:10]) == pytest.approx(expected)


def test_one_answer_counts_by_equality() -> None:
    assert vqa_accuracy("The red", ["red"]) == 1.0
    assert vqa_accuracy("blue", ["red"]) == 0.0


def test_membership_is_not_enough() -> None:
    """A known defect elsewhere: one annotator of ten does not make an answer right."""
    assert vqa_accuracy("red", ["red"] + ["blue"] * 9) == pytest.approx(0.3)


@pytest.mark.parametrize("answers", [[], "red"])
def test_refused(answers) -> None:
    with pytest.raises(InferKitError, match="answers must be a list of at least one text"):
        vqa_accuracy("red", answers)


def evaluator_of_lmms_eval() -> ModuleType:
    found = importlib.util.find_spec("lmms_eval")  # importing it takes half a minute
    if found is None or not found.submodule_search_locations:
        pytest.skip("lmms_eval is not installed")
    path = Path(found.submodule_search_locations[0], "tasks/_task_utils/vqa_eval_metric.py")
    spec = importlib.util.spec_from_file_location("vqa_eval_metric", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_normalisation_is_that_of_lmms_eval() -> None:
    evaluator = evaluator_of_lmms_eval().EvalAIAnswerProcessor()
    rng = random.Random(0)
    pieces = ["a", "the ", "dont", " two ", "1", ",", ".", "'s", "-", " ", "?", "!", "/", "(", "x"]
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 10)))
        assert normalize_vqa(text) == evaluator(text), text
