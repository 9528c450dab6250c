"""A tiny vision-language model that ships with the package, and the questions it answers.

>>> from infer_kit import demo
>>> model, processor = demo.load()
>>> from infer_kit.demo.scenes import held_out
>>> record = held_out(1)[0]

It is a teaching model: it makes the methods visible in seconds on a CPU, and is evidence for none
of them. `model/README.md` is its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_kit.methods.prompts import Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_DIR: Path = Path(__file__).parent / "model"
"""The folder with the model's files."""

PROMPTS = Prompts(
    rationale_request="{question} explain .",
    image_context="{question}",
    rationale_context="notes : {rationale} {question}",
)
"""The prompts of rationale-enhanced decoding in the words that the tiny model knows."""


def load(folder: str | Path = MODEL_DIR) -> tuple[Any, Any]:
    """The tiny model (float32, evaluation mode) and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText

    from infer_kit.processors import load_processor

    processor = load_processor(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor


def example(seed: int = 0) -> tuple[Image, str]:
    """A held-out picture and a question about it that needs a rationale."""
    from infer_kit.demo.scenes import held_out

    record = held_out(1, seed)[0]
    return record.picture, record.question


__all__ = ["MODEL_DIR", "PROMPTS", "example", "load"]
