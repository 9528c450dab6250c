"""Averages of two networks' weights, and how the loss rises on the line between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.batch_norm import reestimate_by
from infer_kit.training.symmetry.calibration import LOG_BETA, check_prediction, fitted, told
from infer_kit.training.symmetry.calibration import Calibration as Calibration
from infer_kit.training.symmetry.calibration import calibrate as calibrate
from infer_kit.training.symmetry.losses import Losses
from infer_kit.training.symmetry.placed import (
    Placed,
    State,
    check_is_state,
    modes,
    moved,
    whole,
)

Predict = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""Of a model and a batch the logits [N, C] and the int64 targets [N]."""


def classification(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and targets of a batch (inputs, targets).

    Inputs go to the model's device, and in as keyword arguments if they are a mapping. Of an
    output with `logits` these are taken.

    Raises:
        InferKitError: another batch.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InferKitError(
            f"A batch is {told(batch)}, where (inputs, targets) is expected.",
            "Give pairs, or a `predict` of your own that returns logits and targets.",
        )
    inputs, targets = moved(tuple(batch), model)
    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return getattr(output, "logits", output), targets


def next_token(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits of a causal language model at all positions but the last, and the tokens there.

    Args:
        batch: token ids [B, T], alone or as the only one of a tuple; or a mapping with input_ids
            and what else the model takes. Where attention_mask [B, T] is 0 there is padding: it is
            not predicted, and nothing is predicted from it. Labels are passed over.

    Raises:
        InferKitError: another batch.
    """
    if isinstance(batch, tuple | list) and len(batch) == 1:
        batch = batch[0]
    given = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    given.pop("labels", None)
    given = moved(given, model)
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 2 or ids.is_floating_point():
        raise InferKitError(
            f"input_ids of a batch are {told(ids)}, where token ids [B, T] with T from 2 on are "
            "expected.",
            "Give a tensor, or a mapping with input_ids and attention_mask.",
        )
    output = model(**given) if isinstance(batch, Mapping) else model(ids)
    logits = getattr(output, "logits", output)[:, :-1]
    mask = given.get("attention_mask")
    if mask is None:
        return logits.flatten(0, 1), ids[:, 1:].flatten()
    real = mask.bool()
    kept = real[:, 1:] & real[:, :-1]
    return logits[kept], ids[:, 1:][kept]


def check_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Two states have tensors of the same names and shapes.

    Raises:
        InferKitError: with the first tensor that differs; something that is no state.
    """
    check_is_state(a)
    check_is_state(b)
    for name, tensor in a.items():
        if name not in b:
            raise _differ(f"{name!r} is in the first only.")
        if tensor.shape != b[name].shape:
            raise _differ(
                f"{name!r} has shape {list(tensor.shape)} in the first and "
                f"{list(b[name].shape)} in the second."
            )
    for name in b:
        if name not in a:
            raise _differ(f"{name!r} is in the second only.")


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], l: float) -> State:  # noqa: E741
    """(1 - l) a + l b, tensor by tensor.

    Running statistics of batch norms are averaged as weights are, and are not those of the network
    between: estimate them anew with `reestimate_bn` before it is used.

    Args:
        a, b: states of one architecture.
        l: from 0, which gives a's bits, to 1, which gives b's.

    Returns:
        New tensors of a's dtypes; half precision is computed in float32. Integer and bool tensors
        are those of both, a batch norm's num_batches_tracked is a's. Entries equal in both stay
        as they are to the bit. Names that share a tensor in `a` share one here.

    Raises:
        InferKitError: l outside [0, 1]; states of different names, shapes or dtypes; integers
            that differ; a tensor that is shared in `a` with two values in `b`.
    """
    if not 0 <= l <= 1:
        raise InferKitError(f"l={l!r}: a number from 0 to 1 is expected.", "0 is a, 1 is b.")
    check_same(a, b)
    out: State = {}
    shared: dict[tuple[Any, ...], str] = {}
    for name, tensor in a.items():
        other = b[name]
        if tensor.dtype != other.dtype or tensor.device != other.device:
            raise InferKitError(
                f"{name!r} is {tensor.dtype} on {tensor.device} in the first state and "
                f"{other.dtype} on {other.device} in the second.",
                "Bring both to one dtype and device.",
            )
        # state_dict() makes a new object of each name, so that only memory tells what is shared.
        where = (tensor.data_ptr() if tensor.numel() else id(tensor), tensor.shape, tensor.stride())
        first = shared.setdefault((*where, tensor.dtype, tensor.device), name)
        if first == name:
            out[name] = _between(name, tensor.detach(), other.detach(), l)
        elif torch.equal(b[first], other):
            out[name] = out[first]
        else:
            raise InferKitError(
                f"{first!r} and {name!r} are one tensor in the first state and have two values in "
                "the second.",
                "Tie them in both, or in none.",
            )
    return out


