"""The checkpoint of `fit`: states of everything that a run needs to go on with the same bits."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.tickets import check_finite


@dataclass
class Place:
    """Where a run is.

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


def check(file: Path, data: Iterable[Any]) -> None:
    """Whether a run with these data can write there and resume.

    Raises:
        InferKitError: there is no such folder; or workers of a DataLoader that outlive an epoch, in
            which nobody can see how far they are.
    """
    if not file.parent.is_dir():
        raise InferKitError(f"There is no folder {str(file.parent)!r} to write {file.name!r} to.")
    if getattr(data, "persistent_workers", False):
        raise InferKitError(
            "A DataLoader with persistent workers cannot be dealt out again from a checkpoint.",
            "Leave persistent_workers at False.",
        )


def save(file: Path, states: dict[str, Any], place: Place, data: Iterable[Any]) -> None:
    """All of it or nothing; the first process writes, with the generators of all.

    Raises:
        InferKitError: scores that are not finite.
    """
    if "search" in states:
        check_finite(states["search"].layers)
    now: list[Any] = [generators(data)]
    order: list[Any] = [place.order]
    if dist.is_initialized():
        world = dist.get_world_size()
        now, order = [None] * world, [None] * world
        dist.all_gather_object(now, generators(data))
        dist.all_gather_object(order, place.order)
    if not dist.is_initialized() or dist.get_rank() == 0:
        kept = {name: value.state_dict() for name, value in states.items()}
        kept["made as"] = _made_as(states)
        kept["place"] = asdict(place) | {"total": place.total.cpu(), "order": order}
        kept["generators"] = now
        fresh = file.with_name(f".{file.name}.part")
        torch.save(kept, fresh)
        os.replace(fresh, file)
    if dist.is_initialized():
        dist.barrier()


def resume(file: Path, states: dict[str, Any], data: Iterable[Any]) -> Place:
    """Bring everything into the state of a checkpoint, and tell where that was.

    Raises:
        InferKitError: a file that cannot be read, or that is of another run.
    """
    try:
        kept = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InferKitError(
            f"{str(file)!r} cannot be read as a checkpoint: {error}", "Delete it to start anew."
        ) from error
    if not isinstance(kept, dict) or kept.get("made as") != _made_as(states):
        other = kept.get("made as") if isinstance(kept, dict) else type(kept).__name__
        raise InferKitError(
            f"{str(file)!r} is the checkpoint of another search, of {other}; this one is of "
            f"{_made_as(states)}.",
            "Make the ticket as it was made then, or choose another file.",
        )
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world != len(kept["generators"]):
        raise InferKitError(
            f"{str(file)!r} is of {len(kept['generators'])} processes, and there are {world}.",
            "Resume with as many processes.",
        )
    for name, value in states.items():
        value.load_state_dict(kept[name])
    set_generators(kept["generators"][rank], data)
    place = Place(**kept["place"])
    return replace(place, order=kept["place"]["order"][rank])


def _made_as(states: dict[str, Any]) -> str:
    """What must be the same for a checkpoint to be of use: the ticket, or the class of learner."""
    if "search" in states:
        return str(states["search"].ticket.spec.to_json())
    return type(states["model"]).__name__


def generators(data: Iterable[Any]) -> dict[str, Any]:
    """States of the generators of Python, NumPy, PyTorch, its devices, and the data's own."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "data": [generator.get_state() for generator in _own(data)],
    }


def set_generators(states: dict[str, Any], data: Iterable[Any]) -> None:
    """Bring all generators into the states that `generators` returned."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    for generator, state in zip(_own(data), states["data"], strict=True):
        generator.set_state(state)


def _own(data: Any) -> list[torch.Generator]:
    """Generators of the data, its sampler, and what deals out batches and their sampler."""
    batches = getattr(data, "batch_sampler", None)
    holders = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return [generator for generator in found if isinstance(generator, torch.Generator)]
