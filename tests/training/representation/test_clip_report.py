"""Figures of a CLIP-like model on held-out pictures of the tiny CLIP's world."""

from __future__ import annotations

import pytest
import torch

from infer_kit.demo import clip
from infer_kit.dual_encoder import DualEncoder
from infer_kit.errors import InferKitError
from infer_kit.training.representation import ModalityReport, measure_clip


def test_a_report_is_what_features_say() -> None:
    samples = clip.held_out(60)
    images = [sample.picture for sample in samples]
    captions = [" and ".join(sample.phrases[:3]) for sample in samples]
    model, processor = clip.load()
    found = measure_clip(
        (model, processor), images, captions, clip.CLASSES, [sample.label for sample in samples]
    )
    dual = DualEncoder(model, processor)
    a, b = dual.images(images), dual.texts(captions)
    expected = ModalityReport.of(a, b)
    assert found.modality.gap == pytest.approx(expected.gap, rel=1e-5)
    assert found.modality.image_to_text == expected.image_to_text
    names = dual.texts([f"a photo of a {name}" for name in clip.CLASSES])
    said = torch.nn.functional.cosine_similarity(a[:, None], names[None], dim=2).argmax(1)
    right = [clip.CLASSES[n] == s.label for n, s in zip(said.tolist(), samples, strict=True)]
    assert found.zero_shot == pytest.approx(sum(right) / 60) and found.zero_shot > 0.9
    assert "zero-shot" in str(found) and found.to_dict()["zero_shot"] == found.zero_shot
    assert measure_clip("demo-clip", images, captions).zero_shot is None


def test_what_does_not_fit_is_refused() -> None:
    images = [sample.picture for sample in clip.held_out(3)]
    with pytest.raises(InferKitError, match="3 images and 2 captions"):
        measure_clip("demo-clip", images, ["red circle"] * 2)
    with pytest.raises(InferKitError, match="classes and labels go together"):
        measure_clip("demo-clip", images, ["red circle"] * 3, classes=["beach", "city"])
    with pytest.raises(InferKitError, match="3 images and 1 labels"):
        measure_clip("demo-clip", images, ["red circle"] * 3, ["beach", "city"], ["city"])
    with pytest.raises(InferKitError, match="'farm' is a label, and no class"):
        measure_clip("demo-clip", images, ["red circle"] * 3, ["beach", "city"], ["farm"] * 3)
