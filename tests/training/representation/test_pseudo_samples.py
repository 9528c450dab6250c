"""Pseudo conditional sampling against loops, and the relatedness report."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    ConditionalVAE,
    PseudoSampler,
    PseudoSemiSupervised,
    RelatednessReport,
    Thresholds,
    pseudo_conditional_samples,
    relatedness_report,
    source_probabilities,
)
from infer_kit.training.representation import relatedness as home


class Embedded:
    """A generator whose sample is the class embedding and its latent beside it."""

    z_dim = 3

    def __init__(self, n_classes: int = 4, dtype: torch.dtype = torch.float64) -> None:
        self.n_classes = n_classes
        g = torch.Generator().manual_seed(1)
        self.table = torch.randn(n_classes, 5, generator=g, dtype=dtype)

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        e = y.to(self.table) @ self.table if y.is_floating_point() else self.table[y]
        return torch.cat([e, z.to(e)], 1)


class Fixed(nn.Module):
    """A classifier that says what its input is: logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(3))
def test_soft_samples_are_those_of_a_loop(seed: int) -> None:
    x = torch.randn(9, 4, generator=rng(seed), dtype=torch.float64)
    generator = Embedded()
    found, p = pseudo_conditional_samples(Fixed(), x, generator, rng=rng(seed))
    z = torch.randn(9, 3, generator=rng(seed))
    for i, row in enumerate(x.tolist()):
        total = sum(math.exp(v) for v in row)
        shares = [math.exp(v) / total for v in row]
        assert p[i].tolist() == pytest.approx(shares, abs=1e-12)
        mixed = [sum(shares[k] * float(generator.table[k, j]) for k in range(4)) for j in range(5)]
        assert found[i].tolist() == pytest.approx(mixed + z[i].tolist(), abs=1e-12)


def test_one_hot_soft_is_hard() -> None:
    torch.manual_seed(0)
    generator = ConditionalVAE((1, 8, 8), 4, z_dim=3)
    y = torch.arange(12) % 4
    logits = 1e4 * nn.functional.one_hot(y, 4).float()
    soft, p = pseudo_conditional_samples(Fixed(), logits, generator, "soft", rng=rng())
    hard, _ = pseudo_conditional_samples(Fixed(), logits, generator, "hard", rng=rng())
    assert torch.equal(p.argmax(1), y) and float(p.amax(1).min()) == 1
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-6)
    assert float((soft[0] - soft[1]).abs().max()) > 1e-3


def test_the_mean_of_hard_draws_is_the_soft_embedding() -> None:
    """E of Categorical(p) draws is p^T E, within 3 standard errors of 20,000 draws."""
    generator, n = Embedded(), 20_000
    logits = torch.tensor([[0.3, -1.0, 1.2, 0.1]], dtype=torch.float64)
    found, p = pseudo_conditional_samples(
        Fixed(), logits.expand(n, 4), generator, "hard", rng=rng(5)
    )
    drawn = found[:, :5]
    error = drawn.std(0) / math.sqrt(n)
    off = (drawn.mean(0) - p[0] @ generator.table).abs()
    assert bool((off <= 3 * error).all()), off / error
    # The wrong odds are told from the right ones.
    assert bool(((drawn.mean(0) - generator.table.mean(0)).abs() > 3 * error).any())


def test_the_source_has_its_own_normalisation() -> None:
    x = torch.rand(6, 2, 4, 4)
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 4)).train()
    mean, std = (0.2, 0.5), (0.1, 0.4)
    generator = Embedded(dtype=torch.float32)
    by_hand = x.clone()
    for c in range(2):
        by_hand[:, c] = (x[:, c] - mean[c]) / std[c]
    wanted = source_probabilities(net, by_hand, generator)
    found = source_probabilities(net, x, generator, normalise=(mean, std))
    torch.testing.assert_close(found, wanted)
    asked = source_probabilities(net, x, generator, normalise=lambda x: by_hand, batch=6)
    torch.testing.assert_close(asked, wanted)
    assert net.training and int(net[0].num_batches_tracked) == 0  # in evaluation mode, and back
    assert not torch.allclose(source_probabilities(net, x, generator), wanted)
    small = source_probabilities(net, x, generator, normalise=(mean, std), batch=4)
    torch.testing.assert_close(small, found)


