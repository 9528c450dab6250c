"""Weight symmetry: functions kept, orders found, and what merging and transfer gain by them.

Function: all groups of each network reordered at random, the largest difference of an output
relative to the largest output. Planted: a copy with its units in another order, and all orders
found again. Matching: CPU time and objective against the published coordinate descent on the same
weights, in the same order of visits; rebasin where it is installed. Merging, width, transfer:
scikit-learn's digits, settings of `symmetry_digits`. Language: two GPT-2s on stories as bytes.

--quick: one seed of merging and width, two of transfer, smaller networks for matching. Otherwise
three, with weight decay 3e-3 and networks of the published sizes besides.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_least,
    at_most,
    exactly,
    interleaved,
    median_ratio,
    report,
)
from evals.benchmarks.symmetry_digits import Carrying, ConvMerging, Merging, Width, trained
from evals.benchmarks.symmetry_language import Languages
from evals.benchmarks.symmetry_models import (
    Attention,
    GroupedCNN,
    Residual,
    TiedLM,
    ids,
    images,
    shake,
    zoo,
)
from evals.benchmarks.symmetry_peers import coordinate_descent, rebasin
from evals.benchmarks.tickets_digits import digits, mlp, run_all, spread
from infer_kit.training.symmetry import LinearTrajectory, Transfer, discover, interpolate, match

Rows = list[dict[str, Any]]
WIDTHS = (32, 128, 512)
PAIRS = ("0 / 90 degrees", "0-4 / 5-9")


@dataclass(frozen=True)
class Runs:
    """What is trained, two at a time: seeds, settings, and what came out of each."""

    quick: bool

    @property
    def seeds(self) -> range:
        return range(1 if self.quick else 3)

    @property
    def epochs(self) -> int:
        return 60 if self.quick else 300

    @property
    def decays(self) -> tuple[float, ...]:
        return (1e-4,) if self.quick else (1e-4, 3e-3)

    @property
    def hidden(self) -> tuple[int, ...]:
        return (512,) if self.quick else (128, 512)

    @property
    def starts(self) -> range:
        return range(2 if self.quick else 4)

    @property
    def language(self) -> Languages:
        return Languages(250, 60, 48) if self.quick else Languages(1500, 300, 96)

    @cached_property
    def found(self) -> dict[Any, Any]:
        jobs: list[Any] = [self.language]
        jobs += [Width(d, w, s, self.epochs) for w in WIDTHS[::-1] for d in self.decays
                 for s in self.seeds]  # fmt: skip
        jobs += [Merging(pair, seed) for pair in PAIRS for seed in self.seeds]
        if not self.quick:
            jobs += [ConvMerging(pair, seed) for pair in PAIRS for seed in self.seeds]
        jobs += [Carrying(w, seed) for w in self.hidden for seed in self.starts]
        return dict(zip(jobs, run_all(jobs), strict=True))


def functions(runs: Runs) -> tuple[list[Claim], Rows]:
    """Every group of every network reordered."""
    rows: Rows = []
    for name, (model, x) in zoo().items():
        start = process_time()
        spec = discover(model, x)
        seconds = process_time() - start
        error = max(spec.check(model, x, tol=1.0, seed=s) for s in range(1 if runs.quick else 3))
        sizes = {n: t.numel() for n, t in model.state_dict().items()}
        moving = sum(sizes[n] for n, a in spec.axes.items() if any(g for p in a for g, _ in p))
        rows.append(
            {"network": name, "groups": len(spec.groups), "entries reached": moving /
             sum(sizes.values()), "error": error, "seconds": seconds}
        )  # fmt: skip
    worst = max(row["error"] for row in rows)
    return [at_most("function_error_worst_fp32", worst, 1e-5)], rows


def planted(runs: Runs) -> tuple[list[Claim], Rows]:
    """Orders found again, from the signature start."""
    cases = {
        "residual MLP, 4 blocks": (lambda: (Residual(4, 64, 64), torch.randn(2, 6)), 20, 0.0),
        "the same, 10 % noise": (lambda: (Residual(4, 64, 64), torch.randn(2, 6)), 20, 0.1),
        "unanchored, 30/50": (lambda: (Residual(3, 30, 50, False), torch.randn(2, 6)), 30, 0.0),
        "attention": (lambda: (Attention(32), torch.randn(2, 5, 6)), 20, 0.0),
        "tied LM": (lambda: (TiedLM(), ids()), 20, 0.0),
        "encoder layer": (
            lambda: (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
                     torch.randn(2, 5, 32)), 20, 0.0,
        ),
        "grouped CNN": (lambda: (GroupedCNN(), images()), 20, 0.0),
    }  # fmt: skip
    rows: Rows = []
    for name, (make, seeds, noise) in cases.items():
        torch.manual_seed(0)
        spec = discover(*make())
        row: dict[str, Any] = {"network": name}
        for start in ("identity", "signature"):
            found = 0
            for seed in range(seeds):
                torch.manual_seed(seed)
                model = make()[0]
                shake(model)
                a = {n: t.clone() for n, t in model.state_dict().items()}
                order = spec.random(100 + seed)
                b = spec.apply(order, a)
                b = {n: t + noise * t.std() * torch.randn_like(t) for n, t in b.items()}
                perms, undone = match(spec, a, b, start=start).perms, spec.inverse(order)
                found += all(torch.equal(perms[g], undone[g]) for g in spec.groups)
            row[start] = f"{found}/{seeds}"
            missed = seeds - found
        rows.append(row | {"missed": missed})
    return [exactly("planted_orders_missed", sum(r["missed"] for r in rows), 0)], rows


def _conv8(width: int) -> nn.Module:
    """Eight 3 x 3 convolutions, three layers."""
    sizes = [3, 1, 1, 2, 2, 4, 4, 8, 8]
    layers: list[nn.Module] = []
    for i, (come, go) in enumerate(pairwise(sizes)):
        come = 3 if i == 0 else come * width
        layers += [nn.Conv2d(come, go * width, 3, padding=1), nn.ReLU()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for come, go in ((8 * width, 4 * width), (4 * width, 4 * width)):
        layers += [nn.Linear(come, go), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4 * width, 10))


def matching(runs: Runs) -> tuple[list[Claim], Rows]:
    """Objective and time against the published coordinate descent, from the same start."""
    train = digits()[0]
    net = (
        mlp(64, 256, 256, 256, 10, bias=True)
        if runs.quick
        else mlp(64, 512, 512, 512, 10, bias=True)
    )
    states = [trained(net, train, seed, 10, 0.1)[1] for seed in (0, 1)]
    pairs: list[tuple[str, nn.Module, torch.Tensor, list[dict[str, torch.Tensor]]]] = [
        (f"MLP 3 x {256 if runs.quick else 512}, trained", net, train[0][:2], states)
    ]
    for width in (32,) if runs.quick else (16, 64):
        conv = _conv8(width)
        states = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            states.append({n: t.clone() for n, t in _conv8(width).state_dict().items()})
        pairs.append((f"Conv8, {width} to {8 * width} channels", conv, images(32), states))
    rows: Rows = []
    for name, model, x, (a, b) in pairs:
        spec = discover(model, x)
        ours = match(spec, a, b, start="identity").objective
        theirs = match(spec, a, b, start=coordinate_descent(spec, a, b), sweeps=0).objective
        sides: dict[str, Callable[[], Any]] = {
            "ours": partial(match, spec, a, b, start="identity"),
            "default": partial(match, spec, a, b),
            "published": partial(coordinate_descent, spec, a, b),
        }
        times = interleaved(sides, 3 if runs.quick else 7)
        rows.append(
            {"network": name, "J": ours, "J/published": ours / theirs,
             "time/published": median_ratio(times, "ours", "published"),
             "both starts/published": median_ratio(times, "default", "published"),
             "J of both/published": match(spec, a, b).objective / theirs,
             "ms": 1e3 * min(times["ours"])}
        )  # fmt: skip
    return [
        at_least("objective_to_published_worst", min(r["J/published"] for r in rows), 1 - 1e-6),
        at_most("conv8_time_to_published_same_start", rows[-1]["time/published"], 0.5),
    ], rows


def against_rebasin(runs: Runs) -> tuple[list[Claim], Rows]:
    """Squared distance, and the error of b's function after it was reordered."""
    rows: Rows = []
    cases: dict[str, Any] = {
        "MLP": lambda: (mlp(6, 64, 64, 5, bias=True), torch.randn(2, 6)),
        "grouped CNN": lambda: (GroupedCNN(), images()),
        "attention": lambda: (Attention(), torch.randn(2, 5, 6)),
    }
    try:
        from torchvision.models import resnet18

        if not runs.quick:
            cases["torchvision ResNet18"] = lambda: (resnet18(), images(64))
    except (ImportError, RuntimeError):
        pass
    for name, make in cases.items():
        torch.manual_seed(0)
        (model, x), (other, _) = make(), make()
        model.eval(), other.eval()
        spec = discover(model, x)
        a, b = model.state_dict(), other.state_dict()
        start = process_time()
        try:
            theirs = rebasin(model, other, x)
        except Exception as error:
            rows.append({"network": name, "rebasin": f"{type(error).__name__}: {error}"[:60]})
            continue
        if theirs is None:
            return [], [{"network": "not measured: rebasin is not installed"}]
        seconds = process_time() - start
        start = process_time()
        found = match(discover(model, x), a, b)
        own = process_time() - start

        def distance(state: Any) -> float:
            return sum(float((a[n] - state[n]).square().sum()) for n in spec.weights)  # noqa: B023

        def broken(state: Any) -> float:
            with torch.no_grad():
                y = other(x)  # noqa: B023
                z = torch.func.functional_call(other, state, (x,))  # noqa: B023
            return float((y - z).abs().max() / y.abs().max())

        rows.append(
            {"network": name, "rebasin": distance(theirs), "its error": broken(theirs),
             "its seconds": seconds, "ours": found.distance,
             "our error": broken(spec.apply(found.perms, b)), "seconds": own}
        )  # fmt: skip
    ratios = [r["ours"] / r["rebasin"] for r in rows if r.get("its error", 1.0) < 1e-4]
    return [at_most("distance_to_rebasin_worst", max(ratios), 1.005)] if ratios else [], rows


