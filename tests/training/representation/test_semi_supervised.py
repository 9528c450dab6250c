"""UDA, the ramp, the loss of P-SSL in one forward, and its trainer."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    FeatureConsistency,
    PseudoSampler,
    PseudoSemiSupervised,
    PSSLTrainer,
    RelatednessReport,
    StrongAugment,
    Thresholds,
    UDALoss,
    ramp,
)
from tests.training.conftest import farthest, weights
from tests.training.representation.pssl_nets import (
    Images,
    constant,
    convnext,
    rank_of_two,
    settings,
    trainer,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uda_by_hand(weak: Tensor, strong: Tensor, temperature: float, mask: float) -> float:
    total = 0.0
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, w)) for v in w]
        q = [math.exp(v) / sum(map(math.exp, s)) for v in s]
        sharp = [v ** (1 / temperature) for v in p]
        sharp = [v / sum(sharp) for v in sharp]
        if max(p) >= mask:
            total += sum(t * math.log(t / b) for t, b in zip(sharp, q, strict=True))
    return total / len(weak)


@pytest.mark.parametrize("temperature, mask", [(0.4, 0.8), (1.0, 0.0), (2.5, 0.6), (0.4, 0.99)])
def test_uda_is_the_loop(temperature: float, mask: float) -> None:
    for seed in range(10):
        weak, strong = 2 * torch.randn(2, 12, 5, generator=rng(seed), dtype=torch.float64)
        found = UDALoss(temperature, mask)(weak, strong)
        wanted = uda_by_hand(weak, strong, temperature, mask)
        assert float(found) == pytest.approx(wanted, abs=1e-12)


def test_uda_is_zero_for_equal_words_without_sharpening() -> None:
    logits = 3 * torch.randn(20, 4, generator=rng())
    assert abs(float(UDALoss(1.0, 0.0)(logits, logits))) < 1e-7
    assert float(UDALoss(0.4, 0.0)(logits, logits)) > 0.01
    assert float(UDALoss(0.4, 1.0)(logits, logits)) == 0


def test_the_mask_counts_in_a_mean_over_all() -> None:
    """Of four examples one is sure: a quarter of its KL, whatever the others say."""
    weak = torch.tensor([[4.0, 0, 0], [0.1, 0, 0], [0, 0.5, 0], [0, 0, 1.0]])
    strong = torch.randn(4, 3, generator=rng())
    uda = UDALoss(0.4, 0.8)
    assert uda.kept(weak).tolist() == [True, False, False, False]
    alone = UDALoss(0.4, 0.0)(weak[:1], strong[:1])
    torch.testing.assert_close(uda(weak, strong), alone / 4)
    p = weak.softmax(1).amax(1)
    assert UDALoss(0.4, float(p[0]) - 1e-6).kept(weak)[0]
    assert not UDALoss(0.4, float(p[0]) + 1e-6).kept(weak)[0]


def test_the_gradient_is_the_cross_entropys_and_the_strong_words_alone() -> None:
    weak = torch.randn(6, 4, generator=rng(), requires_grad=True)
    strong = torch.randn(6, 4, generator=rng(1), requires_grad=True)
    UDALoss(0.4, 0.0)(weak, strong).backward()
    assert weak.grad is None
    other = strong.detach().clone().requires_grad_()
    cross_entropy(other, (weak.detach() / 0.4).softmax(1)).backward()
    torch.testing.assert_close(strong.grad, other.grad)


def test_half_precision_is_computed_in_float32() -> None:
    weak, strong = torch.randn(2, 8, 4, generator=rng()).bfloat16()
    found = UDALoss(0.4, 0.0)(weak, strong)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, UDALoss(0.4, 0.0)(weak.float(), strong.float()))


def test_the_ramp() -> None:
    found = [ramp(step, 10) for step in range(11)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])
    assert ramp(0, 10, 0.0) == 1 and ramp(5, 10, 1.0) == 0.5
    for wrong in ((-1, 10, 0.4), (0, 0, 0.4), (0, 10, 1.1)):
        with pytest.raises(InferKitError, match="share from 0 to 1 are"):
            ramp(*wrong)


class Normed(nn.Module):
    """A batch norm before the head, and a count of its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head, self.forwards = nn.BatchNorm2d(1), nn.Linear(16, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.head(self.norm(x).flatten(1).tanh())


@pytest.mark.parametrize("consistency", ["uda", "features"])
def test_the_loss_is_of_one_forward(consistency: str) -> None:
    """Against the formula: batch statistics by hand over labelled, plain and augmented images."""
    torch.manual_seed(0)
    model = Normed().double()
    x, y = torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    bank = torch.randn(7, 1, 4, 4, dtype=torch.float64)
    loss = PseudoSemiSupervised(
        bank, allow_unrelated=True, consistency=consistency, weight=0.7, ratio=3,
        uda=UDALoss(0.5, 0.4), features=FeatureConsistency(StrongAugment(), "sum"),
    )  # fmt: skip
    found = loss(model, x, y, 2, 10, rng(3))
    assert model.forwards == 1 and int(model.norm.num_batches_tracked) == 1
    g = rng(3)
    plain = bank[torch.randint(7, (12,), generator=g)]
    every = torch.cat([x, plain, StrongAugment()(plain, g)])
    normed = (every - every.mean()) / (every.var(correction=0) + 1e-5).sqrt()
    features = normed.flatten(1).tanh()
    logits = features @ model.head.weight.T + model.head.bias
    ce = cross_entropy(logits[:4], y)
    if consistency == "uda":
        unlabelled = uda_by_hand(logits[4:16], logits[16:], 0.5, 0.4)
    else:
        unlabelled = (features[16:] - features[4:16]).square().sum(1).mean().item()
    assert found.supervised.item() == pytest.approx(ce.item(), abs=1e-12)
    assert found.unlabelled.item() == pytest.approx(unlabelled, abs=1e-12)
    assert found.loss.item() == pytest.approx(ce.item() + 0.7 * 0.5 * unlabelled, abs=1e-12)
    torch.testing.assert_close(found.logits, logits[:4])
    kept = (logits[4:16].softmax(1).amax(1) >= 0.4).double().mean()
    assert float(found.kept) == pytest.approx(1.0 if consistency == "features" else float(kept))
    found.unlabelled.backward()
    assert (model.head.weight.grad is None) == (consistency == "features")


def test_pseudo_samples_of_a_sampler() -> None:
    class Constant:
        z_dim, n_classes = 1, 2

        def sample(self, z: Tensor, y: Tensor) -> Tensor:
            return (y[:, 1] + 0 * z[:, 0]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    sampler = PseudoSampler(Constant(), torch.eye(2), prepare=lambda x: x.repeat(1, 1, 2, 2))
    loss = PseudoSemiSupervised(sampler, allow_unrelated=True)
    found = loss(Normed(), torch.randn(4, 1, 4, 4), torch.zeros(4).long(), 0, 10, rng())
    assert bool(found.loss.isfinite()) and torch.equal(found.loss, found.supervised)


def test_unrelated_sources_are_refused() -> None:
    bank = torch.randn(5, 1, 4, 4)
    with pytest.raises(InferKitError, match="Nothing tells whether the source is related"):
        PseudoSemiSupervised(bank)
    bad = RelatednessReport(0.5, 1, 1, 1, 1, 1, 1, Thresholds())
    with pytest.raises(InferKitError, match="not related enough .* confidence 0.50 < 0.92"):
        PseudoSemiSupervised(bank, bad)
    PseudoSemiSupervised(bank, bad, allow_unrelated=True)
    with pytest.raises(InferKitError, match="report is a str"):
        PseudoSemiSupervised(bank, "related")  # type: ignore[arg-type]
    PseudoSemiSupervised(bank, RelatednessReport(1, 1, 1, 1, 1, 1, 1, Thresholds()))


def test_what_cannot_work_is_refused() -> None:
    bank, x, y = torch.randn(5, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.zeros(2).long()
    for given, told in (
        ({"consistency": "fixmatch"}, "consistency='fixmatch': 'uda' or"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"ratio": 0}, "ratio=0"),
        ({"ramp_share": 2.0}, "share=2.0"),
    ):
        with pytest.raises(InferKitError, match=told):
            PseudoSemiSupervised(bank, allow_unrelated=True, **given)
    for wrong in (bank.long(), bank[:0]):
        with pytest.raises(InferKitError, match="pseudo is"):
            PseudoSemiSupervised(wrong, allow_unrelated=True)
    with pytest.raises(InferKitError, match="pseudo is a list"):
        PseudoSemiSupervised([bank], allow_unrelated=True)  # type: ignore[arg-type]
    loss = PseudoSemiSupervised(bank, allow_unrelated=True)
    with pytest.raises(InferKitError, match=r"samples are \[1, 4, 4\] and labelled .*\[1, 5, 5\]"):
        loss(Normed(), torch.randn(2, 1, 5, 5), y, 0, 1)
    with pytest.raises(InferKitError, match=r"gives \[10, 1, 4, 4\] for 10 examples"):
        loss(nn.Identity(), x, y, 0, 1)
    for wrong_uda, told in (((0.0, 0.8), "temperature=0.0"), ((0.4, 1.5), "mask=1.5")):
        with pytest.raises(InferKitError, match=told):
            UDALoss(*wrong_uda)
    with pytest.raises(InferKitError, match=r"Logits are \[2, 3\] of x and \[3, 3\]"):
        UDALoss()(torch.ones(2, 3), torch.ones(3, 3))


# The trainer


def random_bank(consistency: str = "uda") -> PseudoSemiSupervised:
    return PseudoSemiSupervised(
        Images(20, seed=4).x, allow_unrelated=True, consistency=consistency, uda=UDALoss(0.4, 0.0)
    )


def test_the_first_step_is_the_formula(tmp_path: Path) -> None:
    run = trainer(tmp_path, constant("uda"), max_steps=1, per_device_train_batch_size=16)
    run.train()
    model, data, one = convnext(), Images(), Images(1, seed=5).x
    with torch.no_grad():
        supervised = cross_entropy(model(data.x).logits, data.y)
        said = model(one).logits, model(one.flip(2)).logits
        unlabelled = uda_by_hand(said[0].double(), said[1].double(), 0.5, 0.0)
    log = run.state.log_history[0]
    assert log["loss_supervised"] == pytest.approx(float(supervised), abs=1e-5)
    assert log["loss_unlabelled"] == pytest.approx(unlabelled, abs=1e-5)
    assert log["loss_kept"] == 1
    assert log["loss"] == pytest.approx(float(supervised) + 3 * unlabelled, abs=1e-4)


@pytest.mark.parametrize("whole, cut", [((8, 1), (2, 4)), ((6, 1), (3, 2))])
def test_accumulated_batches_are_one_batch(
    tmp_path: Path, whole: tuple[int, int], cut: tuple[int, int]
) -> None:
    """Each batch counts by its labels: the epoch's last of 3 x 2 are 3 and 1."""
    runs = []
    for size, parts in (whole, cut):
        run = trainer(
            tmp_path, constant("uda"), max_steps=3, per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )  # fmt: skip
        run.train()
        runs.append((weights(run.model), [h["loss"] for h in run.state.log_history[:3]]))
    assert farthest(runs[0][0], runs[1][0]) <= 1e-5
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-4)
    assert farthest(runs[0][0], weights(convnext())) > 1e-3


@pytest.mark.parametrize("consistency", ["uda", "features"])
def test_a_run_that_is_resumed_equals_one_that_was_not(tmp_path: Path, consistency: str) -> None:
    given = {"max_steps": 6, "gradient_accumulation_steps": 2, "optim": "adamw_torch",
             "learning_rate": 1e-2, "drop_path": 0.3}  # fmt: skip
    straight = trainer(tmp_path / "a", random_bank(consistency), **given)
    straight.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "b", random_bank(consistency), **given, **saving).train()
    resumed = trainer(tmp_path / "b", random_bank(consistency), **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert farthest(weights(straight.model), weights(resumed.model)) <= 1e-6
    other = trainer(tmp_path / "c", random_bank(consistency), **given, seed=1)
    assert other._generator().initial_seed() != straight._generator().initial_seed()


def test_each_batch_has_draws_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, random_bank())
    seeds = [run._generator().initial_seed() for _ in range(3)]
    run.state.global_step += 1
    seeds += [run._generator().initial_seed() for _ in range(2)]
    assert len(set(seeds)) == 5


