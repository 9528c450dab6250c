r"""How images and texts lie in a CLIP-like model's space: gap, alignment, uniformity, retrieval.

For unit features a of images and b of their texts, `[N, d]`:

    gap          |mean a - mean b|^2                    Liang et al., NeurIPS 2022, arXiv 2203.02053
    alignment    mean |a_i - b_i|^2                     Wang and Isola, ICML 2020, arXiv 2005.10242
    uniformity   log mean_{i<j} exp(-2 |x_i - x_j|^2)   the same; here the mean of both modalities
    recall@k     share of queries with one of their own among the k nearest

CLIP-Refine's tables seem to print gap / d times 1000, and uniformity without the log; both forms
are given here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from infer_kit.errors import InferKitError

_CHUNK = 1024


def modality_gap(a: Tensor, b: Tensor) -> float:
    """|mean a - mean b|^2 of normalised features, in float64.

    Args:
        a: `[N, d]` of images. b: `[M, d]` of texts. They are normalised here.

    Raises:
        InferKitError: features that are not `[N, d]` and `[M, d]`, not finite, or zero.
    """
    a, b = _unit(a, "image"), _unit(b, "text")
    _same_width(a, b)
    return float((a.mean(0) - b.mean(0)).square().sum())


def alignment(a: Tensor, b: Tensor) -> float:
    """mean |a_i - b_i|^2 of normalised features of pairs, from 0 to 4.

    Args:
        a, b: `[N, d]`, row by row of a pair.

    Raises:
        InferKitError: as `modality_gap`; another number of images than of texts.
    """
    a, b = _unit(a, "image"), _unit(b, "text")
    _same_width(a, b)
    if len(a) != len(b):
        raise InferKitError(
            f"{len(a)} images and {len(b)} texts are no pairs.", "Give a row of each for a pair."
        )
    return float((a - b).square().sum(1).mean())


def uniformity(*features: Tensor) -> float:
    """log mean exp(-2 |x_i - x_j|^2) over pairs of normalised features; the lower, the more even.

    Args:
        features: `[N, d]` of one modality, or several, whose uniformities are averaged.

    Returns:
        The number, 0 where all are one point; for a sphere of many dimensions about -4.

    Raises:
        InferKitError: as `modality_gap`; fewer than two features.
    """
    return sum(map(_uniformity, features)) / len(features)


def recall_at_k(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    query_owner: Tensor | None = None,
    gallery_owner: Tensor | None = None,
) -> float:
    """Share of queries of which one of their own is among the k of largest cosine.

    Of equal cosines the query's own counts as the last, so that a model that says the same of all
    gets nothing for it.

    Args:
        queries: `[N, d]`. gallery: `[M, d]`. k: how many of the gallery are looked at.
        query_owner, gallery_owner: `[N]` and `[M]` integers: what belongs together, where that is
            not row by row; five captions of an image have its number.

    Raises:
        InferKitError: as `modality_gap`; k below 1; owners of other sizes; a query that owns
            nothing.
    """
    queries, gallery = _unit(queries, "query"), _unit(gallery, "gallery")
    _same_width(queries, gallery)
    if k < 1:
        raise InferKitError(f"k={k}: at least 1 is expected.")
    q = torch.arange(len(queries)) if query_owner is None else torch.as_tensor(query_owner)
    g = torch.arange(len(gallery)) if gallery_owner is None else torch.as_tensor(gallery_owner)
    if q.shape != (len(queries),) or g.shape != (len(gallery),):
        raise InferKitError(
            f"Owners are {list(q.shape)} and {list(g.shape)} for {len(queries)} queries and "
            f"{len(gallery)} of the gallery."
        )
    q, g = q.to(queries.device), g.to(queries.device)
    right = 0
    for part, owner in zip(queries.split(_CHUNK), q.split(_CHUNK), strict=True):
        cosines = part @ gallery.T
        own = owner[:, None] == g[None, :]
        if not bool(own.any(1).all()):
            lost = int(owner[~own.any(1)][0])
            raise InferKitError(f"Nothing in the gallery belongs to the query of owner {lost}.")
        best = cosines.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        right += int((((cosines >= best) & ~own).sum(1) < k).sum())
    return right / len(queries)


@dataclass(frozen=True)
class ModalityReport:
    """Where the features of pairs lie.

    Attributes:
        gap, alignment, uniformity: see the functions; uniformity is the mean of both modalities.
        image_to_text, text_to_image: recall by k, shares from 0 to 1.
        dim: d of the features. pairs: number of them.
    """

    gap: float
    alignment: float
    uniformity: float
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    dim: int
    pairs: int

    @classmethod
    def of(cls, a: Tensor, b: Tensor, ks: Sequence[int] = (1, 5, 10)) -> ModalityReport:
        """Of features of pairs.

        Args:
            a, b: `[N, d]` of images and their texts, row by row. ks: of recall.
        """
        return cls(
            modality_gap(a, b),
            alignment(a, b),
            uniformity(a, b),
            {k: recall_at_k(a, b, k) for k in ks},
            {k: recall_at_k(b, a, k) for k in ks},
            a.shape[1],
            len(a),
        )

    @property
    def gap_as_printed(self) -> float:
        """1000 gap / d, as CLIP-Refine's tables seem to print it."""
        return 1000 * self.gap / self.dim

    @property
    def uniformity_as_printed(self) -> float:
        """exp(uniformity), as CLIP-Refine's tables seem to print it."""
        return float(torch.tensor(self.uniformity, dtype=torch.float64).exp())

    def to_dict(self) -> dict[str, object]:
        """All of it as JSON can have it."""
        return asdict(self) | {
            "gap_as_printed": self.gap_as_printed,
            "uniformity_as_printed": self.uniformity_as_printed,
        }

    def __str__(self) -> str:
        recall = ", ".join(
            f"{way} R@{k} {100 * found[k]:.1f}"
            for way, found in (("I2T", self.image_to_text), ("T2I", self.text_to_image))
            for k in found
        )
        return (
            f"{self.pairs} pairs: gap {self.gap:.3f} (1000 gap/d {self.gap_as_printed:.2f}), "
            f"alignment {self.alignment:.3f}, uniformity {self.uniformity:.2f} (without the log "
            f"{self.uniformity_as_printed:.3f}); {recall}"
        )


def _uniformity(x: Tensor) -> float:
    x = _unit(x, "feature")
    n = len(x)
    if n < 2:
        raise InferKitError(f"{n} features have no uniformity: two or more are expected.")
    total = 0.0
    for i, part in enumerate(x.split(_CHUNK)):
        # |x - y|^2 = 2 - 2 x.y of unit rows; each row with those after it.
        kernel = (4 * (part @ x[i * _CHUNK :].T) - 4).exp()
        total += float(kernel.triu(1).sum())
    return float(torch.tensor(total / (n * (n - 1) / 2), dtype=torch.float64).log())


def _unit(x: Tensor, what: str) -> Tensor:
    if x.dim() != 2 or not x.numel():
        raise InferKitError(f"The {what} features are {list(x.shape)}; [N, d] is expected.")
    x = x.detach().cpu().double()
    if not bool(torch.isfinite(x).all()):
        raise InferKitError(f"The {what} features have numbers that are not finite.")
    if not bool((x != 0).any(1).all()):
        raise InferKitError(f"A {what} feature is zero, and has no direction.")
    return normalize(x, dim=1)


def _same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise InferKitError(
            f"Features have {a.shape[1]} and {b.shape[1]} numbers; those of one space are expected."
        )
