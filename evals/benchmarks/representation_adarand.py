"""Fine-tuning from letters to ten digits a class, with AdaRand and what it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from evals.benchmarks.representation_data import CNN, accuracy, digits, few, letters, made, train
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.representation import AdaRandLoss, ClassGaussianPrior, GaussianPrior

WAYS = (
    "fine-tuning",
    "N(0, I)",
    "source mean/std",
    "fixed class-conditional",
    "AdaRand code",
    "AdaRand paper",
)
SCALES = {"lam 1 mean": (1.0, "mean"), "lam 10 mean": (10.0, "mean"), "lam 1 sum": (1.0, "sum")}


@cache
def source() -> CNN:
    """Pre-trained on letters; one for all seeds, as a checkpoint is."""
    return train(made(10, 0), letters(), 1000, 0)


@dataclass(frozen=True)
class FineTuning:
    """One network on ten digits of each class; the rest is the test.

    The same digits, head, batches and draws in all ways of a seed. Rate and steps are those from
    which on plain fine-tuning gains no more. The head begins as the paper's, N(0, 0.01^2).

    Args:
        way: of `WAYS`. scale: of `SCALES`; of no effect on "fine-tuning".
    """

    way: str
    scale: str
    seed: int
    steps: int = 300
    lr: float = 3e-3

    def run(self) -> float:
        """Test accuracy in percent."""
        data, test = few(digits(), 10, self.seed)
        model = copy.deepcopy(source())
        model.head = nn.Linear(model.head.in_features, 10)
        generator = torch.Generator().manual_seed(self.seed)
        nn.init.normal_(model.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(model.head.bias)
        if self.way == "fine-tuning":
            return accuracy(train(model, data, self.steps, self.seed, self.lr), test)
        prior = self._prior(model, data)
        lam, reduction = SCALES[self.scale]
        adarand = AdaRandLoss(prior, lam, reduction)
        seen: list[tuple[Tensor, Tensor]] = []

        def loss(model: CNN, x: Tensor, y: Tensor) -> Tensor:
            with FeatureTap(model) as tap:
                logits = model(x)
                features = tap.take()
            seen.append((features, y))
            return cross_entropy(logits, y) + adarand(features, y, generator)

        def after() -> None:
            features, y = seen.pop()
            if isinstance(prior, ClassGaussianPrior):
                prior.update(features, y)

        train(model, data, self.steps, self.seed, self.lr, loss=loss, after=after)
        return accuracy(model, test)

    def _prior(self, model: CNN, data: tuple[Tensor, Tensor]) -> ClassGaussianPrior | GaussianPrior:
        if self.way == "N(0, I)":
            return GaussianPrior.standard(model.head.in_features)
        if self.way == "source mean/std":
            return GaussianPrior.from_loader(model, [letters()], progress=False)
        return ClassGaussianPrior.from_loader(
            model, [data], 10, progress=False, total_steps=self.steps,
            adapt=self.way != "fixed class-conditional",
            variant="code" if self.way == "AdaRand code" else "paper",
        )  # fmt: skip


@dataclass(frozen=True)
class UpdateTime:
    """CPU time of an update of a prior, and of loops over the classes, on a batch of 64.

    The loops hold one class's row of cosines at a time, where a [K, K, D] tensor would take 4 K^2 D
    bytes: 8 GB at K 1000, D 2048.
    """

    n_classes: int
    n_features: int
    variant: str = "paper"

    def run(self) -> dict[str, float]:
        """Milliseconds of each, and the largest difference of A's slope from the loop's in float64,
        over the largest slope."""
        K, D = self.n_classes, self.n_features
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(2 * K, D, generator=generator).relu()
        prior = ClassGaussianPrior.from_features(
            features, torch.arange(2 * K) % K, K, variant=self.variant
        )
        x = torch.randn(64, D, generator=generator).relu()
        y = torch.randint(K, (64,), generator=generator)
        mu, m = prior.mu.clone(), prior.m.clone()
        exact = _loop(mu.double(), m.double(), x.double(), y, self.variant)
        slow = _timed(lambda: _loop(mu, m, x, y, self.variant))
        prior.update(x, y)
        slope = prior.exp_avg / 0.1  # after one step
        fast = min(_timed(lambda: prior.update(x, y)) for _ in range(5))
        error = float((slope - exact).abs().max() / exact.abs().max())
        return {"update": 1e3 * fast, "loop": 1e3 * slow, "error": error}


def _timed(call: Callable[[], object]) -> float:
    start = process_time()
    call()
    return process_time() - start


def _loop(mu: Tensor, m: Tensor, x: Tensor, y: Tensor, variant: str) -> Tensor:
    """Slope of A by mu, class by class."""
    K = len(mu)
    for k in y.unique().tolist():
        m[k] = 0.5 * m[k] + 0.5 * x[y == k].mean(0)
    mu = mu.requires_grad_()
    for k in range(K):
        follows = cosine_similarity(mu[k], m[k], dim=0)
        others = cosine_similarity(mu[k : k + 1], mu[torch.arange(K) != k], dim=1)
        if variant == "paper":
            part = (1 - follows) / K - (1 - others).sum() / (K * (K - 1))
        else:
            part = (follows - 1).square() / K + others.square().sum() / (K * (K - 1))
        part.backward()
    assert mu.grad is not None
    return mu.grad
