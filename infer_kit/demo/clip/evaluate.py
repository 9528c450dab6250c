"""What the tiny CLIP can do: `python -m infer_kit.demo.clip.evaluate [--n 1000]`.

On held-out pictures: zero-shot accuracy over the places, and how well the true phrases of a picture
rank among all phrases by cosine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infer_kit.concepts.classes import ZeroShotHead
from infer_kit.concepts.encoders import TransformersEncoder, image_features, text_features
from infer_kit.demo.clip import CLASSES, MODEL_DIR, PHRASES, held_out, load


def figures(folder: str | Path = MODEL_DIR, n: int = 1000, seed: int = 0) -> dict[str, float]:
    """Figures of a model on n held-out pictures."""
    encoder = TransformersEncoder(*load(folder), name="demo-clip")
    samples = held_out(n, seed)
    images = image_features(encoder, [sample.picture for sample in samples])
    phrases = text_features(encoder, PHRASES)
    logits = ZeroShotHead.of(encoder, CLASSES).logits(images)
    labels = torch.tensor([CLASSES.index(sample.label) for sample in samples])
    true = torch.tensor([[p in sample.phrases for p in PHRASES] for sample in samples])
    precision = [_average_precision(s, t) for s, t in zip(images @ phrases.T, true, strict=True)]
    gap = torch.nn.functional.cosine_similarity(images.mean(0), phrases.mean(0), dim=0)
    return {
        "zero-shot accuracy": float((logits.argmax(1) == labels).double().mean()),
        "mean average precision of true phrases": sum(precision) / n,
        "share of phrases that are true": float(true.double().mean()),
        "logit scale": encoder.logit_scale,
        "cosine of the mean image and the mean phrase": float(gap),
    }


def _average_precision(scores: Any, true: Any) -> float:
    hits = true[scores.argsort(descending=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="What the tiny CLIP can do.")
    parser.add_argument("--n", type=int, default=1000, help="held-out pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="a folder")
    options = parser.parse_args(arguments)
    for name, value in figures(options.model, options.n, options.seed).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