def merging(runs: Runs) -> tuple[list[Claim], Rows]:
    """Networks of different data."""
    found, seeds = runs.found, runs.seeds
    rows: Rows = []
    for pair in PAIRS:
        results = [found[Merging(pair, seed)] for seed in seeds]
        for name in results[0]:
            rows.append({"pair": pair, "way": name, "acc": spread([r[name] for r in results])})
    for pair in () if runs.quick else PAIRS:
        results = [found[ConvMerging(pair, seed)] for seed in seeds]
        for name in results[0]:
            ways = spread([r[name] for r in results])
            rows.append({"pair": f"{pair}, CNN", "way": name, "acc": ways})
    turned = [found[Merging(PAIRS[0], seed)] for seed in seeds]

    def gain(way: str, other: str) -> float:
        return mean(result[way] - result[other] for result in turned)

    return [
        at_least("ste_points_over_matching", gain("STE full", "matching"), 25),
        at_least("ste_random_coreset_to_full", gain("STE random 20/class", "STE full"), -8),
        at_least("ste_herding_coreset_to_full", gain("STE herding 20/class", "STE full"), -8),
    ], rows


def width(runs: Runs) -> tuple[list[Claim], Rows]:
    """The midpoint of two networks, by width and weight decay."""
    rows: Rows = []
    means: dict[tuple[float, int], dict[str, float]] = {}
    for decay in runs.decays:
        for w in WIDTHS:
            results = [runs.found[Width(decay, w, seed, runs.epochs)] for seed in runs.seeds]
            means[decay, w] = {name: mean(r[name] for r in results) for name in results[0]}
            rows.append({"decay": decay, "width": w} | means[decay, w])
    narrow, middle, wide = (means[1e-4, w] for w in WIDTHS)
    return [
        at_least("midpoint_points_128_over_32", middle["naive"] - narrow["naive"], 0),
        at_least("midpoint_points_512_over_128", wide["naive"] - middle["naive"], 0),
        at_most("calibrated_barrier_512", wide["calibrated barrier"], 0.2),
        at_most("lewc_layer_1_off_1", max(abs(1 - m["lewc 1"]) for m in means.values()), 1e-6),
    ], rows


