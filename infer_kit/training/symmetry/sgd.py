"""Plain training of a state, for fine-tuning what was transferred and for the controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.merging import Predict, classification, prediction
from infer_kit.training.symmetry.numbers import check_numbers
from infer_kit.training.symmetry.placed import Placed, State, check_is_state, modes


@dataclass(frozen=True)
class Fit:
    """A state that was trained.

    Attributes:
        state: at the end. losses: mean loss of each epoch.
        kept: the states of the way, the first and the last among them, if they were kept.
    """

    state: State
    losses: tuple[float, ...]
    kept: tuple[State, ...] = ()


def fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    data: Iterable[Any],
    epochs: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    predict: Predict = classification,
    keep_every: int = 0,
    progress: bool = True,
) -> Fit:
    """Train a state by SGD on the cross entropy, in train mode; the model is left as it is.

    Parameters that require no gradient in the model stay as they are.

    Used as the fine-tuning after a transfer, as the control that trains on reduced data alone, and
    to make trajectories.

    Args:
        model: of the state's architecture.
        state: where to start.
        data: batches; read once an epoch.
        epochs: times that they are read.
        lr: learning rate at the start.
        momentum, weight_decay: of `torch.optim.SGD`.
        schedule: "cosine" down to 0 over the epochs, or "constant"; by epochs.
        predict: logits and targets of a batch.
        keep_every: epochs from one kept state to the next; 0 to keep none.
        progress: show a bar.

    Raises:
        InferKitError: data without a batch or that can be read once only, an unknown schedule, a
            loss that is not finite.
    """
    if schedule not in ("cosine", "constant"):
        raise InferKitError(f"There is no schedule {schedule!r}.", 'Give "cosine" or "constant".')
    numbers = {"epochs": epochs, "keep_every": keep_every, "lr": lr, "momentum": momentum}
    check_numbers(numbers | {"weight_decay": weight_decay})
    if isinstance(data, Iterator) and epochs > 1:
        raise InferKitError(
            f"The data are a {type(data).__name__}, which can be read once only, not "
            f"{epochs} times.",
            "Give a list or a DataLoader.",
        )
    check_is_state(state)
    placed = Placed(model, {name: tensor.detach().clone() for name, tensor in state.items()})
    trained = placed.require_grad(all_of_them=False)
    if not trained:
        raise InferKitError(
            "No parameter of the model requires a gradient: there is nothing to train.",
            "model.requires_grad_() makes all of them trainable.",
        )
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=weight_decay)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    losses: list[float] = []
    kept = [placed.snapshot(state)] if keep_every else []
    size = len(data) if isinstance(data, Sized) else None
    with (
        modes(model, model.modules()),
        torch.enable_grad(),
        tqdm(
            total=None if size is None else size * epochs, desc="training", disable=not progress
        ) as bar,
    ):
        for epoch in range(epochs):
            total = torch.zeros((), dtype=torch.float64)
            count = 0
            for batch in data:
                logits, targets = prediction(placed.run, predict, batch)
                loss = cross_entropy(logits, targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += loss.detach().cpu()
                count += 1
                bar.update()
            if not count:
                raise InferKitError("The data have no batch.", "Give at least one.")
            losses.append(float(total) / count)
            if not isfinite(losses[-1]):
                raise InferKitError(
                    f"The loss became {losses[-1]} in epoch {epoch + 1}.",
                    "Lower the learning rate.",
                )
            if schedule == "cosine":
                plan.step()
            if keep_every and ((epoch + 1) % keep_every == 0 or epoch + 1 == epochs):
                kept.append(placed.snapshot(state))
    return Fit(placed.snapshot(state), tuple(losses), tuple(kept))


def gradient(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: Iterable[Any],
    predict: Predict = classification,
) -> dict[str, Tensor]:
    """Gradient of the mean cross entropy over all targets of some batches, in eval mode.

    Args:
        model: of the state's architecture; left as it is.
        state: where the gradient is taken.
        batches: each is run on its own and counts by its targets.

    Returns:
        A gradient for each parameter in the state, zeros where the loss does not depend on it.

    Raises:
        InferKitError: no batch, or a loss that is not finite.
    """
    placed = Placed(model, {name: tensor.detach() for name, tensor in state.items()})
    trained = placed.require_grad()
    total, count = 0.0, 0
    with modes(model), torch.enable_grad():
        for batch in batches:
            logits, targets = prediction(placed.run, predict, batch)
            loss = cross_entropy(logits, targets, reduction="sum")
            loss.backward()
            total += float(loss.detach())
            count += len(targets)
    if not count:
        raise InferKitError("There is no batch to take a gradient on.", "Give at least one.")
    if not isfinite(total):
        raise InferKitError(f"The loss is {total} where a gradient is to be taken.")
    own = {id(p): torch.zeros_like(p) if p.grad is None else p.grad / count for p in trained}
    names = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: own[id(placed.values[placed.names[name]])].detach() for name in state if name in names
    }
