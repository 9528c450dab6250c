"""A trainer with AdaRand against a loop of one's own, its checkpoints and its processes."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PretrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    AdaRandLoss,
    AdaRandTrainer,
    ClassGaussianPrior,
    GaussianPrior,
)

N_CLASSES = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Images(torch.utils.data.Dataset):
    """Images whose label is their brightest third."""

    def __init__(self, n: int = 24, seed: int = 0) -> None:
        self.x = normal(n, 1, 6, 6, seed=seed)
        self.y = self.x.view(n, 3, 12).mean(2).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return {"pixel_values": self.x[n], "labels": self.y[n]}


class Texts(Images):
    def __getitem__(self, n: int) -> dict[str, Tensor]:
        ids = (10 * self.x[n].flatten()[:8].abs()).long().clamp(max=39)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.y[n]}


def vit(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            image_size=6, patch_size=3, num_channels=1, num_labels=N_CLASSES,
            hidden_dropout_prob=dropout,
        )
    )  # fmt: skip


def bert(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            vocab_size=40, max_position_embeddings=8, num_labels=N_CLASSES,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=4, hidden_sizes=[8], depths=[1], num_labels=N_CLASSES
        )
    )


def prior_of(d: int = 8, spread: float = 0.3, **options: Any) -> ClassGaussianPrior:
    mu = normal(N_CLASSES, d, seed=5)
    return ClassGaussianPrior(mu, torch.full_like(mu, spread), **options)


def settings(folder: Path, **changed: Any) -> TrainingArguments:
    given = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True,
        "max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1,
        "save_strategy": "no", "learning_rate": 0.05, "optim": "sgd", "weight_decay": 0.0,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**(given | changed))


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., AdaRandTrainer]:
    def make(adarand: Any = None, model: Any = None, **given: Any) -> AdaRandTrainer:
        own = {name: given.pop(name) for name in ("train_dataset", "eval_dataset", "layer",
               "compute_loss_func", "data_collator", "model_init", "compute_metrics")
               if name in given}  # fmt: skip
        if model is None and "model_init" not in own:
            model = vit()
        adarand = AdaRandLoss(prior_of(), 0.5) if adarand is None else adarand
        args = settings(given.pop("folder", tmp_path / "out"), **given)
        defaults = {"train_dataset": Images()}
        return AdaRandTrainer(model, args, adarand=adarand, **(defaults | own))

    return make


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def states(trainer: AdaRandTrainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return weights(trainer.model), weights(trainer.adarand.prior)


@pytest.mark.parametrize("family", ["vit", "bert", "resnet"])
def test_steps_are_those_of_a_loop_of_ones_own(trainer_of: Any, family: str) -> None:
    """Cross-entropy and term of what the head reads, SGD, then the prior's update."""
    model, data = {"vit": (vit(), Images()), "bert": (bert(), Texts()),
                   "resnet": (resnet(), Images())}[family]  # fmt: skip
    own = copy.deepcopy(model).train()
    # Without spread, so that draws are the means.
    trainer = trainer_of(AdaRandLoss(prior_of(spread=0.0), 0.5), model, train_dataset=data)
    seen: list[dict[str, Tensor]] = []
    collate = trainer.data_collator
    trainer.data_collator = lambda examples: seen.append(collate(examples)) or dict(seen[-1])
    trainer.train()
    prior = prior_of(spread=0.0, total_steps=4)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05)
    logged = trainer.state.log_history
    for step, batch in enumerate(seen[:4]):
        labels = batch.pop("labels")
        kept: list[Tensor] = []
        head = own.classifier[-1] if family == "resnet" else own.classifier
        handle = head.register_forward_pre_hook(lambda m, args: kept.append(args[0]))  # noqa: B023
        logits = own(**batch).logits
        handle.remove()
        ce = cross_entropy(logits, labels)
        term = 0.5 * (kept[0] - prior.mu[labels]).square().sum(1).mean()
        optimizer.zero_grad()
        (ce + term).backward()
        optimizer.step()
        prior.update(kept[0], labels)
        for name, value in (
            ("loss_cross_entropy", ce),
            ("loss_adarand", term),
            ("loss", ce + term),
        ):
            assert logged[step][name] == pytest.approx(float(value.detach()), rel=1e-4), name
    # The collator reads ahead; what was trained on are the first four.
    assert farthest(weights(own), weights(trainer.model)) < 1e-5
    assert farthest(weights(prior), weights(trainer.adarand.prior)) < 1e-4
    assert trainer.adarand.prior.total_steps is None  # the next run has its own