def _between(name: str, a: Tensor, b: Tensor, share: float) -> Tensor:
    if not (a.is_floating_point() or a.is_complex()):
        if name.rpartition(".")[2] != "num_batches_tracked" and not torch.equal(a, b):
            raise InferKitError(
                f"{name!r} holds {a.dtype} that differ in the two states: they have no average.",
                "Give both states the same, if it is a count or a table that you know.",
            )
        return a.clone()
    if share in (0, 1):
        return (b if share else a).clone()
    wide = torch.promote_types(a.dtype, torch.float32)
    mixed = ((1 - share) * a.to(wide) + share * b.to(wide)).to(a.dtype)
    return torch.where(a == b, a, mixed)


@dataclass(frozen=True)
class Curve:
    """Figures on the line (1 - l) a + l b between two networks, a tuple entry a point.

    Attributes:
        lambdas: l, from 0 to 1.
        loss: mean cross entropy L(l), in nats. accuracy: shares from 0 to 1.
        beta: inverse temperature of each point; None if it was not fitted.
        calibrated_loss: mean cross entropy with it; None likewise.
    """

    lambdas: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    beta: tuple[float, ...] | None = None
    calibrated_loss: tuple[float, ...] | None = None

    @property
    def barrier(self) -> float:
        """max over l of L(l) - ((1 - l) L(0) + l L(1)), in nats; at least 0."""
        return self._rise(self.loss)

    @property
    def calibrated_barrier(self) -> float:
        """`barrier` of the calibrated losses, each point with its own beta.

        Raises:
            InferKitError: they were not computed.
        """
        if self.calibrated_loss is None:
            raise InferKitError(
                "The curve has no calibrated loss.", "Give calibrate_on, held-out batches."
            )
        return self._rise(self.calibrated_loss)

    @property
    def accuracy_barrier(self) -> float:
        """max over l of (1 - l) acc(0) + l acc(1) - acc(l), a share; at least 0."""
        return self._rise([-value for value in self.accuracy])

    @property
    def perplexity(self) -> tuple[float, ...]:
        """exp(L(l)), of next tokens the perplexity; inf where a float cannot hold it."""
        return tuple(exp(value) if value < 709 else inf for value in self.loss)

    @property
    def midpoint(self) -> int:
        """Index of the point at l = 0.5, or just before it if there is none."""
        return (len(self.lambdas) - 1) // 2

    def _rise(self, values: Iterable[float]) -> float:
        values = list(values)
        first, last = values[0], values[-1]
        # Without rounding where both ends are equal, and at the ends.
        lines = (
            first + at * (last - first) if at < 0.5 else last - (1 - at) * (last - first)
            for at in self.lambdas
        )
        return max(value - line for value, line in zip(values, lines, strict=True))


