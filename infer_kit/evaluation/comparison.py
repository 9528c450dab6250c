"""Two runs on the same samples, compared sample by sample."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infer_kit.errors import InferKitError
from infer_kit.evaluation.results import scored
from infer_kit.evaluation.run_folder import Line, RunFolder
from infer_kit.evaluation.samples import Sample
from infer_kit.evaluation.tasks import Task, task_identity, task_named

RESAMPLES = 10_000
_AT_ONCE = 1 << 22  # drawn sample numbers held at a time
_SAME = 1e-12


@dataclass(frozen=True)
class Flip:
    """A sample on which the runs differ."""

    id: str
    question: str
    target: Any
    first: str
    second: str
    difference: float


@dataclass(frozen=True)
class Comparison:
    """The second run against the first, on the n samples that both have.

    Attributes:
        names: of the runs. metric: what is compared. n: samples.
        values: the figure of each run.
        difference: second less first, with the 95 % interval `low` to `high` of the paired
            bootstrap.
        p_value: of no difference: how often the bootstrap, centred on 0, is as far off.
        left_out: samples that one of them has no answer to.
        wins, losses, ties: samples on which the second scores more, less, or the same.
        mcnemar: exact two-sided p of wins against losses, where all scores are 0 or 1; else None.
        flips: samples that differ, largest differences first.
    """

    names: tuple[str, str]
    metric: str
    n: int
    left_out: int
    values: tuple[float, float]
    difference: float
    low: float
    high: float
    p_value: float
    wins: int
    losses: int
    ties: int
    mcnemar: float | None
    flips: tuple[Flip, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def compare(
    first: RunFolder, second: RunFolder, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two finished runs of one task on one file of samples.

    Raises:
        InferKitError: one is not finished, or they are of different tasks or samples.
    """
    runs = (first, second)
    results = [run.results for run in runs]
    tasks = [result["config"]["task"] for result in results]
    if tasks[0] != tasks[1]:
        raise InferKitError(
            f"The runs are of different tasks, {tasks[0]} and {tasks[1]}: their figures do not "
            "compare."
        )
    named = results[0]["paths"].get("task", tasks[0])
    if task_identity(named) != tasks[0]:
        raise InferKitError(f"{named} is not the task of the runs any more, {tasks[0]}.")
    task = task_named(named)
    lines = [run.lines() for run in runs]
    ids = _common(runs, lines)
    samples = [_judged_against(lines[0][id], task) for id in ids]
    (values, weights), (others, _) = (
        _scored(task, samples, [table[id] for id in ids], judged=named.endswith(".py"))
        for table in lines
    )
    drawn = paired_bootstrap(others - values, weights, resamples, seed)
    difference = float((others - values).sum() / weights.sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = (1 + int((np.abs(drawn - difference) >= abs(difference) - _SAME).sum())) / (resamples + 1)
    wins = int((others - values > _SAME).sum())
    losses = int((values - others > _SAME).sum())
    if task.is_scored:  # fewer bits are better
        wins, losses = losses, wins
    binary = bool(np.isin(np.concatenate([values, others]), (0.0, 1.0)).all())
    return Comparison(
        names=(first.path.name, second.path.name),
        metric=task.main,
        n=len(ids),
        left_out=max(result["n"] + result["errors"] for result in results) - len(ids),
        values=(float(values.sum() / weights.sum()), float(others.sum() / weights.sum())),
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=p,
        wins=wins,
        losses=losses,
        ties=len(ids) - wins - losses,
        mcnemar=sign_test(wins, losses) if binary and not task.is_scored else None,
        flips=_flips(ids, lines, others - values),
    )


def paired_bootstrap(
    differences: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    r"""`[resamples]` of $\sum d / \sum w$ over samples drawn with replacement (Efron, 1979).

    Args:
        differences: `[n]` of the two runs on each sample. weights: `[n]`.
    """
    generator = np.random.default_rng(seed)
    n = len(differences)
    out = np.empty(resamples)
    step = max(_AT_ONCE // n, 1)
    for start in range(0, resamples, step):
        drawn = generator.integers(n, size=(min(step, resamples - start), n))
        out[start : start + len(drawn)] = differences[drawn].sum(1) / weights[drawn].sum(1)
    return out


def sign_test(wins: int, losses: int) -> float:
    r"""Exact two-sided p of a fair coin: McNemar's test on the samples that differ."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2.0 * tail / 2**n)


def agreement(first: RunFolder, second: RunFolder) -> float | None:
    """The share of common samples on which two runs give the same answer; None without any."""
    lines = [run.lines() for run in (first, second)]
    ids = [id for id in lines[0] if id in lines[1] and "prediction" in lines[0][id]]
    same = [lines[0][id]["prediction"] == lines[1][id].get("prediction") for id in ids]
    return sum(same) / len(same) if same else None


def _common(runs: Sequence[RunFolder], lines: Sequence[dict[str, Line]]) -> list[str]:
    """The ids of both runs, which must be on the same samples but for failures."""
    data = [run.results["config"]["data"] for run in runs]
    limits = [run.results["config"]["limit"] for run in runs]
    ids = [id for id in lines[0] if id in lines[1]]
    if data[0] != data[1] or limits[0] != limits[1]:
        why = f"--limit was {limits[0]} and {limits[1]}"
        raise InferKitError(
            f"The runs are on different samples: {runs[0].path.name} on {len(lines[0])}, "
            f"{runs[1].path.name} on {len(lines[1])}; "
            + (why if limits[0] != limits[1] else "the data files differ")
            + ".",
            hint="Run both on the same file with the same --limit.",
        )
    if not ids:
        raise InferKitError("The runs have no sample in common that both answered.")
    return ids


def _scored(
    task: Task, samples: Sequence[Sample], lines: Sequence[Line], judged: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` values and weights, see `scored`.

    Args:
        judged: take the scores of the lines, since the task may look at what lines do not keep.
    """
    if not judged or task.score is None:
        return scored(task, samples, lines)
    return np.array([float(line["correct"]) for line in lines]), np.ones(len(lines))


def _judged_against(line: Line, task: Task) -> Sample:
    """What the line's answer is judged against."""
    if task.is_scored:
        return Sample(line["id"], "", (), passage="")
    target = line["target"]
    answers = (target,) if isinstance(target, str) else tuple(target)
    return Sample(line["id"], line["question"], answers, choices=tuple(line.get("choices", ())))


def _flips(
    ids: Sequence[str], lines: Sequence[dict[str, Line]], differences: np.ndarray
) -> tuple[Flip, ...]:
    order = np.argsort(-np.abs(differences), kind="stable")
    flips = []
    for n in order:
        one, other = (table[ids[n]] for table in lines)
        if abs(differences[n]) <= _SAME or "prediction" not in one:
            break
        flips.append(
            Flip(
                ids[n],
                one["question"],
                one["target"],
                one["prediction"],
                other["prediction"],
                float(differences[n]),
            )
        )
    return tuple(flips)
