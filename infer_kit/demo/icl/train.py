"""Trains the in-context model: `python -m infer_kit.demo.icl.train --out DIR [--seed 0]`.

Stages, each seeded by itself and saved when it ends, so that an interrupted run goes on from the
last finished stage and ends with the same weights:

1. sight: the image side alone. The projected patch of an object is regressed on the sum of the
   codes of its colour and shape, that of an empty cell on the code of the background. The image
   side is not changed after this.
2. few: episodes with two or three values, hence many repetitions of each word.
3. all: episodes with all values, some of them twice as long.

Every demonstration's word is learnt from the demonstrations before it, so that one episode is a
lesson at every number of shots. How evenly the values come differs from episode to episode. A word
whose value was not shown before can but be guessed; to be sure of one is punished, and so the
model learns to know what its context does not tell.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.demo.build import save
from infer_kit.demo.icl import build, episodes
from infer_kit.demo.icl.episodes import ATTRIBUTES, Board, Demonstration
from infer_kit.demo.packing import Batch, Row, losses, project
from infer_kit.demo.train import Parts, Stage, fit_language, fit_sight, run_stages, script

LESSONS = ("unseen", "seen", "end")
UNSEEN, SEEN, END = range(len(LESSONS))

PICTURES = 64
EPISODES = 32
TURNS = 17
LONG_ONE_IN = 4
EVENNESS = (0.3, 1.0, 10.0)
"""Parameters of the Dirichlet distributions that say how often an episode shows each value."""

UNIFORM_SHARE = 0.25
FEW = (2, 3)

STAGES = (
    Stage("sight", 800, slow=3e-3, hold=0.0),
    Stage("few", 500),
    Stage("all", 2000, hold=0.4),
)

Pixels = dict[Board, Tensor]


def pixels_of(processor: Any) -> Pixels:
    """What the image processor makes of every training picture, each `[3, 32, 32]`."""
    return {
        board: processor.image_processor(episodes.draw(board), return_tensors="pt")["pixel_values"][
            0
        ]
        for board in episodes.boards(held_out=False)
    }


def train_sight(
    model: Any, codes: dict[str, Tensor], pixels: Pixels, stage: Stage, rng: random.Random
) -> None:
    """Stage 1: patches become sums of codes."""

    def batch() -> tuple[Tensor, Tensor]:
        shown = rng.sample(list(pixels), PICTURES)
        target = torch.stack(
            [
                torch.stack(
                    [
                        codes[board.color] + codes[board.shape]
                        if cell == board.cell
                        else codes[board.background]
                        for cell in episodes.CELLS
                    ]
                )
                for board in shown
            ]
        )
        return torch.stack([pixels[board] for board in shown]), target

    fit_sight(model, stage, batch)


def train_language(model: Any, pixels: Pixels, stage: Stage, rng: random.Random) -> None:
    """Stages 2 and 3. The image side is frozen, so each picture is read once."""
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    with torch.no_grad():
        features = project(model, torch.stack(list(pixels.values())))
    numbers = {board: i for i, board in enumerate(pixels)}

    def step() -> Parts:
        long = stage.name == "all" and rng.random() * LONG_ONE_IN < 1
        turns, rows = (2 * TURNS, EPISODES // 2) if long else (TURNS, EPISODES)
        taught = [
            row_of(lesson(rng, turns, rng.choice(FEW) if stage.name == "few" else None), numbers)
            for _ in range(rows)
        ]
        # Rows of one length need no mask but the causal one.
        return [losses(model, replace(Batch.of(taught), mask=None), features)]

    fit_language(model, stage, LESSONS, step)
    model.requires_grad_(True)


def lesson(rng: random.Random, turns: int, values: int | None = None) -> list[Demonstration]:
    """An episode of training pictures.

    Each attribute has its own distribution of values, from even to one value almost alone, with
    `UNIFORM_SHARE` of the pictures from an even one: what was not shown yet is asked for then.

    Args:
        values: how many values of the attribute occur, all of them if None.
    """
    attribute = rng.choice(tuple(ATTRIBUTES))
    bindings = episodes.bind(attribute, rng)
    occurring = {name: list(every) for name, every in ATTRIBUTES.items()}
    if values is not None:
        occurring[attribute] = rng.sample(occurring[attribute], values)
    shares = {}
    for name, every in occurring.items():
        evenness = rng.choice(EVENNESS)
        shares[name] = [rng.gammavariate(evenness, 1.0) + 1e-9 for _ in every]
    shown = []
    for _ in range(turns):
        drawn = {}
        for name, every in occurring.items():
            even = rng.random() < UNIFORM_SHARE
            drawn[name] = rng.choices(every, None if even else shares[name])[0]
        board = rng.choice(episodes.boards_with(False, drawn["color"], drawn["shape"]))
        shown.append(episodes.demonstrate(attribute, bindings, board))
    return shown


def row_of(shown: Sequence[Demonstration], numbers: dict[Board, int]) -> Row:
    """An episode as the chat template renders it, with every answer supervised.

    Args:
        numbers: of each board in the batch of images.
    """
    row = Row([numbers[one.board] for one in shown])
    ids, learn, kinds, known = build.encode("<s>"), [], [], set()
    for one in shown:
        ids += build.encode(f"user :{' <image>' * build.IMAGE_TOKENS} {one.question} assistant :")
        learn += [len(ids), len(ids) + 1]
        kinds += [SEEN if one.answer in known else UNSEEN, END]
        ids += build.encode(f"{one.answer} </s>")
        known.add(one.answer)
    row.add(ids, learn=learn)
    for place, kind in zip(learn, kinds, strict=True):
        row.lessons[place - 1] = kind
    return row


def train(out: Path, seed: int = 0, smoke: bool = False) -> None:
    """Run what stages are left, and save the model and its processor to `out`."""
    start = time.process_time()
    processor = build.make_processor()
    pixels = pixels_of(processor)
    model, codes = build.make_model(seed)

    def teach(stage: Stage, rng: random.Random) -> None:
        if stage.name == "sight":
            train_sight(model, codes, pixels, stage, rng)
        else:
            train_language(model, pixels, stage, rng)

    made = out / f"stages-{seed}{'-smoke' if smoke else ''}"
    run_stages(model, STAGES, teach, made, seed, smoke, start)
    save(model, processor, out)
    shutil.rmtree(made)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model."""
    script("Train the in-context model from nothing.", train, arguments)


if __name__ == "__main__":
    main()