def barrier(
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    data: Iterable[Any],
    predict: Predict = classification,
    steps: int = 25,
    bn_data: Iterable[Any] | None = None,
    calibrate_on: Iterable[Any] | None = None,
    progress: bool = True,
) -> Curve:
    """Loss and accuracy on the line from network a to network b.

    Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv
    1912.05671; with a temperature for each point as in Ito et al., "Do We Really Need
    Permutations? Impact of Width Expansion on Linear Mode Connectivity", ICLR 2026, arXiv
    2510.08023. In eval mode, without gradients; model and states are left as they are.

    Args:
        model: of the states' architecture.
        a, b: states, b already permuted if it is to be.
        data: batches to judge by, a list or DataLoader; read once a point.
        predict: what makes logits and targets of a batch: `classification`, `next_token`, or one
            of your own.
        steps: points, from l = 0 to 1 at equal distances; at least 3.
        bn_data: batches that `predict` takes, on which the running statistics of batch norms are
            estimated anew at every point, those of the ends too, so that all curves are made
            alike. Needed by a model that has batch norms. A DataLoader that shuffles gives every
            point others, and the curve their noise.
        calibrate_on: held-out batches on which each point's beta is fitted; their logits are all
            kept in memory. None for no calibrated loss.
        progress: show a bar.

    Raises:
        InferKitError: states of different architectures, or not of the model's; fewer than 3
            steps; a generator, which can be read once only; data without a target; logits or
            targets of other shapes; batch norms and no bn_data; a loss that is not finite.

    Warns:
        UserWarning: calibrate_on begins as the data do; or an end's loss on it is below that on
            the data by more than three standard errors, as on data that it was trained on
            (batches, if there are several, are taken as independent, else targets); or a beta is
            at a bound.
    """
    a, b = whole(model, a), whole(model, b)
    check_same(a, b)
    if steps < 3 or steps != int(steps):
        raise InferKitError(
            f"steps={steps}: a whole number from 3 on is expected.", "25 are usual."
        )
    steps = int(steps)
    for what, batches in (("data", data), ("bn_data", bn_data), ("calibrate_on", calibrate_on)):
        if isinstance(batches, Iterator):
            raise InferKitError(
                f"{what} is a {type(batches).__name__}, which can be read once only, and it is "
                f"read at each of {steps} points.",
                "Give a list or a DataLoader.",
            )
    if calibrate_on is not None and _begin_alike(calibrate_on, data):
        warnings.warn("beta is fitted on the data that it is judged by.", stacklevel=2)
    lambdas = [i / (steps - 1) for i in range(steps)]
    points, fits, known = [], [], ""
    with modes(model), tqdm(lambdas, desc="barrier", disable=not progress) as bar:
        for at in bar:
            state = reestimate_by(predict, model, interpolate(a, b, at), bn_data)
            placed = Placed(model, state)
            where, fit = f"at l = {at:g}", None
            if calibrate_on is not None:
                logits, targets, sizes = _kept(placed, predict, calibrate_on, where)
                fit = fitted(logits, targets)
                fits.append(fit)
            point = _measured(placed, predict, data, where, fit.beta if fit else None)
            points.append(point)
            if fit is not None and at in (0, 1):
                own = Losses.of(logits, targets, sizes)
                if point.losses.above(own) > 3:
                    known = f"{own.mean:.3g} against {point.loss:.3g} {where}"
            bar.set_postfix(loss=f"{point.loss:.4f}", refresh=False)
    at_bound = [f"{at:.3g}" for at, fit in zip(lambdas, fits, strict=False) if fit.bounded]
    if known:
        warnings.warn(
            f"temperature fitted on data that the networks know better than those they are judged "
            f"by, loss {known} (training data?): give held-out data as calibrate_on.",
            stacklevel=2,
        )
    if at_bound:
        warnings.warn(
            f"log beta is at its bound, {LOG_BETA[0]:g} or {LOG_BETA[1]:g}, at l = "
            f"{', '.join(at_bound)}: the logits there separate the targets of calibrate_on, or "
            "tell nothing of them.",
            stacklevel=2,
        )
    losses = tuple(point.loss for point in points)
    accuracies = tuple(point.accuracy for point in points)
    if not fits:
        return Curve(tuple(lambdas), losses, accuracies)
    betas, calibrated = tuple(fit.beta for fit in fits), tuple(point.scaled for point in points)
    return Curve(tuple(lambdas), losses, accuracies, betas, calibrated)


