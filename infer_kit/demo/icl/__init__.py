"""A second tiny vision-language model that ships: it answers from demonstrations alone.

>>> from infer_kit.demo import icl
>>> model, processor = icl.load()
>>> (episode,) = icl.held_out(1, shots=16)

In every episode made-up words are bound anew to colours or shapes. It is a teaching model, as the
other one; `model/README.md` is its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infer_kit import demo
from infer_kit.demo.icl.episodes import Episode, held_out

MODEL_DIR: Path = Path(__file__).parent / "model"
"""The folder with the model's files."""


def load(folder: str | Path = MODEL_DIR) -> tuple[Any, Any]:
    """The tiny model (float32, evaluation mode) and its processor."""
    return demo.load(folder)


__all__ = ["MODEL_DIR", "Episode", "held_out", "load"]
