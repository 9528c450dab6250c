"""The figures of a run from its lines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer_kit.evaluation.run_folder import Line
from infer_kit.evaluation.samples import Sample
from infer_kit.evaluation.tasks import Task

Figure = dict[str, float]


def results_of(task: Task, samples: Sequence[Sample], lines: Mapping[str, Line]) -> dict[str, Any]:
    """`{"metrics", "n", "seconds"}` of the samples that have a line.

    Every metric is `{"value", "stderr"}`, the standard error None where the figure is no mean.
    Figures of pairs (MME's) are left out where a sample has failed.
    """
    answered = [sample for sample in samples if sample.id in lines]
    found = [lines[sample.id] for sample in answered]
    values, weights = scored(task, answered, found)
    metrics: dict[str, Figure | dict[str, float | None]] = {
        task.main: ratio(values, weights),
    }
    categories = sorted({s.category for s in answered if s.category is not None})
    if len(categories) > 1:
        for category in categories:
            rows = np.array([s.category == category for s in answered])
            metrics[f"{task.main}/{category}"] = ratio(values[rows], weights[rows])
    if task.is_scored:
        high = np.array([line["logprob"][1] for line in found])
        at_least = ratio(-high / math.log(2), weights)
        metrics["bits_per_byte at least"] = at_least
    whole = len(answered) == len(samples) or not task.more_of_pairs
    if task.more is not None and answered and whole:
        predictions = [line["prediction"] for line in found]
        more = task.more(predictions, answered)
        metrics |= {name: {"value": float(v), "stderr": None} for name, v in more.items()}
    return {
        "metrics": metrics,
        "n": len(answered),
        "tokens": sum(line.get("tokens", 0) for line in found),
        "seconds": round(sum(line["seconds"] for line in found), 3),
    }


def scored(
    task: Task, samples: Sequence[Sample], lines: Sequence[Line]
) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` values and `[n]` weights: the figure is Σ values / Σ weights.

    Bits and bytes of texts; of answers, their scores and ones.
    """
    if task.is_scored:
        bits = np.array([-line["logprob"][0] / math.log(2) for line in lines])
        return bits, np.array([float(line["bytes"]) for line in lines])
    if not samples:
        return np.zeros(0), np.zeros(0)
    scores = task.scores([line["prediction"] for line in lines], samples)
    return np.asarray(scores, dtype=np.float64), np.ones(len(lines))


def ratio(values: np.ndarray, weights: np.ndarray) -> dict[str, float | None]:
    r"""$\hat r = \sum v / \sum w$ with its standard error, of a mean where weights are 1.

    The error is that of a ratio, $\sqrt{\frac{n}{n-1} \sum (v - \hat r w)^2} / \sum w$.
    """
    n, total = len(values), float(weights.sum())
    if not n:
        return {"value": None, "stderr": None}
    value = float(values.sum()) / total
    if n == 1:
        return {"value": value, "stderr": None}
    spread = float(((values - value * weights) ** 2).sum()) * n / (n - 1)
    return {"value": value, "stderr": math.sqrt(spread) / total}