def evaluate(
    model: nn.Module,
    state: Mapping[str, Tensor],
    data: Iterable[Any],
    predict: Predict = classification,
    bn_data: Iterable[Any] | None = None,
) -> tuple[float, float]:
    """Mean cross entropy in nats and accuracy of one state: a point of `barrier`.

    Args:
        model, data, predict, bn_data: as in `barrier`, read once.
        state: of the model's architecture. Both are left as they are.

    Raises:
        InferKitError: as in `barrier`.
    """
    return judged(model, reestimate_by(predict, model, state, bn_data), data, predict)


def judged(
    model: nn.Module, state: Mapping[str, Tensor], data: Iterable[Any], predict: Predict
) -> tuple[float, float]:
    """`evaluate` of a state with the running statistics that it has."""
    with modes(model):
        point = _measured(Placed(model, state), predict, data, "of the state", None)
    return point.loss, point.accuracy


def _begin_alike(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Whether the first batches are equal; whatever shuffles is passed over unless it is one."""
    if a is b:
        return True
    if not (isinstance(a, list | tuple) and isinstance(b, list | tuple) and a and b):
        return False
    first, second = tree_leaves(a[0]), tree_leaves(b[0])
    return len(first) == len(second) and all(
        isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)
        for x, y in zip(first, second, strict=True)
    )


@dataclass(frozen=True)
class _Point:
    """What was measured of one state: losses, accuracy, and the mean loss with beta."""

    losses: Losses
    accuracy: float
    scaled: float

    @property
    def loss(self) -> float:
        return self.losses.mean


def _measured(
    placed: Placed, predict: Predict, data: Iterable[Any], where: str, beta: float | None
) -> _Point:
    """One state on all targets."""
    losses, scaled, right = Losses(), Losses(), 0
    for logits, targets in _predictions(placed, predict, data, "data"):
        losses.add(logits, targets)
        right += int((logits.argmax(1) == targets).sum())
        if beta is not None:
            scaled.add(beta * logits, targets)
    with_beta = losses.mean if beta is None else scaled.mean
    if not (isfinite(losses.mean) and isfinite(with_beta)):
        raise InferKitError(
            f"The loss {where} is {losses.mean}.",
            "Look for inputs or weights that are not finite, or activations that overflow, in "
            "half precision above all.",
        )
    return _Point(losses, right / losses.count, with_beta)


def _kept(
    placed: Placed, predict: Predict, data: Iterable[Any], where: str
) -> tuple[Tensor, Tensor, list[int]]:
    """Logits and targets of all batches, and the batches' sizes."""
    both = [*_predictions(placed, predict, data, "calibrate_on")]
    logits = torch.cat([logits.cpu() for logits, _ in both])
    if not bool(torch.isfinite(logits).all()):
        raise InferKitError(
            f"The logits of calibrate_on {where} are not finite.", "Look for inf and nan."
        )
    targets = torch.cat([targets.cpu() for _, targets in both])
    return logits, targets, [len(targets) for _, targets in both]


def _predictions(
    placed: Placed, predict: Predict, data: Iterable[Any], what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `predict` says of each batch, checked; logits in float32 at least."""
    count = 0
    for batch in data:
        logits, targets = prediction(placed, predict, batch)
        count += len(targets)
        yield logits.to(torch.promote_types(logits.dtype, torch.float32)), targets
    if not count:
        raise InferKitError(
            f"{what} has no target.", "Give batches with targets, which can be read again."
        )


def prediction(
    run: Callable[[Predict, Any], Any], predict: Predict, batch: Any
) -> tuple[Tensor, Tensor]:
    """What `predict` says of a batch, run by a placed state with gradients or without.

    Raises:
        InferKitError: it is no pair of logits [N, C] and int64 targets [N] below C.
    """
    predicted = run(predict, batch)
    if not isinstance(predicted, tuple | list) or len(predicted) != 2:
        raise InferKitError(
            f"predict returned {told(predicted)}, where (logits [N, C], targets [N]) is expected.",
            "Return two tensors.",
        )
    logits, targets = predicted
    check_prediction(logits, targets)
    return logits, targets


def _differ(what: str) -> InferKitError:
    return InferKitError(
        f"The two states are of different architectures: {what}",
        "Give states of models that were built alike.",
    )
