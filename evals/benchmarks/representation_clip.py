"""Refining the project's tiny CLIP: what `representation` measures of image-text models.

The model has learnt all ten places. It is refined on pictures of five, with captions that name four
things of a picture and never a place: a longer kind of caption than it was trained on. Measured on
held-out pictures: how well captions and pictures find each other, zero-shot places, seen and not
seen in refining, and where the features lie.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from infer_kit.demo import clip
from infer_kit.demo.clip import ways
from infer_kit.demo.clip.build import cell_pixels
from infer_kit.demo.clip.train import pixels_of
from infer_kit.demo.clip.world import CLASSES, EMPTY, THINGS, Boards, boards
from infer_kit.training.representation import (
    CLIPRefineConfig,
    CLIPRefineTrainer,
    ModalityReport,
    refine_arguments,
)

SEEN = 5
PAIRS, TESTED = 2048, 600
WAYS: dict[str, CLIPRefineConfig | None] = {
    "start": None,
    "contrastive": CLIPRefineConfig(alpha=1, lam_rand=0, similarity="scaled_cosine"),
    "self-distillation": CLIPRefineConfig(alpha=0, lam_rand=0, similarity="raw"),
    "HyCD": CLIPRefineConfig(lam_rand=0, similarity="raw"),
    "HyCD + align": CLIPRefineConfig(lam_rand=0, lam_align=1, similarity="raw"),
    "CLIP-Refine": CLIPRefineConfig(similarity="raw"),
    "CLIP-Refine, scaled cosine": CLIPRefineConfig(similarity="scaled_cosine"),
    "z = 0": CLIPRefineConfig(reference="zero", similarity="raw"),
    "z per modality": CLIPRefineConfig(reference="apart", similarity="raw"),
}

Example = dict[str, Tensor]


@dataclass(frozen=True)
class Refining:
    """One way of refining, from the shipped model."""

    way: str
    seed: int
    epochs: int = 4
    lr: float = 3e-4
    batch: int = 128

    def run(self) -> dict[str, float]:
        model = refined(self.way, self.seed, self.epochs, self.lr, self.batch)
        return measured(model)


def refined(way: str, seed: int, epochs: int = 4, lr: float = 3e-4, batch: int = 128) -> Any:
    """The model after refining."""
    model, processor = clip.load()
    config = WAYS[way]
    if config is None:
        return model
    rng = np.random.default_rng(100 + seed)
    some = boards(3 * PAIRS, rng)
    pixels, texts = _pairs(some[some.place < SEEN][:PAIRS], processor, rng)
    arguments: TrainingArguments
    with tempfile.TemporaryDirectory() as folder:
        arguments = refine_arguments(
            folder, learning_rate=lr, num_train_epochs=epochs, per_device_train_batch_size=batch,
            seed=seed, use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = CLIPRefineTrainer(
            model,
            arguments,
            refine=config,
            data_collator=_stack,
            train_dataset=[
                {"pixel_values": pixels[n], **{k: t[n] for k, t in texts.items()}}
                for n in range(len(pixels))
            ],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


@dataclass(frozen=True)
class Bottleneck:
    """Z-CBM on the model as it ships, or refined: classes read from phrases."""

    way: str
    seed: int
    epochs: int = 4
    lr: float = 3e-4
    batch: int = 128
    pictures: int = 200

    def run(self) -> dict[str, float]:
        model = refined(self.way, self.seed, self.epochs, self.lr, self.batch)
        world, chosen = ways.World((model, clip.load()[1])), (ways.PUBLISHED, ways.CENTRED)
        found = ways.measured(world, clip.held_out(self.pictures), names=chosen)
        rows = {}
        for name in chosen:
            way = found[name]
            rows[f"{name}: phrases"] = 100 * way.evaluation.model.accuracy
            rows[f"{name}: random"] = 100 * way.evaluation.random.accuracy
            rows[f"{name}: true"] = 100 * way.true
        rows["image"] = 100 * found[ways.PUBLISHED].evaluation.zero_shot.accuracy
        return rows


@torch.no_grad()
def features(model: Any) -> tuple[Tensor, Tensor]:
    """Of held-out pictures and a caption of each."""
    pixels, texts = _pairs(_tested(), clip.load()[1], np.random.default_rng(8))
    a = model.get_image_features(pixel_values=pixels).pooler_output
    return a, model.get_text_features(**texts).pooler_output


@torch.no_grad()
def measured(model: Any) -> dict[str, float]:
    """Figures on held-out pictures, accuracies and recalls in percent."""
    some, processor = _tested(), clip.load()[1]
    a, b = features(model)
    named = processor.tokenizer([f"a photo of a {c}" for c in CLASSES], return_tensors="pt")
    classes = model.get_text_features(**named).pooler_output
    unit = torch.nn.functional.normalize
    right = (unit(a, dim=1) @ unit(classes, dim=1).T).argmax(1) == torch.tensor(some.place)
    seen = torch.tensor(some.place < SEEN)
    report = ModalityReport.of(a, b, ks=(1, 5))
    return {
        "places, seen": 100 * float(right[seen].float().mean()),
        "places, not seen": 100 * float(right[~seen].float().mean()),
        "I2T@5": 100 * report.image_to_text[5],
        "T2I@5": 100 * report.text_to_image[5],
        "gap": report.gap,
        "alignment": report.alignment,
        "uniformity": report.uniformity,
        "1000 gap/d": report.gap_as_printed,
        "uniformity, no log": report.uniformity_as_printed,
    }


def _tested() -> Boards:
    return boards(TESTED, np.random.default_rng(7), held_out=True)


def caption(cells: np.ndarray, rng: np.random.Generator) -> str:
    """Four things of a picture, in any order."""
    names = [" ".join(THINGS[cell]) for cell in dict.fromkeys(cells.tolist()) if cell != EMPTY]
    return " and ".join(names[n] for n in rng.permutation(len(names))[:4])


def _pairs(some: Boards, processor: Any, rng: np.random.Generator) -> tuple[Tensor, Example]:
    texts = [caption(cells, rng) for cells in some.cells]
    encoded = processor.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    return pixels_of(_table(), some), dict(encoded)


@cache
def _table() -> Tensor:
    return cell_pixels(clip.load()[1])


def _stack(examples: list[Example]) -> Example:
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}
