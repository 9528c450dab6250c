"""The linear probe: its training, its files, and what it reads from rebuilt features."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.concept_score import concept_score
from infer_kit.concepts.encoders import image_features, text_features
from infer_kit.concepts.probe import IMAGENET, LinearProbe, ProbeRecipe, _factor
from infer_kit.errors import InferKitError
from tests.concepts.worlds import CLASSES, WordEncoder, bank_of, samples


def test_a_probe_learns_and_is_seeded() -> None:
    features, labels = samples(WordEncoder(), 240, noise=1.0)
    recipe = ProbeRecipe(epochs=30)
    probe = LinearProbe.train(features[:180], labels[:180], CLASSES, recipe)
    again = LinearProbe.train(features[:180], labels[:180], CLASSES, recipe)
    assert torch.equal(probe.weight, again.weight) and torch.equal(probe.bias, again.bias)
    other = LinearProbe.train(features[:180], labels[:180], CLASSES, recipe, seed=1)
    assert not torch.equal(probe.weight, other.weight)

    def accuracy(logits: torch.Tensor) -> float:
        found = [CLASSES[c] for c in logits.argmax(1).tolist()]
        return sum(a == b for a, b in zip(found, labels[180:], strict=True)) / 60

    peer = LogisticRegression(max_iter=1000).fit(features[:180].numpy(), labels[:180])
    theirs = sum(peer.predict(features[180:].numpy()) == labels[180:]) / 60
    assert accuracy(probe.logits(features[180:])) >= theirs - 0.1 > 0.5


def test_the_published_recipes() -> None:
    assert ProbeRecipe() == ProbeRecipe("adamw", 3e-3, 0.1, 64, 100, 50, "cosine")
    assert ProbeRecipe("sgd", 0.1, 1e-6, 1024, 100, 0, "cosine_7_16") == IMAGENET
    for t in (0, 3, 10):
        assert _factor(IMAGENET, t, 10) == pytest.approx(math.cos(7 * math.pi * t / 160))
    warm = [_factor(ProbeRecipe(), s, 1050) for s in (0, 24, 49, 50, 550, 1050)]
    assert warm == pytest.approx([0.02, 0.5, 1.0, 1.0, 0.5, 0.0])
    features, labels = samples(WordEncoder(), 30)
    short = ProbeRecipe("sgd", 0.1, 1e-6, 1024, 3, 0, "cosine_7_16")
    assert LinearProbe.train(features, labels, CLASSES, short).weight.shape == (3, 48)


def test_the_first_weights_have_the_published_size() -> None:
    features, labels = samples(WordEncoder(dim=512), 3)
    none = LinearProbe.train(features, labels, CLASSES, ProbeRecipe(epochs=0))
    assert float(none.weight.std()) == pytest.approx(0.01, rel=0.1)
    assert not none.bias.any()


def test_a_probe_reads_the_rebuilt_feature(tmp_path: Path) -> None:
    encoder = WordEncoder()
    features, labels = samples(encoder, 60)
    probe = LinearProbe.train(features, labels, CLASSES, ProbeRecipe(epochs=20))
    loaded = LinearProbe.load(probe.save(tmp_path / "probe"))
    assert loaded.classes == CLASSES and torch.equal(loaded.weight, probe.weight)
    model = ZeroShotCBM(encoder, bank_of(encoder), CLASSES, alpha=1e-4, head=loaded)
    found = model.explain(features=features[0])
    z = found.weights @ found.features
    expected = (probe.weight.double() @ z + probe.bias.double()).softmax(0)
    assert list(found.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    direct = probe.logits(features[:1]).softmax(1)[0]
    assert list(found.zero_shot.values()) == pytest.approx(direct.tolist(), abs=1e-6)
    with pytest.raises(
        InferKitError, match=r"The head reads \['forest', 'beach', 'city'\], classe"
    ):
        ZeroShotCBM(encoder, bank_of(encoder), ["forest", "city", "beach"], head=loaded)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": ["forest"]}, r"features have shape \[4, 48\] and there are 1 labels"),
        ({"labels": ["forest"] * 3 + ["moon"]}, "Label 3 is 'moon', which is no class"),
        ({"classes": ["forest"]}, "classes has 1 names"),
        ({"recipe": ProbeRecipe(optimizer="lion")}, "Unknown optimizer 'lion'"),
        ({"recipe": ProbeRecipe(schedule="step", warm_up=0)}, "Unknown schedule 'step'"),
    ],
)
def test_bad_training(change: dict[str, Any], message: str) -> None:
    features, labels = samples(WordEncoder(), 4)
    given = {"features": features, "labels": labels, "classes": CLASSES, **change}
    with pytest.raises(InferKitError, match=message):
        LinearProbe.train(**given)


def test_no_probe(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match=r"holds no probe: there is no probe\.json"):
        LinearProbe.load(tmp_path)


def test_the_concept_score_is_the_formula() -> None:
    encoder, second = WordEncoder(), WordEncoder(name="second", dim=20)
    model = ZeroShotCBM(encoder, bank_of(encoder), CLASSES, alpha=1e-4)
    pictures = [Image.new("RGB", (2, 2), (n, 0, 0)) for n in range(3)]
    found = model.explain(pictures)
    score = concept_score(found, pictures, second, n=4)
    images = image_features(second, pictures)
    for b in range(3):
        texts = text_features(second, list(found[b].phrases[:4]))
        expected = 2.5 * max(0.0, float(images[b] @ texts.mean(0)))
        assert float(score[b]) == pytest.approx(expected, abs=1e-6)
    nothing = found[0].delete(len(found[0].phrases))
    assert float(concept_score([nothing], pictures[:1], second)[0]) == 0
    with pytest.warns(UserWarning, match="chosen by 'words', which scores them too"):
        concept_score(found, pictures, encoder)
    with pytest.raises(InferKitError, match="Got 3 explanations for 2 images"):
        concept_score(found, pictures[:2], second)