def test_half_precision_becomes_float32_and_nothing_has_a_gradient() -> None:
    net = nn.Linear(4, 4).bfloat16()
    x = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    found, p = pseudo_conditional_samples(net, x, Embedded(dtype=torch.float32), rng=rng())
    assert p.dtype == torch.float32 and not p.requires_grad and not found.requires_grad
    torch.testing.assert_close(p.sum(1), torch.ones(5))


def test_a_sampler_draws_examples_evenly_and_again() -> None:
    p = torch.eye(4, dtype=torch.float64)
    sampler = PseudoSampler(Embedded(), p, prepare=lambda x: 2 * x)
    x = sampler.draw(8000, rng())
    assert torch.equal(x, sampler.draw(8000, rng()))
    which = torch.cdist(x[:, :5], 2 * sampler.generator.table).argmin(1)
    counts = torch.bincount(which, minlength=4)
    assert counts.sub(2000).abs().max() < 4 * math.sqrt(8000 * 3 / 16)
    of = sampler.of(torch.tensor([2, 0]), rng())
    torch.testing.assert_close(of[:, :5], 2 * sampler.generator.table[[2, 0]])


class Target(nn.Module):
    """Says the place of the largest of the first four numbers, with logits of a scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x[:, :4]


class OneHots:
    """A generator whose sample of p is log p: what `Fixed` says of it is p again."""

    z_dim = 1

    def __init__(self, n_classes: int = 4, turned: int = 0) -> None:
        self.n_classes, self.turned = n_classes, turned

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        return y.clamp(min=1e-6).log().roll(self.turned, 1)


def test_a_report_of_a_source_that_knows_all() -> None:
    x = 5 * torch.eye(4).repeat(3, 1)
    report = relatedness_report(Fixed(), x, OneHots(), model=Target(1.0), draws=2)
    share = float(torch.tensor([5.0, 0, 0, 0]).softmax(0)[0])
    assert report.confidence == pytest.approx(share, abs=1e-6)
    assert report.coverage == pytest.approx(1, abs=1e-6)
    assert report.faithfulness == 1 and report.agreement == 1 and report.mask_rate == 1
    assert (report.examples, report.samples) == (12, 24)
    assert report.related and str(report).endswith(": related")
    report.require()
    assert report.to_dict()["related"] is True


def test_samples_are_made_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sizes = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), []

    class Counting(OneHots):
        def sample(self, z: Tensor, y: Tensor) -> Tensor:
            sizes.append(len(z))
            return super().sample(z, y)

    whole, parts = (
        (monkeypatch.setattr(home, "_CHUNK", chunk),
         relatedness_report(Fixed(), x, Counting(), model=Target(1.0), draws=3))[1]
        for chunk in (1000, 7)
    )  # fmt: skip
    assert whole == parts and sizes[0] == 90 and max(sizes[1:]) == 7 and sum(sizes[1:]) == 90


def test_a_report_of_one_that_does_not_is_refused_with_its_figures() -> None:
    x = 5 * torch.eye(4).repeat(3, 1)
    turned = relatedness_report(Fixed(), x, OneHots(turned=1), model=Target(1.0))
    # Each sample is of the next class: kappa of no match at all with four even classes.
    assert turned.faithfulness == 0 and turned.agreement == pytest.approx(-1 / 3, abs=1e-6)
    assert not turned.related
    with pytest.raises(InferKitError, match=r"faithfulness 0.00 < 0.6, agreement -0.33 < 0.05"):
        turned.require()
    one = relatedness_report(Fixed(), x[:1].repeat(5, 1), OneHots(), model=Target(0.0))
    assert one.coverage < 0.1 and one.mask_rate == 0 and one.agreement == 0
    unsure = relatedness_report(Fixed(), x / 50, OneHots(), model=Target(1.0))
    assert "confidence 0.27 < 0.92" in str(unsure) and "mask rate 0.00 < 0.1" in str(unsure)
    easy = Thresholds(0, 0, 0, -1, 0)
    assert relatedness_report(Fixed(), x, OneHots(turned=1), model=Target(1.0),
                              thresholds=easy).related  # fmt: skip


def test_a_report_is_of_its_own_source() -> None:
    x = 5 * torch.eye(4).repeat(3, 1)
    report = relatedness_report(Fixed(), x, OneHots(), model=Target(1.0))
    p = source_probabilities(Fixed(), x, OneHots())
    report.require(p)
    report.require(p[:5])  # of some of the examples: nothing tells that they are others
    for other in (p.roll(1, 1) * 0 + torch.eye(4)[0], torch.eye(3).repeat(4, 1)):
        with pytest.raises(InferKitError, match="The report is of another source"):
            report.require(other)
    sampler = PseudoSampler(OneHots(), torch.eye(4)[:1].repeat(12, 1))
    with pytest.raises(InferKitError, match="The report is of another source"):
        PseudoSemiSupervised(sampler, report)


def test_agreement_is_cohens_kappa() -> None:
    from sklearn.metrics import cohen_kappa_score

    from infer_kit.training.representation.relatedness import _kappa

    for seed in range(5):
        a = torch.randint(4, (50,), generator=rng(seed))
        b = torch.where(torch.rand(50, generator=rng(seed)) < 0.5, a, a.flip(0))
        assert _kappa(a, b, 4) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_figures_that_are_nan_do_not_pass() -> None:
    nan = float("nan")
    report = RelatednessReport(nan, 1, 1, 1, 1, 1, 1, Thresholds())
    assert not report.related


def test_what_cannot_work_is_refused() -> None:
    x, generator = torch.randn(5, 4), Embedded(dtype=torch.float32)
    with pytest.raises(InferKitError, match="mode='both': one of soft, hard"):
        pseudo_conditional_samples(Fixed(), x, generator, "both")  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match="no z_dim and no n_classes and no sample"):
        pseudo_conditional_samples(Fixed(), x, object())  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match=r"source classifier gives \[5, 4\] for 5 examples; .*"
                       r"logits \[5, 7\]"):  # fmt: skip
        pseudo_conditional_samples(Fixed(), x, Embedded(7))
    with pytest.raises(
        InferKitError, match="Logits of the source classifier have numbers that are not finite"
    ):
        pseudo_conditional_samples(Fixed(), x / 0, generator)
    for wrong in (x.long(), x[:0]):
        with pytest.raises(InferKitError, match="x_target are"):
            pseudo_conditional_samples(Fixed(), wrong, generator)
    for given, told in (
        (0.5, "normalise is a float"),
        (((0.5,), (0.0,)), "std above 0"),
        (((0.5, 0.5), (1.0,)), r"mean \[2\] and a std \[1\]"),
        (((0.5,), (1.0,)), "normalise has 1 channels"),
    ):
        with pytest.raises(InferKitError, match=told):
            source_probabilities(Fixed(), x, generator, normalise=given)  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match="x_target is a tuple; a tensor"):
        source_probabilities(Fixed(), (x,), generator)  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match="probabilities are"):
        PseudoSampler(generator, torch.arange(4))
    with pytest.raises(InferKitError, match="sum to 1"):
        PseudoSampler(generator, torch.ones(3, 4))
    with pytest.raises(InferKitError, match="draws=0"):
        relatedness_report(Fixed(), x, generator, model=Fixed(), draws=0)
    with pytest.raises(InferKitError, match="target network gives list"):
        relatedness_report(Fixed(), x, OneHots(), model=_Pair())


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]
