"""Merging models of different data: the permutation is chosen by the loss of the midpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.batch_norm import check_bn_data, reestimate_by
from infer_kit.training.symmetry.matching import match
from infer_kit.training.symmetry.merging import (
    Predict,
    classification,
    evaluate,
    interpolate,
    prediction,
)
from infer_kit.training.symmetry.numbers import check_numbers
from infer_kit.training.symmetry.placed import Placed, State, modes, whole
from infer_kit.training.symmetry.spec import Perms, PermSpec


@dataclass(frozen=True)
class SteMatch:
    """What the search for a permutation by the loss found.

    Attributes:
        perms: of the least loss of the midpoint on the batches that judge.
        loss: that loss. losses: of each permutation that was judged, from the plain match on.
        step: the step that found it, 0 for the plain match.
    """

    perms: Perms
    loss: float
    losses: tuple[float, ...]
    step: int


def ste_match(
    model: nn.Module,
    spec: PermSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    data: Iterable[Any],
    epochs: int = 5,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    judge: Iterable[Any] | None = None,
    predict: Predict = classification,
    seed: int = 0,
    progress: bool = True,
) -> SteMatch:
    """The order of b's units in which the midpoint of a and b has the least loss on some data.

    A copy theta of a is trained so that the order of b that is nearest to theta makes a good
    midpoint. With P the match of theta and b, the midpoint is

        .5 a + .5 (P b + theta - stopgrad(theta)),

    whose value is the average of a and P b and whose gradient goes to theta straight through.

    Source: Yamada et al., "Toward Data Efficient Model Merging between Different Datasets without
    Performance Degradation", ACML 2024, arXiv 2306.05641; straight-through matching is of Git
    Re-Basin (Ainsworth et al., ICLR 2023, section 3.3). Different: all permutations are judged on
    the same batches, not each on the minibatch at hand.

    Args:
        model: of the states' architecture; left as it is.
        spec: `discover` of the model.
        a, b: states of two networks. b is reordered.
        data: batches of the data of both, a list or a DataLoader; a reduced set will do
            (`coreset_random`, `coreset_herding`, `condense`).
        epochs: times that they are read.
        lr, momentum, weight_decay: of SGD on theta.
        judge: batches on which permutations are compared; None for the first of `data`.
        predict: logits and targets of a batch.
        seed: of the matching.
        progress: show a bar.

    Raises:
        InferKitError: states of another architecture, no data, data that can be read once only, a
            number that cannot be, a loss or weights that are not finite.
    """
    if isinstance(data, Iterator) or not isinstance(data, Iterable):
        raise InferKitError(
            f"The data are a {type(data).__name__}, which cannot be read again and again.",
            "Give a list or a DataLoader.",
        )
    numbers = {"epochs": epochs, "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    check_numbers(numbers)
    check_bn_data(model, data)
    a, b = whole(model, a), whole(model, b)
    spec.check_state(a)
    spec.check_state(b)
    batches = list(_first(data) if judge is None else judge)
    if not batches:
        raise InferKitError("There is no batch to judge permutations by.", "Give at least one.")

    def loss_of(state: Mapping[str, Tensor]) -> float:
        return evaluate(model, state, batches, predict, data)[0]

    def midpoint(perms: Perms) -> State:
        return interpolate(a, spec.apply(perms, b), 0.5)

    parameters = {name for name in spec.weights if name not in spec.same}
    theta = {name: a[name].detach().clone().requires_grad_() for name in sorted(parameters)}
    optimizer = torch.optim.SGD(theta.values(), lr, momentum, weight_decay=weight_decay)
    perms = match(spec, a, b, seed=seed).perms
    best = SteMatch(perms, loss_of(midpoint(perms)), (), 0)
    losses = [best.loss]
    step = 0
    with tqdm(total=epochs, desc="straight-through matching", disable=not progress) as bar:
        for _ in range(epochs):
            for batch in data:
                step += 1
                middle = reestimate_by(predict, model, midpoint(perms), data)
                _pull(model, middle, theta, batch, predict)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if not all(torch.isfinite(tensor).all() for tensor in theta.values()):
                    raise InferKitError(
                        f"Weights are not finite after step {step}.", "Lower the learning rate, lr."
                    )
                now = {name: tensor.detach() for name, tensor in theta.items()}
                found = match(spec, now, b, start=perms, seed=seed).perms
                if all(torch.equal(found[group], perms[group]) for group in perms):
                    continue
                perms = found
                losses.append(loss_of(midpoint(perms)))
                if losses[-1] < best.loss:
                    best = SteMatch(perms, losses[-1], (), step)
                bar.set_postfix(loss=f"{best.loss:.4f}", refresh=False)
            bar.update()
    return SteMatch(best.perms, best.loss, tuple(losses), best.step)


def _first(data: Iterable[Any]) -> list[Any]:
    for batch in data:
        return [batch]
    return []


def _pull(
    model: nn.Module, middle: State, theta: dict[str, Tensor], batch: Any, predict: Predict
) -> None:
    """The gradient of the midpoint's loss, to theta: half of that to the midpoint's weights."""
    placed = Placed(model, {name: tensor.detach() for name, tensor in middle.items()})
    placed.require_grad()
    with modes(model), torch.enable_grad():
        logits, targets = prediction(placed.run, predict, batch)
        loss = cross_entropy(logits, targets)
        if not torch.isfinite(loss):
            raise InferKitError(f"The midpoint's loss is {float(loss.detach())}.", "Lower lr.")
        loss.backward()
    for name, tensor in theta.items():
        grad = placed.values[placed.names[name]].grad
        tensor.grad = None if grad is None else 0.5 * grad
