"""What classifiers put out: their logits, and the cross-entropy of a trainer's whole step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED
from infer_kit.training.representation.finite import check_finite


def logits_of(
    output: Any, n: int, n_classes: int | None = None, whose: str = "the model"
) -> Tensor:
    """The logits of an output: a tensor, the first of a tuple, or what has `logits`.

    Args:
        n: examples. n_classes: of the generator, which the logits have to be of; None for any.
        whose: for messages.

    Returns:
        `[n, K]`, float32 at least.

    Raises:
        InferKitError: other logits.
    """
    logits = output[0] if isinstance(output, tuple) and output else output
    logits = output["logits"] if isinstance(output, Mapping) and "logits" in output else logits
    logits = getattr(logits, "logits", logits)
    if (
        not isinstance(logits, Tensor)
        or logits.dim() != 2
        or len(logits) != n
        or n_classes not in (None, logits.shape[1])
    ):
        told = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InferKitError(
            f"{whose[0].upper()}{whose[1:]} gives {told} for {n} examples; logits "
            f"[{n}, {n_classes or 'K'}] are expected"
            + (", one for each class of the generator." if n_classes else "."),
            "new_head(model, generator.n_classes) gives it a head of these classes."
            if n_classes
            else "Give a classifier of one class for each example.",
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def classifier_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The mean over all batches that gradients are accumulated over: a trainer's compute_loss_func.

    The cross-entropy that a model computes by itself is not used: some, as ResNet's and BERT's,
    average over a micro-batch whatever they are told.

    Args:
        outputs: of a model, with logits `[B, K]`. labels: `[B]` integers.
        num_items_in_batch: labels of the whole step; None for those of this batch.

    Raises:
        InferKitError: other logits or labels.
    """
    return mean_cross_entropy(logits_of(outputs, len(labels)), labels, num_items_in_batch)


def mean_cross_entropy(
    logits: Tensor, labels: Tensor, n_labels: Tensor | int | None = None
) -> Tensor:
    """Sum over a batch, divided by a number of labels; None for that of the batch.

    Of a batch in which all labels are `IGNORED` it is 0.

    Raises:
        InferKitError: labels that are no `[B]` integers, or no classes of the logits; logits that
            are not finite.
    """
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InferKitError(
            f"Labels are {list(labels.shape)} of {labels.dtype}; [B] integers are expected.",
            "Give the class of each example; for others a trainer takes a compute_loss_func.",
        )
    if not bool(((labels == IGNORED) | ((labels >= 0) & (labels < logits.shape[1]))).all()):
        raise InferKitError(
            f"Labels go from {int(labels.min())} to {int(labels.max())}, and the model has "
            f"{logits.shape[1]} classes.",
            f"Number them from 0, or give the model another head; {IGNORED} is passed over.",
        )
    check_finite("Logits", logits)
    if n_labels is None:
        n_labels = (labels != IGNORED).sum().clamp(min=1)
    return cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED) / n_labels
