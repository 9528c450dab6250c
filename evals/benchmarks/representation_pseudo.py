"""Pseudo pre-training and P-SSL on digits and letters: what `representation` measures of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from evals.benchmarks.representation_data import (
    CNN,
    Split,
    accuracy,
    digits,
    few,
    letters,
    made,
    train,
)
from infer_kit.training.representation import (
    ConditionalVAE,
    PseudoSampler,
    PseudoSemiSupervised,
    RelatednessReport,
    fit_cvae,
    new_head,
    pseudo_pretrain,
    relatedness_report,
    source_probabilities,
)

TASKS = ("letters to digits", "digits 0-4 to 5-9", "5 coarse to 10 digits")
WAYS = (
    "scratch",
    "PP",
    "P-SSL",
    "PP + P-SSL",
    "PP + P-SSL, uniform classes",
    "PP + feature consistency",
    "PP + feature consistency, labelled images",
    "PP + feature consistency, real unlabelled images",
    "scratch + feature consistency, labelled images",
    "real source",
)
_PER_CLASS = 5
_SOURCE_STEPS = 600
_TARGET_STEPS = 400


@dataclass(frozen=True)
class Source:
    """What is had of the source: classes, data for the control, a generator and a classifier."""

    classes: int
    data: Split
    generator: ConditionalVAE
    classifier: CNN


@cache
def source(task: str) -> Source:
    """Trained once for all seeds: a source is given, and not a part of what is compared."""
    classes, data = _source_data(task)
    generator = fit_cvae(
        *data, classes, steps=1200, noise=1.0, z_dim=8, width=16, seed=0, progress=False
    )
    return Source(classes, data, generator, train(made(classes, 0), data, _SOURCE_STEPS, 0))


def _source_data(task: str) -> tuple[int, Split]:
    x, y = digits()
    if task == "letters to digits":
        return 10, letters()
    if task == "digits 0-4 to 5-9":
        return 5, (x[y < 5], y[y < 5])
    half = len(y) // 2  # the other half is the target's
    return 5, (x[:half], y[:half] // 2)


def target(task: str, seed: int) -> tuple[int, Split, Split]:
    """Classes, five labelled examples of each, and the rest to measure on."""
    x, y = digits()
    classes = 10
    if task == "digits 0-4 to 5-9":
        classes, x, y = 5, x[y >= 5], y[y >= 5] - 5
    elif task == "5 coarse to 10 digits":
        x, y = x[len(y) // 2 :], y[len(y) // 2 :]
    labelled, rest = few((x, y), _PER_CLASS, seed)
    return classes, labelled, rest


@dataclass(frozen=True)
class Pseudo:
    """One way of using a source for a target of five labels a class.

    Sources: all letters A to J for the digits; digits 0 to 4 for 5 to 9; for "5 coarse to 10
    digits" half of the digits, with the label digit // 2, for the other half.
    """

    task: str
    way: str
    seed: int

    def run(self) -> float:
        """Accuracy on the target's other examples, in percent."""
        given = source(self.task)
        classes, labelled, rest = target(self.task, self.seed)
        loss = None
        if "P-SSL" in self.way or "consistency" in self.way:
            loss = _UnlabelledLoss(self, given, labelled[0], rest[0])
        return accuracy(train(self._start(given, classes), labelled, _TARGET_STEPS, self.seed,
                              loss=loss), rest)  # fmt: skip

    def _start(self, given: Source, classes: int) -> CNN:
        if self.way == "P-SSL" or self.way.startswith("scratch"):
            return made(classes, self.seed)
        model = made(given.classes, self.seed)
        if self.way == "real source":
            train(model, given.data, _SOURCE_STEPS, self.seed)
        else:
            pseudo_pretrain(model, given.generator, _SOURCE_STEPS, seed=self.seed, progress=False)
        new_head(model, classes, seed=self.seed)
        return model


class _UnlabelledLoss:
    """The loss of P-SSL for `train`, whatever the report says: it is what is measured."""

    def __init__(self, run: Pseudo, given: Source, x: Tensor, unlabelled: Tensor) -> None:
        # Two controls: what the augmentation does without a source, and what real images do.
        pseudo: Tensor | PseudoSampler
        if "unlabelled images" in run.way:
            pseudo = unlabelled
        elif "labelled images" in run.way:
            pseudo = x
        elif "uniform" in run.way:
            pseudo = PseudoSampler(given.generator, torch.eye(given.classes))
        else:
            p = source_probabilities(given.classifier, x, given.generator)
            pseudo = PseudoSampler(given.generator, p)
        self.loss = PseudoSemiSupervised(
            pseudo,
            allow_unrelated=True,
            consistency="features" if "consistency" in run.way else "uda",
        )
        self.rng = torch.Generator().manual_seed(run.seed)
        self.step = 0

    def __call__(self, model: CNN, x: Tensor, y: Tensor) -> Tensor:
        said = self.loss(model, x, y, self.step, _TARGET_STEPS, self.rng)
        self.step += 1
        return said.loss


@dataclass(frozen=True)
class Related:
    """Whether a source is related, told by a network that was trained from scratch."""

    task: str
    seed: int

    def run(self) -> RelatednessReport:
        given = source(self.task)
        classes, labelled, _ = target(self.task, self.seed)
        model = train(made(classes, self.seed), labelled, _TARGET_STEPS, self.seed)
        return relatedness_report(given.classifier, labelled[0], given.generator, model=model)
