"""A search from beginning to end, with progress and checkpoints that resume exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import checkpoint_file
from infer_kit.training.tickets.checkpoint_file import Place
from infer_kit.training.tickets.search import EdgePopup, search_of

_LOOK_EVERY = 20
Loss = Callable[[nn.Module, Any], Tensor]


def fit(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    *,
    search: EdgePopup | None = None,
    per_step: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool = True,
) -> list[float]:
    """Train the scores of a ticket, or a meta-learner.

    A run that was interrupted goes on from its checkpoint and ends with the same bits: scores,
    optimizer, schedule, generations, and the states of all generators are in it, those with which
    the epoch's order was drawn too. Batches before the interruption are dealt out again and passed
    over.

    Args:
        model: of the ticket, or its DistributedDataParallel, or a meta-learner.
        data: batches, such as a DataLoader; read from the start in each epoch.
        loss: of the model and a batch: a tensor with one number.
        epochs: times that the data are read.
        optimizer: of the scores, such as `search.optimizer()`.
        scheduler: None for a cosine down to 0 over the epochs, by epochs.
        search: `EdgePopup` or `IteRand`; attached to the optimizer here if it is not. None for the
            one that is attached, if any.
        per_step: step the scheduler after each step, not after each epoch.
        checkpoint: file to write to and to go on from; None for none. With several processes the
            first writes it and all read it.
        checkpoint_every: steps of an epoch from one checkpoint to the next; also after each epoch.
        progress: show a bar, of the first process.

    Returns:
        The mean loss of each epoch, of this process.

    Raises:
        InferKitError: a loss or scores that are not finite; a checkpoint of another search, in no
            folder, or with data that cannot be dealt out again; data without a batch.
    """
    search = search_of(optimizer) if search is None else search
    if search is not None:
        search.ensure_attached(optimizer)
    if scheduler is None:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    states = {"optimizer": optimizer, "scheduler": scheduler, "model": inner}
    if search is not None:
        states["search"] = search
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None:
        checkpoint_file.check(file, data)
    place = (
        Place() if file is None or not file.exists() else checkpoint_file.resume(file, states, data)
    )
    first = not dist.is_initialized() or dist.get_rank() == 0
    size = len(data) if isinstance(data, Sized) else None
    with tqdm(
        total=None if size is None else size * epochs,
        initial=0 if size is None else size * place.epoch + place.batch,
        desc="search",
        disable=not (progress and first),
    ) as bar:
        while place.epoch < epochs:
            for batch in _batches(data, place):
                value = loss(model, batch)
                value.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if per_step:
                    scheduler.step()
                place.batch += 1
                place.total += value.detach()
                if place.batch % _LOOK_EVERY == 1:
                    mean = f"{_finite(place.total) / place.batch:.4f}"
                    bar.set_postfix(epoch=place.epoch + 1, loss=mean, refresh=False)
                bar.update()
                if file is not None and place.batch % checkpoint_every == 0:
                    _finite(place.total)
                    checkpoint_file.save(file, states, place, data)
            if place.batch == 0:
                raise InferKitError(
                    f"The data have no batch in epoch {place.epoch + 1}.",
                    "They are read once an epoch: give a list or a DataLoader, no generator.",
                )
            if not per_step:
                scheduler.step()
            mean_loss = _finite(place.total) / place.batch
            place = Place(place.epoch + 1, losses=[*place.losses, mean_loss])
            if file is not None:
                checkpoint_file.save(file, states, place, data)
    return place.losses


def warm_up_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warm_up: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate rises evenly over `warm_up` steps, then falls as a cosine to 0."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + cos(pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _batches(data: Iterable[Any], place: Place) -> Iterator[Any]:
    """The epoch's batches from `place.batch` on, in the order in which the epoch deals them out."""
    sampler: Any = getattr(data, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(place.epoch)
    now = checkpoint_file.generators(data)
    if place.order is None:
        place.order = now
    checkpoint_file.set_generators(place.order, data)
    batches = iter(data)
    if place.batch:
        for _ in range(place.batch):
            next(batches)
        # As they were when the run was interrupted, after the steps that are not made again.
        checkpoint_file.set_generators(now, data)
    yield from batches


def _finite(total: Tensor) -> float:
    number = float(total)
    if not isfinite(number):
        raise InferKitError(
            f"The loss became {number}.",
            "Lower the learning rate, or look for the batch that does it.",
        )
    return number
