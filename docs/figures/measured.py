"""Figures of what was measured: networks trained on scikit-learn's digits, the figures printed.

python docs/figures/measured.py                 # writes docs/figures/*_measured.png
python docs/figures/measured.py symmetry        # only this

`tickets` takes a minute and a half, `symmetry` and `representation` twenty seconds.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks import representation_clip, tickets_digits
from evals.benchmarks.symmetry_digits import trained
from evals.benchmarks.tickets_digits import Batches, digits, mlp
from infer_kit.canvas import canvas, saved
from infer_kit.training.representation import modality_figure
from infer_kit.training.symmetry import (
    LinearTrajectory,
    Transfer,
    activation_match,
    barrier,
    discover,
    match,
)
from infer_kit.training.tickets import Freeze, IteRand, TopK, fit, make_ticket

HERE = Path(__file__).resolve().parent
SEEDS = range(4)


def symmetry() -> None:
    """Barriers by width, and transfer step by step, on digits; prints what it draws."""

    widths = (16, 32, 64, 128, 256)
    barriers: dict[str, list[tuple[float, ...]]] = {}
    for width in widths:
        runs = [_barriers(width, seed) for seed in SEEDS]
        for name in runs[0]:
            barriers.setdefault(name, []).append(tuple(run[name] for run in runs))
    runs = [_transfers(512, seed) for seed in SEEDS]
    carried = {name: [*zip(*(run[name] for run in runs), strict=True)] for name in runs[0]}
    figure, (left, right) = canvas(9.6, 3.7, columns=2)
    colours = ("#7b8794", "#b08900", "#0b7285", "#2f9e44", "#c2410c")
    for axes, found, x in ((left, barriers, widths), (right, carried, range(11))):
        for colour, (name, values) in zip(colours, found.items(), strict=False):
            means = [statistics.mean(v) for v in values]
            sds = [statistics.stdev(v) for v in values]
            shown = zip(x, means, sds, strict=True)
            print(name, *(f"{at}: {mean:.3g} ± {sd:.2g}" for at, mean, sd in shown))
            style = {"marker": "o", "markersize": 3.5, "linewidth": 1.3, "capsize": 2}
            axes.errorbar(x, means, sds, color=colour, label=name, **style)
        axes.tick_params(labelsize=7.5)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=6.8)
    left.set_xscale("log", base=2)
    left.set_xticks(widths, [str(width) for width in widths])
    left.set_xlabel("width of the two hidden layers", fontsize=8)
    left.set_ylabel("barrier on 300 test digits, nats", fontsize=8)
    right.set_xlabel("step t of the transfer", fontsize=8)
    right.set_ylabel("accuracy on 500 test digits, %", fontsize=8)
    print("wrote", saved(figure, HERE / "symmetry_measured.png"))


def _barriers(width: int, seed: int) -> dict[str, float]:
    """Between two networks that were trained from different seeds."""

    train, (x, y) = digits()
    held, judge = [(x[:200], y[:200])], [(x[200:], y[200:])]
    model = mlp(64, width, width, 10, bias=True)
    a, b = (trained(model, train, s, 20, 0.05, size=64)[1] for s in (seed, seed + 100))
    spec = discover(model, x[:2])
    by_weights = match(spec, a, b).perms
    by_what_they_do = activation_match(model, spec, a, b, [train]).perms
    found = {}
    for name, perms in (
        ("no permutation", spec.identity()),
        ("matched by weights", by_weights),
        ("matched by activations", by_what_they_do),
    ):
        moved = spec.apply(perms, b)
        curve = barrier(model, a, moved, judge, steps=11, calibrate_on=held, progress=False)
        found[name] = curve.barrier
        if name == "no permutation":
            found[f"{name}, calibrated"] = curve.calibrated_barrier
    return found


def _transfers(width: int, seed: int) -> dict[str, list[float]]:
    """Accuracy in percent at each of ten steps."""

    train, test = digits()
    model = mlp(64, width, 10, bias=True)
    first, last = trained(model, train, seed, 20, 0.05, size=64)
    target, own = trained(model, train, seed + 100, 20, 0.05, size=64)
    spec = discover(model, train[0][:2])
    line = LinearTrajectory(first, last, 10)
    carry = Transfer(model, spec, line, target, judge=[test], progress=False)
    found = {
        "as they are (naive)": carry.naive(),
        "random order": carry.random(seed),
        "the target's own training (oracle)": carry.oracle(own),
        "GMT": carry.gmt(Batches(train, seed + 300)),
        "FGMT": carry.fgmt(Batches(train, seed + 300)),
    }
    return {name: [100 * value for value in result.curve] for name, result in found.items()}


def tickets() -> None:
    """Accuracy on digits against width and against bits; prints what it draws."""

    widths = (8, 16, 32, 64, 128)
    rule = TopK(0.5)
    searched = {
        "edge-popup": [_digits(h, rule) for h in widths],
        "IteRand, r 0.1, every 30 steps": [_digits(h, rule, r=0.1) for h in widths],
        "IteRand, r 1, every 100 steps": [_digits(h, rule, r=1.0, k_per=100) for h in widths],
    }
    dense = {h: _digits(h) for h in (1, 2, 4, *widths)}
    shares = (0.0, 0.5, 0.7, 0.9)
    frozen = {
        "width 64, frozen, half locked": [
            _digits(64, TopK(0.5, "global"), Freeze(f / 2, f / 2)) for f in shares
        ],
        "width 64, frozen, all pruned": [
            _digits(64, TopK((1 + f) / 2, "global"), Freeze(f)) for f in shares
        ],
    }
    figure, (left, right) = canvas(9.6, 3.7, columns=2)
    colours = ("#7b8794", "#0b7285", "#2f9e44", "#c2410c", "#5f3dc4", "#b08900")

    def line(axes: Any, name: str, found: Sequence[Measured], x: Sequence[float], n: int) -> None:
        print(name, *(f"{at:g}: {f.mean:.1f} ± {f.sd:.1f}" for at, f in zip(x, found, strict=True)))
        means, sds = [f.mean for f in found], [f.sd for f in found]
        style = {"marker": "o", "markersize": 3.5, "linewidth": 1.3, "capsize": 2}
        axes.errorbar(x, means, sds, color=colours[n], label=name, **style)

    for n, (name, found) in enumerate(searched.items()):
        line(left, name, found, widths, n)
        line(right, name, found, [f.bits for f in found], n) if n < 2 else None
    for n, (name, found) in enumerate(frozen.items()):
        line(right, name, found, [f.bits for f in found], 3 + n)
    line(left, "trained weights", [dense[h] for h in widths], widths, 5)
    small = [dense[h] for h in dense if h <= 8]
    line(right, "trained weights, float32", small, [f.bits for f in small], 5)
    for axes, said in (
        (left, "width of the two hidden layers"),
        (right, "bits on disk, header not in"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(said, fontsize=8)
        axes.set_ylim(20, 100)
        axes.tick_params(labelsize=7.5)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=6.8, loc="lower right")
    left.set_xticks(widths, [str(h) for h in widths])
    left.set_ylabel("accuracy on 500 test digits, %", fontsize=8)
    print("wrote", saved(figure, HERE / "tickets_measured.png"))


@dataclass(frozen=True)
class Measured:
    """Accuracy in percent over the seeds, and the bits of masks and generations, or of floats."""

    mean: float
    sd: float
    bits: int


def _digits(
    width: int, rule: Any = None, frozen: Any = None, r: float = 0.0, k_per: int = 30
) -> Measured:
    """An MLP of 64-width-width-10 on scikit-learn's digits; no rule: its weights are trained."""

    train, test = digits()
    accuracies, bits = [], 0
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = mlp(64, width, width, 10)
        search = None
        if rule is None:
            bits = 32 * sum(p.numel() for p in model.parameters())
            optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
        else:
            search = IteRand(make_ticket(model, seed, mask_rule=rule, frozen=frozen), k_per, r)
            optimizer = search.optimizer(lr=0.1, weight_decay=5e-4)
        fit(
            model,
            Batches(train, seed),
            tickets_digits.loss,
            epochs=60,
            optimizer=optimizer,
            search=search,
            progress=False,
        )
        accuracies.append(tickets_digits.accuracy(model, test))
        if search is not None:
            size = search.ticket.bits()
            bits = size.mask_bits + (size.generation_bits if r else 0)
    return Measured(statistics.mean(accuracies), statistics.stdev(accuracies), bits)


def representation() -> None:
    """Features of pictures and captions, by way of refining."""

    shown = ("start", "contrastive", "HyCD + align", "CLIP-Refine")
    found = {
        way: representation_clip.features(representation_clip.refined(way, 0)) for way in shown
    }
    figure = modality_figure(found)
    print("wrote", saved(figure, HERE / "representation_measured.png"))


FIGURES = {"tickets": tickets, "symmetry": symmetry, "representation": representation}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()


if __name__ == "__main__":
    sys.exit(main())
