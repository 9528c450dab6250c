"""Rewards that are adapters on the base's own weights."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

peft = pytest.importorskip("peft")

from infer_kit.errors import InferKitError  # noqa: E402
from infer_kit.training.prt import PRTConfig  # noqa: E402
from tests.tiny import text_model  # noqa: E402
from tests.training.conftest import Texts, V, farthest, weights  # noqa: E402

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}


def lora(**changed) -> "peft.LoraConfig":
    return peft.LoraConfig(**(LORA | {"lora_dropout": 0.1} | changed))


@pytest.mark.parametrize("chunk", [None, 5])
def test_the_adapter_alone_is_trained(trainer_of, base, tmp_path: Path, chunk) -> None:
    before, batch = weights(base), torch.arange(4, 14)[None]
    with torch.no_grad():
        want = base(batch).logits
    trainer = trainer_of(
        PRTConfig(chunk=chunk), model=base, base_model=None, peft_config=lora(), max_steps=30,
        eval_dataset=Texts(8, seed=1), learning_rate=2e-2, save_strategy="steps", save_steps=30,
    )  # fmt: skip
    trainer.train()
    gain = trainer.source_gain()
    assert gain.gain > 0.5
    checkpoint = tmp_path / "out" / "checkpoint-30"
    assert not (checkpoint / "model.safetensors").exists()
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)
    with torch.no_grad(), trainer.model.disable_adapter():
        assert torch.equal(trainer.model(batch).logits, want)
    now = weights(trainer.model.get_base_model())
    for name, tensor in before.items():
        there = now.get(name, now.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(there, tensor), name


def test_merged_and_adapter_are_one_reward(trainer_of, base) -> None:
    trainer = trainer_of(
        model=copy.deepcopy(base), base_model=None, peft_config=lora(), max_steps=10,
        learning_rate=2e-2,
    )  # fmt: skip
    trainer.train()
    adapter, ids = trainer.model.eval(), Texts(4).ids
    with torch.no_grad():
        want = adapter(torch.stack(ids)).logits
        merged = copy.deepcopy(adapter).merge_and_unload()
        torch.testing.assert_close(merged(torch.stack(ids)).logits, want, rtol=0, atol=1e-5)
    alone = trainer_of(model=merged, base_model=base)
    a, b = (t.source_gain(Texts(4, seed=2)) for t in (trainer, alone))
    assert a.gain == pytest.approx(b.gain, abs=1e-5)


def test_a_base_of_ones_own_is_the_same_as_the_disabled_adapter(trainer_of, base) -> None:
    runs = []
    for own in (False, True):
        torch.manual_seed(0)
        model = peft.get_peft_model(copy.deepcopy(base), lora(lora_dropout=0.0))
        trainer = trainer_of(model=model, base_model=base if own else None, optim="sgd",
                             learning_rate=0.1)  # fmt: skip
        trainer.train()
        runs.append(weights(trainer.model))
    assert farthest(*runs) <= 1e-6


def test_dropout_of_the_base_is_off_while_the_rewards_is_on(trainer_of) -> None:
    base = text_model("gpt2", 192, attn_pdrop=0.0, resid_pdrop=0.5, embd_pdrop=0.0)
    trainer = trainer_of(
        model=base, base_model=None, train_dataset=Texts(4),
        peft_config=peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    )  # fmt: skip
    batch = trainer.collate_training([Texts(4)[n] for n in range(4)])
    inputs = {name: v for name, v in batch.items() if name != "labels"}
    model = trainer.model.train()
    again = [trainer._base.outputs(inputs, hidden=False).values for _ in range(2)]
    assert torch.equal(*again)
    assert all(module.training for module in model.modules())
    losses = {trainer.compute_loss(model, dict(batch)).item() for _ in range(2)}
    assert len(losses) == 2


@pytest.mark.parametrize("kind", ["full", "hidden"])
def test_a_cache_outlives_the_adapter(trainer_of, base, tmp_path: Path, kind) -> None:
    prt = PRTConfig(base_cache=kind, cache_dir=tmp_path / "cache")
    runs = []
    for settings in (None, prt, prt):
        torch.manual_seed(0)
        model = peft.get_peft_model(copy.deepcopy(base), lora())
        trainer = trainer_of(settings, model=model, base_model=None, optim="sgd", learning_rate=0.1)
        trainer.train()
        runs.append(weights(trainer.model))
        assert trainer.vocab_size == V
    assert farthest(runs[0], runs[1]) <= 1e-5 and farthest(runs[1], runs[2]) <= 1e-6


def test_an_adapter_is_saved_as_one(trainer_of, base, tmp_path: Path) -> None:
    portable = pytest.importorskip("infer_kit.reward.portable")
    trainer = trainer_of(model=base, base_model=None, peft_config=lora(), max_steps=2)
    trainer.train()
    trainer.save_reward(tmp_path / "reward", init="adapter")
    assert portable.CONFIG in {path.name for path in (tmp_path / "reward").iterdir()}
    assert (tmp_path / "reward" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "reward" / "model.safetensors").exists()


def test_a_cache_is_of_the_base_under_any_adapter(trainer_of, base, tmp_path: Path) -> None:
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    for config in (
        lora(),
        lora(target_modules=["o_proj"]),
        lora(modules_to_save=["lm_head"]),
        lora(trainable_token_indices=[5]),
        None,
    ):
        model = copy.deepcopy(base)
        own = {"base_model": base} if config is None else {"base_model": None}
        if config is not None:
            model = peft.get_peft_model(model, config)
        trainer = trainer_of(prt, model=model, max_steps=1, **own)
        trainer.train()  # would refuse the cache of another base


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_adapters_that_train_their_base_are_refused(trainer_of, bias) -> None:
    base = text_model("gpt2", 192)
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias=bias)
    told = rf".LoraConfig. has bias='{bias}': it trains the base's own biases"
    with pytest.raises(InferKitError, match="peft_config " + told):
        trainer_of(model=base, base_model=None, peft_config=config)
    adapter = peft.get_peft_model(copy.deepcopy(base), config)
    with pytest.raises(InferKitError, match="The adapter 'default' " + told):
        trainer_of(model=adapter, base_model=None)
    # A base of its own is out of reach.
    trainer_of(model=adapter, base_model=base, max_steps=1).train()


@pytest.mark.parametrize("kind", ["loha", "ia3"])
def test_other_adapters_are_no_part_of_their_base(trainer_of, base, kind) -> None:
    names = {"target_modules": ["q_proj", "up_proj"]}
    config = {
        "loha": lambda: peft.LoHaConfig(r=2, **names),
        "ia3": lambda: peft.IA3Config(feedforward_modules=["up_proj"], **names),
    }[kind]()
    model = peft.get_peft_model(copy.deepcopy(base), config)
    trainer = trainer_of(model=model, base_model=None, learning_rate=0.1)
    before = trainer._base.sha256()
    trainer.train()
    assert trainer._base.sha256() == before == trainer_of()._base.sha256()


def test_a_layer_of_the_base_that_is_not_frozen_is_refused(trainer_of, base) -> None:
    model = peft.get_peft_model(copy.deepcopy(base), lora())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(InferKitError, match="norm.weight is trained and is no part of the adapter"):
        trainer_of(model=model, base_model=None)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
)
def test_learnt_prompts_are_refused(trainer_of, base, config, own) -> None:
    given = {"base_model": base if own else None}
    with pytest.raises(InferKitError, match=r"peft_config .P\w+Config. learns a prompt, which"):
        trainer_of(model=copy.deepcopy(base), peft_config=config(), **given)
    model = peft.get_peft_model(copy.deepcopy(base), config())
    with pytest.raises(InferKitError, match=r"The adapter 'default' .P\w+Config. learns a prompt"):
        trainer_of(model=model, **given)


def test_adapters_of_several_kinds_are_refused(trainer_of, base) -> None:
    config = peft.LoHaConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(copy.deepcopy(base), config, mixed=True)
    with pytest.raises(InferKitError, match="^model is a PeftMixedModel, of adapters of several"):
        trainer_of(model=model, base_model=None)


def test_a_peft_model_is_no_base_model(trainer_of, base) -> None:
    adapter = peft.get_peft_model(copy.deepcopy(base), lora())
    with pytest.raises(InferKitError, match="base_model is a PEFT model") as caught:
        trainer_of(base_model=adapter)
    assert "merge_and_unload" in str(caught.value.hint)


def test_an_adapter_needs_a_model(settings) -> None:
    from infer_kit.training.prt import PRTTrainer

    with pytest.raises(InferKitError, match="a peft_config and no model to put its adapter on"):
        PRTTrainer(args=settings(), peft_config=lora())