def test_evaluation_is_the_plain_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, random_bank())
    found, data = run.evaluate(), Images(8, seed=1)
    with torch.no_grad():
        wanted = cross_entropy(convnext()(data.x).logits, data.y)
    assert found["eval_loss"] == pytest.approx(float(wanted), abs=1e-5)
    assert "loss_supervised" not in found and run.predict(data).predictions.shape == (8, 3)


class Bare(nn.Module):
    """Of a mapping, and with a forward that takes nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnext()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values).logits
        return {"logits": logits} if labels is None else {
            "loss": cross_entropy(logits, labels), "logits": logits}  # fmt: skip


def test_a_model_of_ones_own_trains_and_evaluates_as_one_of_transformers(tmp_path: Path) -> None:
    run = trainer(tmp_path, random_bank())
    own = PSSLTrainer(
        Bare(), run.args, pssl=random_bank(), train_dataset=Images(), eval_dataset=Images(8, 1)
    )
    for one in (run, own):
        one.train()
    assert farthest(weights(run.model), weights(own.model.net)) < 1e-6
    assert own.evaluate()["eval_loss"] == pytest.approx(run.evaluate()["eval_loss"], abs=1e-6)


def test_a_batch_without_a_label_has_no_supervised_loss() -> None:
    loss = PseudoSemiSupervised(torch.randn(5, 1, 4, 4), allow_unrelated=True)
    y = torch.full((2,), -100)
    said = loss(Normed(), torch.randn(2, 1, 4, 4), y, 1, 2, rng())
    assert said.supervised.item() == 0 and bool(said.loss.isfinite())


def test_trainers_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="pssl is a NoneType"):
        PSSLTrainer(convnext(), settings(tmp_path))
    with pytest.raises(InferKitError, match="compute_loss_func would replace"):
        PSSLTrainer(convnext(), settings(tmp_path), pssl=random_bank(), compute_loss_func=print)
    with pytest.raises(InferKitError, match="label_smoothing_factor is 0.1"):
        trainer(tmp_path, random_bank(), label_smoothing_factor=0.1)
    model = convnext()
    model.config.problem_type = "regression"
    with pytest.raises(InferKitError, match="problem_type is 'regression'"):
        PSSLTrainer(model, settings(tmp_path), pssl=random_bank())
    run = trainer(tmp_path, random_bank())
    run.model.train()
    with pytest.raises(InferKitError, match="The batch has pixel_values; pixel_values and labels"):
        run.compute_loss(run.model, {"pixel_values": Images(2).x})
    batch = {"pixel_values": Images(2).x, "labels": Images(2).y, "mask": torch.ones(2)}
    with pytest.raises(InferKitError, match="The batch has mask, which pseudo samples have not"):
        run.compute_loss(run.model, batch)


def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_of_two, (str(tmp_path), port), 2)
    (drawn, first), (other, second) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert drawn != other and farthest(first, second) == 0
    alone = trainer(tmp_path, constant("features"), per_device_train_batch_size=4)
    alone.train()
    assert farthest(first, weights(alone.model)) < 1e-5
    assert farthest(first, weights(convnext())) > 1e-3
