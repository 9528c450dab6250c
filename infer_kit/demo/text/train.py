"""Trains the two text models from nothing: `python -m infer_kit.demo.text.train --out DIR`.

Each model: its tokenizer is trained on texts in its own shares of the domains, then the model on
fresh documents without end, in one stage that is saved when it ends. Nothing depends on anything
but the seed, so that a second run on one thread gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infer_kit.demo.packing import IGNORED
from infer_kit.demo.text import NAMES, build, corpus
from infer_kit.demo.train import Parts, Stage, fit_language, run_stages

LESSONS = ("plain", "chat")
POOL = 512
"""Documents that are sorted by length together, so that a batch has little padding."""

TOKENS = 2048
"""Tokens of a batch, padding included."""

BARE_SHARE = 0.5
"""How many plain texts model a reads without an end before them, as prompts come."""

STAGES = (Stage("texts", 4500, matrices=2e-2, gains=3e-3, slow=1e-2, hold=0.3),)

Row = tuple[list[int], int]
"""The ids of a document, and the number of its lesson."""


def row_of(name: str, tokenizer: Any, document: corpus.Document, rng: random.Random) -> Row:
    """A document as the model reads it. The end belongs to it."""
    if document.chat is not None:
        return tokenizer.apply_chat_template(document.chat, return_dict=False), 1
    ids: list[int] = tokenizer(document.plain)["input_ids"]
    if name == "a" and rng.random() >= BARE_SHARE:
        ids = [tokenizer.bos_token_id, *ids]
    return [*ids, tokenizer.eos_token_id], 0


def batches(name: str, tokenizer: Any, rng: random.Random) -> Iterator[list[Row]]:
    """Batches of fresh documents of about one length, without end."""
    share = build.ERRANDS_SHARE[name]
    while True:
        rows = [row_of(name, tokenizer, corpus.document(rng, share), rng) for _ in range(POOL)]
        rows.sort(key=lambda row: len(row[0]))
        made: list[list[Row]] = [[]]
        for row in rows:
            if (len(made[-1]) + 1) * len(row[0]) > TOKENS:
                made.append([])
            made[-1].append(row)
        rng.shuffle(made)
        yield from made


def losses(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy, hit and lesson number of every token but the first of each row, each `[N]`."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), model.config.pad_token_id)
    target = torch.full((len(rows), width), IGNORED)
    lesson = torch.tensor([number for _, number in rows])[:, None].expand(-1, width)
    for i, (row, _) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        target[i, : len(row) - 1] = torch.tensor(row[1:])
    # Padding is on the right, so what is causal sees none of it.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    learnt = target != IGNORED
    logits = model.lm_head(hidden[learnt])
    loss = F.cross_entropy(logits, target[learnt], reduction="none")
    return loss, logits.argmax(-1) == target[learnt], lesson[learnt]


def teach(name: str, model: Any, tokenizer: Any, stage: Stage, rng: random.Random) -> None:
    """Learn from fresh documents."""
    fresh = batches(name, tokenizer, rng)

    def step() -> Parts:
        return [losses(model, next(fresh))]

    # `fit_language` finds the matrices of the layers by the name that they have in a LLaVA.
    fit_language(torch.nn.ModuleDict({"language_model": model.model}), stage, LESSONS, step)


def train(name: str, out: Path, seed: int = 0, smoke: bool = False) -> None:
    """Train one model, and save it and its tokenizer to `out / name`."""
    start = time.process_time()
    tokenizer = build.make_tokenizer(name)
    model = build.make_model(name, tokenizer, seed)
    folder = out / name
    made = folder / f"stages-{seed}{'-smoke' if smoke else ''}"
    run_stages(model, STAGES, partial(teach, name, model, tokenizer), made, seed, smoke, start)
    build.save(model, tokenizer, folder)
    shutil.rmtree(made)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the models."""
    parser = argparse.ArgumentParser(description="Train the two text models from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", choices=NAMES, help="train this model alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more may change the last digits")
    parser.add_argument("--smoke", action="store_true", help="two steps a stage, to try the script")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in NAMES:
        if options.only in (None, name):
            train(name, options.out, options.seed, options.smoke)


if __name__ == "__main__":
    main()
