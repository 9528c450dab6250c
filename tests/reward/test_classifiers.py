"""Rewards on classifiers, and language models tilted over bytes."""

from __future__ import annotations

import pytest
import torch

import infer_kit as ik
from infer_kit.demo import text as demo
from infer_kit.errors import InferKitError
from infer_kit.reward.compose import compose, over_bytes
from infer_kit.reward.portable import PortableReward
from tests.reward.models import classifier, llama
from tests.tiny import tiny_tokenizer

IDS = torch.tensor([[3, 5, 7, 9], [4, 4, 6, 1]])
LABELS = torch.tensor([0, 2])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_classifier_is_tilted() -> None:
    base, other = classifier(0), classifier(1)
    reward = PortableReward(other, kind="classification", beta=0.6)
    mixed = compose(base, reward)
    expected = (logits(base) + 0.6 * logits(other)).log_softmax(-1)
    assert torch.allclose(logits(mixed), expected, atol=1e-5)
    assert torch.equal(logits(mixed.set_beta(0.0)), logits(base))
    with torch.no_grad():
        loss = mixed.set_beta(0.6)(input_ids=IDS, labels=LABELS).loss
    assert float(loss) == pytest.approx(-float(expected[[0, 1], LABELS].mean()), abs=1e-5)
    assert mixed.sweep([{"input_ids": IDS, "labels": LABELS}], [0.6])[0.6] == pytest.approx(
        float(loss), abs=1e-5
    )
    assert mixed.beta == 0.6


def test_weights_of_classifiers_count() -> None:
    base, one, two = (classifier(seed) for seed in range(3))
    mixed = compose(base, {"one": (one, 0.5), "two": (two, -1.5)}, beta=2.0)
    expected = (logits(base) + logits(one) - 3 * logits(two)).log_softmax(-1)
    assert torch.allclose(logits(mixed), expected, atol=1e-5)
    mapped = compose(base, {"one": (one, 0.5)}, beta=2.0, id_map={0: 0, 1: 1, 2: 2})
    assert torch.allclose(logits(mapped), (logits(base) + logits(one)).log_softmax(-1), atol=1e-5)
    with pytest.raises(InferKitError, match="no labelled batches"):
        mixed.sweep([], [1.0])
    with pytest.raises(InferKitError, match="id_map is empty"):
        compose(base, {"one": (one, 0.5)}, id_map={})


def test_base_and_reward_may_read_other_inputs() -> None:
    base, other = classifier(0), classifier(1)
    mixed = compose(base, PortableReward(other, kind="classification"))
    theirs = IDS.flip(1)
    with torch.no_grad():
        found = mixed(input_ids=IDS, reward_inputs={"input_ids": theirs}).logits
        expected = (base(IDS).logits + other(theirs).logits).log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_classes_may_be_shared_under_other_numbers() -> None:
    base = classifier(0, ("cat", "dog", "owl", "fox"))
    reward = PortableReward(classifier(1, ("owl", "cat", "elk")), kind="classification")
    with pytest.raises(ik.InferKitError, match="3 labels and the base 4; 3 of the first 3 differ"):
        compose(base, reward)
    mixed = compose(base, reward, id_map={0: 1, 2: 0})
    found, before = logits(mixed).exp(), logits(base).softmax(-1)
    assert torch.allclose(found[:, [1, 3]], before[:, [1, 3]], atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2), atol=1e-6)
    tilted = before[:, [0, 2]].log() + logits(reward.model)[:, [1, 0]]
    inside = found[:, [0, 2]] / found[:, [0, 2]].sum(-1, keepdim=True)
    assert torch.allclose(inside, tilted.softmax(-1), atol=1e-5)
    with pytest.raises(InferKitError, match="id_map has 9: 0; the base has 4 classes"):
        compose(base, reward, id_map={9: 0})
    with pytest.raises(InferKitError, match="reward's weight is nan"):
        compose(base, {"r": (reward, float("nan"))}, id_map={0: 1})
    with pytest.raises(InferKitError, match="id_map is for a classifier and one reward"):
        compose(base, [reward, reward], id_map={0: 1})


def test_a_language_model_is_no_classifier() -> None:
    base = classifier(0)
    with pytest.raises(InferKitError, match="x is a model for causal-lm"):
        compose(base, {"x": ((llama(0), tiny_tokenizer()), 1.0)})


# Over bytes


@pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")
def test_over_bytes_it_is_the_signed_product_of_the_laws() -> None:
    (a, tok_a), (b, tok_b) = ((m.double(), t) for m, t in map(demo.load, demo.NAMES))
    third = demo.load("b")[0].double()
    with torch.no_grad():
        third.get_output_embeddings().weight.mul_(0.7)
    mixed = over_bytes((a, tok_a), implicit=((b, tok_b), (third, tok_b)), beta=0.5, eps=0)
    laws = [
        torch.from_numpy(ik.ReducedLM(m, t, eps=0).law("One day, Mi"))
        for m, t in ((a, tok_a), (b, tok_b), (third, tok_b))
    ]
    joint = laws[0] * laws[1] ** 0.5 * laws[2] ** -0.5
    joint = torch.where((laws[1] > 0) & (laws[2] > 0), joint, 0.0)
    found = torch.from_numpy(mixed.law("One day, Mi"))
    kept = found > 0
    assert torch.allclose(found[kept], (joint[kept] / joint[kept].sum()), atol=1e-9)
    out = mixed.generate("One day, Mi", max_new_tokens=12)
    assert out.alphabet == "bytes" and out.tv_bound is None
    zero = over_bytes((a, tok_a), rewards=[(b, tok_b, 1.0)], beta=0.0)
    alone = ik.ReducedLM(a, tok_a, eps=1e-6)
    assert (
        zero.generate("One day,", max_new_tokens=16).text
        == alone.generate("One day,", max_new_tokens=16).text
    )
    with pytest.raises(InferKitError, match="nothing to compose the base with"):
        over_bytes((a, tok_a))
    with pytest.raises(InferKitError, match=r"implicit is \(tuned, untuned\)"):
        over_bytes((a, tok_a), implicit=((b, tok_b),))
