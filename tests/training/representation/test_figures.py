"""The picture of features has the points that it is given."""

from pathlib import Path

import pytest
import torch

from infer_kit.errors import InferKitError
from infer_kit.training.representation import modality_figure


def test_each_model_has_a_panel_with_both_modalities(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 6, generator=generator) for _ in range(2))
    figure = modality_figure({"before": (a, b + 3), "after": (a, b)}, tmp_path / "plane")
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["before", "after"]
    for axes in figure.axes:
        images, texts = axes.collections
        assert len(images.get_offsets()) == len(texts.get_offsets()) == 200
    # Apart in the first plane, not in the second.
    centres = [[c.get_offsets().mean(0) for c in axes.collections] for axes in figure.axes]
    far, near = (float(abs(x - y).max()) for x, y in centres)
    assert far > 0.5 > 0.2 > near
    assert modality_figure({"one": (a, b)}) is not None


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InferKitError, match="no features to draw"):
        modality_figure({})
    with pytest.raises(InferKitError, match="3 images and 4 texts are no pairs"):
        modality_figure({"a": (torch.ones(3, 2), torch.ones(4, 2))})
