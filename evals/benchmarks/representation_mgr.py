"""Samples of a generator as a regulariser on digits, and the time of a hypergradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from time import process_time

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy

from evals.benchmarks.representation_data import CNN, accuracy, digits, few, made, train
from infer_kit.training.representation import (
    ConditionalVAE,
    FeatureConsistency,
    Finder,
    StrongAugment,
    draw,
    fit_cvae,
    hypergradient,
    mgr_step,
)

WAYS = (
    "base",
    "CE on synthetic",
    "PCR",
    "PCR + MPS, 20 more labels a class",
    "PCR on real images",
    "CE on augmented real images",
)
BATCH = 64


@cache
def generator(seed: int) -> ConditionalVAE:
    """Of the training images of a seed alone."""
    return fit_cvae(*few(digits(), 20, seed)[0], steps=600, seed=seed, progress=False)


@dataclass(frozen=True)
class Generative:
    """One network on 20 digits of each class; the rest, less the validation split, is the test.

    PCR + MPS has 20 more of each class for validation, which no way is tested on.
    """

    way: str
    seed: int
    lam: float = 1.0
    consistency: FeatureConsistency = field(default_factory=FeatureConsistency)
    residual: bool = True
    steps: int = 300

    def run(self) -> float:
        """Test accuracy in percent."""
        data, rest = few(digits(), 20, self.seed)
        held, test = few(rest, 20, self.seed)
        rng = torch.Generator().manual_seed(self.seed)
        model = train(made(10, self.seed), data, self.steps, self.seed, loss=self._loss(held, rng))
        return accuracy(model, test)

    def _loss(
        self, held: tuple[Tensor, Tensor], rng: torch.Generator
    ) -> Callable[[CNN, Tensor, Tensor], Tensor] | None:
        if self.way == "base":
            return None
        source = generator(self.seed)
        augment = StrongAugment()
        finder = optimizer = None
        if self.way == "PCR + MPS, 20 more labels a class":
            finder = Finder(source.z_dim, residual=self.residual, seed=self.seed)
            optimizer = torch.optim.Adam(finder.parameters(), lr=1e-3)

        def loss(model: CNN, x: Tensor, y: Tensor) -> Tensor:
            plain = cross_entropy(model(x), y)
            if self.way == "CE on augmented real images":
                return plain + self.lam * cross_entropy(model(augment(x, rng)), y)
            if self.way == "PCR on real images":
                return plain + self.lam * self.consistency(model, x, rng)
            if self.way == "CE on synthetic":
                z, classes = draw(source, BATCH, rng=rng)
                return plain + self.lam * cross_entropy(model(source.sample(z, classes)), classes)
            batch = None
            if finder is not None:
                index = torch.randperm(len(held[1]), generator=rng)[:BATCH]
                batch = (held[0][index], held[1][index])
            return mgr_step(
                model, (x, y), source, samples=BATCH, lam=self.lam, consistency=self.consistency,
                finder=finder, finder_optimizer=optimizer, validation=batch,
                eta=None if finder is None else 0.01, rng=rng,
            ).loss  # fmt: skip

        return loss


def forward_over_reverse(
    model: CNN,
    finder: nn.Module,
    source: ConditionalVAE,
    batch: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    z: Tensor,
    y: Tensor,
    eta: float,
    lam: float,
    consistency: FeatureConsistency,
    rng: torch.Generator | None = None,
) -> list[Tensor]:
    """The hypergradient another way: a directional derivative, along v, of gradients by psi.

    -eta lam d/de grad_psi PCR(x(psi); theta + e v) at e = 0, with v the gradient of the validation
    loss at theta'. The tangent goes through the model; then the samples are followed back to psi.
    """
    theta = {name: p.detach() for name, p in model.named_parameters()}
    psi = list(finder.parameters())
    x = source.sample(finder(z), y)
    pair = (consistency.augment(x, rng), x)
    places = [one.detach() for one in pair]

    def pcr(weights: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
        called = functional_call(model.extractor, weights, (torch.cat([first, second]),))
        return consistency.of(*called.chunk(2))

    def extractor(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        start = "extractor."
        return {n[len(start) :]: w for n, w in weights.items() if n.startswith(start)}

    def total(weights: dict[str, Tensor]) -> Tensor:
        plain = cross_entropy(functional_call(model, weights, (batch[0],)), batch[1])
        return plain + lam * pcr(extractor(weights), *places)

    slope = torch.func.grad(total)(theta)
    there = {name: p - eta * slope[name] for name, p in theta.items()}
    v = torch.func.grad(
        lambda weights: cross_entropy(functional_call(model, weights, (held[0],)), held[1])
    )(there)

    def by_samples(weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.func.grad(pcr, (1, 2))(extractor(weights), *places)
        return found

    tangents = jvp(by_samples, (theta,), (v,))[1]
    return list(torch.autograd.grad(pair, psi, [-eta * lam * t for t in tangents]))


@dataclass(frozen=True)
class Hypergradients:
    """CPU milliseconds of a hypergradient, both ways, and of an ordinary step's gradient."""

    seed: int = 0
    rounds: int = 20

    def run(self) -> dict[str, float]:
        data, rest = few(digits(), 20, self.seed)
        batch, held = (data[0][:BATCH], data[1][:BATCH]), (rest[0][:BATCH], rest[1][:BATCH])
        source, model = generator(self.seed), made(10, self.seed)
        finder = Finder(source.z_dim, residual=False, seed=self.seed)
        z, y = draw(source, BATCH, rng=torch.Generator().manual_seed(self.seed))
        how = FeatureConsistency()

        def rng() -> torch.Generator:
            return torch.Generator().manual_seed(1)

        def unroll() -> list[Tensor]:
            return hypergradient(
                model, finder, source, batch, held, z, y, eta=0.01, consistency=how, rng=rng()
            )[0]

        def forward() -> list[Tensor]:
            return forward_over_reverse(
                model, finder, source, batch, held, z, y, 0.01, 1.0, how, rng()
            )

        def plain() -> list[Tensor]:
            x = source.sample(finder(z), y).detach()
            loss = cross_entropy(model(batch[0]), batch[1]) + how(model, x, rng())
            return list(torch.autograd.grad(loss, list(model.parameters())))

        out = {}
        for name, way in {
            "exact": unroll, "forward over reverse": forward, "gradient of a step": plain,
        }.items():  # fmt: skip
            way()
            start = process_time()
            for _ in range(self.rounds):
                way()
            out[name] = 1000 * (process_time() - start) / self.rounds
        return out
