"""Trains the teaching model from nothing: `python -m infer_kit.demo.train --out DIR [--seed 0]`.

Five stages, each seeded by itself and saved when it ends, so that an interrupted run goes on from
the last finished stage and ends with the same weights:

1. sight: the image side alone. Every projected patch is regressed on the sum of the (untrained)
   word embeddings of its cell, colour, shape and background.
2. places: "where is the red circle", for single objects. Learnt first, because a model that has
   learnt colours and shapes alone gets stuck there.
3. look up: places, and what a cell holds.
4. questions: fresh questions of both kinds; each is answered directly, and explained.
5. notes: the model writes rationales about a pool of fresh training questions, and learns to
   answer from them: mostly without the image, seldom beside it. They are as reliable as the model
   is, and the target is always the true answer, so the reader learns how far to trust them, and
   that they say nothing of the background. Some notes are empty. Stage 4 goes on meanwhile.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from infer_kit.demo import build, lessons, scenes
from infer_kit.demo.decode import write_rationales
from infer_kit.demo.lessons import Noted
from infer_kit.demo.packing import Batch, Row, losses, project

WARM_UP = 30
IMAGES = 32
POOL = 6144
NOTES_ROWS = 48
EMPTY_ROWS = 2
JOINT_ROWS = 3
LOOK_UP_SHARE = 0.1

Patches = dict[tuple[str, str, str], Tensor]
Lesson = tuple[list[scenes.Scene], list[list[Row]]]
Parts = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Stage:
    """steps; matrices, gains, slow: learning rates; hold: share of steps before the decay."""

    name: str
    steps: int
    matrices: float = 1e-2
    gains: float = 3e-3
    slow: float = 3e-4
    hold: float = 1.0


STAGES = (
    Stage("sight", 1500, slow=3e-3, hold=0.0),
    Stage("places", 250),
    Stage("look up", 200),
    Stage("questions", 900, hold=0.6),
    Stage("notes", 300, matrices=4e-3, gains=1e-3, slow=2e-4, hold=0.3),
)


def pixels_of(patches: Patches, scene: scenes.Scene) -> Tensor:
    """What the image processor makes of the scene's picture, `[3, 48, 48]`."""
    cells = [patches[scene.background, color, shape] for color, shape in scene.objects]
    return torch.cat([torch.cat(cells[i : i + 3], 2) for i in (0, 3, 6)], 1)


def train_sight(model: Any, patches: Patches, stage: Stage, rng: random.Random) -> None:
    """Stage 1: patches become sums of word embeddings."""
    words = model.model.language_model.embed_tokens.weight.detach()

    def batch() -> tuple[Tensor, Tensor]:
        boards = [scenes.random_scene(rng) for _ in range(2 * IMAGES)]
        names = [
            [build.encode(f"{cell} {color} {shape} {board.background}")
             for cell, (color, shape) in zip(scenes.CELLS, board.objects, strict=True)]
            for board in boards
        ]  # fmt: skip
        target = words[torch.tensor(names)].sum(2)
        return torch.stack([pixels_of(patches, board) for board in boards]), target

    fit_sight(model, stage, batch)


