"""A search from beginning to end, with progress and checkpoints that resume exactly."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass, field, replace
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.search import EdgePopup

_LOOK_EVERY = 20
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass
class _Place:
    """Where a search is.

    Attributes:
        epoch, batch: the next batch. losses: mean loss of each epoch that has ended.
        total: of the losses of this epoch. order: states of the generators when the epoch began,
            with which its batches are dealt out again.
    """

    epoch: int = 0
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    order: dict[str, Any] | None = None


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
        search: `EdgePopup` or `IteRand`; attached to the optimizer here if it is not.
        per_step: step the scheduler after each step, not after each epoch.
        checkpoint: file to write to and to go on from; None for none. With several processes the
            first writes it and all read it.
        checkpoint_every: steps of an epoch from one checkpoint to the next; also after each epoch.
        progress: show a bar, of the first process.

    Returns:
        The mean loss of each epoch, of this process.

    Raises:
        InferKitError: a loss or scores that are not finite; a checkpoint of another search; data
            without a batch.
    """
    if search is not None:
        search.ensure_attached(optimizer)
    if scheduler is None:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    states = {"optimizer": optimizer, "scheduler": scheduler, "model": inner}
    if search is not None:
        states["search"] = search
    file = None if checkpoint is None else Path(checkpoint)
    place = _Place() if file is None or not file.exists() else _resume(file, states, data)
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
                    _save(file, states, place, data)
            if place.batch == 0:
                raise InferKitError(
                    f"The data have no batch in epoch {place.epoch + 1}.",
                    "They are read once an epoch: give a list or a DataLoader, no generator.",
                )
            if not per_step:
                scheduler.step()
            mean_loss = _finite(place.total) / place.batch
            place = _Place(place.epoch + 1, losses=[*place.losses, mean_loss])
            if file is not None:
                _save(file, states, place, data)
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


def _batches(data: Iterable[Any], place: _Place) -> Iterator[Any]:
    """The epoch's batches from `place.batch` on, in the order in which the epoch deals them out."""
    sampler: Any = getattr(data, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(place.epoch)
    now = _generators(data)
    if place.order is None:
        place.order = now
    _set_generators(place.order, data)
    batches = iter(data)
    if place.batch:
        for _ in range(place.batch):
            next(batches)
        # As they were when the run was interrupted, after the steps that are not made again.
        _set_generators(now, data)
    yield from batches


def _finite(total: Tensor) -> float:
    number = float(total)
    if not isfinite(number):
        raise InferKitError(
            f"The loss became {number}.",
            "Lower the learning rate, or look for the batch that does it.",
        )
    return number


def _save(file: Path, states: dict[str, Any], place: _Place, data: Iterable[Any]) -> None:
    """All of it or nothing; the first process writes, with the generators of all."""
    generators, order = [_generators(data)], [place.order]
    if dist.is_initialized():
        world = dist.get_world_size()
        generators, order = [{}] * world, [None] * world
        dist.all_gather_object(generators, _generators(data))
        dist.all_gather_object(order, place.order)
        if dist.get_rank() > 0:
            dist.barrier()
            return
    kept = {name: value.state_dict() for name, value in states.items()}
    kept["made as"] = _made_as(states)
    kept["place"] = asdict(place) | {"total": place.total.cpu(), "order": order}
    kept["generators"] = generators
    fresh = file.with_name(f".{file.name}.part")
    torch.save(kept, fresh)
    os.replace(fresh, file)
    if dist.is_initialized():
        dist.barrier()


def _resume(file: Path, states: dict[str, Any], data: Iterable[Any]) -> _Place:
    try:
        kept = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InferKitError(
            f"{str(file)!r} cannot be read as a checkpoint: {error}", "Delete it to start anew."
        ) from error
    if kept.get("made as") != _made_as(states):
        raise InferKitError(
            f"{str(file)!r} is the checkpoint of another search, of {kept.get('made as')}; this "
            f"one is of {_made_as(states)}.",
            "Make the ticket as it was made then, or choose another file.",
        )
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank >= len(kept["generators"]):
        raise InferKitError(
            f"{str(file)!r} is of {len(kept['generators'])} processes, and this is number {rank}.",
            "Resume with as many processes.",
        )
    for name, value in states.items():
        value.load_state_dict(kept[name])
    _set_generators(kept["generators"][rank], data)
    place = _Place(**kept["place"])
    return replace(place, order=kept["place"]["order"][rank])


def _made_as(states: dict[str, Any]) -> str:
    """What must be the same for a checkpoint to be of use: the ticket, or the class of learner."""
    if "search" in states:
        return str(states["search"].ticket.spec.to_json())
    return type(states["model"]).__name__


def _generators(data: Iterable[Any]) -> dict[str, Any]:
    """States of the generators of Python, NumPy, PyTorch, its devices, and the data's own."""
    name, keys, *rest = np.random.get_state()
    own = getattr(data, "generator", None)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "data": own.get_state() if isinstance(own, torch.Generator) else None,
    }


def _set_generators(states: dict[str, Any], data: Iterable[Any]) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["data"] is not None:
        data.generator.set_state(states["data"])  # type: ignore[attr-defined]
