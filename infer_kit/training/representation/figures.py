"""Where a CLIP-like model's features lie, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from infer_kit.canvas import canvas, saved
from infer_kit.errors import InferKitError
from infer_kit.training.representation.modality import ModalityReport

_POINTS = 200


def modality_figure(
    features: Mapping[str, tuple[Tensor, Tensor]], path: str | Path | None = None
) -> Any:
    """Unit features of images and texts, for each model in the plane in which they spread most.

    The plane is of the first two principal components of both modalities together; at most 200
    pairs are drawn, all count for the figures above.

    Args:
        features: by a model's label `[N, d]` of images and of their texts, row by row.
        path: file to write, PNG if it has no suffix; None for none.

    Returns:
        The figure of matplotlib.

    Raises:
        InferKitError: no model, or features that are no pairs.
        MissingExtra: matplotlib is not installed.
    """
    if not isinstance(features, Mapping) or not features:
        raise InferKitError(
            "There are no features to draw.", 'Give {"before": (images, texts), "after": ...}.'
        )
    for label, pair in features.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InferKitError(
                f"Of {label!r} a {type(pair).__name__} is given; (images, texts) are expected."
            )
    reports = {label: ModalityReport.of(a, b, ks=(1,)) for label, (a, b) in features.items()}
    figure, panels = canvas(2.4 * len(features), 2.7, columns=len(features))
    panels = panels if len(features) > 1 else [panels]
    for axes, (label, (a, b)) in zip(panels, features.items(), strict=True):
        units = [normalize(f.detach().cpu().double(), dim=1) for f in (a, b)]
        both = torch.cat(units)
        plane = torch.linalg.svd(both - both.mean(0), full_matrices=False).Vh[:2].T
        for unit, colour, what in zip(
            units, ("#0b7285", "#c2410c"), ("images", "texts"), strict=True
        ):
            x, y = ((unit[:_POINTS] - both.mean(0)) @ plane).unbind(1)
            axes.scatter(x, y, s=4, color=colour, label=what, alpha=0.7)
        report = reports[label]
        axes.set_title(
            f"{label}\ngap {report.gap:.2f}, alignment {report.alignment:.2f},\n"
            f"uniformity {report.uniformity:.2f}",
            fontsize=7.5,
        )
        axes.set_aspect("equal", "datalim")
        axes.set_xticks([])
        axes.set_yticks([])
    panels[0].legend(fontsize=6.8, loc="center")
    if path is not None:
        saved(figure, Path(path))
    return figure
