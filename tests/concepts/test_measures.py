"""Accuracies beside their controls, and deletion curves: equal to loops over single images."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.deletion import deletion_curve
from infer_kit.concepts.lasso import sparse_code
from infer_kit.concepts.measures import (
    evaluate,
    random_dictionary,
    random_dictionary_control,
    scores,
)
from infer_kit.errors import InferKitError
from tests.concepts.worlds import CLASSES, WordEncoder, bank_of, samples

N = 45


@pytest.fixture(scope="module")
def model() -> ZeroShotCBM:
    encoder = WordEncoder()
    return ZeroShotCBM(encoder, bank_of(encoder), CLASSES, alpha=1e-4, k=25)


@pytest.fixture(scope="module")
def data(model: ZeroShotCBM) -> dict[str, Any]:
    features, labels = samples(model.encoder, N)  # type: ignore[arg-type]
    return {"features": features, "labels": labels}


def test_scores_are_scikit_learns() -> None:
    g = np.random.default_rng(0)
    for _ in range(50):
        classes = int(g.integers(2, 7))
        truth = g.integers(0, classes, 40)
        found = np.where(g.random(40) < 0.5, truth, g.integers(-1, classes, 40))
        ours = scores(torch.tensor(found), torch.tensor(truth), classes)
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, found, labels=range(classes), average="macro", zero_division=0
        )
        assert ours.accuracy == pytest.approx(accuracy_score(truth, found))
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx((precision, recall, f1))


def test_an_evaluation_is_the_mean_over_single_images(
    model: ZeroShotCBM, data: dict[str, Any]
) -> None:
    found = evaluate(model, **data)
    each = model.explain(features=data["features"])
    right = [e.label == label for e, label in zip(each, data["labels"], strict=True)]
    direct = [max(e.zero_shot, key=lambda c, e=e: e.zero_shot[c]) for e in each]
    assert found.n == N and found.unlabelled == 0
    assert found.model.accuracy == pytest.approx(np.mean(right))
    assert found.zero_shot.accuracy == pytest.approx(
        np.mean([a == b for a, b in zip(direct, data["labels"], strict=True)])
    )
    assert found.nonzero == pytest.approx(np.mean([len(e.phrases) for e in each]))
    assert found.sparsity == pytest.approx(1 - found.nonzero / 25)
    assert found.residual == pytest.approx(np.mean([e.residual for e in each]), abs=1e-6)
    assert found.cosine == pytest.approx(np.mean([e.cosine for e in each]), abs=1e-6)
    negative = [float(e.weights.clamp_max(0).abs().sum() / e.weights.abs().sum()) for e in each]
    assert found.negative == pytest.approx(np.mean(negative), abs=1e-6)
    assert found.gap == pytest.approx(max(e.gap or 0 for e in each), rel=1e-3, abs=1e-15)
    assert found.gap <= 1e-9
    assert found.model.accuracy > 0.8  # the world is easy


def test_the_random_dictionary_is_random_rows_under_the_same_lasso(
    model: ZeroShotCBM, data: dict[str, Any]
) -> None:
    rows = random_dictionary(25, 48, seed=3)
    assert rows.shape == (25, 48)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(25))
    right, cosines = [], []
    for v, label in zip(data["features"], data["labels"], strict=True):
        code = sparse_code(rows, v, 1e-4)
        right.append(CLASSES[int(model.read(code.z[None]).argmax())] == label)
        cosines.append(float(torch.nn.functional.cosine_similarity(v.double(), code.z, dim=0)))
    found = evaluate(model, **data, seed=3)
    assert found.random.accuracy == pytest.approx(np.mean(right))
    assert found.random_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert random_dictionary_control(model, **data, seed=3) == found.random


def test_any_dictionary_rebuilds_an_image_where_phrases_outnumber_dimensions() -> None:
    """The negative result that the control is there for."""
    encoder = WordEncoder(dim=24)
    bank = bank_of(encoder, [f"word{n}" for n in range(400)])
    model = ZeroShotCBM(encoder, bank, CLASSES, alpha=1e-6)
    features, labels = samples(encoder, 60, noise=1.5)
    found = evaluate(model, features=features, labels=labels)
    assert found.random_cosine > 0.999
    assert abs(found.random.accuracy - found.zero_shot.accuracy) < 0.05
    assert found.zero_shot.accuracy > 0.5


def test_every_accuracy_stands_beside_its_controls(
    model: ZeroShotCBM, data: dict[str, Any]
) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(evaluate(model, **data).table())
    shown = console.export_text()
    for name in ("the image (zero-shot)", "the phrases", "a random dictionary"):
        assert name in shown
    data_ = json.loads(json.dumps(evaluate(model, **data).to_dict()))
    assert {"model", "zero_shot", "random"} <= set(data_)


def test_images_without_a_phrase_are_wrong() -> None:
    encoder = WordEncoder()
    model = ZeroShotCBM(encoder, bank_of(encoder), CLASSES, alpha=0.1)
    features, labels = samples(encoder, 9)
    found = evaluate(model, features=features, labels=labels)
    assert found.unlabelled == 9 and found.model.accuracy == 0 and found.zero_shot.accuracy > 0


def test_deleting_is_deleting_from_each_explanation(
    model: ZeroShotCBM, data: dict[str, Any]
) -> None:
    curve = deletion_curve(model, **data, counts=(0, 2, 5, 99))
    each = model.explain(features=data["features"])
    for order in ("descending", "ascending"):
        for count, accuracy in zip(curve.counts, curve.accuracy[order], strict=True):
            right = [
                e.delete(min(count, len(e.phrases)), order).label == label  # type: ignore[arg-type]
                for e, label in zip(each, data["labels"], strict=True)
            ]
            assert accuracy == pytest.approx(np.mean(right)), (order, count)
    assert curve.accuracy["random"][0] == curve.accuracy["descending"][0]
    assert curve.accuracy["random"][3] == 0
    assert curve.nonzero == pytest.approx(np.mean([len(e.phrases) for e in each]))


def test_the_largest_phrases_matter_more_than_random_ones(
    model: ZeroShotCBM, data: dict[str, Any]
) -> None:
    """Acceptance check 7, at up to half of the phrases."""
    curves = [deletion_curve(model, **data, counts=(1, 2, 3, 4), seed=seed) for seed in range(5)]
    assert curves[0].nonzero / 2 > 4
    largest = np.mean(curves[0].accuracy["descending"])
    drawn = np.mean([curve.accuracy["random"] for curve in curves])
    assert largest < drawn - 0.03
    assert len({tuple(curve.accuracy["random"]) for curve in curves}) > 1


def test_centred_deletion(data: dict[str, Any]) -> None:
    encoder = WordEncoder()
    mean = data["features"].mean(0)
    model = ZeroShotCBM(encoder, bank_of(encoder), CLASSES, alpha=1e-4, center="modality",
                        image_mean=mean)  # fmt: skip
    curve = deletion_curve(model, **data, counts=(1,))
    each = model.explain(features=data["features"])
    right = [e.delete(1).label == label for e, label in zip(each, data["labels"], strict=True)]
    assert curve.accuracy["descending"] == [pytest.approx(np.mean(right))]
    assert evaluate(model, **data).negative == 0


def test_figures_and_tables(model: ZeroShotCBM, data: dict[str, Any], tmp_path: Path) -> None:
    curve = deletion_curve(model, **data, counts=(0, 3))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(curve.table())
    shown = console.export_text()
    assert "the largest |w|" in shown and f"{curve.accuracy['random'][1]:.3f}" in shown
    for beside in (None, evaluate(model, **data)):
        with Image.open(curve.figure(tmp_path / "deletion.png", beside)) as drawn:
            assert drawn.size[0] > 300
    assert json.loads(json.dumps(curve.to_dict()))["counts"] == [0, 3]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": None}, "labels is a list of class names, one an image"),
        ({"labels": "forest"}, "labels is a list of class names"),
        ({"labels": ["forest"] * 3}, "Got 3 labels for 45 images"),
        ({"labels": ["forest", "moon"]}, "Label 1 is 'moon', which is no class of the model"),
        ({"features": None}, "Give images, or features"),
    ],
)
def test_bad_data(
    model: ZeroShotCBM, data: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    for call in (evaluate, deletion_curve, random_dictionary_control):
        with pytest.raises(InferKitError, match=message):
            call(model, **{**data, **change})


def test_bad_counts(model: ZeroShotCBM, data: dict[str, Any]) -> None:
    for counts in ((), (3, -1)):
        with pytest.raises(InferKitError, match="counts is a list of numbers from 0 on"):
            deletion_curve(model, **data, counts=counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deletion_curve(model, **data, counts=[1])
