"""On the tiny CLIP that ships: what explanations say is there, and what their accuracy is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.deletion import deletion_curve
from infer_kit.concepts.encoders import image_features
from infer_kit.concepts.measures import evaluate
from infer_kit.concepts.retrieval import FaissIndex
from infer_kit.demo.clip import CLASSES, held_out, ways
from infer_kit.demo.clip.world import PLACES

N = 80


@pytest.fixture(scope="module")
def world() -> ways.World:
    return ways.World()


@pytest.fixture(scope="module")
def data(world: ways.World) -> dict:
    samples = held_out(N, seed=7)
    features = image_features(world.encoder, [sample.picture for sample in samples])
    return {"features": features, "labels": [sample.label for sample in samples]}


def test_centred_phrases_are_there(world: ways.World, data: dict) -> None:
    model = world.model(ways.CENTRED)
    found = model.explain(features=data["features"])
    shares = [
        np.mean([phrase in sample.phrases for phrase in one.phrases[:6]])
        for one, sample in zip(found, held_out(N, seed=7), strict=True)
    ]
    assert np.mean(shares) > 0.97
    assert all(float(one.weights.min()) > 0 for one in found)
    assert evaluate(model, **data).model.accuracy > 0.9


def test_a_random_dictionary_does_as_well_as_the_published_setting(
    world: ways.World, data: dict
) -> None:
    """The negative result: more phrases than dimensions, a tiny λ, weights of both signs."""
    found = evaluate(world.model("published, pairs"), **data)
    assert abs(found.random.accuracy - found.zero_shot.accuracy) <= 0.03
    assert abs(found.model.accuracy - found.zero_shot.accuracy) <= 0.03
    assert found.random_cosine > 0.98 and found.negative > 0.4
    assert found.gap <= 1e-9


@pytest.mark.parametrize("way", [ways.PUBLISHED, ways.CENTRED])
def test_the_largest_phrases_matter_more_than_random_ones(
    way: str, world: ways.World, data: dict
) -> None:
    """Acceptance check 7."""
    model = world.model(way)
    nonzero = evaluate(model, **data).nonzero
    counts = [n for n in (2, 4, 6, 8) if n <= nonzero / 2]
    assert len(counts) >= 3
    curves = [deletion_curve(model, **data, counts=counts, seed=seed) for seed in range(3)]
    largest = np.array(curves[0].accuracy["descending"])
    drawn = np.mean([curve.accuracy["random"] for curve in curves], axis=0)
    assert (largest < drawn).all() and (drawn - largest).mean() > 0.05


def test_phrases_of_another_place_move_the_label(world: ways.World, data: dict) -> None:
    model = world.model(ways.CENTRED)
    moved = 0
    for one, label in zip(
        model.explain(features=data["features"][:20]), data["labels"], strict=False
    ):
        other = CLASSES[(CLASSES.index(label) + 3) % len(CLASSES)]
        empty = one.delete(len(one.phrases))
        assert empty.label is None
        told = empty.insert({phrase: 0.5 for phrase in PLACES[other][1:]})
        moved += told.label == other
    assert moved >= 19


def test_a_bank_on_disk_explains_alike(world: ways.World, data: dict, tmp_path: Path) -> None:
    bank = world.banks[True]
    bank.save(tmp_path / "bank")
    v = data["features"][:8]
    options = {"alpha": 1e-3, "positive": True, "k": 100}
    expected = ZeroShotCBM(world.encoder, bank, CLASSES, **options).predict(features=v)
    mapped = ConceptBank.load(tmp_path / "bank", mmap=True)
    again = ZeroShotCBM(world.encoder, mapped, CLASSES, **options).predict(features=v)
    assert again.labels == expected.labels and torch.equal(again.code.w, expected.code.w)
    pytest.importorskip("faiss")
    index = FaissIndex.build(bank.features)
    found = ZeroShotCBM(world.encoder, bank, CLASSES, retriever=index, **options)
    torch.testing.assert_close(
        found.predict(features=v).probabilities, expected.probabilities, atol=1e-5, rtol=0
    )
