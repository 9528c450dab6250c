"""A step of MGR written out, and trainers: accumulated, resumed, on two processes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    ConditionalVAE,
    FeatureConsistency,
    Finder,
    draw,
    mps_step,
    pcr_loss,
)

# mgr has transformers' Trainer: imported where it is used, after the processes of a group.


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flipped(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """An augmentation that draws nothing."""
    return 1.5 * x.flip(3)


class Constant:
    """A generator of one image, so that batches of any size can be compared; its gradient is 0."""

    z_dim, n_classes = 2, 3

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
        return image.sin().expand(len(y), 1, 8, 8) + 0 * z.sum()


def source() -> ConditionalVAE:
    torch.manual_seed(1)
    model = ConditionalVAE((1, 8, 8), 3, z_dim=2, width=4)
    model.std.fill_(4)
    return model


def vit(dropout: float = 0.2) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_channels=1, num_labels=3, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0, initializer_range=0.5,
    )  # fmt: skip
    return ViTForImageClassification(config)


def resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic",
        num_labels=3,
    )  # fmt: skip
    return ResNetForImageClassification(config)


class Examples(torch.utils.data.Dataset):
    def __init__(self, n: int = 24, seed: int = 0) -> None:
        self.x = torch.randn(n, 1, 8, 8, generator=rng(seed))
        self.y = torch.randint(3, (n,), generator=rng(seed))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Any]:
        # A column that no model takes is removed.
        return {"pixel_values": self.x[i], "labels": self.y[i], "name": i}


def trainer(folder: Path, model: Any = None, cls: Any = None, **options: Any) -> Any:
    from transformers import TrainingArguments

    from infer_kit.training.representation import MGRConfig, MGRTrainer

    own = {name: options.pop(name) for name in list(options) if name in _OWN}
    given: dict[str, Any] = {
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.05,
        "optim": "sgd", "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "dataloader_pin_memory": False,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **given | options)
    own = {"generator": source(), "mgr": MGRConfig(), "train_dataset": Examples()} | own
    return (MGRTrainer if cls is None else cls)(vit(0.0) if model is None else model, args, **own)


_OWN = ("generator", "mgr", "finder", "validation_dataset", "train_dataset", "eval_dataset")


def weights(one: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in one.model.parameters()])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("found", [False, True])
def test_a_step_is_that_written_out(found: bool) -> None:
    from infer_kit.training.representation import mgr_step

    x, y = Examples().x, Examples().y
    batch, held = (x[:8], y[:8]), (x[8:16], y[8:16])
    pcr = FeatureConsistency(flipped, "sum")
    model, generator, finder = Net(), source(), Finder(2, residual=False)
    slow, own = Net(), Finder(2, residual=False)
    optimizer, other = (torch.optim.Adam(f.parameters(), lr=0.1) for f in (finder, own))
    options: dict[str, Any] = {}
    if found:
        options = {
            "finder": finder, "finder_optimizer": optimizer, "validation": held, "eta": 0.2,
        }  # fmt: skip
    terms = mgr_step(
        model, batch, generator, samples=5, lam=0.3, consistency=pcr, rng=rng(4), **options
    )
    terms.loss.backward()

    z, classes = draw(generator, 5, rng=rng(4))
    if found:
        value = mps_step(
            slow, own, other, generator, batch, held, z, classes, eta=0.2, lam=0.3, consistency=pcr
        )
        assert terms.validation == value
        assert all(
            torch.equal(a, b) for a, b in zip(finder.parameters(), own.parameters(), strict=True)
        )
        z = own(z).detach()
    made = generator.sample(z, classes)
    ce = cross_entropy(slow(batch[0]), batch[1])
    consistency = pcr_loss(slow.body(flipped(made, None)), slow.body(made), "sum")
    (ce + 0.3 * consistency).backward()
    torch.testing.assert_close(terms.cross_entropy, ce.detach())
    torch.testing.assert_close(terms.pcr, consistency.detach())
    for p, q in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert all(p.grad is None for p in [*generator.parameters(), *finder.parameters()])


def test_mps_needs_all_or_nothing() -> None:
    from infer_kit.training.representation import mgr_step

    batch = (Examples().x[:4], Examples().y[:4])
    finder = Finder(2)
    with pytest.raises(InferKitError, match="finder_optimizer and validation and eta are not"):
        mgr_step(Net(), batch, source(), samples=4, finder=finder)
    with pytest.raises(InferKitError, match="; validation is not given"):
        mgr_step(
            Net(), batch, source(), samples=4, finder=finder, eta=0.1,
            finder_optimizer=torch.optim.Adam(finder.parameters()),
        )  # fmt: skip


def test_a_trainer_makes_the_steps_written_out(tmp_path: Path) -> None:
    from infer_kit.training.representation import MGRConfig

    still = MGRConfig(lam=0.5, consistency=FeatureConsistency(flipped))
    one = trainer(tmp_path, mgr=still, generator=Constant(), train_dataset=Examples(4))
    one.train()
    model, x, y = vit(0.0).train(), Examples(4).x, Examples(4).y
    for step in range(4):
        ce = model(pixel_values=x, labels=y).loss
        made = Constant().sample(torch.zeros(4, 2), y)
        both = model.vit(torch.cat([flipped(made, None), made])).last_hidden_state[:, 0]
        pcr = pcr_loss(*both.chunk(2))
        model.zero_grad()
        (ce + 0.5 * pcr).backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
        log = one.state.log_history[step]
        assert log["loss_cross_entropy"] == pytest.approx(float(ce.detach()), rel=1e-4)
        assert log["loss_pcr"] == pytest.approx(float(pcr.detach()), rel=1e-4)
        # The trainer rounds its own to four digits.
        assert log["loss"] == pytest.approx(
            log["loss_cross_entropy"] + 0.5 * log["loss_pcr"], abs=1e-3
        )
        assert "loss_finder_validation" not in log
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(one), own, rtol=1e-4, atol=1e-5)


def unnormed() -> Any:
    """A ResNet, whose loss averages over a micro-batch whatever it is told; without batch norms."""
    model = resnet()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


@pytest.mark.parametrize("make", [lambda: vit(0.0), unnormed], ids=["vit", "resnet"])
@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("found", [True, False])
def test_accumulated_batches_are_one_large_one(
    tmp_path: Path, make: Any, accepts: bool, found: bool
) -> None:
    from infer_kit.training.representation import MGRConfig

    runs = []
    for size, times in ((8, 1), (2, 4)):
        options: dict[str, Any] = {}
        if found:
            options = {"finder": Finder(2, residual=False), "validation_dataset": Examples(6, 9)}
        one = trainer(
            tmp_path, make(), per_device_train_batch_size=size, gradient_accumulation_steps=times,
            mgr=MGRConfig(consistency=FeatureConsistency(flipped, "sum")), generator=Constant(),
            **options,
        )  # fmt: skip
        one.model_accepts_loss_kwargs = accepts
        one.train()
        runs.append(one)
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-4, atol=1e-5)
    for name in ("loss_cross_entropy", "loss_pcr", "loss"):
        logs = [[log[name] for log in one.state.log_history if name in log] for one in runs]
        assert logs[0] == pytest.approx(logs[1], rel=1e-3) and len(logs[0]) == 4


def test_evaluation_is_the_plain_loss(tmp_path: Path) -> None:
    from transformers import Trainer

    held = Examples(10, 3)
    one = trainer(tmp_path, eval_dataset=held)
    plain = Trainer(one.model, one.args, eval_dataset=held)
    assert one.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    one.train()
    assert not any("loss_pcr" in log for log in one.state.log_history if "eval_loss" in log)


@pytest.mark.parametrize("make", [vit, resnet])
def test_the_generator_is_frozen_and_running_statistics_are_those_of_the_data(
    tmp_path: Path, make: Any
) -> None:
    generator = source()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    one = trainer(tmp_path, make(), generator=generator, learning_rate=0.0)
    one.train()
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in generator.parameters())
    # At a learning rate of 0 the statistics of the plain trainer are the same.
    plain = trainer(tmp_path / "plain", make(), cls=plain_trainer, learning_rate=0.0)
    plain.train()
    for (name, value), other in zip(one.model.named_buffers(), plain.model.buffers(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


def plain_trainer(*args: Any, generator: Any, mgr: Any, **options: Any) -> Any:
    from transformers import Trainer

    return Trainer(*args, **options)


class Stop(Exception):
    pass


# A ViT is saved under other names than its own; a ResNet has running statistics.
@pytest.mark.parametrize("make, stop", [(vit, 3), (resnet, 5)])
def test_a_killed_run_resumes_exactly(tmp_path: Path, make: Any, stop: int) -> None:
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == stop:
                raise Stop

    def run(folder: str) -> Any:
        return trainer(
            tmp_path / folder, make(), finder=Finder(2, residual=False, seed=5),
            validation_dataset=Examples(7, 9), max_steps=7, save_strategy="steps", save_steps=2,
            gradient_accumulation_steps=2, optim="adamw_torch", learning_rate=0.01,
        )  # fmt: skip

    whole = run("whole")
    whole.train()
    killed = run("killed")
    killed.add_callback(Kill())
    with pytest.raises(Stop):
        killed.train()
    again = run("killed")
    again.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path / "killed")))
    assert torch.equal(weights(again), weights(whole))
    start = Finder(2, residual=False, seed=5)
    for name, value in again.model.named_buffers():
        assert torch.equal(value, dict(whole.model.named_buffers())[name])
    for p, q, r in zip(
        again.finder.parameters(), whole.finder.parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(p, q) and not torch.equal(p, r)
    logs = [[log for log in one.state.log_history if "loss_pcr" in log] for one in (whole, again)]
    assert len(logs[0]) == len(logs[1]) == 7
    for one, other in zip(*logs, strict=True):
        for name in ("loss_cross_entropy", "loss_pcr", "loss_finder_validation"):
            assert one[name] == other[name] and math.isfinite(one[name])

    bare = trainer(tmp_path / "bare", make(), max_steps=2, save_strategy="steps", save_steps=2)
    bare.train()
    other = run("other")
    with pytest.raises(InferKitError, match="has no mgr_finder.pt"):
        other.train(resume_from_checkpoint=str(tmp_path / "bare" / "checkpoint-2"))
    if make is vit:
        strange = trainer(tmp_path / "strange", resnet(), max_steps=4)
        with pytest.raises(InferKitError, match="is of another model: it lacks"):
            strange.train(resume_from_checkpoint=str(tmp_path / "bare" / "checkpoint-2"))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    from infer_kit.training.representation import MGRConfig

    with pytest.raises(InferKitError, match="given as generator, which has no z_dim"):
        trainer(tmp_path, generator=None)
    with pytest.raises(InferKitError, match="validation_dataset is not given"):
        trainer(tmp_path, finder=Finder(2))
    with pytest.raises(InferKitError, match="finder is not given"):
        trainer(tmp_path, validation_dataset=Examples(3))
    data = Examples()
    with pytest.raises(InferKitError, match="validation_dataset is train_dataset"):
        trainer(tmp_path, finder=Finder(2), validation_dataset=data, train_dataset=data)
    with pytest.warns(UserWarning, match="validation_dataset is eval_dataset"):
        trainer(tmp_path, finder=Finder(2), validation_dataset=data, eval_dataset=data)
    with pytest.raises(InferKitError, match="without examples that can be drawn"):
        trainer(tmp_path, finder=Finder(2), validation_dataset=Examples(0))
    with pytest.raises(InferKitError, match="The finder has z_dim=5, and the generator 2"):
        trainer(tmp_path, finder=Finder(5), validation_dataset=data)
    wrongs = {
        r"gave \[1, 2\]": lambda z: z[:1],
        "gave .* of torch.uint8": lambda z: z.byte(),
        "gave ndarray": lambda z: z.numpy(),
    }
    for told, given in wrongs.items():
        wrong = Constant()
        wrong.sample = lambda z, y, given=given: given(z)  # type: ignore[method-assign]
        with pytest.raises(InferKitError, match=f"Constant.sample {told}"):
            trainer(tmp_path, generator=wrong)
    with pytest.raises(InferKitError, match="reduction='none'"):
        FeatureConsistency(reduction="none")  # type: ignore[arg-type]
    large = ConditionalVAE((1, 9, 9), 3, z_dim=2, width=4)
    with pytest.raises(InferKitError, match="does not run on samples of the ConditionalVAE"):
        trainer(tmp_path, generator=large)
    trainer(tmp_path, generator=large, mgr=MGRConfig(prepare=lambda x: x[..., :8, :8]))
    with pytest.raises(InferKitError, match="layer='tail' is no module"):
        trainer(tmp_path, mgr=MGRConfig(consistency=FeatureConsistency(layer="tail")))
    with pytest.raises(InferKitError, match="mgr is a dict"):
        trainer(tmp_path, mgr={"lam": 1})
    for options in ({"lam": -1.0}, {"eta": math.nan}, {"samples": 0}, {"samples": 2.5},
                    {"validation_batch": 0}):  # fmt: skip
        with pytest.raises(InferKitError, match=f"{next(iter(options))}="):
            MGRConfig(**options)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: int) -> None:
    from infer_kit.training.representation import mgr_step

    data = Examples()
    data.y[:] = label
    with pytest.raises(InferKitError, match=f"Labels go from {label} to {label}, .* 3 classes"):
        trainer(tmp_path, train_dataset=data).train()
    with pytest.raises(InferKitError, match=f"Labels go from {label} to {label}"):
        mgr_step(Net(), (data.x[:4], data.y[:4]), source(), samples=4)


def test_a_model_that_takes_no_labels_is_given_them(tmp_path: Path) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(pixel_values)}

    one = trainer(tmp_path, Silent())
    one.train()
    assert one.state.log_history[0]["loss_pcr"] > 0


def _of_a_constant(folder: Path, **given: Any) -> Any:
    """A run whose samples are the same whatever the batches are; some labels count for nothing."""
    from infer_kit.training.representation import MGRConfig

    data = Examples()
    data.y[::5] = -100
    one = trainer(
        folder, unnormed(), generator=Constant(), train_dataset=data,
        mgr=MGRConfig(lam=3.0, consistency=FeatureConsistency(flipped, "sum")), **given,
    )  # fmt: skip
    one.train()
    return one


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
    }  # fmt: skip
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    from infer_kit.training.representation import MGRConfig

    # Finders of other seeds, of which the first process's is taken.
    one = trainer(
        Path(folder), resnet(), finder=Finder(2, residual=False, seed=rank), ddp_backend="gloo",
        validation_dataset=Examples(6, 9), per_device_train_batch_size=2,
        gradient_accumulation_steps=2, mgr=MGRConfig(finder_lr=0.1),
    )  # fmt: skip
    assert one.args.world_size == 2
    one.train()
    found = [weights(one), one.finder.state_dict(), one.state.log_history]
    shared = _of_a_constant(Path(folder), per_device_train_batch_size=2, ddp_backend="gloo")
    torch.save([*found, weights(shared), shared.state.log_history], f"{folder}/{rank}")
    os._exit(0)


def test_two_processes_hold_one_model_and_one_finder(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    assert torch.equal(first[0], second[0]) and not torch.equal(
        first[0], torch.cat([p.detach().flatten() for p in resnet().parameters()])
    )
    start = Finder(2, residual=False, seed=0).state_dict()
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name])
        assert 0 < float((value - start[name]).abs().max()) < 0.5
    for name in ("loss_cross_entropy", "loss_pcr", "loss_finder_validation"):
        one, two = ([log[name] for log in logs[2] if name in log] for logs in (first, second))
        assert one == two and len(one) == 4
    z, labels = draw(Constant(), 4, rng=rng())
    once = FeatureConsistency(flipped, "sum")(unnormed(), Constant().sample(z, labels))
    assert first[4][0]["loss_pcr"] == pytest.approx(float(once.detach()), rel=1e-4)
    for size, times in ((4, 1), (2, 2)):
        alone = _of_a_constant(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=times
        )
        torch.testing.assert_close(first[3], weights(alone), rtol=1e-4, atol=1e-5)
        for name in ("loss_cross_entropy", "loss_pcr", "loss"):
            logs = [[log[name] for log in history if name in log]
                    for history in (first[4], alone.state.log_history)]  # fmt: skip
            assert logs[0] == pytest.approx(logs[1], rel=1e-3) and len(logs[0]) == 4
