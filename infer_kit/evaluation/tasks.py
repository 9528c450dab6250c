"""Tasks: how a question is asked, and how answers are judged."""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.captions import bleu, cider, rouge_l
from infer_kit.evaluation.metrics.choices import choice_match
from infer_kit.evaluation.metrics.exact import exact_match
from infer_kit.evaluation.metrics.gqa import gqa_match
from infer_kit.evaluation.metrics.numbers import number_match
from infer_kit.evaluation.metrics.vqa import vqa_accuracy
from infer_kit.evaluation.metrics.yes_no import mme_scores, yes_no_report, yes_or_no
from infer_kit.evaluation.samples import Sample
from infer_kit.methods.named import did_you_mean

Metrics = dict[str, float]
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the letter of the right option."
YES_NO = "Answer with yes or no."
_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d.,/]*\s?%?")  # an answer that is a number, nothing else


@dataclass(frozen=True)
class Task:
    """How a question is asked, and how answers are judged.

    Attributes:
        name: of `TASKS`. about: a line for `infer-kit ls`.
        instruction: stands after the question, on a line of its own.
        max_new_tokens: of an answer.
        score: of one answer, from 0 to 1; None where only all answers together have a score.
        main: the name of the mean of the scores.
        scores_of: of all answers, where one alone has none.
        more: further figures of all answers.
        more_of_pairs: those need every sample of a picture: none may be missing.
        is_scored: the samples are texts to be scored, no questions (bits per byte).
    """

    name: str
    about: str
    instruction: str
    max_new_tokens: int
    score: Callable[[str, Sample], float] | None
    main: str = "accuracy"
    scores_of: Callable[[Sequence[str], Sequence[Sample]], np.ndarray] | None = None
    more: Callable[[Sequence[str], Sequence[Sample]], Metrics] | None = None
    more_of_pairs: bool = False
    is_scored: bool = False

    def scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
        """`[n]` float64, the score of each answer."""
        if self.scores_of is not None:
            return self.scores_of(predictions, samples)
        assert self.score is not None
        return np.array([self.score(p, s) for p, s in zip(predictions, samples, strict=True)])

    def check(self, samples: Sequence[Sample], where: str) -> None:
        """Raise unless every sample can be judged, so that no run fails at its end.

        Raises:
            InferKitError: texts where questions are expected, or the reverse; a true answer that
                the metric cannot read (no number, neither yes nor no); choices missing.
        """
        for sample in samples:
            if (sample.passage is not None) != self.is_scored:
                raise InferKitError(
                    f"{where}: sample {sample.id!r} is a {'question' if self.is_scored else 'text'}"
                    f", and the task {self.name!r} takes "
                    f"{'texts' if self.is_scored else 'questions'}."
                )
            if sample.choices and self.score not in (_choice, _rounded):
                raise InferKitError(
                    f"{where}: sample {sample.id!r} has choices, and the task {self.name!r} judges "
                    "free answers.",
                    hint="Tasks with choices are choice, mmmu, mathvista, seed and mibench; all "
                    "but choice and seed take free answers as well.",
                )
            if self.name in _CHOSEN and not sample.choices:
                raise InferKitError(
                    f"{where}: sample {sample.id!r} has no choices, which the task {self.name!r} "
                    "needs."
                )
            if self.score is not None:
                for answer in sample.answers:
                    try:
                        self.score(answer, replace(sample, answers=(answer,)))
                    except InferKitError as error:
                        raise InferKitError(
                            f"{where}: sample {sample.id!r}: {error}", hint=error.hint
                        ) from error
        if self.scores_of is not None and samples:
            self.scores_of([samples[0].answers[0]], samples[:1])  # what it needs is installed
        if self.more_of_pairs and self.more is not None:
            try:  # with the true answers: what would fail at the end fails now
                self.more([sample.answers[0] for sample in samples], samples)
            except InferKitError as error:
                raise InferKitError(f"{where}: {error}", hint=error.hint) from error


def _choice(prediction: str, sample: Sample) -> float:
    """A letter among choices; where there are none (MMMU's open questions) a number or a text."""
    if sample.choices:
        return choice_match(prediction, sample.answers, sample.choices)
    numbers = [answer for answer in sample.answers if _NUMBER.fullmatch(answer.strip())]
    if numbers and number_match(prediction, numbers):
        return 1.0
    return exact_match(prediction, sample.answers)


def _rounded(prediction: str, sample: Sample) -> float:
    """As `_choice`, numbers rounded to the decimals of the true one: 3.14159 is 3.1."""
    for answer in sample.answers:
        if not sample.choices and _NUMBER.fullmatch(answer.strip()):
            decimals = len(answer.strip().rstrip("%").partition(".")[2])
            if number_match(prediction, [answer], precision=decimals):
                return 1.0
    return _choice(prediction, sample)


def _yes_no(prediction: str, sample: Sample) -> float:
    truth = yes_or_no(sample.answers[0])
    if truth is None:
        raise InferKitError(f"The answer {sample.answers[0]!r} is neither yes nor no.")
    return float(yes_or_no(prediction) == truth)


