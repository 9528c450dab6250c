"""What becomes of the classes when phrases are deleted: whether the phrases matter.

From the paper's intervention study (second-hand: no official code of it is known). If the largest
phrases can go and the class stays, the list does not explain the class.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.canvas import canvas, saved
from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.certificate import rebuild
from infer_kit.concepts.measures import Evaluation, class_numbers, labelled
from infer_kit.errors import InferKitError

ORDERS = ("descending", "random", "ascending")
"""In which phrases are deleted: by falling |w|, at random, by rising |w|."""


@dataclass(frozen=True)
class DeletionCurve:
    """Accuracy by how many phrases are deleted from each image, without a refit.

    Attributes:
        counts: phrases deleted; of an image with fewer all. accuracy: by order, at each count.
        nonzero: mean number of phrases with weight. n: images.
    """

    counts: tuple[int, ...]
    accuracy: dict[str, list[float]]
    nonzero: float
    n: int

    def table(self) -> Any:
        """A table of `rich`."""
        from rich.table import Table

        title = f"Accuracy after deleting phrases ({self.nonzero:.1f} have weight)"
        table = Table("deleted", *map(str, self.counts), title=title)
        for order, values in self.accuracy.items():
            table.add_row(_NAMES[order], *(f"{value:.3f}" for value in values))
        return table

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can have them."""
        return asdict(self)

    def figure(self, path: str | Path, beside: Evaluation | None = None) -> Path:
        """Accuracy against the number of deleted phrases.

        Args:
            beside: of the same images; its zero-shot and random-dictionary accuracy are drawn too.
        """
        drawn, axes = canvas()
        self.draw(axes, beside)
        return saved(drawn, Path(path))

    def draw(self, axes: Any, beside: Evaluation | None = None) -> None:
        """The same on axes of one's own."""
        for order, values in self.accuracy.items():
            axes.plot(self.counts, values, marker="o", label=_NAMES[order])
        if beside is not None:
            lines = ((beside.zero_shot, "from the image", "--"),
                     (beside.random, "a random dictionary", ":"))  # fmt: skip
            for scores, label, style in lines:
                axes.axhline(scores.accuracy, color="grey", ls=style, lw=1, label=label)
        axes.set_xlabel(f"phrases deleted, of {self.nonzero:.0f} on average")
        axes.set_ylabel(f"accuracy ({self.n:,} images)")
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize="x-small")


_NAMES = {
    "descending": "the largest |w|",
    "random": "random ones",
    "ascending": "the smallest |w|",
}


def deletion_curve(
    model: ZeroShotCBM,
    images: Any = None,
    labels: Sequence[str] | None = None,
    *,
    counts: Sequence[int] = (0, 1, 2, 4, 8, 16),
    features: Any = None,
    seed: int = 0,
) -> DeletionCurve:
    """Accuracy when the first n phrases of each image are deleted, and n random ones.

    An image without a phrase left has no label, and counts as wrong.

    Args:
        counts: of deleted phrases. seed: of the random order. Others: see `evaluate`.
    """
    v, truth = labelled(model, images, labels, features)
    if not counts or any(n < 0 for n in counts):
        raise InferKitError(f"counts is a list of numbers from 0 on, got {list(counts)}.")
    generator = torch.Generator().manual_seed(seed)
    hits: dict[str, list[list[Tensor]]] = {order: [[] for _ in counts] for order in ORDERS}
    nonzero, start = [], 0
    for part in model.decompose(v):
        w, F, true = part.code.w, part.F.double(), truth[start : start + len(part.v)]
        start += len(part.v)
        nonzero.append((w != 0).sum(1).cpu())
        noise = torch.rand(w.shape, generator=generator, dtype=w.dtype).to(w.device)
        for order in ORDERS:
            key = {"descending": w.abs(), "random": noise, "ascending": -w.abs()}[order]
            rank = key.masked_fill(w == 0, -torch.inf).argsort(1, True).argsort(1)
            for n, count in enumerate(counts):
                left = torch.where(rank < count, 0.0, w)
                z = model.rebuilt(rebuild(F, left))
                found = class_numbers(model, z, (left == 0).all(1)).cpu()
                hits[order][n].append(found == true)
    accuracy = {
        order: [float(torch.cat(each).double().mean()) for each in by_count]
        for order, by_count in hits.items()
    }
    return DeletionCurve(tuple(counts), accuracy, float(torch.cat(nonzero).double().mean()), len(v))
