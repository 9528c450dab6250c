"""Figures of matplotlib on canvases of their own: no state is shared, no window is opened."""

from pathlib import Path
from typing import Any

from infer_kit.errors import MissingExtra


def canvas(width: float = 5.0, height: float = 3.4, columns: int = 1, **layout: Any) -> Any:
    """A figure and its axes; `layout` is of `Figure.subplots`.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "matplotlib is not installed.", hint="pip install 'infer-kit[plots]'"
        ) from error
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, **layout)


def saved(figure: Any, path: Path) -> Path:
    """Write a figure, as PNG where the name has no suffix; its folder is made."""
    path = path if path.suffix else path.with_suffix(".png")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
