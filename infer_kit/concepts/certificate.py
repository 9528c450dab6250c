r"""How far a weighting of phrases is from the best one: duality gap and optimality conditions.

The problem is $\min_w \tfrac12 |v - F^\top w|^2 + \lambda |w|_1$, optionally with $w \ge 0$.
Shapes: F `[B, K, d]` (a phrase a row), v `[B, d]`, w `[B, K]`, λ `[B]`; float64.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FEW = 4  # of this many phrases one has weight, or fewer


@dataclass(frozen=True)
class Problem:
    """One lasso an image.

    Attributes:
        F: phrase features, `[B, K, d]` float64. v: image features, `[B, d]` float64.
        lam: λ, `[B]` float64, above 0. positive: whether weights are ≥ 0.
    """

    F: Tensor
    v: Tensor
    lam: Tensor
    positive: bool = False

    @cached_property
    def Fv(self) -> Tensor:
        """`[B, K]`: inner products of phrases and images."""
        return correlation(self.F, self.v)

    @cached_property
    def lam_max(self) -> Tensor:
        """`[B]`: the smallest λ at which every weight is 0."""
        return self.violation(self.Fv).amax(1).clamp_min(0)

    def violation(self, c: Tensor) -> Tensor:
        """What of correlations `[..., K]` λ bounds."""
        return c if self.positive else c.abs()


def correlation(F: Tensor, r: Tensor) -> Tensor:
    """$F r$: `[B, K]` of `[B, K, d]` and `[B, d]`."""
    return (r[:, None] @ F.mT)[:, 0] if len(F) > 1 else (F @ r[:, :, None])[:, :, 0]


def rebuild(F: Tensor, w: Tensor) -> Tensor:
    r"""$z = F^\top w$: `[B, d]` of `[B, K, d]` and `[B, K]`."""
    if len(F) == 1:
        at = w[0].nonzero()[:, 0]
        if _FEW * len(at) < F.shape[1]:  # only the phrases with weight are read
            return w[:, at] @ F[0, at]
    return (w[:, None] @ F)[:, 0]


def objective(problem: Problem, w: Tensor) -> Tensor:
    """`[B]`: what is minimised."""
    r = problem.v - rebuild(problem.F, w)
    return 0.5 * r.square().sum(1) + problem.lam * w.abs().sum(1)


def duality_gap(problem: Problem, w: Tensor) -> Tensor:
    r"""`[B]`: an upper bound of `objective(w)` minus the least objective.

    With the residual $r = v - F^\top w$, a dual feasible point is $\theta = s\,r$,
    $s = \min(1, \lambda / \max|F r|)$ ($\max F r$ for $w \ge 0$; 1 where that is ≤ 0), and

    $$gap = \tfrac12|r|^2 + \lambda|w|_1 - \tfrac12|v|^2 + \tfrac12|v-\theta|^2
          = \tfrac12 (1-s)^2 |r|^2 + \sum_j |w_j| (\lambda - s\,\mathrm{sign}(w_j)\,F_j r).$$

    The second form is computed: no term of it is negative, so nothing cancels. A weighting that
    breaks $w \ge 0$ has an infinite gap.
    """
    r = problem.v - rebuild(problem.F, w)
    c = correlation(problem.F, r)
    most = problem.violation(c).amax(1)
    s = torch.where(most > problem.lam, problem.lam / most, 1.0)
    slack = (problem.lam[:, None] - s[:, None] * w.sign() * c).clamp_min(0)
    gap = 0.5 * (1 - s).square() * r.square().sum(1) + (w.abs() * slack).sum(1)
    if problem.positive:
        gap = torch.where((w < 0).any(1), torch.inf, gap)
    return gap


def kkt_violation(problem: Problem, w: Tensor) -> Tensor:
    r"""`[B]`: the largest violation of $F_j r = \lambda\,\mathrm{sign} w_j$ on the support and
    $|F_j r| \le \lambda$ ($F_j r \le \lambda$ for $w \ge 0$) elsewhere."""
    c = correlation(problem.F, problem.v - rebuild(problem.F, w))
    lam = problem.lam[:, None]
    on = (c - lam * w.sign()).abs()
    off = (problem.violation(c) - lam).clamp_min(0)
    return torch.where(w != 0, on, off).amax(1)