def transfer(runs: Runs) -> tuple[list[Claim], Rows]:
    """A training run carried over, and to its own start."""
    found, seeds = runs.found, runs.starts
    rows: Rows = []
    last: dict[str, float] = {}
    for w in runs.hidden:
        for way in found[Carrying(w, 0)]:
            curves = [found[Carrying(w, seed)][way] for seed in seeds]
            at = {t: mean(curve[t] for curve in curves) for t in (1, 4, 10)}
            rows.append({"hidden": w, "way": way} | {f"step {t}": v for t, v in at.items()})
            last[way] = at[10]  # of the last width, 512
    train = digits()[0]
    model = mlp(64, 128, 10, bias=True)
    start, end = trained(model, train, 0, 20, 0.05)
    spec = discover(model, train[0][:2])
    same = Transfer(model, spec, LinearTrajectory(start, end, 5), start, progress=False)
    theta = same.fgmt([(train[0][:128], train[1][:128])]).thetas[5]
    off = max(float((theta[n] - end[n]).abs().max()) for n in end)
    return [
        at_least("fgmt_points_over_naive_512", last["FGMT"] - last["naive"], 20),
        at_least("fgmt_points_over_oracle_512", last["FGMT"] - last["oracle"], -4),
        at_most("transfer_to_the_same_start_off", off, 1e-6),
    ], rows


