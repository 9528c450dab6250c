r"""One phrase in or out at a time: slow, and sure to end at the optimum.

The active-set method of Lawson and Hanson for least squares with $w \ge 0$, with a sign for each
phrase. On the support the step goes towards the solution of $F_S F_S^\top x = F_S v -
\lambda\sigma$ and stops at the first phrase that would change its sign, which leaves; at the
solution the phrase that violates $|F_j r| \le \lambda$ most joins. The objective never rises. The
step has a proximal term, so that features that depend on one another, or nearly, do no harm.
"""

import torch
from torch import Tensor

from infer_kit.concepts.active_set import polish
from infer_kit.concepts.certificate import Problem, duality_gap

_PROXIMAL = 1e-10  # relative to the largest squared norm of a feature
_SLACK = 1e-10  # relative to λ: rounding is no violation
_STILL = 20  # steps without a change of the support, at most


def exchange(problem: Problem, start: Tensor, tol: float, most: int) -> tuple[Tensor, Tensor]:
    """From a weighting to the optimum.

    Args:
        start: `[B, K]`. tol: the gap at which to stop. most: steps.

    Returns:
        w `[B, K]`, and `[B]` steps.
    """
    found, steps = [], []
    for b in range(len(start)):  # seldom any: what the others did not finish
        one = Problem(problem.F[b : b + 1], problem.v[b : b + 1], problem.lam[b : b + 1],
                      problem.positive)  # fmt: skip
        w, took = _exchange(one, start[b], tol, most)
        found.append(w)
        steps.append(took)
    w, _ = polish(problem, torch.stack(found))  # rid of the proximal term
    return w, torch.tensor(steps, device=start.device)


def _exchange(problem: Problem, start: Tensor, tol: float, most: int) -> tuple[Tensor, int]:
    F, v, lam = problem.F[0], problem.v[0], problem.lam[0]
    near = _PROXIMAL * F.square().sum(1).max()
    w, signs, at = start.clone(), start.sign(), start.nonzero()[:, 0]
    still = 0
    for step in range(most):
        if len(at):
            F_S, x, sign = F[at], w[at], signs[at]
            gram = F_S @ F_S.T
            gram.diagonal().add_(near)
            slope = F_S @ (v - x @ F_S) - lam * sign
            to = x + torch.cholesky_solve(slope[:, None], torch.linalg.cholesky(gram))[:, 0]
            crossing = to * sign <= 0
            if bool(crossing.any()):
                share = torch.where(crossing, x / (x - to), torch.inf)
                share = torch.where(crossing & (x == 0), 0.0, share)
                leaving = share <= share.min()
                w[at] = torch.where(leaving, 0.0, x + share.min() * (to - x))
                at = at[~leaving]
                continue
            w[at] = to
        c = F @ (v - w @ F)
        excess = problem.violation(c) - lam
        excess[at] = -torch.inf
        j = excess.argmax()
        if excess[j] > _SLACK * lam:
            at = torch.cat([at, j[None]])
            signs[j] = c[j].sign()
        elif still >= _STILL or float(duality_gap(problem, w[None])[0]) <= tol:
            return w, step
        else:  # further proximal steps on the same support
            still += 1
    return w, most
