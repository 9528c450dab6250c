"""Merging, width and transfer on scikit-learn's digits: what `symmetry` measures of accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evals.benchmarks.tickets_digits import Batches, Split, digits, mlp
from infer_kit.training.symmetry import (
    LinearTrajectory,
    Transfer,
    barrier,
    condense,
    coreset_herding,
    coreset_random,
    discover,
    effective_rank,
    evaluate,
    fit,
    interpolate,
    lewc,
    match,
    ste_match,
)

State = dict[str, Tensor]


def trained(
    model: nn.Module,
    data: Split,
    seed: int,
    epochs: int,
    lr: float,
    decay: float = 0.0,
    size: int = 128,
) -> tuple[State, State]:
    """States before and after training from a seed."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = fit(
        model, before, Batches(data, seed, size), epochs, lr, weight_decay=decay, progress=False
    ).state
    return before, after


def right(model: nn.Module, state: State, *splits: Split) -> float:
    """Mean accuracy over some test sets, in percent."""
    return 100 * sum(evaluate(model, state, [split])[1] for split in splits) / len(splits)


@dataclass(frozen=True)
class Merging:
    """Two networks of different data, merged in several ways, and the controls."""

    pair: str
    seed: int

    def run(self) -> dict[str, float]:
        (train_a, test_a), (train_b, test_b) = _splits(self.pair)
        model = mlp(64, 128, 128, 128, 10, bias=True)
        spec = discover(model, train_a[0][:2])
        epochs = 30
        a = trained(model, train_a, self.seed, epochs, 0.1)[1]
        b = trained(model, train_b, 100 + self.seed, epochs, 0.1)[1]
        both = (torch.cat([train_a[0], train_b[0]]), torch.cat([train_a[1], train_b[1]]))
        # Both sets in one: a class of each set counts as one of its own in the draw.
        marked = both[1] + 10 * (torch.arange(len(both[1])) >= len(train_a[1]))
        few = coreset_random(marked, 20, self.seed)
        herd = coreset_herding(both[0], marked, 20)
        tests = (test_a, test_b)
        rows = {"A alone": right(model, a, *tests), "naive": self._best(model, a, b, tests)}
        matched = spec.apply(match(spec, a, b).perms, b)
        rows["matching"] = self._best(model, a, matched, tests)
        rows["ensemble"] = _ensemble(model, a, b, tests)
        made, labels = condense(
            lambda: mlp(64, 128, 20, bias=True), both[0], marked, 5, outer=20, inner=5,
            net_steps=10, seed=self.seed, progress=False,
        )  # fmt: skip
        data = {
            "full": (both, 15, 250),
            "random 20/class": ((both[0][few], both[1][few]), 60, 100),
            "herding 20/class": ((both[0][herd], both[1][herd]), 60, 100),
            "condensed 5/class": ((made, labels % 10), 60, 50),
        }
        for name, (split, rounds, size) in data.items():
            found = ste_match(
                model, spec, a, b, Batches(split, 7, size), rounds, lr=0.1, judge=[split],
                progress=False,
            )  # fmt: skip
            moved = spec.apply(found.perms, b)
            rows[f"STE {name}"] = self._best(model, a, moved, tests)
            alone = trained(model, split, 200 + self.seed, epochs, 0.1)[1]
            rows[f"trained on {name} alone"] = right(model, alone, *tests)
        return rows

    def _best(self, model: nn.Module, a: State, b: State, tests: Sequence[Split]) -> float:
        """Best of 25 points on the line, as published."""
        points = [i / 24 for i in range(25)]
        return max(right(model, interpolate(a, b, at), *tests) for at in points)