def fit_sight(model: Any, stage: Stage, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Regress projected patches.

    Args:
        batch: gives pixels `[B, 3, H, W]` and targets `[B, patches, width]`.
    """
    seen = [
        p
        for n, p in model.named_parameters()
        if "vision_tower" in n or "multi_modal_projector" in n
    ]
    optimiser = torch.optim.AdamW(seen, lr=stage.slow, weight_decay=0.0)
    progress = tqdm(range(stage.steps), desc=stage.name, mininterval=5)
    for step in progress:
        _set_rates([optimiser], [stage.slow], stage, step)
        pixels, target = batch()
        features = project(model, pixels)
        loss = (features - target).square().mean() / target.var()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        progress.set_postfix(error=f"{loss.item():.4f}", refresh=False)


def train_language(
    model: Any,
    patches: Patches,
    stage: Stage,
    rng: random.Random,
    lesson: Callable[[random.Random], Lesson],
) -> None:
    """Stages 2 to 5."""

    def step() -> Parts:
        boards, batches = lesson(rng)
        features = project(model, torch.stack([pixels_of(patches, board) for board in boards]))
        return [losses(model, Batch.of(rows), features) for rows in batches]

    fit_language(model, stage, lessons.LESSONS, step)


def fit_language(
    model: Any, stage: Stage, names: Sequence[str], losses_of_step: Callable[[], Parts]
) -> None:
    """Muon for the matrices of the language model's layers, AdamW for the rest.

    Args:
        names: of the lessons, by their numbers.
        losses_of_step: what `packing.losses` gives for each batch of one step.
    """
    matrices: list[torch.nn.Parameter] = []
    gains: list[torch.nn.Parameter] = []
    slow: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "language_model.layers" in name:
            (matrices if parameter.ndim == 2 else gains).append(parameter)
        else:
            (slow if parameter.ndim >= 2 else gains).append(parameter)
    muon = torch.optim.Muon(matrices, lr=stage.matrices, momentum=0.9, weight_decay=0.0)
    groups = [{"params": gains, "lr": stage.gains}, {"params": slow, "lr": stage.slow}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [stage.matrices, stage.gains, stage.slow]
    hits: dict[int, float] = {}
    progress = tqdm(range(stage.steps), desc=stage.name, mininterval=5)
    for step in progress:
        _set_rates([muon, adam], rates, stage, step)
        parts = losses_of_step()
        loss, hit, number = (torch.cat(column) for column in zip(*parts, strict=True))
        muon.zero_grad()
        adam.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(gains + slow, 1.0)
        muon.step()
        adam.step()
        for n in number.unique().tolist():
            share = hit[number == n].float().mean().item()
            hits[n] = 0.9 * hits.get(n, share) + 0.1 * share
        named = {names[n]: f"{share:.2f}" for n, share in sorted(hits.items())}
        progress.set_postfix(named, refresh=False)


def _set_rates(
    optimisers: Sequence[torch.optim.Optimizer], rates: Sequence[float], stage: Stage, step: int
) -> None:
    left = (stage.steps - step) / (stage.steps * (1 - stage.hold) + 1e-9)
    scale = min(1.0, (step + 1) / WARM_UP, left)
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = scale * rate


def _boards(rng: random.Random) -> list[scenes.Scene]:
    return [scenes.random_scene(rng) for _ in range(IMAGES)]


def places(rng: random.Random) -> Lesson:
    """Where single objects are."""
    boards = _boards(rng)
    return boards, [[lessons.look_up_row(i, b, rng, places=1.0) for i, b in enumerate(boards)]]


def look_up(rng: random.Random) -> Lesson:
    """Where objects are, and what cells hold."""
    boards = _boards(rng)
    return boards, [[lessons.look_up_row(i, b, rng, places=0.5) for i, b in enumerate(boards)]]


def questions(rng: random.Random) -> Lesson:
    """Two walks about each image, and the background of every third."""
    if rng.random() < LOOK_UP_SHARE:
        return look_up(rng)
    boards = _boards(rng)
    rows = []
    for i, board in enumerate(boards):
        asked = [scenes.walk(board, rng), scenes.walk(board, rng)]
        if i % 3 == 0:
            asked.append(scenes.background(board))
        rows.append(lessons.question_row(i, asked))
    return boards, [rows]


def notes(pool: Sequence[Noted]) -> Callable[[random.Random], Lesson]:
    """`questions`, with answers from the pool's rationales: many without image, few beside it."""

    def lesson(rng: random.Random) -> Lesson:
        boards, [rows] = questions(rng)
        texts = [lessons.notes_row(noted) for noted in rng.sample(pool, NOTES_ROWS)]
        for noted in rng.sample(pool, EMPTY_ROWS):
            texts.append(lessons.notes_row(Noted(noted.record, "")))
        beside = []
        for noted in rng.sample(pool, JOINT_ROWS):
            beside.append(lessons.notes_row(noted, len(boards)))
            boards.append(noted.record.scene)
        return boards, [rows, texts, beside]

    return lesson


def write_pool(
    model: Any, processor: Any, patches: Patches, size: int, rng: random.Random
) -> list[Noted]:
    """The model's own rationales about fresh training questions, half of each kind."""
    records = [
        scenes.question(scenes.KINDS[i % 2], scenes.random_scene(rng), rng) for i in range(size)
    ]
    pixels = [pixels_of(patches, record.scene) for record in records]
    texts = write_rationales(model.eval(), processor, records, pixels)
    return [Noted(record, text) for record, text in zip(records, texts, strict=True)]


def train(out: Path, seed: int = 0, smoke: bool = False) -> None:
    """Run what stages are left, and save the model and its processor to `out`."""
    start = time.process_time()
    processor = build.make_processor()
    patches = build.cell_patches(processor)
    model = build.make_model(seed)

    def teach(stage: Stage, rng: random.Random) -> None:
        if stage.name == "sight":
            train_sight(model, patches, stage, rng)
        elif stage.name == "notes":
            pool = write_pool(model, processor, patches, 64 if smoke else POOL, rng)
            train_language(model.train(), patches, stage, rng, notes(pool))
        else:
            lesson = {"places": places, "look up": look_up, "questions": questions}[stage.name]
            train_language(model, patches, stage, rng, lesson)

    made = out / f"stages-{seed}{'-smoke' if smoke else ''}"
    run_stages(model, STAGES, teach, made, seed, smoke, start)
    build.save(model, processor, out)
    shutil.rmtree(made)


def run_stages(
    model: Any,
    stages: Sequence[Stage],
    teach: Callable[[Stage, random.Random], None],
    made: Path,
    seed: int,
    smoke: bool,
    start: float,
) -> None:
    """Teach one stage after the other, each seeded by itself.

    Args:
        made: folder for the state after each stage; what is there already is not made again.
        smoke: make two steps of each stage.
        start: CPU time when the run began, to report from.
    """
    made.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages):
        file = made / f"{number}.pt"
        if file.exists():
            model.load_state_dict(torch.load(file))
            continue
        rng = random.Random(f"training {seed} {stage.name}")
        torch.manual_seed(seed)
        teach(Stage(stage.name, 2) if smoke else stage, rng)
        torch.save(model.state_dict(), file)
        print(f"{stage.name}: {time.process_time() - start:.0f} s of CPU time so far")


def script(
    about: str, teach: Callable[[Path, int, bool], None], arguments: Sequence[str] | None
) -> None:
    """The options of a training script, and its run.

    Args:
        about: what the script does. teach: takes the folder to write to, the seed, and whether
            two steps a stage will do. arguments: None for those of the command line.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more may change the last digits")
    parser.add_argument("--smoke", action="store_true", help="two steps a stage, to try the script")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    teach(options.out, options.seed, options.smoke)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model."""
    script("Train the teaching model from nothing.", train, arguments)


if __name__ == "__main__":
    main()
