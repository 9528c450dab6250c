"""A tiny CLIP that ships, of places made of things: for concept bottlenecks.

>>> from infer_kit.demo import clip
>>> model, processor = clip.load()
>>> (sample,) = clip.held_out(1)
>>> sample.label, sample.phrases

It is a teaching model; `model/README.md` is its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infer_kit.demo.clip.world import CLASSES, PHRASES, Sample, boards, samples_of

MODEL_DIR: Path = Path(__file__).parent / "model"
"""The folder with the model's files."""


def load(folder: str | Path = MODEL_DIR) -> tuple[Any, Any]:
    """The tiny CLIP (float32, evaluation mode) and its processor."""
    import torch
    from transformers import CLIPModel

    from infer_kit.processors import load_processor

    processor = load_processor(folder)
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), processor


def held_out(n: int, seed: int = 0) -> list[Sample]:
    """`n` pictures that were kept from training, for evaluation."""
    import numpy as np

    return samples_of(boards(n, np.random.default_rng(seed), held_out=True))


__all__ = ["CLASSES", "MODEL_DIR", "PHRASES", "Sample", "held_out", "load"]
