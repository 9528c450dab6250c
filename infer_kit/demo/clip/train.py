"""Trains the tiny CLIP from nothing: `python -m infer_kit.demo.clip.train --out DIR [--seed 0]`.

In every step 256 fresh pictures meet as many captions, one of each picture: a phrase that is true
of it, two of them, or its place. A caption is often true of other pictures in the batch too, and
each true pair counts as one: the target of a picture is even over the captions that are true of it,
and the other way round.

Seeded, and resumable: the two stages are saved as they end.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from infer_kit.demo.clip import build
from infer_kit.demo.clip.world import ATTRIBUTES, FIRST_PLACE, N_THINGS, Boards, boards
from infer_kit.demo.train import Stage, run_stages, script

BATCH = 256
STAGES = (Stage("phrases", 1500, slow=2e-3), Stage("all", 1500, slow=1e-3))
"""The first without places: what things look like is learnt first."""

_WARM_UP = 100
_MOST_SCALE = math.log(100.0)
_FORMS = ("{}", "a {}", "a photo of a {}", "the {}")
_PLACE_FORMS = ("{}", "a {}", "a photo of a {}", "a photo of a {}")
_PAIR, _PLACE = 0.2, 0.35  # shares of captions that name two things, and the place


def pixels_of(table: Tensor, some: Boards) -> Tensor:
    """What the image processor makes of pictures, `[n, 3, 48, 48]`.

    Args:
        table: see `build.cell_pixels`.
    """
    cells = table[torch.from_numpy(some.ground)[:, None], torch.from_numpy(some.cells)]
    n, _, channels, size, _ = cells.shape
    rows = cells.view(n, 3, 3, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(n, channels, 3 * size, 3 * size)


def captions(true: Tensor, rng: np.random.Generator, places: bool) -> tuple[list[str], Tensor]:
    """A caption of each picture, and of which pictures each is true.

    Args:
        true: `[n, attributes]`, of `Boards.attributes`. places: whether places are named.

    Returns:
        The captions, and `[n, n]` bool: whether a picture (row) fits a caption (column).
    """
    n = len(true)
    texts, first, second = [], [], []
    for row in true.numpy():
        if places and rng.random() < _PLACE:
            a = b = FIRST_PLACE + int(row[FIRST_PLACE:].argmax())
            form = _PLACE_FORMS[rng.integers(len(_PLACE_FORMS))]
            texts.append(form.format(ATTRIBUTES[a]))
        else:
            sayable = row[:FIRST_PLACE].nonzero()[0]
            a = b = int(rng.choice(sayable))
            form = _FORMS[rng.integers(len(_FORMS))] if a < N_THINGS else "{}"
            text = form.format(ATTRIBUTES[a])
            if rng.random() < _PAIR:
                b = int(rng.choice(sayable))
                text += f" and {ATTRIBUTES[b]}" if b != a else ""
            texts.append(text)
        first.append(a)
        second.append(b)
    fits = true[:, first] & true[:, second]
    assert bool(fits.diagonal().all()) and len(texts) == n
    return texts, fits


def loss_of(images: Tensor, texts: Tensor, scale: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy both ways; targets are even over all true pairs."""
    unit = torch.nn.functional.normalize
    logits = scale.exp() * unit(images, dim=1) @ unit(texts, dim=1).T
    share = fits.float()
    by_image = -(share / share.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(share / share.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


def fit(model: Any, processor: Any, table: Tensor, stage: Stage, seed: int) -> None:
    """One stage."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=stage.slow, weight_decay=0.01)
    progress = tqdm(range(stage.steps), desc=stage.name, mininterval=5)
    for step in progress:
        warm = min(1.0, (step + 1) / _WARM_UP)
        rate = stage.slow * warm * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        optimiser.param_groups[0]["lr"] = rate
        some = boards(BATCH, rng)
        texts, fits = captions(some.attributes(), rng, places=stage.name != "phrases")
        encoded = processor.tokenizer(texts, padding=True, return_tensors="pt")
        out = model(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            pixel_values=pixels_of(table, some),
        )
        loss = loss_of(out.image_embeds, out.text_embeds, model.logit_scale, fits)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=_MOST_SCALE)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def train(out: Path, seed: int, smoke: bool = False) -> None:
    """Train and save; an interrupted call goes on after its last finished stage."""
    start = time.process_time()
    model, processor = build.make_model(seed), build.make_processor()
    table = build.cell_pixels(processor)

    def teach(stage: Stage, rng: random.Random) -> None:
        fit(model, processor, table, stage, rng.randrange(2**32))

    made = out / f"stages-{seed}{'-smoke' if smoke else ''}"
    run_stages(model, STAGES, teach, made, seed, smoke, start)
    build.save(model, processor, out)
    shutil.rmtree(made)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model."""
    script("Train the tiny CLIP from nothing.", train, arguments)


if __name__ == "__main__":
    main()
