"""Adapters as rewards: what they share with their base, and which cannot be rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infer_kit.errors import InferKitError
from infer_kit.reward.portable import PortableReward, twin
from tests.reward.models import VOCAB, classifier, llama
from tests.tiny import tiny_tokenizer

peft = pytest.importorskip("peft")

TOKENIZER = tiny_tokenizer(VOCAB)
IDS = torch.tensor([[1, 40, 50, 60]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("replaced", [None, ["lm_head"]])
def test_the_source_is_the_base_whatever_the_adapter_replaces(replaced) -> None:
    base = llama(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=replaced)
    adapted = peft.get_peft_model(twin(base), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "base_layer" not in name:
                parameter.add_(0.1)
    reward = PortableReward(adapted, TOKENIZER)
    assert not torch.equal(logits(reward.scorer), logits(base))
    assert torch.equal(logits(reward.source()), logits(base))


def test_learnt_prompts_are_no_rewards() -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(llama(0), config)
    with pytest.raises(InferKitError, match="learns a prompt .PrefixTuningConfig"):
        PortableReward(adapted, TOKENIZER)


def test_one_adapter_of_the_usual_name_is_saved(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    adapted = peft.get_peft_model(llama(0), config, adapter_name="mine")
    with pytest.raises(InferKitError, match=r"has the adapters \['mine'\]"):
        PortableReward(adapted, TOKENIZER).save_pretrained(tmp_path)


def test_an_adapter_of_a_classifier_is_loaded_by_its_path(tmp_path: Path) -> None:
    base = classifier(0)
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base").eval()
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    adapted = peft.get_peft_model(twin(base), config)
    reward = PortableReward(adapted, ["a", "b", "c"], kind="classification")
    reward.save_pretrained(tmp_path / "reward")
    again = PortableReward.from_pretrained(tmp_path / "reward")
    assert torch.equal(logits(again.scorer), logits(reward.scorer))
    assert torch.equal(logits(again.source()), logits(base))