@pytest.mark.filterwarnings("ignore:The prior has followed")
@pytest.mark.parametrize("given", [{"model_init": lambda: vit()}, {}])
def test_a_second_run_has_a_rate_of_its_own(trainer_of: Any, given: dict[str, Any]) -> None:
    """With a new model it begins anew; with one model the steps of both are counted."""
    prior, rates = prior_of(), []

    class Seen(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            rates.append(prior._rate() / prior.lr)

    trainer = trainer_of(AdaRandLoss(prior), **given)
    trainer.add_callback(Seen())
    for steps in (2, 6):
        rates.clear()
        trainer.args.max_steps = steps
        trainer.train()
        assert len(rates) == steps and rates[0] > rates[-1]
        assert rates[-1] == pytest.approx(math.cos(7 * math.pi / 16))


@pytest.mark.parametrize("family", ["vit", "bert"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_accumulated_batches_are_one_batch(trainer_of: Any, family: str, reduction: str) -> None:
    """Also of BERT, whose own loss averages over a micro-batch."""
    model, data = {"vit": (vit, Images(20)), "bert": (bert, Texts(20))}[family]
    runs = []
    for size, parts in ((8, 1), (2, 4)):  # of the last step of an epoch, the last 4 alone
        trainer = trainer_of(
            AdaRandLoss(prior_of(spread=0.0), 2.0, reduction), model(), train_dataset=data,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, max_steps=5,
        )  # fmt: skip
        trainer.train()
        logs = [[h[k] for k in ("loss", "loss_cross_entropy", "loss_adarand")]
                for h in trainer.state.log_history if "loss" in h]  # fmt: skip
        runs.append((*states(trainer), logs))
    assert farthest(runs[0][0], runs[1][0]) < 1e-5
    assert farthest(runs[0][1], runs[1][1]) < 1e-5
    assert int(runs[0][1]["steps"]) == 5
    for one, other in zip(runs[0][2], runs[1][2], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert one[0] == pytest.approx(one[1] + one[2], rel=1e-4)


def test_without_weight_it_is_the_plain_trainer_draw_for_draw(
    trainer_of: Any, tmp_path: Path
) -> None:
    """Draws leave dropout and the order of data as they are."""
    trainer = trainer_of(AdaRandLoss(prior_of(), 0.0), vit(0.3))
    trainer.train()
    plain = Trainer(vit(0.3), settings(tmp_path / "plain"), train_dataset=Images())
    plain.train()
    assert farthest(weights(plain.model), weights(trainer.model)) < 1e-6
    other = trainer_of(AdaRandLoss(prior_of(), 1.0), vit(0.3))
    other.train()
    assert farthest(weights(plain.model), weights(other.model)) > 1e-3


def test_draws_follow_from_the_seed(trainer_of: Any) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        trainer = trainer_of(AdaRandLoss(prior_of(adapt=False, spread=1.0)), seed=seed, data_seed=1)
        before = copy.deepcopy(trainer.adarand.prior.state_dict())
        trainer.train()
        assert farthest(before, weights(trainer.adarand.prior)) == 0  # a fixed one
        return weights(trainer.model)

    first = run(1)
    assert farthest(first, run(1)) == 0
    assert farthest(first, run(2)) > 1e-3


def test_one_gaussian_for_all_classes_trains_too(trainer_of: Any) -> None:
    trainer = trainer_of(
        AdaRandLoss(GaussianPrior.standard(8)),
        bert(),
        train_dataset=Texts(),
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss_adarand"] > 0
    resumed = trainer_of(AdaRandLoss(GaussianPrior.standard(8)), bert(), train_dataset=Texts())
    resumed.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-2"))
    assert farthest(weights(trainer.model), weights(resumed.model)) == 0


def test_evaluation_has_the_plain_loss(trainer_of: Any) -> None:
    held = Images(10, seed=3)
    trainer = trainer_of(
        eval_dataset=held, eval_strategy="steps", eval_steps=2,
        compute_metrics=lambda p: {"right": float((p.predictions.argmax(1) == p.label_ids).mean())},
    )  # fmt: skip
    trainer.train()
    logits = trainer.model.eval()(pixel_values=held.x).logits.detach()
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(logged) == 2
    assert logged[-1]["eval_loss"] == pytest.approx(float(cross_entropy(logits, held.y)), rel=1e-4)
    assert logged[-1]["eval_right"] == pytest.approx(
        float((logits.argmax(1) == held.y).float().mean())
    )
    assert "loss_adarand" not in logged[-1] and int(trainer.adarand.prior.steps) == 4


@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_that_is_resumed_equals_one_that_was_not(
    trainer_of: Any, tmp_path: Path, parts: int
) -> None:
    """With dropout, draws, Adam of the prior and its rate half way."""

    def make(folder: str, **changed: Any) -> AdaRandTrainer:
        return trainer_of(
            AdaRandLoss(prior_of(), 0.5), bert(0.2), folder=tmp_path / folder, max_steps=6,
            gradient_accumulation_steps=parts, train_dataset=Texts(), **changed,
        )  # fmt: skip

    straight = make("a")
    straight.train()
    make("b", save_strategy="steps", save_steps=3).train()
    assert (tmp_path / "b" / "checkpoint-3" / "adarand.pt").is_file()
    resumed = make("b")
    with torch.no_grad():
        resumed.adarand.prior.mu += 5  # overwritten by the checkpoint's
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    for one, other in zip(states(straight), states(resumed), strict=True):
        assert farthest(one, other) == 0
    assert int(resumed.adarand.prior.steps) == 6
    logs = [[h["loss_adarand"] for h in t.state.log_history if "loss_adarand" in h][-3:]
            for t in (straight, resumed)]  # fmt: skip
    assert logs[0] == logs[1]


def test_a_checkpoint_without_a_prior_is_refused(trainer_of: Any, tmp_path: Path) -> None:
    plain = Trainer(vit(), settings(tmp_path / "p", save_strategy="steps", save_steps=2),
                    train_dataset=Images())  # fmt: skip
    plain.train()
    with pytest.raises(InferKitError, match="has no adarand.pt"):
        trainer_of().train(resume_from_checkpoint=str(tmp_path / "p" / "checkpoint-2"))


def test_a_checkpoint_of_another_prior_is_refused(trainer_of: Any, tmp_path: Path) -> None:
    trainer_of(folder=tmp_path / "p", save_strategy="steps", save_steps=2, max_steps=2).train()
    for prior in (GaussianPrior.standard(8), prior_of(9)):
        with pytest.raises(InferKitError, match="has another prior: "):
            trainer_of(AdaRandLoss(prior), folder=tmp_path / "p").train(
                resume_from_checkpoint=str(tmp_path / "p" / "checkpoint-2")
            )


def test_with_model_init_each_call_begins_anew(trainer_of: Any) -> None:
    trainer = trainer_of(model_init=lambda: vit())
    trainer.train()
    first = states(trainer)
    trainer.train()
    for one, other in zip(first, states(trainer), strict=True):
        assert farthest(one, other) == 0
    trainer = trainer_of()  # without it, both go on
    trainer.train()
    with pytest.warns(UserWarning, match="has followed 4 steps of an earlier run"):
        trainer.train()
    assert int(trainer.adarand.prior.steps) == 8


class Bare(nn.Module):
    """A model that is not of transformers and takes no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, N_CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(x).tanh())}


def test_columns_that_are_needed_stay_and_others_go(trainer_of: Any) -> None:
    rows = {"x": normal(12, 4).tolist(), "label": [0, 1, 2] * 4, "name": ["a"] * 12}
    trainer = trainer_of(model=Bare(), train_dataset=Dataset.from_dict(rows))
    trainer.train()
    assert trainer.state.log_history[0]["loss_adarand"] > 0
    rows["labels"] = rows.pop("label")
    model = Bare()
    trainer = trainer_of(
        AdaRandLoss(prior_of(alpha=0.0)), model, train_dataset=Dataset.from_dict(rows),
        layer="body", per_device_train_batch_size=12, max_steps=1, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    # The running mean is that of what the named layer gives, not of what the head reads.
    want = model.body(torch.tensor(rows["x"])).detach().view(4, N_CLASSES, 8).mean(0)
    torch.testing.assert_close(trainer.adarand.prior.m, want, rtol=0, atol=1e-6)


def test_a_trainer_that_divides_by_its_parts_divides_the_term(trainer_of: Any) -> None:
    """Label smoothing of a model without keywords for its loss: no labels are counted."""
    rows = Dataset.from_dict({"x": normal(16, 4).tolist(), "labels": [0, 1, 2, 0] * 4})
    runs = []
    for size, parts in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = Bare()
        model.config = PretrainedConfig()  # which the trainer asks for where it smooths
        trainer = trainer_of(
            AdaRandLoss(prior_of(spread=0.0)), model, train_dataset=rows,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            label_smoothing_factor=0.1,
        )  # fmt: skip
        trainer.train()
        logs = [h["loss_adarand"] for h in trainer.state.log_history if "loss_adarand" in h]
        runs.append((*states(trainer), logs))
    assert farthest(runs[0][0], runs[1][0]) < 1e-5
    assert farthest(runs[0][1], runs[1][1]) < 1e-5
    assert runs[0][2] == pytest.approx(runs[1][2], rel=1e-4)


def test_a_loss_of_ones_own_is_kept(trainer_of: Any) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return 3 * cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    plain = trainer_of(max_steps=1)
    own = trainer_of(max_steps=1, compute_loss_func=loss)
    smooth = trainer_of(max_steps=1, label_smoothing_factor=0.5)
    for trainer in (plain, own, smooth):
        trainer.train()
    logged = [t.state.log_history[0] for t in (plain, own, smooth)]
    ce = [logs["loss_cross_entropy"] for logs in logged]
    assert ce[1] == pytest.approx(3 * ce[0], rel=1e-5)
    assert logged[1]["loss_adarand"] == pytest.approx(logged[0]["loss_adarand"], rel=1e-5)
    assert abs(ce[2] - ce[0]) > 1e-4


def test_what_the_trainer_cannot_do_is_refused(
    trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InferKitError, match="adarand is a NoneType"):
        AdaRandTrainer(vit(), settings(tmp_path), train_dataset=Images())
    with pytest.raises(InferKitError, match="adarand is a ClassGaussianPrior"):
        AdaRandTrainer(vit(), settings(tmp_path), adarand=prior_of())
    with pytest.raises(InferKitError, match="layer='tail' is no module"):
        trainer_of(layer="tail")
    rows = Dataset.from_dict({"pixel_values": Images().x.tolist()})
    with pytest.raises(InferKitError, match="has no labels, only pixel_values"):
        trainer_of(train_dataset=rows).train()
    with pytest.raises(InferKitError, match=re.escape("[4, 5] are expected")):
        trainer_of(AdaRandLoss(prior_of(5))).train()
    llama = LlamaForSequenceClassification(
        LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=40,
                    intermediate_size=12, num_labels=N_CLASSES, pad_token_id=0)
    )  # fmt: skip
    with pytest.raises(InferKitError, match="'score', reads 64 numbers of an example and takes 8"):
        trainer_of(model=llama, train_dataset=Texts()).train()
    with monkeypatch.context() as patched:
        patched.setattr(TrainingArguments, "n_gpu", 2)
        with pytest.raises(InferKitError, match="One process sees 2 GPUs"):
            trainer_of()


# Two processes


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
    }  # fmt: skip
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    # One of the two has more examples, and a class that the other has not.
    prior = prior_of()
    x, y = normal(9, 8), torch.arange(9) % N_CLASSES
    part = slice(0, 2) if rank == 0 else slice(2, 9)
    prior.update(x[part], y[part])
    found = {"update": weights(prior)}
    for parts in (1, 2):
        prior = prior_of(spread=0.0)
        with torch.no_grad():
            prior.mu += rank  # that of the first counts
        args = settings(Path(folder) / "out", per_device_train_batch_size=4 // parts,
                        gradient_accumulation_steps=parts, seed=0)  # fmt: skip
        trainer = AdaRandTrainer(vit(), args, adarand=AdaRandLoss(prior, 0.5),
                                 train_dataset=Images())  # fmt: skip
        trainer.train()
        found[f"model {parts}"], found[f"prior {parts}"] = states(trainer)
        found[f"draw {parts}"] = {"z": torch.randn(3, generator=trainer._generator())}
        if rank == 0:
            logs = [h for h in trainer.state.log_history if "loss_adarand" in h]
            (Path(folder) / f"logs-{parts}.json").write_text(json.dumps(logs))
    torch.save(found, f"{folder}/{rank}.pt")
    # Freeing the group joins its threads with the interpreter's lock held, which they may wait for.
    os._exit(0)


def test_two_processes_are_one(trainer_of: Any, tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in first:
        if name.startswith("draw"):
            assert not torch.equal(first[name]["z"], second[name]["z"])
        else:
            assert farthest(first[name], second[name]) == 0, name
    prior = prior_of()
    prior.update(normal(9, 8), torch.arange(9) % N_CLASSES)
    assert farthest(first["update"], weights(prior)) < 1e-6
    alone = trainer_of(AdaRandLoss(prior_of(spread=0.0), 0.5), per_device_train_batch_size=8,
                       seed=0)  # fmt: skip
    alone.train()
    model, prior_state = states(alone)
    logged = [h for h in alone.state.log_history if "loss_adarand" in h]
    for parts in (1, 2):
        assert farthest(first[f"model {parts}"], model) < 1e-5
        assert farthest(first[f"prior {parts}"], prior_state) < 1e-5
        logs = json.loads((tmp_path / f"logs-{parts}.json").read_text())
        for one, other in zip(logs, logged, strict=True):
            for name in ("loss", "loss_cross_entropy", "loss_adarand"):
                assert one[name] == pytest.approx(other[name], rel=1e-4), name
