"""How often the class is right, beside what the same classes give without any phrase.

With weights of both signs, K > d and a small λ every dictionary rebuilds the image's feature, so
accuracy alone says nothing about the phrases. It is therefore never given alone: the same images
are classified from the image itself (zero-shot), and from a dictionary of random rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.errors import InferKitError


@dataclass(frozen=True)
class Scores:
    """Of predicted classes against the true ones.

    Attributes:
        accuracy: share of right classes; an image without label is wrong.
        precision, recall, f1: means over the classes (macro); a class that is never predicted, or
            never true, has 0 there.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """A concept bottleneck on labelled images.

    Attributes:
        n: images. model: read from the phrases. zero_shot: read from the images.
        random: read from a dictionary of K random Gaussian unit rows under the same lasso.
        sparsity: mean of 1 − nnz/K. nonzero: mean nnz. residual: mean |v − z|.
        cosine: mean cosine of v and z. negative: mean share of |w| with negative sign.
        random_cosine: as `cosine`, of the random dictionary.
        gap: the largest duality gap. unlabelled: images without a phrase.
    """

    n: int
    model: Scores
    zero_shot: Scores
    random: Scores
    sparsity: float
    nonzero: float
    residual: float
    cosine: float
    negative: float
    random_cosine: float
    gap: float
    unlabelled: int

    def table(self) -> Any:
        """A table of `rich`."""
        from rich.table import Table

        columns = ("read from", "accuracy", "macro P", "macro R", "macro F1", "cosine")
        table = Table(*columns, title=f"{self.n:,} images")
        for name, scores, cosine in (
            ("the image (zero-shot)", self.zero_shot, 1.0),
            ("the phrases", self.model, self.cosine),
            ("a random dictionary", self.random, self.random_cosine),
        ):
            table.add_row(name, *(f"{x:.3f}" for x in asdict(scores).values()), f"{cosine:.2f}")
        table.caption = (
            f"{self.nonzero:.1f} phrases have weight (sparsity {self.sparsity:.3f}), "
            f"{self.negative:.0%} of it negative; |v − z| {self.residual:.3f}; largest gap "
            f"{self.gap:.0e}"
        )
        return table

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can have them."""
        return asdict(self)


def evaluate(
    model: ZeroShotCBM,
    images: Any = None,
    labels: Sequence[str] | None = None,
    *,
    features: Any = None,
    seed: int = 0,
) -> Evaluation:
    """Accuracy and what it is worth; means are over images.

    Args:
        images, features: see `ZeroShotCBM.explain`. labels: the true class of each.
        seed: of the random dictionary.
    """
    v, truth = labelled(model, images, labels, features)
    parts: dict[str, list[Tensor]] = {name: [] for name in _PER_IMAGE}
    for part in model.decompose(v):
        size = part.code.w.abs()
        values = (
            class_numbers(model, part.z, part.code.empty),
            (size > 0).sum(1).double(),
            (part.target.double() - part.code.z).norm(dim=1),
            _cosine(part.target, part.code.z),
            (size * (part.code.w < 0)).sum(1) / size.sum(1).clamp_min(1e-30),
            part.code.gap,
        )
        for name, value in zip(_PER_IMAGE, values, strict=True):
            parts[name].append(value.cpu())
    each = {name: torch.cat(values) for name, values in parts.items()}
    random_labels, random_cosines = _by_random_dictionary(model, v, seed)
    C = len(model.classes)
    return Evaluation(
        n=len(v),
        model=scores(each["label"], truth, C),
        zero_shot=scores(model.read(v).argmax(1), truth, C),
        random=scores(random_labels, truth, C),
        sparsity=1 - float(each["nonzero"].mean()) / model.k,
        nonzero=float(each["nonzero"].mean()),
        residual=float(each["residual"].mean()),
        cosine=float(each["cosine"].mean()),
        negative=float(each["negative"].mean()),
        random_cosine=float(random_cosines.mean()),
        gap=float(each["gap"].max()),
        unlabelled=int((each["label"] < 0).sum()),
    )


_PER_IMAGE = ("label", "nonzero", "residual", "cosine", "negative", "gap")


def random_dictionary(k: int, d: int, seed: int = 0) -> Tensor:
    """`[k, d]` float32: Gaussian rows of length 1."""
    rows = torch.randn(k, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def random_dictionary_control(
    model: ZeroShotCBM,
    images: Any = None,
    labels: Sequence[str] | None = None,
    *,
    features: Any = None,
    seed: int = 0,
) -> Scores:
    """The scores of the model with K random rows in the place of phrases; see `evaluate`."""
    v, truth = labelled(model, images, labels, features)
    return scores(_by_random_dictionary(model, v, seed)[0], truth, len(model.classes))


def _by_random_dictionary(model: ZeroShotCBM, v: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Labels `[B]` and cosines `[B]`."""
    rows = random_dictionary(model.k, model.bank.dim, seed)
    parts = list(model.decompose(v, rows))
    labels = torch.cat([class_numbers(model, part.z, part.code.empty).cpu() for part in parts])
    return labels, torch.cat([_cosine(part.target, part.code.z).cpu() for part in parts])


def scores(labels: Tensor, truth: Tensor, classes: int) -> Scores:
    """Of class numbers `[B]` (−1: none) against the true ones `[B]`."""
    labels, truth = labels.cpu(), truth.cpu()
    eye = torch.arange(classes)
    hits = ((labels == truth)[:, None] & (truth[:, None] == eye)).sum(0).double()
    predicted = (labels[:, None] == eye).sum(0).clamp_min(1)
    true = (truth[:, None] == eye).sum(0).clamp_min(1)
    precision, recall = hits / predicted, hits / true
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-30)
    return Scores(
        accuracy=float((labels == truth).double().mean()),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
    )


def labelled(
    model: ZeroShotCBM, images: Any, labels: Sequence[str] | None, features: Any
) -> tuple[Tensor, Tensor]:
    """Unit features `[B, d]` and class numbers `[B]`.

    Raises:
        InferKitError: labels are missing, or are no classes of the model.
    """
    if labels is None or isinstance(labels, str):
        raise InferKitError("labels is a list of class names, one an image.")
    numbers = {name: c for c, name in enumerate(model.classes)}
    unknown = [(n, name) for n, name in enumerate(labels) if name not in numbers]
    if unknown:
        n, name = unknown[0]
        raise InferKitError(
            f"Label {n} is {name!r}, which is no class of the model.",
            hint=f"Its classes: {', '.join(model.classes[:8])}"
            f"{', …' if len(model.classes) > 8 else ''}.",
        )
    v = model.features(images, features)
    if len(v) != len(labels):
        raise InferKitError(f"Got {len(labels)} labels for {len(v)} images.")
    return v, torch.tensor([numbers[name] for name in labels])


def class_numbers(model: ZeroShotCBM, z: Tensor, empty: Tensor) -> Tensor:
    """Class numbers `[B]`, −1 for images without a phrase."""
    return torch.where(empty, -1, model.read(z).argmax(1))


def _cosine(v: Tensor, z: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(v.double(), z, dim=1)
