"""`PRTTrainer`: its loss, its accumulation, its frozen base, its checkpoints."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq, default_data_collator

from infer_kit.training.prt import PRTConfig
from tests.training.conftest import Classifier, Digits, Texts, V, farthest, weights


def first_batch(trainer) -> dict[str, torch.Tensor]:
    torch.manual_seed(trainer.args.seed)
    return next(iter(trainer.get_train_dataloader()))


@torch.no_grad()
def by_hand(base, batches, beta: float = 1.0, alpha: float = 0.0) -> float:
    """Cross-entropy of softmax((1 + β) z) at every label that some token comes before."""
    losses = []
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            z = base(ids[None]).logits[0, :, :V].double()
            for t in range(1, len(ids)):
                if labels[t] != -100:
                    p = z[t - 1].softmax(-1)
                    h = -(p * p.log()).sum()
                    ce = cross_entropy((1 + beta) * z[t - 1 : t], labels[t : t + 1])
                    losses.append(float(ce - alpha * h))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("beta, alpha", [(1.0, 0.0), (0.5, 0.0), (2.0, 0.3)])
def test_the_first_loss_is_that_of_the_squared_base(trainer_of, base, beta, alpha) -> None:
    """A copy of the base as the reward: softmax(z + βz); unmasked labels alone, shifted by one."""
    seen: list[dict[str, torch.Tensor]] = []

    def looking(examples):
        seen.append(default_data_collator(examples))
        return seen[-1]

    trainer = trainer_of(
        PRTConfig(beta=beta, alpha=alpha), gradient_accumulation_steps=2, max_steps=1,
        data_collator=looking,
    )  # fmt: skip
    trainer.train()
    wanted = by_hand(base, seen[:2], beta, alpha)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(wanted, abs=2e-3)


def test_accumulated_batches_are_one_batch(trainer_of, base) -> None:
    """8 x 1 against 2 x 4: N is the number of labels of the whole window, however it is cut."""
    runs = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = trainer_of(
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, optim="sgd",
            learning_rate=0.1, max_steps=3,
        )  # fmt: skip
        trainer.train()
        runs.append((weights(trainer.model), [h["loss"] for h in trainer.state.log_history[:3]]))
    assert farthest(runs[0][0], runs[1][0]) <= 1e-4
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-4)
    assert farthest(runs[0][0], weights(base)) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_of_unlike_length_are_as_if_alone(trainer_of, side: str, family: str) -> None:
    """The first token of a text is not predicted from the padding to the left of it; padding has
    no positions."""
    from tests.tiny import text_model

    off = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if family == "gpt2" else {}
    base = text_model(family, 192, **off)

    class Ragged(Texts):
        def __getitem__(self, n: int) -> dict[str, list[int]]:
            return {name: v[: 5 + n % 5].tolist() for name, v in super().__getitem__(n).items()}

    tokenizer = copy.deepcopy(trainer_of().processing_class)
    tokenizer.padding_side = side
    trainer = trainer_of(
        train_dataset=Ragged(8), data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        max_steps=1, base_model=base, model=copy.deepcopy(base),
    )  # fmt: skip
    trainer.train()
    alone = [{k: torch.tensor([v]) for k, v in Ragged(8)[n].items()} for n in range(8)]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(by_hand(base, alone), abs=1e-4)


def test_the_base_is_unchanged_and_in_no_checkpoint(trainer_of, base, tmp_path: Path) -> None:
    before = weights(base)
    base.train()  # a base in training mode is put in evaluation mode
    trainer = trainer_of(save_strategy="steps", save_steps=2)
    trainer.train()
    assert not base.training
    assert farthest(before, weights(base)) == 0
    assert all(p.grad is None for p in base.parameters())
    names = set(dict(trainer.model.named_parameters()))
    saved = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
    assert set(saved) <= names and len(saved) == len(before)
    assert farthest(saved, {n: weights(trainer.model)[n] for n in saved}) == 0
    optimizer = torch.load(tmp_path / "out" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(names)


def test_a_run_that_is_resumed_equals_one_that_was_not(trainer_of, tmp_path: Path) -> None:
    straight = trainer_of(max_steps=6, output_dir=str(tmp_path / "a"))
    straight.train()
    trainer_of(
        max_steps=6, output_dir=str(tmp_path / "b"), save_strategy="steps", save_steps=3
    ).train()
    resumed = trainer_of(max_steps=6, output_dir=str(tmp_path / "b"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert farthest(weights(straight.model), weights(resumed.model)) <= 1e-6


def test_dropout_of_the_base_is_off(trainer_of, tokenizer) -> None:
    from tests.tiny import text_model

    base = text_model("gpt2", 192, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    trainer = trainer_of(base_model=base, model=copy.deepcopy(base).eval())
    base.train()
    batch = first_batch(trainer)
    losses = {trainer.compute_loss(trainer.model, dict(batch)).item() for _ in range(3)}
    assert len(losses) == 1


def test_evaluation_tells_the_gain(trainer_of, base) -> None:
    held_out = Texts(8, seed=1)
    trainer = trainer_of(eval_dataset=held_out, max_steps=60, learning_rate=5e-3)
    start = trainer.evaluate()
    batches = list(trainer.get_eval_dataloader())
    assert start["eval_base_cross_entropy"] == pytest.approx(by_hand(base, batches, 0.0), abs=1e-4)
    assert start["eval_cross_entropy"] == pytest.approx(by_hand(base, batches, 1.0), abs=1e-4)
    assert start["eval_source_gain"] == pytest.approx(
        start["eval_base_cross_entropy"] - start["eval_cross_entropy"]
    )
    result = trainer.train()
    gain = trainer.source_gain()
    assert gain.gain > 1 and not gain.is_noise
    assert result.metrics["source_gain"] == pytest.approx(gain.gain)
    assert gain.base == pytest.approx(start["eval_base_cross_entropy"])
    assert (gain.labels, gain.examples) == (8 * 11 - sum(1 + n % 4 for n in range(8)), 8)
    both = trainer.source_gain({"a": held_out, "b": Texts(8, seed=1)})
    assert both.gain == pytest.approx(gain.gain) and both.examples == 16


def test_the_standard_error_is_of_examples(trainer_of) -> None:
    from infer_kit.training.prt.gain import GainSums

    sums, apart = GainSums(), []
    for n in (3, 5, 2, 7):
        base, composed = torch.randn(n), torch.randn(n)
        apart.append((base, composed))
        sums.add(base, composed, torch.zeros(n).long())
    gain = GainSums.gain(sums.state())
    total = sum(len(b) for b, _ in apart)
    mean = sum(float((c - b).sum()) for b, c in apart) / total
    squares = sum((float((c - b).sum()) - mean * len(b)) ** 2 for b, c in apart)
    assert gain.gain == pytest.approx(mean, abs=1e-6)
    assert gain.standard_error == pytest.approx(math.sqrt(squares * 4 / 3) / total, abs=1e-6)
    assert GainSums.gain(GainSums().state()) is None


def test_a_reward_without_a_gain_is_told(trainer_of) -> None:
    trainer = trainer_of(eval_dataset=Texts(8, seed=1), max_steps=1, learning_rate=0.0)
    with pytest.warns(UserWarning, match="does not help its own base: the gain on held-out"):
        trainer.train()


def test_metrics_judge_base_and_reward_together(trainer_of, base) -> None:
    shapes = []

    def accuracy(told):
        shapes.append(told.predictions.shape)
        return {"mass": float(torch.tensor(told.predictions).exp().sum(-1).mean())}

    trainer = trainer_of(eval_dataset=Texts(4), compute_metrics=accuracy)
    found = trainer.evaluate()
    assert shapes == [(4, 12, V)] and found["eval_mass"] == pytest.approx(1)
    whole = found["eval_loss"]
    assert trainer_of(eval_dataset=Texts(4)).evaluate()["eval_loss"] == pytest.approx(whole)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere2", "gpt2"])
def test_chunks_train_what_the_whole_trains(trainer_of, family: str) -> None:
    from tests.tiny import text_model

    base = text_model(family, 192)
    runs = []
    for chunk in (None, 5):
        trainer = trainer_of(
            PRTConfig(beta=0.7, alpha=0.1, chunk=chunk), base_model=base,
            model=copy.deepcopy(base), optim="sgd", learning_rate=0.05, max_steps=2,
            eval_dataset=None,
        )  # fmt: skip
        trainer.train()
        runs.append((weights(trainer.model), trainer.evaluate(Texts(4, seed=2))))
    assert farthest(runs[0][0], runs[1][0]) <= 1e-5
    for name in ("eval_loss", "eval_cross_entropy", "eval_base_cross_entropy"):
        assert runs[0][1][name] == pytest.approx(runs[1][1][name], abs=1e-4)


def test_classifiers_are_not_shifted(trainer_of) -> None:
    base = Classifier()
    reward = copy.deepcopy(base)
    trainer = trainer_of(
        PRTConfig(beta=0.5), base_model=base, model=reward, kind="classification", vocab_size=5,
        train_dataset=Digits(), eval_dataset=Digits(16, seed=1), processing_class=None,
        max_steps=80, learning_rate=2e-2,
    )  # fmt: skip
    batch = next(iter(trainer.get_eval_dataloader(Digits(4))))
    z = base.eval()(batch["x"])
    reward.eval()
    loss = trainer.compute_loss(reward, dict(batch))
    assert loss.item() == pytest.approx(cross_entropy(1.5 * z, batch["labels"]).item(), abs=1e-5)
    trainer.train()
    assert trainer.source_gain().gain > 0.3


def test_a_batch_without_labels_is_told_once_and_costs_nothing(trainer_of) -> None:
    trainer = trainer_of()
    batch = first_batch(trainer)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.warns(UserWarning, match="A batch has no label at all; its loss is 0"):
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(0))
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in trainer.model.parameters())
    trainer.compute_loss(trainer.model, dict(batch))  # a second warning would be an error


def test_the_reward_is_saved(trainer_of, tmp_path: Path, base, tokenizer) -> None:
    pytest.importorskip("infer_kit.reward.portable")
    trainer = trainer_of(PRTConfig(beta=0.5), max_steps=1)
    base.name_or_path = "source-base"
    trainer.train()
    trainer.save_reward(tmp_path / "reward")
    told = json.loads((tmp_path / "reward" / "prt_config.json").read_text())
    assert (told["kind"], told["output_size"], told["beta"]) == ("causal-lm", V, 0.5)
    assert told["base"] == "source-base"
    saved = load_file(tmp_path / "reward" / "model.safetensors")
    assert farthest(saved, {n: weights(trainer.model)[n] for n in saved}) == 0


def test_what_is_saved_is_told_to_the_artefact(trainer_of, tmp_path: Path, monkeypatch) -> None:
    import sys
    import types

    told = {}

    class Portable:
        def __init__(self, model, labels, **facts):
            told.update(facts, model=model, labels=labels)

        def save_pretrained(self, folder):
            told["folder"] = folder

    fake = types.ModuleType("infer_kit.reward.portable")
    fake.PortableReward = Portable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "infer_kit.reward.portable", fake)
    trainer = trainer_of(eval_dataset=Texts(4))
    gain = trainer.source_gain()
    trainer.save_reward(tmp_path, init="noise")
    assert told["source_gain"] == gain.gain and told["init"] == "noise"
    assert told["model"] is trainer.model and told["labels"] is trainer.processing_class
    assert told["folder"] == tmp_path
