"""The softmax temperature that fits logits to targets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from infer_kit.errors import InferKitError

LOG_BETA = (-3.0, 5.0)
"""Where log beta is looked for: on logits that separate the targets the best beta is infinite."""


@dataclass(frozen=True)
class Calibration:
    """A softmax temperature that was fitted.

    Attributes:
        beta: factor on the logits, 1 / temperature.
        loss: mean cross entropy of beta * logits on the targets of the fit, in nats.
        bounded: beta is at a bound, log beta at -3 or 5.
    """

    beta: float
    loss: float
    bounded: bool


def calibrate(logits: Tensor, targets: Tensor) -> Calibration:
    """The inverse temperature beta = argmin CE(beta * logits), in float64.

    The loss is convex in beta: its derivative E_p[z] - z_target rises, and its zero is found, to
    1e-9 of log beta. The loss is never above that of beta = 1.

    Args:
        logits: [N, C]. targets: int64 [N]. Both of data that the network was not trained on.

    Raises:
        InferKitError: other shapes, no target, targets outside the classes, logits not finite.

    Warns:
        UserWarning: beta is at a bound.
    """
    check_prediction(logits, targets)
    if not len(targets):
        raise InferKitError("There is no target to fit a temperature on.", "Give N from 1 on.")
    found = fitted(logits, targets)
    if found.bounded:
        why = (
            "the logits separate these targets: fit on held-out data"
            if found.beta > 1
            else "the logits tell no more of these targets than chance"
        )
        warnings.warn(f"beta is at its bound {found.beta:.4g}; {why}.", stacklevel=2)
    return found


def fitted(logits: Tensor, targets: Tensor) -> Calibration:
    """`calibrate` of what was checked already, without a warning."""
    wide = logits.detach().cpu().double()
    index = targets.detach().cpu()[:, None]
    # Against its target's logit a sample's loss is log sum exp(beta z), whose digits all count.
    z = wide - wide.gather(1, index)
    if not bool(torch.isfinite(z).all()):
        raise InferKitError(
            "The logits are not finite: no temperature can be fitted.", "Look for inf and nan."
        )

    def loss(beta: float) -> float:
        return float((beta * z).logsumexp(1).mean())

    def slope(log_beta: float) -> float:
        return float(((exp(log_beta) * z).softmax(1) * z).sum(1).mean())

    if not bool(z.any()):  # no beta changes anything
        return Calibration(1.0, loss(1.0), False)
    low, high = LOG_BETA
    if slope(high) <= 0:
        best, bounded = exp(high), True
    elif slope(low) >= 0:
        best, bounded = exp(low), True
    else:
        best, bounded = exp(brentq(slope, low, high, xtol=1e-9)), False
    if loss(1.0) < loss(best):  # by rounding
        best, bounded = 1.0, False
    return Calibration(best, loss(best), bounded)


def check_prediction(logits: Any, targets: Any) -> None:
    """Raises InferKitError unless they are logits [N, C] and int64 targets [N] below C."""
    if not (
        isinstance(logits, Tensor)
        and isinstance(targets, Tensor)
        and logits.dim() == 2
        and logits.is_floating_point()
        and targets.dtype == torch.int64
        and targets.shape == logits.shape[:1]
    ):
        raise InferKitError(
            f"Logits are {told(logits)} and targets {told(targets)}, where floating logits "
            "[N, C] and int64 targets [N] are expected.",
            "Flatten other dimensions into N in a `predict` of your own.",
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise InferKitError(
            f"Targets go from {int(targets.min())} to {int(targets.max())}, and the logits have "
            f"{logits.shape[1]} classes.",
            "Leave targets such as -100 out of what `predict` returns.",
        )


def told(value: Any) -> str:
    """What was given, for a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
