"""Figures of merging and of learning transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from infer_kit.canvas import canvas, saved
from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.merging import Curve

MEASURES = {
    "loss": "loss (nats)",
    "accuracy": "accuracy",
    "calibrated_loss": "calibrated loss (nats)",
    "perplexity": "perplexity",
}
"""What `barrier_figure` draws, and the name of its axis."""


def barrier_figure(
    curves: Mapping[str, Curve], path: str | Path | None = None, measure: str = "loss"
) -> Any:
    """A measure of each curve against l; a barrier is its height over the dotted line of the ends.

    Args:
        curves: by the label of each.
        path: file to write, PNG if it has no suffix; None for none.
        measure: "loss", "accuracy", "calibrated_loss" or "perplexity", which has no dotted line.

    Returns:
        The figure of matplotlib.

    Raises:
        InferKitError: no curve, an unknown measure, or a curve without calibrated loss.
        MissingExtra: matplotlib is not installed.
    """
    if measure not in MEASURES:
        raise InferKitError(
            f"A curve has no measure {measure!r}.", f"Use one of {', '.join(MEASURES)}."
        )
    _check_some(curves)
    for label, curve in curves.items():
        if not isinstance(curve, Curve):
            raise InferKitError(
                f"The curve {label!r} is a {type(curve).__name__}, where a Curve is expected.",
                "Give what `barrier` returns.",
            )
        if getattr(curve, measure) is None:
            raise InferKitError(
                f"The curve {label!r} has no {measure}.",
                "Give calibrate_on, held-out batches, to `barrier`.",
            )
    figure, axes = canvas()
    for label, curve in curves.items():
        values = getattr(curve, measure)
        (line,) = axes.plot(curve.lambdas, values, marker="o", markersize=3, label=label)
        if measure != "perplexity":
            ends = ([curve.lambdas[0], curve.lambdas[-1]], [values[0], values[-1]])
            axes.plot(*ends, color=line.get_color(), ls=":", lw=1)
    axes.set_xlabel("λ, from network a to network b")
    axes.set_ylabel(MEASURES[measure])
    return _done(figure, axes, path)


def transfer_figure(curves: Mapping[str, Sequence[float]], path: str | Path | None = None) -> Any:
    """Accuracy after each step of a transferred training run.

    Args:
        curves: by the label of each, accuracies from 0 to 1 at the steps t = 0, 1, ..., T.
        path: file to write, PNG if it has no suffix; None for none.

    Returns:
        The figure of matplotlib.

    Raises:
        InferKitError: no curve, one without a value, or values that are no shares.
        MissingExtra: matplotlib is not installed.
    """
    _check_some(curves)
    for label, values in curves.items():
        if isinstance(values, (str, Mapping)) or not hasattr(values, "__len__"):
            raise InferKitError(
                f"The curve {label!r} is a {type(values).__name__}, where accuracies are expected.",
                "Give the .curve of a TransferResult.",
            )
        if not len(values):
            raise InferKitError(f"The curve {label!r} has no value.", "Give one for each step.")
        wrong = [(t, v) for t, v in enumerate(values) if not (isfinite(v) and 0 <= v <= 1)]
        if wrong:
            raise InferKitError(
                f"The curve {label!r} is {wrong[0][1]:g} at t = {wrong[0][0]}: an accuracy from 0 "
                "to 1 is expected.",
                "Give shares, not percent.",
            )
    figure, axes = canvas()
    for label, values in curves.items():
        axes.plot(range(len(values)), list(values), marker="o", markersize=3, label=label)
    axes.set_xlabel("step t of the transfer")
    axes.set_ylabel("accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _done(figure, axes, path)


def _check_some(curves: Mapping[str, Any]) -> None:
    if not isinstance(curves, Mapping):
        raise InferKitError(
            f"A {type(curves).__name__} is given where curves by label are expected.",
            'Give {"label": curve}.',
        )
    if not curves:
        raise InferKitError("There is no curve to draw.", "Give at least one, by its label.")


def _done(figure: Any, axes: Any, path: str | Path | None) -> Any:
    axes.legend(fontsize="small")
    if path is not None:
        saved(figure, Path(path))
    return figure
