"""Tasks: the figures of a run are those of the metrics, and hold their ranges."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.comparison import compare
from infer_kit.evaluation.metrics.captions import bleu, cider, rouge_l
from infer_kit.evaluation.preparation import prepare
from infer_kit.evaluation.results import results_of
from infer_kit.evaluation.runner import run
from infer_kit.evaluation.samples import Sample
from infer_kit.evaluation.tasks import TASKS, task_named


def lines_for(samples: list[Sample], predictions: list[str]) -> dict[str, dict[str, object]]:
    return {
        s.id: {"id": s.id, "prediction": p, "tokens": 2, "seconds": 0.5}
        for s, p in zip(samples, predictions, strict=True)
    }


def test_every_task_is_found_by_name() -> None:
    for name in TASKS:
        assert task_named(name.upper().replace("_", "-")).name == name


def test_categories_have_figures_of_their_own() -> None:
    samples = [Sample(str(n), "q", ("a",), category="xy"[n % 2]) for n in range(10)]
    predictions = ["a" if n < 5 else "b" for n in range(10)]
    found = results_of(TASKS["exact"], samples, lines_for(samples, predictions))
    values = {name: figure["value"] for name, figure in found["metrics"].items()}
    assert values == {"accuracy": 0.5, "accuracy/x": 0.6, "accuracy/y": 0.4}
    assert (found["n"], found["tokens"], found["seconds"]) == (10, 20, 5.0)


def test_captions_are_scored_together() -> None:
    pytest.importorskip("pycocoevalcap")
    references = [("A dog runs on the grass.", "The dog is running."), ("Two cats sleep.",)]
    samples = [Sample(str(n), "q", refs) for n, refs in enumerate(references)]
    predictions = ["A dog running on grass.", "Two cats are sleeping."]
    found = results_of(TASKS["coco_captions"], samples, lines_for(samples, predictions))
    total, each = cider(predictions, references)
    metrics = found["metrics"]
    assert metrics["CIDEr"]["value"] == pytest.approx(total) == pytest.approx(np.mean(each))
    assert metrics["BLEU-4"]["value"] == pytest.approx(bleu(predictions, references)[0][3])
    assert metrics["ROUGE-L"]["value"] == pytest.approx(rouge_l(predictions, references)[0])


def test_bits_per_byte_are_of_the_whole_corpus() -> None:
    samples = [Sample("1", "", (), passage="abcd"), Sample("2", "", (), passage="é")]
    lines = {
        "1": {"id": "1", "logprob": [-4.0, -3.9], "bytes": 4, "seconds": 0.1},
        "2": {"id": "2", "logprob": [-3.0, -3.0], "bytes": 2, "seconds": 0.1},
    }
    metrics = results_of(TASKS["bits_per_byte"], samples, lines)["metrics"]
    assert metrics["bits_per_byte"]["value"] == pytest.approx(7.0 / math.log(2) / 6)
    assert metrics["bits_per_byte at least"]["value"] == pytest.approx(6.9 / math.log(2) / 6)


def test_pope_and_mme_have_their_figures() -> None:
    samples = [
        Sample(str(n), "q", ("yes" if n % 2 else "no",), images=(Path(f"{n // 2}.png"),),
               category="color")
        for n in range(4)
    ]  # fmt: skip
    predictions = ["No.", "Yes, it is.", "yes", "yes"]
    lines = lines_for(samples, predictions)
    pope = results_of(TASKS["pope"], samples, lines)["metrics"]
    assert pope["accuracy"]["value"] == 0.75
    assert pope["precision"]["value"] == pytest.approx(2 / 3)
    assert pope["recall"]["value"] == 1.0
    mme = results_of(TASKS["mme"], samples, lines)["metrics"]
    assert mme["perception"]["value"] == pytest.approx(75 + 50)


def test_a_question_of_mme_without_its_pair_is_refused_before_the_run() -> None:
    samples = [Sample("1", "q", ("yes",), images=(Path("1.png"),), category="color")]
    with pytest.raises(InferKitError, match="data: MME asks two questions about an image"):
        TASKS["mme"].check(samples, "data")


def test_open_questions_of_mmmu_are_judged_by_text_or_number() -> None:
    task = TASKS["mmmu"]
    assert task.score is not None
    assert task.score("(B)", Sample("1", "q", ("B",), choices=("x", "y"))) == 1
    assert task.score("It is 3.50.", Sample("2", "q", ("3.5",))) == 1
    assert task.score("Paris", Sample("3", "q", ("paris",))) == 1
    assert task.score("Rome", Sample("3", "q", ("paris",))) == 0


def test_numbers_of_mathvista_are_rounded_to_the_true_ones_decimals() -> None:
    score = TASKS["mathvista"].score
    assert score is not None
    sample = Sample("1", "q", ("3.1",))
    assert [score(text, sample) for text in ("It is 3.14159.", "3.1", "3.2", "3")] == [1, 1, 0, 0]
    assert score("7.0", Sample("2", "q", ("7",))) == 1
    assert score("a cat", Sample("3", "q", ("a cat",))) == 1


def test_every_answer_must_be_one_that_can_be_judged() -> None:
    with pytest.raises(InferKitError, match="data: sample '1': The answer 'five' has no number"):
        TASKS["number"].check([Sample("1", "q", ("5", "five"))], "data")


def test_figures_of_pairs_need_all_samples_and_nothing_needs_one() -> None:
    samples = [
        Sample(str(n), "q", ("yes",), images=(Path("1.png"),), category="color") for n in range(2)
    ]
    lines = lines_for(samples[:1], ["yes"])
    assert set(results_of(TASKS["mme"], samples, lines)["metrics"]) == {"accuracy"}
    for task in TASKS.values():
        if not task.is_scored:
            assert results_of(task, samples, {})["metrics"][task.main]["value"] is None


@pytest.mark.parametrize("name", ["exact", "vqa", "gqa", "number", "pope", "coco_captions"])
def test_choices_are_for_tasks_that_judge_letters(name: str) -> None:
    sample = Sample("1", "q", ("A",), choices=("yes", "no"), images=(Path("1.png"),))
    with pytest.raises(InferKitError, match=f"has choices, and the task '{name}' judges free"):
        TASKS[name].check([sample], "data")
    TASKS["mmmu"].check([sample, Sample("2", "q", ("free",))], "data")


OWN = """
from infer_kit.evaluation.tasks import Task

