"""Mean and spread of a model's features for each class, of batches or of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.symmetry.calling import called_with, evaluating
from infer_kit.training.symmetry.placed import moved


class ClassMoments:
    """Count, mean and squared deviations of each class, batch by batch (Chan et al., 1983).

    Summed in float64: of many examples float32 loses digits.
    """

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self.dtype = torch.float32
        self.n: Any = 0.0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, features: Tensor, labels: Tensor | None) -> None:
        """`[B, D]` features of labels `[B]`; None where there is one class."""
        if labels is None:
            labels = torch.zeros(len(features), dtype=torch.int64)
        y = check_labels(labels, self.n_classes).to(features.device)
        D = self.mean.shape[1] if isinstance(self.mean, Tensor) else None
        check_features(features, len(y), D)
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        x = precise(features.detach())

        def sums(values: Tensor) -> Tensor:
            return values.new_zeros(self.n_classes, values.shape[1]).index_add_(0, y, values)

        n = y.bincount(minlength=self.n_classes).to(x.dtype)[:, None]
        mean = sums(x) / n.clamp(min=1)
        total = self.n + n
        share, off = n / total.clamp(min=1), mean - self.mean
        self.squares = self.squares + sums((x - mean[y]).square()) + off.square() * self.n * share
        self.mean, self.n = self.mean + off * share, total

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """`[K, D]` both, in the features' dtype, float32 at least; refused where a class has no
        example."""
        n = self.n
        missing = (n[:, 0] == 0).nonzero()[:, 0].tolist()
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise InferKitError(
                f"No example is of class {', '.join(map(str, missing[:5]))}{more}, so that nothing "
                "tells its mean.",
                "Give an example of each, or number only the classes that have one.",
            )
        inside = n.sum() - self.n_classes
        if not bool(inside > 0):
            raise InferKitError(
                "No class has two examples, so that nothing tells how much features of a class "
                "differ.",
                "Give two of one class at least.",
            )
        pooled = self.squares.sum(0, keepdim=True) / inside
        variance = torch.where(n > 1, self.squares / (n - 1).clamp(min=1), pooled)
        return self.mean.to(self.dtype), variance.sqrt().to(self.dtype)


def moments_of(
    model: nn.Module,
    loader: Iterable[Any],
    n_classes: int,
    layer: str | None,
    progress: bool,
) -> ClassMoments:
    """Of the features of all batches, in evaluation mode; one class takes no labels."""
    if isinstance(loader, Dataset):
        raise InferKitError(
            f"A {type(loader).__name__} is given, which has single examples.",
            "Give torch.utils.data.DataLoader(dataset, batch_size=64).",
        )
    moments = ClassMoments(n_classes)
    with FeatureTap(model, layer) as tap, torch.no_grad(), evaluating(model):
        for batch in tqdm(loader, desc="features", disable=not progress):
            inputs, labels = _parts(batch)
            if labels is None and n_classes > 1:
                raise InferKitError(
                    "A batch of the loader has no labels.",
                    'Give batches (inputs, labels), or mappings with "labels".',
                )
            called_with(model, moved(inputs, model))
            features = tap.take()
            check_one_vector(model, tap, layer, features)
            moments.add(features, labels if n_classes > 1 else None)
    if not isinstance(moments.n, Tensor):
        raise InferKitError("The loader has no batch to take features of.")
    return moments


def _parts(batch: Any) -> tuple[Any, Any]:
    """Inputs and labels, if it has any."""
    if isinstance(batch, Mapping):
        names = ("labels", "label")
        labels = next((batch[name] for name in names if name in batch), None)
        return {k: v for k, v in batch.items() if k not in names}, labels
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    return parts[0], parts[1] if len(parts) > 1 else None


def check_one_vector(
    model: nn.Module, tap: FeatureTap, layer: str | None, features: Tensor
) -> None:
    """Whether the last Linear, where no layer is named, reads one vector for each example.

    Raises:
        InferKitError: it reads several, such as one for each token.
    """
    if layer is None:
        reads = model.get_submodule(tap.name).in_features
        if features.shape[1] != reads:
            raise InferKitError(
                f"The last Linear, {tap.name!r}, reads {features.shape[1]} numbers of an example "
                f"and takes {reads}: one vector for each of several places.",
                "Name by layer= a module that gives one vector for an example.",
            )


def check_features(
    features: Tensor, n: int, n_features: int | None, whose: str = "those before"
) -> None:
    """Whether they are `[n, n_features]` floating and finite; None for any number of features."""
    D = "D" if n_features is None else n_features
    if not isinstance(features, Tensor):
        raise InferKitError(
            f"Features are a {type(features).__name__}; a tensor [{n}, {D}] is expected.",
            "torch.as_tensor makes one of an array.",
        )
    bad = features.dim() != 2 or len(features) != n or not features.is_floating_point()
    if bad or n_features not in (None, features.shape[1]):
        raise InferKitError(
            f"Features are {list(features.shape)} of {features.dtype}, with {n} labels; floating "
            f"ones [{n}, {D}] are expected.",
            f"{D} is {whose} number of features."
            if n_features
            else "Give one vector for each example.",
        )
    if not bool(features.detach().isfinite().all()):
        wrong = int((~features.detach().isfinite().all(1)).sum())
        raise InferKitError(
            f"Features of {wrong} of {n} examples have numbers that are not finite.",
            "Lower the learning rate or lam, or look for inputs that are not finite.",
        )


def precise(x: Tensor) -> Tensor:
    """In float64, where the device has it.

    Adam's first steps are the rate times the sign of the slope: where a slope is next to 0, what
    float32 rounds away is a step.
    """
    return x.float() if x.device.type == "mps" else x.double()


def check_labels(y: Tensor, n_classes: int) -> Tensor:
    """`[B]` int64 labels."""
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if y.dim() != 1 or not whole or not len(y):
        raise InferKitError(
            f"Labels are {list(y.shape)} of {y.dtype}; [B] integers are expected.",
            "Give the class of each example: regression and several labels an example do not work.",
        )
    low, high = (int(end) for end in y.aminmax())
    if low < 0 or high >= n_classes:
        raise InferKitError(f"Labels go from {low} to {high}; the prior has {n_classes} classes.")
    return y.long()
