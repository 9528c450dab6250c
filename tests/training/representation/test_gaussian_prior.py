"""Priors against loops over classes and features in float64, and what they refuse."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from infer_kit.errors import InferKitError
from infer_kit.training.representation import ClassGaussianPrior, GaussianPrior
from infer_kit.training.representation.gaussian_prior import objective


def features_of(n: int, d: int, seed: int, relu: bool = False) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x + 1).relu() if relu else x


def labels_of(n: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def prior_of(classes: int, d: int, seed: int, dtype: Any = torch.float32, **options: Any) -> Any:
    features = features_of(3 * classes, d, seed, relu=seed % 3 == 0).to(dtype)
    labels = torch.arange(3 * classes) % classes
    return ClassGaussianPrior.from_features(features, labels, classes, **options)


def slow_cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) * sum(y * y for y in b)).sqrt()


def slow_objective(mu: Tensor, m: Tensor, variant: str) -> Tensor:
    """Class by class and pair by pair, as the page writes it."""
    rows, running = [list(row) for row in mu], [list(row) for row in m]
    K = len(rows)
    follows = [slow_cosine(rows[k], running[k]) for k in range(K)]
    pairs = [slow_cosine(rows[k], rows[l]) for k in range(K) for l in range(K) if k != l]  # noqa: E741
    if variant == "paper":
        apart = sum(1 - c for c in pairs) / (K * (K - 1))
        return sum(1 - c for c in follows) / K - apart
    return sum((c - 1) ** 2 for c in follows) / K + sum(c**2 for c in pairs) / len(pairs)


class SlowPrior:
    """The update by loops in float64."""

    def __init__(self, prior: Any) -> None:
        self.mu, self.m = prior.mu.double().clone(), prior.m.double().clone()
        self.prior = prior
        self.first, self.second = torch.zeros_like(self.mu), torch.zeros_like(self.mu)
        self.t = 0

    def update(self, features: Tensor, y: Tensor) -> None:
        alpha = self.prior.alpha
        for k in set(y.tolist()):
            own = [x.double() for x, label in zip(features, y.tolist(), strict=True) if label == k]
            self.m[k] = alpha * self.m[k] + (1 - alpha) * sum(own) / len(own)
        mu = self.mu.clone().requires_grad_()
        slow_objective(mu, self.m, self.prior.variant).backward()
        total = self.prior.total_steps
        share = min(self.t / total, 1) if total else 0
        rate = self.prior.lr * math.cos(7 * math.pi * share / 16)
        self.t += 1
        self.first = 0.9 * self.first + 0.1 * mu.grad
        self.second = 0.999 * self.second + 0.001 * mu.grad**2
        up, down = self.first / (1 - 0.9**self.t), self.second / (1 - 0.999**self.t)
        self.mu -= rate * up / (down.sqrt() + 1e-8)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("seed", range(8))
def test_one_update_in_float32_is_that_of_a_loop_in_float64(seed: int, variant: str) -> None:
    classes, d = 2 + seed, [3, 8, 17][seed % 3]  # more classes than features, and fewer
    prior = prior_of(classes, d, seed, alpha=[0.5, 0.9][seed % 2], variant=variant)
    slow = SlowPrior(prior)
    sigma, before = prior.sigma.clone(), prior.m.clone()
    x = features_of(13, d, 50 + seed).float()
    y = labels_of(13, classes - seed % 2, 70 + seed)  # the last class is absent or not
    prior.update(x, y)
    slow.update(x, y)
    torch.testing.assert_close(prior.mu.double(), slow.mu, rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.m.double(), slow.m, rtol=1e-7, atol=1e-7)
    want = slow_objective(slow.mu, slow.m, variant)
    torch.testing.assert_close(prior.loss().double(), want, rtol=0, atol=1e-7)
    other = {"paper": "code", "code": "paper"}[variant]
    want = slow_objective(slow.mu, slow.m, other)
    torch.testing.assert_close(prior.loss(other).double(), want, rtol=0, atol=1e-7)
    assert torch.equal(prior.sigma, sigma) and prior.mu.dtype == torch.float32
    absent = [k for k in range(classes) if k not in y.tolist()]
    assert torch.equal(prior.m[absent], before[absent])
    assert not torch.equal(prior.m, before)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("total", [None, 4])
def test_updates_in_a_row_follow_adam_and_its_rate(variant: str, total: int | None) -> None:
    prior = prior_of(5, 7, 1, torch.float64, variant=variant, total_steps=total, lr=0.03)
    slow = SlowPrior(prior)
    for t in range(6):  # two more than the rate falls over
        x, y = features_of(9, 7, 10 + t), labels_of(9, 5, 20 + t)
        prior.update(x, y)
        slow.update(x, y)
    torch.testing.assert_close(prior.mu, slow.mu, rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.m, slow.m, rtol=0, atol=1e-14)
    assert int(prior.steps) == 6


def test_the_rate_ends_at_a_fifth_and_stays() -> None:
    moves = []
    for steps in (0, 2, 4, 9):
        prior = prior_of(3, 4, 2, torch.float64, total_steps=4)
        prior.steps.fill_(steps)
        before = prior.mu.clone()
        prior.update(features_of(6, 4, 3), torch.arange(6) % 3)
        # Adam's moments are empty: a step is as long as the rate, but for its own corrections.
        scale = (1 - 0.9 ** (steps + 1)) / (1 - 0.999 ** (steps + 1)) ** 0.5 * math.sqrt(0.1)
        moves.append(float((prior.mu - before).abs().max()) * scale)
    want = [math.cos(7 * math.pi * t / 16) for t in (0, 0.5, 1, 1)]
    assert [m / moves[0] for m in moves] == pytest.approx(want, rel=1e-4)
    assert want[-1] == pytest.approx(0.195, abs=1e-3)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_nothing_is_as_large_as_pairs_of_classes_times_features(variant: str) -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, Tensor):
                    largest = max(largest, one.numel())
            return out

    prior = prior_of(40, 16, 0, variant=variant)
    x, y = features_of(32, 16, 1), labels_of(32, 40, 2)
    with Watch():
        prior.update(x, y)
    assert largest == 40 * 16


def test_a_vector_of_zeros_has_no_direction() -> None:
    mu, m = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    mu[0] = 0
    assert float(objective(mu, m, "paper")) == pytest.approx(1 / 3 - 1)
    assert float(objective(mu, m, "code")) == pytest.approx(1 / 3)
    prior = ClassGaussianPrior(mu, torch.zeros(3, 3))
    prior.update(torch.eye(3), torch.arange(3))
    assert bool(prior.mu.isfinite().all()) and float((prior.mu - mu).abs().max()) < 0.011
    # A class whose features vanish pulls by nothing, and is pushed from the others.
    assert float(prior.mu[0].sum()) < 0 or float(prior.mu[0, 0]) > 0


def test_the_means_follow_the_features_and_keep_apart() -> None:
    prior = prior_of(4, 6, 5, lr=0.02)
    targets = features_of(4, 6, 99)

    def cosines() -> tuple[float, float]:
        u = nn.functional.normalize(prior.mu.double())
        v = nn.functional.normalize(targets)
        return float((u * v).sum(1).mean()), float((u @ u.T).fill_diagonal_(0).mean())

    first = cosines()
    for _ in range(300):
        prior.update(targets, torch.arange(4))
    last = cosines()
    assert last[0] > max(0.7, first[0]) and last[1] < first[1] and last[1] < 0


def test_micro_batches_are_one_batch() -> None:
    x, y = features_of(12, 5, 0).float(), labels_of(12, 4, 1)
    whole, parts = prior_of(4, 5, 2), prior_of(4, 5, 2)
    whole.update(x, y)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        parts.accumulate(x[part], y[part])
    assert torch.equal(parts.m, prior_of(4, 5, 2).m)
    parts.step()
    torch.testing.assert_close(parts.mu, whole.mu, rtol=0, atol=1e-7)
    torch.testing.assert_close(parts.m, whole.m, rtol=0, atol=1e-7)
    # What was accumulated is gone, by a step or by forgetting.
    parts.accumulate(100 * x, y)
    parts.forget()
    for prior in (whole, parts):
        prior.update(x[:3], y[:3])
    torch.testing.assert_close(parts.m, whole.m, rtol=0, atol=1e-7)


def test_a_run_goes_on_from_its_state() -> None:
    straight = prior_of(3, 4, 7, total_steps=10)
    batches = [(features_of(6, 4, t), labels_of(6, 3, t)) for t in range(8)]
    for x, y in batches[:4]:
        straight.update(x, y)
    copied = copy.deepcopy(straight)
    loaded = ClassGaussianPrior(torch.zeros(3, 4), torch.ones(3, 4), total_steps=10)
    loaded.load_state_dict(copy.deepcopy(straight.state_dict()))
    for x, y in batches[4:]:
        for prior in (straight, copied, loaded):
            prior.update(x, y)
    for prior in (copied, loaded):
        for name, value in straight.state_dict().items():
            assert torch.equal(prior.state_dict()[name], value), name
    assert set(straight.state_dict()) == {"mu", "sigma", "m", "exp_avg", "exp_avg_sq", "steps"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_a_module_sent_to_it(dtype: Any) -> None:
    x = features_of(8, 4, 0).to(dtype)
    y = torch.arange(8) % 2
    prior = ClassGaussianPrior.from_features(x, y, 2)
    want = ClassGaussianPrior.from_features(x.float(), y, 2)
    assert torch.equal(prior.mu, want.mu) and torch.equal(prior.sigma, want.sigma)
    holder = nn.ModuleDict({"prior": prior, "head": nn.Linear(4, 2)}).to(dtype)
    assert holder["head"].weight.dtype == dtype
    assert {b.dtype for b in prior.buffers()} == {torch.float32, torch.int64}
    assert torch.equal(prior.mu, want.mu)
    prior.update(x, y)
    want.update(x.float(), y)
    assert torch.equal(prior.mu, want.mu) and torch.equal(prior.m, want.m)
    assert prior.double().mu.dtype == torch.float32
    assert GaussianPrior.from_features(x).to(dtype).sigma.dtype == torch.float32


def slow_statistics(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    x = features.double()
    groups = [[row for row, y in zip(x, labels.tolist(), strict=True) if y == k]
              for k in range(classes)]  # fmt: skip
    means = [sum(own) / len(own) for own in groups]
    squares = [sum((row - mean) ** 2 for row in own)
               for own, mean in zip(groups, means, strict=True)]  # fmt: skip
    pooled = sum(squares) / (len(x) - classes)
    variances = [s / (len(own) - 1) if len(own) > 1 else pooled
                 for s, own in zip(squares, groups, strict=True)]  # fmt: skip
    return torch.stack(means), torch.stack(variances).sqrt()


@pytest.mark.parametrize("seed", range(6))
def test_statistics_are_those_of_each_class(seed: int) -> None:
    classes, d = 2 + seed, 1 + 3 * seed
    # The first class has one example alone.
    labels = torch.cat([torch.arange(classes), 1 + labels_of(30, classes - 1, seed)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    features = features_of(len(labels), d, seed) + 5
    mu, sigma = slow_statistics(features, labels, classes)
    prior = ClassGaussianPrior.from_features(features, labels.int(), classes)
    torch.testing.assert_close(prior.mu, mu, rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.sigma, sigma, rtol=0, atol=1e-12)
    assert torch.equal(prior.m, prior.mu)
    single = ClassGaussianPrior.from_features(features.float(), labels, classes)
    torch.testing.assert_close(single.mu.double(), mu, rtol=0, atol=2e-6)
    torch.testing.assert_close(single.sigma.double(), sigma, rtol=0, atol=2e-6)
    # In batches, far from 0 too, where a sum of squares would lose all digits of float32.
    far = (features + 3000).float()
    mu, sigma = slow_statistics(far, labels, classes)
    batches = list(zip(far.split(7), labels.split(7), strict=True))
    prior = ClassGaussianPrior.from_loader(Seen(), batches, classes, "out", progress=False)
    torch.testing.assert_close(prior.mu.double(), mu, rtol=0, atol=2e-3)
    torch.testing.assert_close(prior.sigma.double(), sigma, rtol=0, atol=2e-3)
    one = GaussianPrior.from_features(features)
    torch.testing.assert_close(one.mu, features.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.sigma, features.std(0), rtol=0, atol=1e-12)
    one = GaussianPrior.from_loader(Seen(), batches, "out", progress=False)
    torch.testing.assert_close(one.sigma, far.std(0), rtol=0, atol=2e-3)


class Seen(nn.Module):
    """Gives what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(5, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.drop(self.norm(scale * self.body(x)).relu()))


