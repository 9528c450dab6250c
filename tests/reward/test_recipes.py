"""Composed models that are saved and loaded, and rewards that are changed in between."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.reward.compose import compose
from infer_kit.reward.composed_lm import ComposedLM
from infer_kit.reward.portable import PortableReward
from tests.reward.models import VOCAB, gpt2, llama, saved
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(VOCAB)
IDS = torch.tensor([[1, 40, 50, 60]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_weights_and_implicit_members_are_kept(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    tuned, untuned = saved(gpt2(1), tmp_path / "tuned"), saved(gpt2(2), tmp_path / "untuned")
    PortableReward(gpt2(3), TOKENIZER).save_pretrained(tmp_path / "reward")
    mixed = compose(base, {"r": (tmp_path / "reward", -0.5)}, beta=0.6, implicit=(tuned, untuned))
    assert mixed.weights == pytest.approx([1.0, -0.3, 0.6, -0.6])
    mixed.save_pretrained(tmp_path / "mixed")
    again = ComposedLM.from_pretrained(tmp_path / "mixed")
    assert again.weights == mixed.weights and torch.equal(logits(again), logits(mixed))


def test_a_model_that_was_changed_since_it_was_loaded_is_not_lost(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_output_embeddings().weight.add_(1.0)
    mixed = compose(base, implicit=(tuned, base))
    with pytest.raises(InferKitError, match="base and tuned are two models with one path"):
        mixed.save_pretrained(tmp_path / "mixed")


def test_parts_come_back_in_the_precision_that_they_had(tmp_path: Path) -> None:
    saved(llama(0).half(), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    PortableReward(gpt2(1), TOKENIZER).save_pretrained(tmp_path / "reward")
    mixed = compose(base, tmp_path / "reward")
    mixed.save_pretrained(tmp_path / "mixed")
    assert torch.equal(logits(ComposedLM.from_pretrained(tmp_path / "mixed")), logits(mixed))


def test_a_recipe_is_checked_when_it_is_loaded(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    PortableReward(gpt2(1), TOKENIZER).save_pretrained(tmp_path / "reward")
    compose(base, tmp_path / "reward").save_pretrained(tmp_path / "mixed")
    labels = list(PortableReward.from_pretrained(tmp_path / "reward").labels)
    labels[10], labels[11] = labels[11], labels[10]
    PortableReward(gpt2(1), labels).save_pretrained(tmp_path / "reward")
    with pytest.raises(VocabularyMismatch, match="one for other tokens than the composed model"):
        ComposedLM.from_pretrained(tmp_path / "mixed")
    shutil.rmtree(tmp_path / "reward")
    with pytest.raises(InferKitError, match="reward was at .*, where nothing is now"):
        ComposedLM.from_pretrained(tmp_path / "mixed")
    (tmp_path / "mixed" / "composed.json").write_text("{")
    with pytest.raises(InferKitError, match="composed.json cannot be read"):
        ComposedLM.from_pretrained(tmp_path / "mixed")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "zzz"}, "kind is 'zzz'"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"unknown": 1}, "is no reward's"),
    ],
)
def test_settings_of_a_reward_are_checked(tmp_path: Path, change: dict, message: str) -> None:
    PortableReward(gpt2(1), TOKENIZER).save_pretrained(tmp_path)
    file = tmp_path / "prt_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InferKitError, match=message):
        PortableReward.from_pretrained(tmp_path)


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    PortableReward(gpt2(1), TOKENIZER).save_pretrained(tmp_path)
    (tmp_path / "prt_labels.json").unlink()
    with pytest.raises(InferKitError, match="prt_labels.json cannot be read"):
        PortableReward.from_pretrained(tmp_path)
    (tmp_path / "prt_config.json").write_text("")
    with pytest.raises(InferKitError, match="prt_config.json cannot be read"):
        PortableReward.from_pretrained(tmp_path)