def _yes_no_figures(predictions: Sequence[str], samples: Sequence[Sample]) -> Metrics:
    report = yes_no_report(predictions, [s.answers[0] for s in samples])
    return {name: value for name, value in report.items() if name != "accuracy"}


def _mme_figures(predictions: Sequence[str], samples: Sequence[Sample]) -> Metrics:
    found = mme_scores(
        predictions,
        [s.answers[0] for s in samples],
        [str(s.images[0]) if s.images else s.id for s in samples],
        [s.category or "all" for s in samples],
    )
    totals = {"perception": found["perception"], "cognition": found["cognition"]}
    return totals | {f"score/{name}": one["score"] for name, one in found["categories"].items()}


def _references(samples: Sequence[Sample]) -> list[Sequence[str]]:
    return [s.answers for s in samples]


def _cider(predictions: Sequence[str], samples: Sequence[Sample]) -> np.ndarray:
    return np.asarray(cider(predictions, _references(samples))[1], dtype=np.float64)


def _caption_figures(predictions: Sequence[str], samples: Sequence[Sample]) -> Metrics:
    references = _references(samples)
    grams = bleu(predictions, references)[0]
    names = {f"BLEU-{n}": float(value) for n, value in enumerate(grams, 1)}
    return {**names, "ROUGE-L": float(rouge_l(predictions, references)[0])}


def _asked(name: str, about: str, instruction: str, score: Any, tokens: int = 16) -> Task:
    return Task(name, about, instruction, tokens, score)


def _gqa(prediction: str, sample: Sample) -> float:
    return gqa_match(prediction, sample.answers)


def _vqa(prediction: str, sample: Sample) -> float:
    return vqa_accuracy(prediction, sample.answers)


def _exact(prediction: str, sample: Sample) -> float:
    return exact_match(prediction, sample.answers)


def _number(prediction: str, sample: Sample) -> float:
    return number_match(prediction, sample.answers)


_CAPTION = Task(
    name="coco_captions",
    about="COCO captions; CIDEr, BLEU, ROUGE-L on PTB tokens",
    instruction="Describe the image in one sentence.",
    max_new_tokens=48,
    score=None,
    main="CIDEr",
    scores_of=_cider,
    more=_caption_figures,
)

_ALL = (
    _asked("exact", "equal but for case, space and a full stop", "", _exact, 32),
    _asked("gqa", "GQA; exact match, one normaliser on both sides", SHORT, _gqa),
    _asked("vqa", "soft accuracy over several annotators", SHORT, _vqa),
    _asked("vqav2", "VQAv2; soft accuracy", SHORT, _vqa),
    _asked("textvqa", "TextVQA; soft accuracy", SHORT, _vqa),
    _asked("choice", "multiple choice", LETTER, _choice),
    _asked("mmmu", "MMMU; choices, and open questions by text or number", LETTER, _choice),
    _asked("mathvista", "MathVista; choices, rounded numbers and texts", "", _rounded, 512),
    _asked("seed", "SEED-Bench; multiple choice", LETTER, _choice),
    _asked("mibench", "MIBench; choices, and open answers by text", "", _choice, 32),
    _asked("number", "the final number", "", _number, 512),
    _asked(
        "gsm8k",
        "GSM8K; the final number",
        "Think step by step, and end with: The answer is <number>.",
        _number,
        512,
    ),
    Task("pope", "POPE; yes or no, with F1", YES_NO, 8, _yes_no, more=_yes_no_figures),
    Task(
        name="mme",
        about="MME; accuracy, accuracy+ and scores",
        instruction="",
        max_new_tokens=8,
        score=_yes_no,
        more=_mme_figures,
        more_of_pairs=True,
    ),
    _CAPTION,
    Task(
        name="bits_per_byte",
        about="texts scored; bits per byte",
        instruction="",
        max_new_tokens=0,
        score=None,
        main="bits_per_byte",
        is_scored=True,
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""The tasks by name."""

_CHOSEN = {"choice", "seed"}


def task_named(name: str) -> Task:
    """A task of `TASKS`, or the `TASK` of a Python file.

    Args:
        name: as `TASKS` has it; or the path of a file, `my_task.py`, which is run.

    Raises:
        InferKitError: there is none of that name, names the nearest; the file has no `TASK`.
    """
    if name.endswith(".py"):
        return _task_of(Path(name))
    plain = name.lower().replace("-", "_")
    if plain not in TASKS:
        raise InferKitError(f"Unknown task {name!r}.{did_you_mean(plain, TASKS)}")
    return TASKS[plain]


def task_identity(name: str) -> str:
    """What tells tasks apart: the name, or a file's name with a hash of its content."""
    if not name.endswith(".py"):
        return task_named(name).name
    content = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return f"{Path(name).name}@{content[:12]}"


def _task_of(path: Path) -> Task:
    if not path.is_file():
        raise InferKitError(f"There is no file {str(path)!r} with a task.")
    spec = importlib.util.spec_from_file_location(f"task_of_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InferKitError(
            f"The task file {str(path)!r} fails: {type(error).__name__}: {error}"
        ) from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise InferKitError(
            f"{path} has no TASK.", hint="TASK = Task(...), from infer_kit.evaluation.tasks."
        )
    return task
