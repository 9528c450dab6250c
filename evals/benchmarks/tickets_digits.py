"""Searching tickets on scikit-learn's digits: what `tickets` measures of accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.training.tickets import (
    ANIL,
    BOIL,
    MAML,
    EdgePopup,
    EpisodeSampler,
    Freeze,
    IteRand,
    MetaTicket,
    TopK,
    fit,
    make_ticket,
    warm_up_cosine,
)

Split = tuple[Tensor, Tensor]
TRAIN = 1297
SYMMETRIES = 8
META_TRAIN, META_TEST = range(6 * SYMMETRIES), range(6 * SYMMETRIES, 10 * SYMMETRIES)


def _images() -> Split:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor((data.images / 16 - 0.3) / 0.37, dtype=torch.float32)
    return x, torch.tensor(data.target)


def digits() -> tuple[Split, Split]:
    """1,297 images `[n, 64]` with their labels to search on, 500 to test on."""
    x, y = _images()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN], order[TRAIN:]
    return (x[train].flatten(1), y[train]), (x[test].flatten(1), y[test])


def turned_digits() -> Split:
    """Images `[n, 64]` of 80 classes: each digit in the 8 symmetries of the square."""
    x, y = _images()
    turned = [torch.rot90(x, k, (1, 2)) for k in range(4)]
    both = [image for t in turned for image in (t, t.flip(2))]
    labels = [SYMMETRIES * y + number for number in range(SYMMETRIES)]
    return torch.cat(both).flatten(1), torch.cat(labels)


def mlp(*widths: int, bias: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Batches:
    """Batches of a size, in an order of each epoch's own."""

    def __init__(self, data: Split, seed: int, size: int = 64) -> None:
        self.data, self.generator = data, torch.Generator().manual_seed(seed)
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.data[1]) // self.size)

    def __iter__(self) -> Iterator[Split]:
        x, y = self.data
        for index in torch.randperm(len(y), generator=self.generator).split(self.size):
            yield x[index], y[index]


def loss(model: nn.Module, batch: Split) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module, data: Split) -> float:
    """In percent."""
    with torch.no_grad():
        return 100 * (model(data[0]).argmax(1) == data[1]).float().mean().item()


@dataclass(frozen=True)
class Redrawing:
    """One IteRand run on digits; r = 0 is edge-popup."""

    width: int
    r: float
    k_per: int
    seed: int
    init: str = "kaiming_uniform"

    def run(self) -> float:
        train, test = digits()
        model = mlp(64, self.width, self.width, 10)
        search = IteRand(make_ticket(model, self.seed, self.init), self.k_per, self.r)
        optimizer = search.optimizer(lr=0.1, weight_decay=5e-4)
        data = Batches(train, self.seed)
        fit(model, data, loss, 60, optimizer, search=search, progress=False)
        return accuracy(search.ticket.materialize(), test)


@dataclass(frozen=True)
class Freezing:
    """One search of a partially frozen network on digits."""

    p: float
    r: float
    sparsity: float
    seed: int

    def run(self) -> tuple[float, float]:
        """Accuracy, and how many times smaller than a mask of all weights."""
        train, test = digits()
        model = mlp(64, 64, 64, 10)
        ticket = make_ticket(
            model,
            self.seed,
            mask_rule=TopK(self.sparsity, scope="global"),
            frozen=Freeze(self.p, self.r) if self.p or self.r else None,
            scores="kaiming_normal",
        )
        search = EdgePopup(ticket)
        optimizer = search.optimizer(lr=0.1, weight_decay=1e-4)
        data = Batches(train, self.seed)
        fit(model, data, loss, 40, optimizer, search=search, progress=False)
        return accuracy(ticket.materialize(), test), ticket.bits().compression


@dataclass(frozen=True)
class FewShot:
    """One meta-learner, 5 ways and 5 shots; the classes are digits in 8 symmetries."""

    learner: str
    steps: int
    seed: int
    lr: float = 1e-3
    tests: int = 500

    def run(self) -> tuple[float, float, float]:
        """Accuracy over tasks of the training classes and of the others; share pruned."""
        x, y = turned_digits()
        torch.manual_seed(self.seed)
        model = mlp(64, 256, 128, 5, bias=True)
        learner: Any
        if self.learner == "Meta-ticket":
            learner = MetaTicket(model, head="4", seed=self.seed)
            optimizer: torch.optim.Optimizer = learner.optimizer(lr=self.lr)
        else:
            made = {
                "MAML": lambda: MAML(model),
                "ANIL": lambda: ANIL(model, "4"),
                "BOIL": lambda: BOIL(model, "4"),
            }
            learner = made[self.learner]()
            optimizer = torch.optim.AdamW(learner.parameters(), lr=self.lr)
        if self.steps:
            data = EpisodeSampler(x, y, classes=META_TRAIN, batches=self.steps, seed=self.seed)
            schedule = warm_up_cosine(optimizer, self.steps, 100)
            fit(
                learner, data, lambda m, batch: m(batch), 1, optimizer, schedule,
                per_step=True, progress=False,
            )  # fmt: skip
        right = []
        for classes in (META_TRAIN, META_TEST):
            tasks = EpisodeSampler(x, y, classes=classes, tasks=100, seed=1000)
            parts = [learner.accuracy(tasks.draw()) for _ in range(self.tests // 100)]
            right.append(100 * torch.cat(parts).mean().item())
        sparsity = learner.ticket.sparsity if self.learner == "Meta-ticket" else 0.0
        return right[0], right[1], sparsity


def _run(job: Any) -> Any:
    torch.set_num_threads(1)
    return job.run()


def run_all(jobs: list[Any], done: Callable[[], Any] | None = None) -> list[Any]:
    """The results of independent runs, two at a time.

    Args:
        done: called after each.
    """
    results = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for result in pool.map(_run, jobs):
            results.append(result)
            if done is not None:
                done()
    return results


def spread(values: list[float]) -> str:
    """mean±std."""
    return f"{mean(values):.1f}±{stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
