"""The digits: parts without an image in common, two models, and a task that they do not know."""

from __future__ import annotations

import math

import pytest
import torch

from infer_kit.demo import digits
from infer_kit.errors import InferKitError

PARTS = ("pretraining", "train", "validation", "test")


@pytest.fixture(scope="module")
def data():
    return digits.task(seed=0)


def test_no_image_is_in_two_parts_and_none_is_missing(data):
    places = torch.cat([getattr(data, name).places for name in PARTS])
    assert len(places) == len(places.unique()) == 1797


def test_every_digit_has_its_share_of_every_part(data):
    for name in PARTS:
        counts = getattr(data, name).labels.bincount(minlength=10)
        expected = 179.7 * digits.SHARES[name]
        assert (counts - expected).abs().max() < 0.1 * expected + 2


def test_a_seed_is_a_task():
    first, again, other = digits.task(3), digits.task(3), digits.task(4)
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.places, other.test.places)


def test_only_the_downstream_parts_are_changed():
    still = digits.task(1, digits.Change(degrees=0.0, shift=0.0, noise=0.0))
    data = digits.task(1)
    assert torch.equal(data.pretraining.images, still.pretraining.images)
    assert (data.test.images - still.test.images).abs().mean() > 0.1


def test_a_change_turns_counter_clockwise_and_moves_to_the_right():
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 1, 8, 8)
    image[..., 3:5, 6:] = 1.0  # at the right edge, half way up
    turned = digits.changed(image, digits.Change(90.0, 0.0, 0.0), random)
    assert turned[..., :2, 3:5].mean() > 0.9  # at the top
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4, 2] = 1.0
    moved = digits.changed(image, digits.Change(0.0, 1.0, 0.0), random)
    assert moved[..., 4, 3].item() == pytest.approx(1.0, abs=1e-5)
    assert moved.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_turned_image_is_then_moved_to_the_right_whatever_the_turn():
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 1, 8, 8)
    image[..., 3:5, 3:5] = 1.0  # the middle, which a turn leaves where it is
    moved = digits.changed(image, digits.Change(90.0, 1.0, 0.0), random)
    assert moved[..., 3:5, 4:6].mean() > 0.9


def test_drawn_changes_differ_between_images():
    images = digits.task(0).pretraining.images[:1].repeat(4, 1, 1, 1)
    change = digits.Change(20.0, 0.7, 0.0, drawn=True)
    made = digits.changed(images, change, torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in made}) == 4


def test_shuffled_labels_are_the_same_labels_elsewhere(data):
    shuffled = data.train.with_shuffled_labels(0)
    assert torch.equal(shuffled.labels.sort().values, data.train.labels.sort().values)
    assert (shuffled.labels != data.train.labels).float().mean() > 0.7


@pytest.mark.parametrize("body", ["mlp", "cnn"])
def test_a_model_gives_a_loss_and_is_the_same_after_saving(body, data, tmp_path):
    model = digits.make(body, seed=1)
    assert list(model.config.id2label.values()) == list(digits.NAMES)
    part = data.validation
    out = model(pixel_values=part.images, labels=part.labels)
    assert out.logits.shape == (len(part), 10)
    assert out.loss.item() == pytest.approx(digits.nll(model, part), abs=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(digits.logits(again, part), digits.logits(model, part))
    assert again.config.id2label == model.config.id2label


def test_weights_are_drawn_by_the_seed():
    first, again, other = (digits.make("mlp", seed) for seed in (1, 1, 2))
    weight = "body.1.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_a_frozen_head_is_not_trained(data):
    model = digits.make("mlp")
    head, body = model.classifier.weight.clone(), model.body[1].weight.clone()
    model.freeze_head()
    digits.fit(model, data.train, epochs=1, lr=1e-2)
    assert torch.equal(model.classifier.weight, head)
    assert not torch.equal(model.body[1].weight, body)


def test_bases_do_not_know_the_task_and_learn_it(data):
    weak = digits.pretrain("cnn", data)
    strong = digits.pretrain("cnn", data, strong=True)
    assert digits.accuracy(weak, data.pretraining) > 0.95
    assert 0.4 < digits.accuracy(weak, data.test) < 0.6
    assert 0.65 < digits.accuracy(strong, data.test) < 0.85
    digits.fit(weak, data.train, epochs=20, lr=1e-3)
    assert digits.accuracy(weak, data.test) > 0.8
    assert digits.nll(weak, data.test) < math.log(10) / 2


def test_an_unknown_model_is_named():
    with pytest.raises(InferKitError, match="no digit model 'vit'"):
        digits.make("vit")  # type: ignore[arg-type]
