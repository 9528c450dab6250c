"""On the tiny CLIP that ships: what explanations say is there, and what their accuracy is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.concept_score import concept_score
from infer_kit.concepts.deletion import deletion_curve
from infer_kit.concepts.encoders import image_features
from infer_kit.concepts.explanation import Explanation
from infer_kit.concepts.measures import evaluate
from infer_kit.concepts.phrases import noun_phrases
from infer_kit.concepts.retrieval import FaissIndex
from infer_kit.demo.clip import CLASSES, PHRASES, Sample, held_out, ways
from infer_kit.demo.clip.world import PLACES
from tests.concepts.worlds import WordEncoder

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


def seen(world: ways.World, n: int, seed: int) -> tuple[list[Sample], Tensor, list[str]]:
    """Pictures, their features and their classes."""
    samples = held_out(n, seed)
    features = image_features(world.encoder, [sample.picture for sample in samples])
    return samples, features, [sample.label for sample in samples]


def same(a: Explanation, b: Explanation) -> bool:
    """Equal to the last bit."""
    return a.phrases == b.phrases and torch.equal(a.weights, b.weights) and a.label == b.label


def test_the_published_setting_has_the_class_and_phrases_that_are_not_there(
    world: ways.World,
) -> None:
    samples, features, labels = seen(world, 60, seed=5)
    model = world.model(ways.PUBLISHED)
    explained = model.explain(features=features)
    right = [one.label == label for one, label in zip(explained, labels, strict=True)]
    assert sum(right) / len(right) >= 0.9
    assert ways._true(model, features, samples) < 0.6
    assert all("of the weight says what is not there" in str(one.remarks) for one in explained)


def test_a_bank_of_captions_explains_as_well(world: ways.World) -> None:
    """Phrases are taken from sentences about other pictures; nobody wrote a list."""
    told = []
    for sample in held_out(100, seed=8):
        things = [" ".join(thing) for thing in sample.things if thing is not None]
        told.append(f"A photo of a {', a '.join(things[:-1])} and a {things[-1]}.")
    bank = ConceptBank.build(noun_phrases(told), world.encoder, classes=CLASSES)
    things = {p for p in PHRASES if len(p.split()) == 2 and "something" not in p}
    things = {p for p in things if "background" not in p}
    assert things <= set(bank.phrases) and not set(bank.phrases) & set(CLASSES)
    model = ZeroShotCBM(world.encoder, bank, CLASSES, alpha=1e-3, center="modality",
                        image_mean=world.image_mean)  # fmt: skip
    samples, features, labels = seen(world, 60, seed=9)
    explained = model.explain(features=features)
    first = [p in s.phrases for one, s in zip(explained, samples, strict=True)
             for p in one.phrases[:6]]  # fmt: skip
    assert sum(first) / len(first) >= 0.9
    assert evaluate(model, labels=labels, features=features).model.accuracy >= 0.85


@pytest.mark.parametrize("way", [ways.PUBLISHED, ways.CENTRED])
def test_what_is_typical_of_a_place_moves_the_label_there(way: str, world: ways.World) -> None:
    model = world.model(way)
    for sample in held_out(4, seed=9):
        one = model.explain(sample.picture)
        empty = one.delete(len(one.phrases))
        assert empty.label is None and one.label is not None
        for place, (_, *things) in PLACES.items():
            moved = empty.insert({thing: 1.0 for thing in things})
            assert moved.label == place and moved.zero_shot == one.zero_shot
            assert set(moved.phrases) == set(things) and moved.gap is None
        whole = empty.insert(dict(zip(one.phrases, one.weights.tolist(), strict=True)))
        assert whole.label == one.label and abs(whole.cosine - one.cosine) < 1e-5


def test_a_saved_bank_explains_alike(world: ways.World, tmp_path: Path) -> None:
    made = world.banks[False]
    made.save(tmp_path / "bank")
    _, features, _ = seen(world, 8, seed=10)
    options: dict[str, Any] = {"k": 40}

    def explained(bank: ConceptBank) -> list[Explanation]:
        return ZeroShotCBM(world.encoder, bank, CLASSES, **options).explain(features=features)

    expected = explained(made)
    for bank in (
        ConceptBank.load(tmp_path / "bank", encoder=world.encoder),
        ConceptBank.load(tmp_path / "bank", mmap=True),
        ConceptBank.build(PHRASES[::-1], world.encoder, folder=tmp_path / "again"),
    ):
        assert bank.phrases == made.phrases and torch.equal(bank.features, made.features)
        assert all(same(a, b) for a, b in zip(expected, explained(bank), strict=True))


class Teller(WordEncoder):
    """Knows what its pictures show, and shares nothing with the tiny CLIP."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__(name="teller", common=0.0)
        self.shown = {sample.picture.tobytes(): sample.phrases for sample in samples}

    def encode_image(self, pictures: Sequence[Any]) -> Tensor:
        return torch.stack([self.image(self.shown[picture.tobytes()]) for picture in pictures])


def test_another_encoder_prefers_the_phrases_of_the_picture(world: ways.World) -> None:
    samples, features, _ = seen(world, 40, seed=12)
    pictures = [sample.picture for sample in samples]
    explained = world.model(ways.CENTRED).explain(features=features)
    second = Teller(samples)
    own = concept_score(explained, pictures, second, n=6)
    shuffled = concept_score([*explained[1:], explained[0]], pictures, second, n=6)
    assert (own > shuffled).double().mean() > 0.9 and own.mean() > shuffled.mean() + 0.2
    with pytest.warns(UserWarning, match="the score confirms itself"):
        concept_score(explained[:2], pictures[:2], world.encoder)