def test_a_loader_is_read_in_evaluation_mode_and_the_model_stays() -> None:
    model = Network().train()
    model.norm.eval()
    x, y = features_of(10, 3, 0).float(), torch.arange(10) % 2
    before = {name: v.clone() for name, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    pairs = [[x[:4], y[:4]], (x[4:], y[4:], "more")]
    mappings = ({"x": x[i], "labels": y[i]} for i in (slice(0, 4), slice(4, 10)))
    priors = [ClassGaussianPrior.from_loader(model, data, 2, progress=False, alpha=0.3)
              for data in (pairs, mappings)]  # fmt: skip
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        features = model.norm(model.body(x)).relu()
    want = ClassGaussianPrior.from_features(features, y, 2)
    for prior in priors:
        torch.testing.assert_close(prior.mu, want.mu)
        torch.testing.assert_close(prior.sigma, want.sigma)
        assert prior.alpha == 0.3 and not prior.mu.requires_grad
    inputs = [x[:4], (x[4:],)]  # labels are not needed for one Gaussian
    one = GaussianPrior.from_loader(model, inputs, progress=False)
    torch.testing.assert_close(one.mu, features.mean(0))
    body = GaussianPrior.from_loader(model, inputs, "body", progress=False)
    torch.testing.assert_close(body.mu, model.body(x).detach().mean(0))


def test_a_model_is_as_it_was_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    model = Network().train()
    x = torch.randn(4, 3)
    x[2, 0] = torch.nan
    with pytest.raises(InferKitError, match="Features of 1 of 4 examples .* not finite") as caught:
        ClassGaussianPrior.from_loader(model, [(x, torch.arange(4) % 2)], 2)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled() and caught.value.hint
    assert "features" in capsys.readouterr().err  # the bar


def test_draws_are_those_of_their_class() -> None:
    prior = prior_of(3, 4, 1)
    y = torch.arange(3).repeat(20000)
    z = prior.sample(y, torch.Generator().manual_seed(1))
    assert z.shape == (60000, 4) and not z.requires_grad
    for k in range(3):
        own = z[y == k]
        off = (own.mean(0) - prior.mu[k]) / prior.sigma[k] * math.sqrt(20000)
        assert float(off.abs().max()) < 4
        torch.testing.assert_close(own.std(0), prior.sigma[k], rtol=0.03, atol=0)
    again = prior.sample(y, torch.Generator().manual_seed(1))
    other = prior.sample(y, torch.Generator().manual_seed(2))
    assert torch.equal(z, again) and not torch.equal(z, other)
    still = ClassGaussianPrior(prior.mu, torch.zeros(3, 4))
    assert torch.equal(still.sample(y[:5]), prior.mu[y[:5]])

    one = GaussianPrior(torch.tensor([3.0, -1]), torch.tensor([0.5, 2]))
    z = one.sample(y, torch.Generator().manual_seed(1))
    assert z.shape == (60000, 2)
    torch.testing.assert_close(z.mean(0), one.mu, rtol=0, atol=0.04)
    torch.testing.assert_close(z.std(0), one.sigma, rtol=0.02, atol=0)
    normal = GaussianPrior.standard(3)
    assert torch.equal(normal.mu, torch.zeros(3)) and torch.equal(normal.sigma, torch.ones(3))


def test_a_fixed_prior_stays() -> None:
    prior = prior_of(3, 4, 1, adapt=False)
    before = copy.deepcopy(prior.state_dict())
    prior.update(features_of(6, 4, 0), torch.arange(6) % 3)
    prior.step()
    assert all(torch.equal(v, before[name]) for name, v in prior.state_dict().items())
    with pytest.raises(InferKitError, match="Labels go from 0 to 3"):
        prior.update(features_of(4, 4, 0), torch.arange(4))


def test_what_cannot_be_is_refused() -> None:
    x, y = features_of(6, 4, 0), torch.arange(6) % 3

    def refused(match: str, call: Any, *args: Any, **options: Any) -> None:
        with pytest.raises(InferKitError, match=re.escape(match)):
            call(*args, **options)

    made = ClassGaussianPrior.from_features
    refused("No example is of class 3, 4", made, x, y, 5)
    refused("class 3, 4, 5, 6, 7 and 12 more", made, x, y, 20)
    refused("Labels go from 0 to 2; the prior has 2 classes", made, x, y, 2)
    refused("There are 1 classes", made, x, 0 * y, 1)
    refused("No class has two examples", made, x[:3], y[:3], 3)
    refused("Labels are [6] of torch.float64", made, x, y.double(), 3)
    refused("Labels are [6, 3] of torch.int64", made, x, nn.functional.one_hot(y), 3)
    refused("Labels are [0] of torch.int64", made, x[:0], y[:0], 3)
    refused("Features are [6, 2, 2] of torch.float64, with 6 labels", made, x.view(6, 2, 2), y, 3)
    refused("Features are [6, 4] of torch.int64", made, x.long(), y, 3)
    refused("Features are [5, 4] of torch.float64, with 6 labels", made, x[:5], y, 3)
    refused(
        "2 of 6 examples", made, x.clone().index_fill_(0, torch.tensor([1, 4]), torch.inf), y, 3
    )
    refused("Labels go from -1", made, x, y - 1, 3)
    refused("alpha=1.5", made, x, y, 3, alpha=1.5)
    refused("lr=-1", made, x, y, 3, lr=-1)
    refused("total_steps=0", made, x, y, 3, total_steps=0)
    refused("variant='text': one of paper, code", made, x, y, 3, variant="text")
    refused("mu is [4] and sigma [4]; both as [K, D]", ClassGaussianPrior, x[0], x[0].abs())
    refused("mu is [6, 4] and sigma [5, 4]", ClassGaussianPrior, x, x[:5])
    refused("sigma some below 0", ClassGaussianPrior, x, -x.abs())
    refused("both as [D] are expected", GaussianPrior, x, x)
    refused("No class has two examples", GaussianPrior.from_features, x[:1])

    loaded = ClassGaussianPrior.from_loader
    refused("has no labels", loaded, Network(), [x[:, :3].float()], 2, progress=False)
    refused("no batch", loaded, Network(), [], 2, progress=False)
    refused("There are 1 classes", loaded, Network(), [], 1, progress=False)
    twice = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 2))
    three = nn.Sequential(nn.Linear(4, 2))
    seqs = [(torch.randn(6, 3, 4), y)]
    refused("reads 12 numbers of an example and takes 4", loaded, three, seqs, 3, progress=False)
    refused("with 6 labels", loaded, twice, [(x[:, None].float().repeat(1, 2, 1), y)], 3,
            layer="1", progress=False)  # fmt: skip

    prior = made(x, y, 3)
    before = copy.deepcopy(prior.state_dict())
    refused("variant='both'", prior.loss, "both")
    refused("Labels go from 0 to 3", prior.sample, torch.arange(4))
    refused("Labels are on meta and the prior is on cpu", prior.sample, y.to("meta"))
    refused("[6, 4] are expected", prior.update, x[:, :2], y)
    refused("no features to follow", prior.step)
    refused("not finite", prior.update, x / 0, y)
    assert all(torch.equal(v, before[name]) for name, v in prior.state_dict().items())
    refused("no features to follow", prior.step)  # those are gone