def score(prediction, sample):
    return float(prediction.startswith(sample.answers[0][:1]))

TASK = Task("first letter", "the first letter", "", 4, score, main="letters")
"""


def test_a_task_of_ones_own_is_a_python_file(
    asked: Any, model: Any, scenes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    folders = []
    for method in ("direct", "cot"):
        prepared = prepare(asked(task=str(path), method=method, limit=6))
        folder, results = run(prepared, tmp_path / "runs", lambda: model)
        assert results is not None and set(results["metrics"]) >= {"letters"}
        folders.append(folder)
    lines = folders[0].lines().values()
    for line in lines:
        assert line["correct"] == float(line["prediction"][:1] == line["target"][:1])
    assert compare(*folders).metric == "letters"
    before = prepare(asked(task=str(path))).config["task"]
    path.write_text(OWN.replace("[:1]", "[:2]"))
    assert prepare(asked(task=str(path))).config["task"] != before
    with pytest.raises(InferKitError, match=r"own.py is not the task of the runs any more"):
        compare(*folders)


@pytest.mark.parametrize(
    ("content", "message"),
    [("x = 1", "has no TASK"), ("1 / 0", "fails: ZeroDivisionError"), (None, "There is no file")],
)
def test_a_file_without_a_task_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InferKitError, match=message):
        task_named(str(path))
