"""Figures have the lines of their curves and are written where they are to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.figures import MEASURES, barrier_figure, transfer_figure
from infer_kit.training.symmetry.merging import Curve

PLAIN = Curve((0.0, 0.5, 1.0), (0.1, 0.9, 0.2), (0.9, 0.4, 0.8))
FULL = Curve((0.0, 0.5, 1.0), (0.2, 0.7, 0.3), (0.8, 0.5, 0.7), (1.0, 2.0, 1.5), (0.2, 0.3, 0.25))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_barrier_is_drawn_over_the_line_of_its_ends(measure: str, tmp_path: Path) -> None:
    figure = barrier_figure({"naive": FULL, "matched": FULL}, tmp_path / "deep" / "out", measure)
    assert (tmp_path / "deep" / "out.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [tuple(line.get_ydata()) for line in lines] == [getattr(FULL, measure)] * 2
    assert tuple(lines[0].get_xdata()) == FULL.lambdas
    ends = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert len(ends) == (0 if measure == "perplexity" else 2)
    for line in ends:
        assert tuple(line.get_ydata()) == getattr(FULL, measure)[::2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["naive", "matched"]
    assert measure.split("_")[0] in axes.get_ylabel()


def test_steps_of_a_transfer_are_drawn(tmp_path: Path) -> None:
    curves = {"fgmt": (0.1, 0.5, 0.9), "naive": (0.1, 0.2)}
    path = tmp_path / "steps.svg"
    (axes,) = transfer_figure(curves, path).axes
    assert [tuple(line.get_ydata()) for line in axes.lines] == [*curves.values()]
    assert list(axes.lines[0].get_xdata()) == [0, 1, 2] and "<svg" in path.read_text()
    assert transfer_figure(curves) is not None and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InferKitError, match="'plain' has no calibrated_loss"):
        barrier_figure({"full": FULL, "plain": PLAIN}, measure="calibrated_loss")
    with pytest.raises(InferKitError, match="no measure 'error'"):
        barrier_figure({"full": FULL}, measure="error")
    for drawn in (barrier_figure, transfer_figure):
        with pytest.raises(InferKitError, match="There is no curve to draw"):
            drawn({})
    with pytest.raises(InferKitError, match="'a' has no value"):
        transfer_figure({"a": []})
    with pytest.raises(InferKitError, match="'a' is 97 at t = 1: an accuracy from 0 to 1"):
        transfer_figure({"a": [0.5, 97.0]})
    with pytest.raises(InferKitError, match="'a' is nan at t = 0"):
        transfer_figure({"a": [float("nan")]})
    for drawn in (barrier_figure, transfer_figure):
        with pytest.raises(InferKitError, match="where curves by label are expected"):
            drawn(PLAIN)  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match="'a' is a list, where a Curve is expected"):
        barrier_figure({"a": [0.1]})  # type: ignore[dict-item]
    assert transfer_figure({"a": torch.tensor([0.1, 0.2])}) is not None  # type: ignore[dict-item]
    with pytest.raises(InferKitError, match="'a' is a Curve, where accuracies are expected"):
        transfer_figure({"a": PLAIN})  # type: ignore[dict-item]
