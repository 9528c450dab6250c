"""Accuracy against the weight of a method."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_kit.canvas import canvas, saved
from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Sweep:
    """What a method answers at each of W weights, over B requests.

    Attributes:
        method: its name. knob: the name of what was swept.
        weights: W values. predictions: `[W][B]` texts. correct: `[W, B]` bool.
        scores: `[W, B, C]` log π of each candidate, or None where answers are free text.
        answers: B true answers.
        candidates: the C texts of each request, or None.
    """

    method: str
    knob: str
    weights: tuple[float, ...]
    predictions: tuple[tuple[str, ...], ...]
    correct: np.ndarray
    answers: tuple[str, ...]
    scores: np.ndarray | None = field(default=None, repr=False)
    candidates: tuple[tuple[str, ...], ...] | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> np.ndarray:
        """`[W]` share of right answers."""
        return self.correct.mean(1)

    @property
    def standard_error(self) -> np.ndarray:
        r"""`[W]` $\sqrt{a (1 - a) / B}$."""
        return np.sqrt(self.accuracy * (1 - self.accuracy) / self.correct.shape[1])

    @property
    def best(self) -> float:
        """The weight with the most right answers; of several, the first given."""
        return self.weights[int(self.accuracy.argmax())]

    def table(self) -> "Table":
        """A rich table, a row a weight."""
        from rich.table import Table

        title = f"{self.method}: accuracy over {len(self.answers)} requests"
        table = Table(self.knob, "accuracy", "s.e.", "right", title=title)
        for w, value in enumerate(self.weights):
            style = "bold green" if value == self.best else ""
            cells = (f"{self.accuracy[w]:.3f}", f"{self.standard_error[w]:.3f}")
            table.add_row(f"{value:g}", *cells, str(int(self.correct[w].sum())), style=style)
        return table

    def figure(self, path: str | Path) -> Path:
        """Save accuracy against weight with standard errors; PNG, SVG or PDF.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        figure, axes = canvas(4.5, 3.2)
        order = np.argsort(self.weights)
        x = np.asarray(self.weights)[order]
        axes.errorbar(x, self.accuracy[order], self.standard_error[order], marker="o", capsize=3)
        axes.set_xlabel(f"{self.method} {self.knob}")
        axes.set_ylabel(f"accuracy ({len(self.answers)} requests)")
        return saved(figure, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON."""
        return {
            "method": self.method,
            "knob": self.knob,
            "weights": list(self.weights),
            "accuracy": self.accuracy.tolist(),
            "standard_error": self.standard_error.tolist(),
            "predictions": [list(texts) for texts in self.predictions],
            "answers": list(self.answers),
            "candidates": None if self.candidates is None else [list(c) for c in self.candidates],
            "scores": None if self.scores is None else [*map(self._plain_scores, self.scores)],
        }

    def _plain_scores(self, scores: np.ndarray) -> list[list[float | None]]:
        """`[B][C]` of one weight, each request's own candidates; None for what is impossible."""
        assert self.candidates is not None
        return [
            [float(s) if np.isfinite(s) else None for s in row[: len(several)]]
            for row, several in zip(scores, self.candidates, strict=True)
        ]


def same_text(prediction: str, answer: str) -> bool:
    """Equal but for case, space around, and a full stop at the end."""
    return _plain(prediction) == _plain(answer)


def candidate_lists(
    candidates: Sequence[str] | Sequence[Sequence[str]], answers: Sequence[str]
) -> list[list[str]]:
    """The candidates of each request, checked.

    Args:
        candidates: texts for all requests, or a list of texts for each.
        answers: the true ones.

    Raises:
        InferKitError: there are none, or a true answer is not among them.
    """
    if isinstance(candidates, str) or not len(candidates):
        raise InferKitError(f"candidates must be a list of texts, got {candidates!r}.")
    shared = all(isinstance(c, str) for c in candidates)
    lists: list[Any] = (
        [list(candidates)] * len(answers) if shared else [list(c) for c in candidates]
    )
    if len(lists) != len(answers):
        raise InferKitError(f"Got candidates for {len(lists)} requests and {len(answers)} answers.")
    for b, (several, answer) in enumerate(zip(lists, answers, strict=True)):
        if not any(same_text(str(candidate), answer) for candidate in several):
            raise InferKitError(f"The answer of request {b}, {answer!r}, is not among {several}.")
    return lists


def joined_scores(parts: Sequence[np.ndarray]) -> np.ndarray:
    """`[W, B, C]` arrays of several batches as one; −inf for candidates that some lack."""
    width = max(part.shape[2] for part in parts)
    padded = [
        np.pad(p, ((0, 0), (0, 0), (0, width - p.shape[2])), constant_values=-np.inf) for p in parts
    ]
    return np.concatenate(padded, axis=1)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