def identity() -> list[Claim]:
    """A network merged with itself, and with a copy of it in another order."""
    worst = 0.0
    for model, x in zoo().values():
        if sum(p.numel() for p in model.parameters()) > 30e6:
            continue  # minutes each
        spec = discover(model, x)
        state = {n: t.clone() for n, t in model.state_dict().items()}
        copy = spec.apply(spec.random(0), state)
        moved = spec.apply(match(spec, state, copy, start="signature").perms, copy)
        middle = interpolate(state, moved, 0.5)
        same = match(spec, state, state).perms
        if not all(torch.equal(same[g], torch.arange(n)) for g, n in spec.groups.items()):
            worst = 1.0
        worst = max(worst, *(float((middle[n] - t).abs().max()) for n, t in state.items()))
    return [at_most("identity_pairs_off", worst, 1e-6)]


def language(runs: Runs) -> tuple[list[Claim], Rows]:
    """Perplexity on the line between two language models."""
    curves, groups = runs.found[runs.language]
    rows: Rows = [
        {"pair": name}
        | {f"l {at:.2f}": p for at, p in zip(c.lambdas, c.perplexity, strict=True)}
        | {"barrier": c.barrier}
        for name, c in curves.items()
    ]
    rows[0]["pair"] += f" ({len(groups)} groups in attention)"
    by = {name: curve.barrier for name, curve in curves.items()}
    return [
        at_most(
            "lm_barrier_matched_to_unmatched",
            by["two starts, matched by activations"] / by["two starts, as they are"],
            1,
        ),
        at_most("lm_barrier_one_start_matched", by["one start, shuffled, matched by weights"], 0.1),
    ], rows


def main() -> None:
    given = arguments(__doc__ or "")
    warnings.filterwarnings("ignore", message="log beta")
    torch.set_num_threads(1)
    claims: list[Claim] = []
    tables: dict[str, Rows] = {}
    parts = {
        "Functions under every traced group": functions,
        "Planted orders": planted,
        "Matching against the published coordinate descent": matching,
        "Matching against rebasin": against_rebasin,
        "Merging networks of different data (digits)": merging,
        "Width: the midpoint of two networks (digits)": width,
        "Transfer of a training run (digits)": transfer,
        "Two language models: perplexity on the line": language,
    }
    runs = Runs(given.quick)
    with tqdm(parts.items(), desc="parts") as bar:
        for title, part in bar:
            bar.set_postfix_str(title)
            made, tables[title] = part(runs)
            claims += made
    claims += identity()
    rows = [{"part": title} | row for title, part_rows in tables.items() for row in part_rows]
    report("symmetry", claims, rows, given.json, tables)


if __name__ == "__main__":
    main()