@dataclass(frozen=True)
class ConvMerging(Merging):
    """The same with three convolutions, at the midpoint."""

    def run(self) -> dict[str, float]:
        (train_a, test_a), (train_b, test_b) = _splits(self.pair)
        model = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        spec = discover(model, train_a[0][:2])
        a = trained(model, train_a, self.seed, 60, 0.1, size=64)[1]
        b = trained(model, train_b, 100 + self.seed, 60, 0.1, size=64)[1]
        both = (torch.cat([train_a[0], train_b[0]]), torch.cat([train_a[1], train_b[1]]))
        marked = both[1] + 10 * (torch.arange(len(both[1])) >= len(train_a[1]))
        few = coreset_random(marked, 20, self.seed)
        small = both[0][few], both[1][few]
        matched = match(spec, a, b).perms
        found = ste_match(
            model, spec, a, b, Batches(both, 7, 128), 10, lr=0.1, judge=[small], progress=False
        ).perms
        alone = trained(model, small, 200 + self.seed, 120, 0.05, size=64)[1]
        tests = (test_a, test_b)

        def middle(other: State) -> float:
            return right(model, interpolate(a, other, 0.5), *tests)

        return {
            "each on its own": (right(model, a, test_a) + right(model, b, test_b)) / 2,
            "naive": middle(b),
            "matching": middle(spec.apply(matched, b)),
            "STE full": middle(spec.apply(found, b)),
            "trained on random 20/class alone": right(model, alone, *tests),
        }


def _splits(pair: str) -> tuple[tuple[Split, Split], tuple[Split, Split]]:
    train, test = digits()
    if pair == "0 / 90 degrees":

        def turned(split: Split) -> Split:
            return torch.rot90(split[0].view(-1, 8, 8), 1, (1, 2)).flatten(1), split[1]

        return (train, test), (turned(train), turned(test))

    def part(split: Split, low: bool) -> Split:
        keep = (split[1] < 5) == low
        return split[0][keep], split[1][keep]

    return (part(train, True), part(test, True)), (part(train, False), part(test, False))


def _ensemble(model: nn.Module, a: State, b: State, tests: Sequence[Split]) -> float:
    total = 0.0
    with torch.no_grad():
        for x, y in tests:
            mean = sum(torch.func.functional_call(model, s, (x,)).softmax(-1) for s in (a, b))
            total += float((mean.argmax(1) == y).float().mean())
    return 100 * total / len(tests)


@dataclass(frozen=True)
class Width:
    """Two bias-free networks of one data set and the line between them."""

    decay: float
    width: int
    seed: int
    epochs: int

    def run(self) -> dict[str, float]:
        train, test = digits()
        held, test = (test[0][:200], test[1][:200]), (test[0][200:], test[1][200:])
        model = mlp(64, self.width, self.width, self.width, 10)
        spec = discover(model, train[0][:2])
        a, b = (
            trained(model, train, seed, self.epochs, 0.1, self.decay)[1]
            for seed in (self.seed, self.seed + 100)
        )
        curve = barrier(model, a, b, [test], steps=11, calibrate_on=[held], progress=False)
        matched = spec.apply(match(spec, a, b).perms, b)
        shuffled = spec.apply(spec.random(0), b)
        middle = curve.midpoint
        layers = lewc(model, a, b, test[0])
        return {
            "ends": 50 * (curve.accuracy[0] + curve.accuracy[-1]),
            "naive": 100 * curve.accuracy[middle],
            "random": right(model, interpolate(a, shuffled, 0.5), test),
            "matched": right(model, interpolate(a, matched, 0.5), test),
            "barrier": curve.barrier,
            "calibrated barrier": curve.calibrated_barrier,
            "beta": curve.beta[middle] if curve.beta else 0.0,
            "rank": effective_rank(a["2.weight"]),
            "lewc 1": layers[0].cosine,
            "lewc last": layers[-1].cosine,
        }


@dataclass(frozen=True)
class Carrying:
    """One source, one target, and the ways to carry the training over."""

    width: int
    seed: int

    def run(self) -> dict[str, tuple[float, ...]]:
        train, test = digits()
        model = mlp(64, self.width, 10, bias=True)
        spec = discover(model, train[0][:2])
        start, end = trained(model, train, self.seed, 40, 0.05)
        target, own = trained(model, train, 100 + self.seed, 40, 0.05)
        carry = Transfer(
            model, spec, LinearTrajectory(start, end, 10), target, judge=[test], progress=False
        )
        found = {
            "naive": carry.naive(),
            "random": carry.random(self.seed),
            "oracle": carry.oracle(own),
            "GMT": carry.gmt(Batches(train, 300 + self.seed, 128)),
            "FGMT": carry.fgmt(Batches(train, 300 + self.seed, 128)),
        }
        return {name: tuple(100 * value for value in r.curve) for name, r in found.items()}
