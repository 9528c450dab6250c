"""What tickets reach, what they take on disk, and what their mask costs.

Accuracy: scikit-learn's digits, networks and settings of `tickets_digits`; ± is the standard
deviation over seeds. Size: bits of the file. Mask step: CPU time of forward and backward through
one 1,024 x 1,024 layer for a batch of 64, interleaved with the published layer's arithmetic: the
k-th score by torch.kthvalue, a float mask, and weights that gather gradients too. Heads: the error
of exact subset-sum pruning, and its solver against SciPy's HiGHS on the same problems.

--quick: 10 seeds of IteRand at one width, 3 of freezing, 1 of meta-learning. Otherwise 20, 3 and 2,
with more settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks import tickets_attention
from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_least,
    at_most,
    interleaved,
    median_ratio,
    report,
)
from evals.benchmarks.tickets_digits import (
    FewShot,
    Freezing,
    Redrawing,
    mlp,
    run_all,
    spread,
)
from infer_kit.training.tickets import TopK, make_ticket

Rows = list[dict[str, Any]]


def redrawing(quick: bool) -> tuple[list[Claim], Rows]:
    """IteRand against edge-popup."""
    seeds = range(10 if quick else 20)
    settings = [(0.0, 30), (0.1, 30)] + ([] if quick else [(0.1, 100), (1.0, 100)])
    widths = (16,) if quick else (16, 32, 128)
    jobs = [Redrawing(w, r, k, s) for w in widths for r, k in settings for s in seeds]
    found = dict(zip(jobs, run_all(jobs), strict=True))
    rows: Rows = []
    for w in widths:
        for r, k in settings:
            right = [found[Redrawing(w, r, k, s)] for s in seeds]
            rows.append({"width": w, "r": r, "k_per": k, "accuracy": spread(right)})
    gain = mean(found[Redrawing(16, 0.1, 30, s)] - found[Redrawing(16, 0.0, 30, s)] for s in seeds)
    return [at_least("iterand_gain_points_width_16", gain, 3)], rows


def freezing(quick: bool) -> tuple[list[Claim], Rows]:
    """Locked and pruned against pruned only, and how much smaller the masks are."""
    seeds = range(3)
    settings = [(0.35, 0.35, 0.5), (0.7, 0.0, 0.85)]
    if not quick:
        settings += [(0.0, 0.0, 0.5), (0.25, 0.25, 0.5), (0.5, 0.0, 0.75)]
        settings += [(0.45, 0.45, 0.5), (0.9, 0.0, 0.95)]
    jobs = [Freezing(p, r, sparsity, s) for p, r, sparsity in settings for s in seeds]
    found = dict(zip(jobs, run_all(jobs), strict=True))
    rows: Rows = []
    means, off = {}, []
    for p, r, sparsity in settings:
        right, smaller = zip(*(found[Freezing(p, r, sparsity, s)] for s in seeds), strict=True)
        means[p, r] = mean(right)
        off.append(abs(smaller[0] * (1 - p - r) - 1))
        rows.append(
            {"pruned": p, "locked": r, "sparsity": sparsity, "accuracy": spread(list(right)),
             "compression": smaller[0]}
        )  # fmt: skip
    claims = [
        at_least("lock_and_prune_gain_points_F_0.7", means[0.35, 0.35] - means[0.7, 0.0], 6),
        at_most("compression_off_1/(1-F)", max(off), 0.01),
    ]
    return claims, rows


def few_shot(quick: bool) -> tuple[list[Claim], Rows]:
    """Meta-ticket against MAML, and others; no advantage is claimed."""
    seeds = range(1 if quick else 2)
    learners = [("Meta-ticket", 0, 10.0), ("Meta-ticket", 1500, 10.0), ("MAML", 1500, 1e-3)]
    if not quick:
        learners += [("Meta-ticket", 1500, 1.0), ("ANIL", 1500, 1e-3), ("BOIL", 1500, 1e-3)]
    jobs = [FewShot(name, steps, s, lr) for name, steps, lr in learners for s in seeds]
    found = dict(zip(jobs, run_all(jobs), strict=True))
    rows: Rows = []
    test: dict[tuple[str, int, float], float] = {}
    for name, steps, lr in learners:
        results = [found[FewShot(name, steps, s, lr)] for s in seeds]
        seen, unseen, sparsity = zip(*results, strict=True)
        test[name, steps, lr] = mean(unseen)
        rows.append(
            {"learner": name, "steps": steps, "lr": lr, "seen classes": spread(list(seen)),
             "new classes": spread(list(unseen)), "pruned": mean(sparsity)}
        )  # fmt: skip
    start, ticket, maml = (test[learner] for learner in learners[:3])
    claims = [
        at_least("meta_ticket_gain_points_over_its_start", ticket - start, 25),
        at_least("meta_ticket_points_over_maml", ticket - maml, -4),
    ]
    return claims, rows


def size() -> tuple[list[Claim], Rows]:
    """Bits of a file, header and all."""
    ticket = make_ticket(mlp(64, 256, 256, 10))
    found = ticket.bits()
    total = found.total_bits / found.weights
    row = {"weights": found.weights, "mask bits": found.mask_bits, "file bits": found.total_bits}
    claims = [
        at_most("bits_a_weight", found.per_weight, 1.05),
        at_most("file_bits_a_weight_84480_weights", total, 1.05),
    ]
    return claims, [row]


class _Published(nn.Module):
    """The arithmetic of the published layer: weights are parameters that gather gradients."""

    def __init__(self, weight: Tensor, scores: Tensor, p: float) -> None:
        super().__init__()
        self.weight, self.scores = nn.Parameter(weight), nn.Parameter(scores)
        self.p = p
        self.zeros, self.ones = torch.zeros(weight.shape), torch.ones(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        n = self.scores.numel()
        k = 1 + round(self.p * (n - 1))
        t = self.scores.detach().flatten().kthvalue(k).values.item()
        mask: Tensor = _Step.apply(self.scores, t, self.zeros, self.ones)
        return nn.functional.linear(x, self.weight * mask)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, t: float, zeros: Tensor, ones: Tensor) -> Tensor:
        return torch.where(scores < t, zeros, ones)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad, None, None, None


def mask_step(quick: bool) -> tuple[list[Claim], Rows]:
    """Ours against the published layer's arithmetic."""
    n, p = 1024, 0.5
    ours = nn.Linear(n, n, bias=False)
    ticket = make_ticket(ours, mask_rule=TopK(p))
    scores = next(iter(ticket.layers().values())).scores
    theirs = _Published(next(iter(ticket.weights().values())).clone(), scores.detach().clone(), p)
    x = torch.randn(64, n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))

    def step(layer: nn.Module, learnt: nn.Parameter) -> None:
        learnt.grad = None
        layer(x).square().mean().backward()

    times = interleaved(
        {"ours": lambda: step(ours, scores), "published": lambda: step(theirs, theirs.scores)},
        10 if quick else 40,
    )
    ratio = median_ratio(times, "ours", "published")
    rows = [{"layer": name, "ms": 1e3 * sorted(t)[len(t) // 2]} for name, t in times.items()]
    return [at_most("mask_step_ours_to_published", ratio, 0.85)], rows


def heads(quick: bool) -> tuple[list[Claim], Rows, Rows]:
    """Subset-sum pruning: error by width, and the solver against HiGHS."""
    by_width, fits = tickets_attention.width_rows(quick)
    solver = tickets_attention.solver_rows(quick)
    rate = next(fit["b"] for fit in fits if fit["of"] == "median")
    claims = [
        at_least("head_error_falls_as_exp(-b_n)_b", rate, 0.0),
        at_most("median_head_error_n_40", by_width[-1]["median"], 1e-4),
    ]
    return claims, by_width, solver


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    quick = options.quick
    claims: list[Claim] = []
    tables: dict[str, Rows] = {}
    parts: list[tuple[str, Any]] = [
        ("Edge-popup (r = 0) and IteRand", redrawing),
        ("Partially frozen networks", freezing),
        ("Meta-learning, 5 ways, 5 shots", few_shot),
        ("Mask step", mask_step),
    ]
    for title, measure in parts:
        print(title, file=sys.stderr, flush=True)
        said, tables[title] = measure(quick)
        claims += said
    said, tables["Size"] = size()
    claims += said
    said, tables["Head error by width"], tables["Subset sums"] = heads(quick)
    claims += said
    rows = [{"table": title, **row} for title, part in tables.items() for row in part]
    report("Tickets", claims, rows, options.json, tables)


if __name__ == "__main__":
    main()
