"""Subset sums beside HiGHS, and random attention heads pruned to a given one."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.benchmarks.measuring import interleaved, median_ratio
from infer_kit.training.tickets.attention_slt import Head, PrunedHead, draw_source, prune_head
from infer_kit.training.tickets.subsetsum import best_subset

D1, D2, D_INNER = 2, 1, 2  # of the paper's task: one head, points of the plane in, a number out
WIDTHS = (4, 8, 16, 24, 32, 40)
OURS, MILP = "ours", "HiGHS MILP"

Row = dict[str, Any]


def subset_problems(n: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x `[count, n]`, each a product of two U[-1, 1], and w `[count]` U[-1, 1]; float64."""
    g = torch.Generator().manual_seed(seed)
    a, b, w = (_uniform(g, *shape) for shape in ((count, n), (count, n), (count,)))
    return a * b, w


def milp_subset(x: Tensor, w: float) -> float:
    """|sum − w| of the subset that HiGHS's mixed-integer solver finds, with no gap left to it.

    min t over z in {0, 1}^n with −t ≤ x·z − w ≤ t.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(x)
    rows = np.concatenate([[x.numpy(), x.numpy()], [[-1.0], [1.0]]], 1)
    solved = milp(
        np.r_[np.zeros(n), 1.0],
        integrality=np.r_[np.ones(n), 0.0],
        bounds=Bounds(0, np.r_[np.ones(n), np.inf]),
        constraints=LinearConstraint(rows, [-np.inf, w], [w, np.inf]),
        options={"mip_rel_gap": 0.0},
    )
    return abs(float(x.numpy() @ solved.x[:n].round()) - w)


def solver_rows(quick: bool) -> list[Row]:
    """Median error and CPU ms of a problem at each n', ours beside HiGHS on the same problems.

    Ours takes all of them in one call, as `approx_product` does.
    """
    rows = []
    for n in (8, 12, 16) if quick else (8, 12, 16, 20, 24):
        count = 4 if quick else 10
        x, w = subset_problems(n, count, seed=n)
        errors: dict[str, list[float]] = {}

        def keep(side: str, solve: Callable[[], list[float]], to: Any = errors) -> None:
            to[side] = solve()

        def ours(x: Tensor = x, w: Tensor = w) -> list[float]:
            return list(best_subset(x, w)[1].tolist())

        def peer(x: Tensor = x, w: Tensor = w) -> list[float]:
            return [milp_subset(*problem) for problem in zip(x, w.tolist(), strict=True)]

        sides = {OURS: partial(keep, OURS, ours), MILP: partial(keep, MILP, peer)}
        times = interleaved(sides, rounds=1 if quick else 3)
        for side in sides:
            rows.append(
                {
                    "n'": n,
                    "side": side,
                    "median error": statistics.median(errors[side]),
                    "worst error": max(errors[side]),
                    "CPU ms an entry": 1e3 * statistics.median(times[side]) / count,
                    "time, ours 1": median_ratio(times, side, OURS),
                }
            )
    return rows


def throughput_rows(quick: bool) -> list[Row]:
    """CPU ms of a problem at each n' where many are solved in one call."""
    rows = []
    for n in (8, 12, 16, 20, 24):
        x, w = subset_problems(n, 64 if quick else 512, seed=n)
        times = interleaved({OURS: partial(best_subset, x, w)}, rounds=3)
        error = float(best_subset(x, w)[1].median())
        ms = 1e3 * statistics.median(times[OURS]) / len(w)
        rows.append({"n'": n, "problems": len(w), "median error": error, "CPU ms an entry": ms})
    return rows


def random_targets(count: int, seed: int = 0) -> Head:
    """`count` heads of the task, float64: normal weights over their spectral norm."""
    g = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        matrix = torch.randn(count, rows, columns, generator=g, dtype=torch.float64)
        return matrix / torch.linalg.matrix_norm(matrix, 2, keepdim=True)

    return Head(draw(D1, D_INNER), draw(D1, D_INNER), draw(D1, D_INNER), draw(D_INNER, D2))


def points(count: int, tokens: int, seed: int = 0) -> Tensor:
    """`[count, T, 2]`: (cos(ωt + h), sin(ωt + h)) with ω in U[-1, 1] and h in U[-π, π]."""
    g = torch.Generator().manual_seed(seed)
    velocity, start = _uniform(g, count, 1), torch.pi * _uniform(g, count, 1)
    angle = velocity * torch.arange(tokens) + start
    return torch.stack([angle.cos(), angle.sin()], -1)


def pruned_heads(target: Head, n: int, seed: int = 0) -> PrunedHead:
    """A source of inner width n for each target, pruned."""
    return prune_head(target, draw_source(seed, D1, D2, n, heads=target.q.shape[:1]))


def head_errors(target: Head, pruned: Head, tokens: int, seed: int = 0) -> Tensor:
    """`[count]`: the largest difference of an output, of each head on a sequence of its own.

    Head by head, for the scores of all of 1,024 tokens are 8 MB a head.
    """
    x = points(len(target.q), tokens, seed)
    pairs = zip(zip(*target.matrices, strict=True), zip(*pruned.matrices, strict=True), strict=True)
    return torch.stack(
        [(Head(*a)(x_i) - Head(*b)(x_i)).abs().max() for x_i, (a, b) in zip(x, pairs, strict=True)]
    )


def exponential_fit(n: Sequence[int], errors: Sequence[float]) -> tuple[float, float]:
    """a and b of error ≈ a exp(-b n), by least squares in the logarithm."""
    slope, log_a = np.polyfit(n, np.log(errors), 1)
    return float(np.exp(log_a)), float(-slope)


def width_rows(quick: bool) -> tuple[list[Row], list[Row]]:
    """Error of the whole head at each width with T = 4, and the fit to its mean and median."""
    count = 20 if quick else 200
    target, rows = random_targets(count), []
    for n in WIDTHS:
        pruned = pruned_heads(target, n, seed=n)
        errors = head_errors(target, pruned.head, tokens=4)
        rows.append(
            {
                "n": n,
                "heads": count,
                "mean": float(errors.mean()),
                "median": float(errors.median()),
                "max": float(errors.max()),
                "median of W_QK": float(pruned.qk_error.median()),
                "median of W_VO": float(pruned.vo_error.median()),
            }
        )
    fits = []
    for what in ("mean", "median"):
        a, b = exponential_fit(WIDTHS, [row[what] for row in rows])
        fits.append({"of": what, "a": a, "b": b})
    return rows, fits


def length_rows(quick: bool, n: int = 24) -> list[Row]:
    """Error of the same pruned heads on 4, 64 and 1,024 tokens."""
    count = 10 if quick else 50
    target = random_targets(count)
    pruned = pruned_heads(target, n, seed=n).head
    rows = []
    for tokens in (4, 64, 1024):
        errors = head_errors(target, pruned, tokens)
        mean, median = float(errors.mean()), float(errors.median())
        rows.append({"n": n, "tokens": tokens, "heads": count, "mean": mean, "median": median})
    return rows


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """U[-1, 1], float64."""
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1
