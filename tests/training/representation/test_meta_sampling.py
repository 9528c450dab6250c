"""The hypergradient against finite differences, a plain unroll and forward over reverse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from evals.benchmarks.representation_data import CNN
from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    ConditionalVAE,
    FeatureConsistency,
    Finder,
    StrongAugment,
    draw,
    hypergradient,
    mps_step,
)
from infer_kit.training.representation.meta_sampling import classification_loss


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Smooth(CNN):
    """Without kinks, for finite differences, and with a batch norm."""

    def __init__(self, norm: bool = True, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(3, width=4, features=6)
        for k, layer in enumerate(self.extractor):
            if isinstance(layer, nn.ReLU):
                self.extractor[k] = nn.SiLU()
        if norm:
            self.extractor[3] = nn.Sequential(nn.BatchNorm2d(4), nn.SiLU())


class Toy:
    """A small problem in float64, of a seed."""

    def __init__(self, seed: int = 0, model: nn.Module | None = None, residual: bool = False):
        torch.manual_seed(seed)
        self.model = (Smooth(seed=seed) if model is None else model).double()
        self.finder = Finder(4, residual=residual, seed=seed).double()
        if residual:
            nn.init.normal_(self.finder.layers[-1].weight, std=0.3)
        self.source = ConditionalVAE((1, 8, 8), 3, z_dim=4, width=4).double()
        with torch.no_grad():  # so that samples differ, and features of them
            self.source.std.fill_(4)
            self.source.latent.weight.mul_(3)
            for p in self.model.parameters():
                p.mul_(2)
        g = rng(seed)
        x = torch.randn(20, 1, 8, 8, generator=g, dtype=torch.float64)
        t = torch.randint(3, (20,), generator=g)
        self.train, self.held = (x[:10], t[:10]), (x[10:], t[10:])
        z, self.y = draw(self.source, 7, rng=g)
        self.z = z.double()

    def args(self) -> tuple:
        return (
            self.model, self.finder, self.source, self.train, self.held, self.z, self.y,
        )  # fmt: skip

    def unrolled(self, eta: float, lam: float, pcr: FeatureConsistency) -> Tensor:
        """The validation loss at theta', with a graph from psi to it: autograd does the rest."""
        model, theta = self.model, dict(self.model.named_parameters())

        def buffers() -> dict[str, Tensor]:
            return {name: value.clone() for name, value in model.named_buffers()}

        seen = buffers()
        x = self.source.sample(self.finder(self.z), self.y)
        ce = cross_entropy(functional_call(model, theta | seen, (self.train[0],)), self.train[1])
        inner = {n[10:]: p for n, p in (theta | buffers()).items() if n.startswith("extractor")}
        both = torch.cat([pcr.augment(x, rng(5)), x])
        loss = ce + lam * pcr.of(*functional_call(model.extractor, inner, (both,)).chunk(2))
        free = [name for name, p in theta.items() if p.requires_grad]
        grads = torch.autograd.grad(loss, [theta[n] for n in free], create_graph=True)
        stepped = {n: theta[n] - eta * g for n, g in zip(free, grads, strict=True)}
        out = functional_call(model, theta | seen | stepped, (self.held[0],))
        return cross_entropy(out, self.held[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stop_gradient", [False, True])
def test_it_is_autograd_through_the_unrolled_step(seed: int, stop_gradient: bool) -> None:
    toy = Toy(seed, residual=seed % 2 == 1)
    if seed == 2:
        toy.model.eval()
    if seed == 3:
        for module in list(toy.model.extractor)[:3]:
            module.requires_grad_(False)
    pcr = FeatureConsistency(reduction="sum", stop_gradient=stop_gradient)
    how = {"eta": 0.1, "lam": 0.7, "consistency": pcr}
    grads, value = hypergradient(*toy.args(), **how, rng=rng(5))
    slow = toy.unrolled(0.1, 0.7, pcr)
    expected = torch.autograd.grad(slow, list(toy.finder.parameters()))
    torch.testing.assert_close(value, slow.detach(), rtol=1e-12, atol=0)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-15)
        assert bool((other != 0).any())


def test_it_is_that_of_finite_differences() -> None:
    toy = Toy(1)
    pcr = FeatureConsistency(reduction="sum")
    grads, _ = hypergradient(*toy.args(), eta=0.1, consistency=pcr, rng=rng(5))
    flat = torch.cat([g.flatten() for g in grads])
    parameters = list(toy.finder.parameters())
    places = [(p, i) for p in parameters for i in range(p.numel())]
    for at in flat.abs().topk(60).indices[::10].tolist():
        p, i = places[at]
        ends = []
        for e in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[i] += e
            ends.append(float(toy.unrolled(0.1, 1.0, pcr).detach()))
            with torch.no_grad():
                p.view(-1)[i] -= e
        assert float(flat[at]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_that_of_forward_over_reverse(seed: int) -> None:
    from evals.benchmarks.representation_mgr import forward_over_reverse

    torch.manual_seed(seed)
    # With ReLU: both are exact there too.
    toy = Toy(seed, CNN(3, width=8, features=16) if seed % 2 else Smooth(norm=False))
    pcr = FeatureConsistency(reduction="mean" if seed < 2 else "sum")
    grads, _ = hypergradient(*toy.args(), eta=0.1, lam=2.0, consistency=pcr, rng=rng(5))
    other = forward_over_reverse(*toy.args(), 0.1, 2.0, pcr, rng(5))
    one, two = (torch.cat([g.flatten() for g in found]) for found in (grads, other))
    assert float((one - two).norm() / two.norm()) < 1e-10


def test_without_weight_or_step_it_is_zero() -> None:
    for how in ({"eta": 0.1, "lam": 0.0}, {"eta": 0.0, "lam": 1.0}):
        grads, _ = hypergradient(*Toy().args(), **how, rng=rng())
        assert all(bool((g == 0).all()) for g in grads)


@pytest.mark.parametrize("training", [True, False])
def test_only_the_finder_changes(training: bool) -> None:
    toy = Toy()
    toy.model.train(training)
    frozen = toy.model.extractor[0].requires_grad_(False)
    for p in toy.model.parameters():
        p.grad = torch.ones_like(p)
    before = {name: value.clone() for name, value in toy.model.state_dict().items()}
    was = [p.clone() for p in toy.finder.parameters()]
    optimizer = torch.optim.Adam(toy.finder.parameters(), lr=1e-2)
    grads, value = hypergradient(*toy.args(), eta=0.1, rng=rng())
    model, finder, *rest = toy.args()
    again = mps_step(model, finder, optimizer, *rest, eta=0.1, rng=rng())
    assert torch.equal(again, value)
    for p, old, grad in zip(toy.finder.parameters(), was, grads, strict=True):
        # The first step of Adam is one of the learning rate, against the sign.
        away = grad.abs() > 1e-6
        torch.testing.assert_close((p - old)[away], -1e-2 * grad.sign()[away], rtol=1e-2, atol=0)
        assert p.grad is None
    assert all(torch.equal(v, before[name]) for name, v in toy.model.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in toy.model.parameters())
    assert all(p.grad is None for p in toy.source.parameters())
    assert toy.model.training is training and not frozen.weight.requires_grad


def test_steps_of_it_lower_the_validation_loss_after_a_step() -> None:
    toy = Toy(3)
    toy.model.eval()
    optimizer = torch.optim.Adam(toy.finder.parameters(), lr=1e-2)
    model, finder, *rest = toy.args()
    values = [
        float(mps_step(model, finder, optimizer, *rest, eta=1.0, lam=20.0, rng=rng()))
        for _ in range(20)
    ]
    assert values[-1] < values[0] - 1e-3


def test_half_precision_is_computed_in_float32() -> None:
    toy = Toy(2, Smooth(norm=False))
    toy.model.bfloat16()
    toy.train, toy.held = ((x.bfloat16(), t) for x, t in (toy.train, toy.held))
    toy.source.float()
    toy.finder.float()
    toy.z = toy.z.float()
    grads, _ = hypergradient(*toy.args(), eta=1e-4, rng=rng())
    # Also where samples are prepared for the model as it is.
    near, _ = hypergradient(*toy.args(), eta=1e-4, rng=rng(), prepare=lambda x: x.bfloat16())
    torch.testing.assert_close(near[0], grads[0], rtol=0.2, atol=float(grads[0].abs().max()) / 20)
    toy.model.float()
    expected, _ = hypergradient(*toy.args(), eta=1e-4, rng=rng())
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_it_goes_through_attention_and_mappings() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_channels=1, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    toy = Toy(0, ViTForImageClassification(config))
    toy.train, toy.held = ({"pixel_values": x, "labels": t} for x, t in (toy.train, toy.held))
    grads, _ = hypergradient(*toy.args(), eta=0.1, rng=rng(5))
    assert all(bool((g != 0).any()) for g in grads)
    # Against finite differences of the value itself.
    p, place = toy.finder.layers[-1].bias, int(grads[-1].abs().argmax())
    ends = []
    for e in (1e-5, -1e-5):
        with torch.no_grad():
            p[place] += e
        ends.append(float(hypergradient(*toy.args(), eta=0.1, rng=rng(5))[1]))
        with torch.no_grad():
            p[place] -= e
    assert float(grads[-1][place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)
    toy.model.gradient_checkpointing_enable()
    with pytest.raises(InferKitError, match="gradient checkpointing"):
        hypergradient(*toy.args(), eta=0.1)


def test_finder_starts_as_the_identity_or_as_a_network() -> None:
    z = torch.randn(5, 6)
    assert torch.equal(Finder(6)(z), z)
    plain = Finder(6, width=9, hidden=1, residual=False, seed=1)
    a, b = plain.layers[0], plain.layers[2]
    hidden = z @ a.weight.T + a.bias
    slow = torch.where(hidden > 0, hidden, 0.2 * hidden) @ b.weight.T + b.bias
    torch.testing.assert_close(plain(z), slow)
    same = Finder(6, width=9, hidden=1, residual=False, seed=1)
    assert torch.equal(same(z), plain(z))


def test_draws_are_normal_and_uniform() -> None:
    source = ConditionalVAE((1, 4, 4), 3, z_dim=2, width=4)
    z, y = draw(source, 30000, rng=rng())
    assert z.shape == (30000, 2) and y.dtype == torch.int64
    assert float(z.mean(0).abs().max()) < 0.02 and float((z.std(0) - 1).abs().max()) < 0.02
    assert float((y.bincount() / 30000 - 1 / 3).abs().max()) < 0.01
    assert torch.equal(draw(source, 4, rng=rng(2))[0], draw(source, 4, rng=rng(2))[0])


def test_what_cannot_be_is_refused() -> None:
    toy = Toy()
    model, finder, source, train, held, z, y = toy.args()
    with pytest.raises(InferKitError, match="There is no validation batch"):
        hypergradient(model, finder, source, train, None, z, y, eta=0.1)

    class Deaf:
        z_dim, n_classes = 4, 3

        def sample(self, z: Tensor, y: Tensor) -> Tensor:
            return source.sample(z, y).detach()

    with pytest.raises(InferKitError, match="Samples of the Deaf have no gradient by z"):
        hypergradient(model, finder, Deaf(), train, held, z, y, eta=0.1)
    with pytest.raises(InferKitError, match="a tensor with one number"):
        hypergradient(*toy.args(), eta=0.1, loss=lambda m, b: m(b[0]))
    with pytest.raises(InferKitError, match="eta=-0.1: a learning rate"):
        hypergradient(*toy.args(), eta=-0.1)
    strange = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(InferKitError, match="no parameter of the finder, which would stay"):
        mps_step(model, finder, strange, source, train, held, z, y, eta=0.1)
    with pytest.raises(InferKitError, match="training loss in the step of the finder is nan"):
        hypergradient(
            *toy.args(), eta=0.1, loss=lambda m, b: classification_loss(m, b) * float("nan")
        )
    with pytest.raises(InferKitError, match="No parameter of the model"):
        hypergradient(model.requires_grad_(False), *toy.args()[1:], eta=0.1)
    other = Toy()
    other.finder.requires_grad_(False)
    with pytest.raises(InferKitError, match="No parameter of the finder"):
        hypergradient(*other.args(), eta=0.1)
    with pytest.raises(InferKitError, match="given as generator, which has no z_dim"):
        draw(nn.Linear(1, 1), 3)
    with pytest.raises(InferKitError, match="0 samples are asked for"):
        draw(source, 0)
    with pytest.raises(InferKitError, match="z_dim=0"):
        Finder(0)


def _steps(toy: Toy, part: slice, still: FeatureConsistency) -> nn.Module:
    optimizer = torch.optim.SGD(toy.finder.parameters(), lr=0.5)
    train, held = (tuple(one[part] for one in pair) for pair in (toy.train, toy.held))
    for _ in range(3):
        mps_step(
            toy.model, toy.finder, optimizer, toy.source, train, held, toy.z[part], toy.y[part],
            eta=0.5, consistency=still,
        )  # fmt: skip
    return toy.finder


def _problem() -> tuple[Toy, FeatureConsistency]:
    toy = Toy(4, Smooth(norm=False))
    toy.z, toy.y = toy.z[:6], toy.y[:6]
    toy.train, toy.held = (tuple(one[:6] for one in pair) for pair in (toy.train, toy.held))
    # What is drawn differs between processes; what is not can be compared.
    return toy, FeatureConsistency(lambda x, rng: x.flip(3) * 1.5)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    toy, still = _problem()
    toy.model = nn.parallel.DistributedDataParallel(toy.model)
    finder = _steps(toy, slice(3 * rank, 3 * rank + 3), still)
    torch.save(finder.state_dict(), f"{folder}/{rank}.pt")
    # Freeing the group joins its threads with the interpreter's lock held, which they may wait for.
    os._exit(0)


def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), 2)
    toy, still = _problem()
    alone = _steps(toy, slice(0, 6), still).state_dict()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = _problem()[0].finder.state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-12)
        assert float((value - start[name]).abs().max()) > 1e-6


def test_the_augmentation_has_draws_of_its_own() -> None:
    toy, how = Toy(), {"eta": 0.1, "consistency": FeatureConsistency(StrongAugment())}
    first, again, other = (hypergradient(*toy.args(), **how, rng=rng(s))[0] for s in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
