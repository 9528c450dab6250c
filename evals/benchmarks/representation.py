"""Representation methods on small pictures: what each gives, beside its controls.

CLIP-Refine: the project's tiny CLIP, refined on a half of its places; Z-CBM on what comes out.
AdaRand: letters to ten digits a class. MGR: samples of a generator trained on 20 digits a class.
Pseudo pre-training and P-SSL: three sources for five labels a class. The settings are those of the
`representation_` modules. Accuracies are in percent, ± the standard deviation over seeds; claims
are of paired differences.

Five seeds of AdaRand, four of MGR and of pseudo pre-training, three of CLIP-Refine. --quick: one
task of pseudo pre-training, and the ways that claims are of, with fewer seeds where one tells.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks import (
    representation_adarand,
    representation_clip,
    representation_mgr,
    representation_pseudo,
)
from evals.benchmarks.measuring import Claim, arguments, at_least, at_most, report
from evals.benchmarks.representation_adarand import SCALES, FineTuning, UpdateTime
from evals.benchmarks.representation_clip import Bottleneck, Refining
from evals.benchmarks.representation_mgr import Generative, Hypergradients
from evals.benchmarks.representation_pseudo import Pseudo, Related
from evals.benchmarks.tickets_digits import run_all, spread

Rows = list[dict[str, Any]]
PLAIN, COARSE = "fine-tuning", "5 coarse to 10 digits"


@dataclass(frozen=True)
class Runs:
    """What is run, two at a time, and what came out."""

    quick: bool

    def seeds(self, part: str, way: str = "") -> range:
        """With --quick one of most ways, and more of those whose gain is as small as its spread."""
        if not self.quick:
            return range({"clip": 3, "adarand": 5, "mgr": 4, "pseudo": 4}[part])
        claimed = dict.fromkeys((PLAIN, "AdaRand paper", "AdaRand code"), 5)
        claimed |= dict.fromkeys(("scratch", "PP", "real source"), 3)
        return range(claimed.get(way, 1))

    @property
    def refinings(self) -> list[str]:
        left_out = ("HyCD", "self-distillation", "CLIP-Refine, scaled cosine", "z per modality")
        return [w for w in representation_clip.WAYS if not (self.quick and w in left_out)]

    @property
    def bottlenecks(self) -> tuple[str, ...]:
        return ("start", "CLIP-Refine") if self.quick else ("start", "contrastive", "CLIP-Refine")

    def bottleneck(self, way: str) -> Bottleneck:
        return Bottleneck(way, 0, pictures=50 if self.quick else 200)

    @property
    def generated(self) -> list[str]:
        return [
            w
            for w in representation_mgr.WAYS
            if not (self.quick and w == "PCR + MPS, 20 more labels a class")
        ]

    @property
    def scales(self) -> list[str]:
        return ["lam 1 sum"] if self.quick else list(SCALES)

    @property
    def tasks(self) -> list[str]:
        return [COARSE] if self.quick else list(representation_pseudo.TASKS)

    @property
    def pseudo_ways(self) -> list[str]:
        quick = ("scratch", "PP", "PP + P-SSL", "real source")
        return [w for w in representation_pseudo.WAYS if not self.quick or w in quick]

    @cached_property
    def found(self) -> dict[Any, Any]:
        jobs: list[Any] = [
            Generative(way, seed) for seed in self.seeds("mgr") for way in self.generated[::-1]
        ]
        jobs += [
            Pseudo(task, way, seed)
            for task in self.tasks
            for way in self.pseudo_ways[::-1]
            for seed in self.seeds("pseudo", way)
        ]
        jobs += [Related(task, 0) for task in self.tasks]
        jobs += [self.bottleneck(way) for way in self.bottlenecks]
        jobs += [Refining(way, seed) for way in self.refinings for seed in self.seeds("clip")]
        jobs += [FineTuning(PLAIN, "", seed) for seed in self.seeds("adarand", PLAIN)]
        jobs += [
            FineTuning(way, scale, seed)
            for scale in self.scales
            for way in representation_adarand.WAYS
            if way != PLAIN
            for seed in self.seeds("adarand", way)
        ]
        with tqdm(total=len(jobs), desc="runs") as bar:
            results = run_all(jobs, bar.update)
        return dict(zip(jobs, results, strict=True))


def clip_refine(runs: Runs) -> tuple[list[Claim], Rows]:
    """Where features lie and what is forgotten; means over seeds."""
    seeds = runs.seeds("clip")
    means: dict[str, dict[str, float]] = {}
    for way in runs.refinings:
        results = [runs.found[Refining(way, seed)] for seed in seeds]
        means[way] = {name: mean(r[name] for r in results) for name in results[0]}
    start, ours, plain = means["start"], means["CLIP-Refine"], means["contrastive"]
    aligned = means["HyCD + align"]

    def places(row: dict[str, float]) -> float:
        return (row["places, seen"] + row["places, not seen"]) / 2

    return [
        at_most("clip_gap_to_start", ours["gap"] / start["gap"], 1),
        at_most("clip_alignment_to_start", ours["alignment"] / start["alignment"], 1),
        at_most("clip_uniformity_rise", ours["uniformity"] - start["uniformity"], 0.05),
        at_least("align_uniformity_rise", aligned["uniformity"] - start["uniformity"], 0.3),
        at_least("clip_points_over_contrastive_all_places", places(ours) - places(plain), 0),
        at_least(
            "clip_points_over_contrastive_places_not_seen",
            ours["places, not seen"] - plain["places, not seen"],
            0,
        ),
        at_least("clip_points_of_retrieval_over_start", ours["I2T@5"] - start["I2T@5"], 0),
    ], [{"way": way} | row for way, row in means.items()]


def bottleneck(runs: Runs) -> tuple[list[Claim], Rows]:
    """Z-CBM on the model as it ships and refined."""
    found = {way: runs.found[runs.bottleneck(way)] for way in runs.bottlenecks}
    return [], [{"model": way} | row for way, row in found.items()]


def adarand(runs: Runs) -> tuple[list[Claim], Rows]:
    """Paired differences to plain fine-tuning."""
    found = runs.found
    plain = [found[FineTuning(PLAIN, "", seed)] for seed in runs.seeds("adarand", PLAIN)]
    rows: Rows = [{"scale": "", "way": PLAIN, "acc": spread(plain), "to plain": ""}]
    gains: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    for scale in runs.scales:
        for way in representation_adarand.WAYS:
            if way == PLAIN:
                continue
            values = [found[FineTuning(way, scale, seed)] for seed in runs.seeds("adarand", way)]
            paired = plain[: len(values)]
            rows.append(
                {
                    "scale": scale,
                    "way": way,
                    "acc": spread(values),
                    "to plain": _paired(values, paired),
                }
            )
            if scale == "lam 1 sum":
                gains[way] = mean(values) - mean(paired)
                accuracies[way] = mean(values)
    return [
        at_most("adarand_standard_normal_accuracy", accuracies["N(0, I)"], 40),
        at_most("adarand_source_statistics_points", gains["source mean/std"], -20),
        at_least("adarand_paper_points", gains["AdaRand paper"], 0),
        at_least("adarand_code_points", gains["AdaRand code"], 0),
    ], rows


def generative(runs: Runs) -> tuple[list[Claim], Rows]:
    """Paired differences to the base."""
    found, seeds = runs.found, runs.seeds("mgr")
    by = {w: [found[Generative(w, seed)] for seed in seeds] for w in runs.generated}
    rows: Rows = [
        {"way": way, "acc": spread(values), "to base": _paired(values, by["base"])}
        for way, values in by.items()
    ]
    worst = min(a - b for a, b in zip(by["PCR"], by["CE on synthetic"], strict=True))
    return [at_least("pcr_points_over_cross_entropy_worst_seed", worst, 0)], rows


def pseudo(runs: Runs) -> tuple[list[Claim], Rows]:
    """Paired differences to scratch."""
    found = runs.found
    rows: Rows = []
    means: dict[tuple[str, str], float] = {}
    for task in runs.tasks:
        for way in runs.pseudo_ways:
            seeds = runs.seeds("pseudo", way)
            scratch = [found[Pseudo(task, "scratch", seed)] for seed in seeds]
            values = [found[Pseudo(task, way, seed)] for seed in seeds]
            means[task, way] = mean(values)
            rows.append(
                {
                    "task": task,
                    "way": way,
                    "acc": spread(values),
                    "to scratch": _paired(values, scratch),
                }
            )
    pp, scratch_mean = means[COARSE, "PP"], means[COARSE, "scratch"]
    return [
        at_least("pp_points_over_scratch_coarse_to_fine", pp - scratch_mean, 8),
        at_least("real_source_points_over_pp", means[COARSE, "real source"] - pp, 0),
    ], rows


def relatedness(runs: Runs) -> tuple[list[Claim], Rows]:
    """What the report says of each source."""
    rows: Rows = []
    for task in runs.tasks:
        said = runs.found[Related(task, 0)].to_dict()
        rows.append({"task": task} | {k: v for k, v in said.items() if k != "thresholds"})
    return [], rows


def costs(runs: Runs) -> tuple[list[Claim], Rows]:
    """CPU time of an update of AdaRand's prior beside a class loop, and of a hypergradient."""
    rows: Rows = []
    for k in (196,) if runs.quick else (196, 1000):
        for variant in ("paper", "code"):
            rows.append(
                {"of": f"prior, K {k}, D 2048, {variant}, ms"} | UpdateTime(k, 2048, variant).run()
            )
    claims = [at_most("prior_slope_error_worst", max(row["error"] for row in rows), 2e-7)]
    rows += [
        {"of": f"hypergradient: {name}, ms", "update": value, "loop": "", "error": ""}
        for name, value in Hypergradients().run().items()
    ]
    return claims, rows


def _paired(values: list[float], others: list[float]) -> str:
    """Mean difference and its standard error."""
    off = [a - b for a, b in zip(values, others, strict=True)]
    error = f" ± {stdev(off) / len(off) ** 0.5:.1f}" if len(off) > 1 else ""
    return f"{mean(off):+.1f}{error}"


def main() -> None:
    given = arguments(__doc__ or "")
    torch.set_num_threads(1)
    runs = Runs(given.quick)
    parts = {
        "CLIP-Refine: the tiny CLIP, refined on a half of its places": clip_refine,
        "Z-CBM on refined models": bottleneck,
        "AdaRand: letters to ten digits a class": adarand,
        "MGR: 20 digits a class": generative,
        "Pseudo pre-training and P-SSL: five labels a class": pseudo,
        "Whether sources are related": relatedness,
        "Costs": costs,
    }
    claims: list[Claim] = []
    tables: dict[str, Rows] = {}
    for title, part in parts.items():
        made, tables[title] = part(runs)
        claims += made
    rows = [{"part": title} | row for title, part_rows in tables.items() for row in part_rows]
    report("representation", claims, rows, given.json, tables)


if __name__ == "__main__":
    main()
