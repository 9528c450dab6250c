r"""The exact solution on a guessed support, and the guess mended until it is the right one.

On a support S with signs σ the optimum solves $F_S F_S^\top x = F_S v - \lambda\sigma$. If x has
these signs and no other phrase has $|F_j r| > \lambda$, it is the solution to the last bits;
otherwise entries of the wrong sign leave the support and violating phrases join it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from infer_kit.concepts.certificate import Problem, correlation

STEP = 0.6
"""λ of the next level over that of this one, on the way down from λ_max."""

ROUNDS = 10
"""Of mending at one λ. A level that takes more is tried again half as far away."""

_MOST_RETRIES = 8
_LENIENT = 3  # rounds of polishing in which the support may change more than in the one before
_SLACK = 1e-9  # relative: rounding is no violation


@dataclass(frozen=True)
class Round:
    """What one guess gives.

    Attributes:
        w: `[B, K]`, the solution on the support, 0 elsewhere.
        solved: `[B]`, whether there was one: the support is neither empty nor larger than d, and
            its Gram matrix is regular.
        optimal: `[B]`, whether w is the optimum.
        support, signs: `[B, K]`, the next guess.
    """

    w: Tensor
    solved: Tensor
    optimal: Tensor
    support: Tensor
    signs: Tensor


def mend(problem: Problem, lam: Tensor, support: Tensor, signs: Tensor) -> Round:
    """Solve on a support; see the module.

    Args:
        lam: `[B]`, in the place of the problem's.
        support, signs: `[B, K]` bool and float64.
    """
    F, v, Fv = problem.F, problem.v, problem.Fv
    count = support.sum(1)
    usable = (count > 0) & (count <= F.shape[2])
    width = int((count * usable).max())
    if width == 0:
        none = torch.zeros_like(usable)
        return Round(torch.zeros_like(Fv), none, none, support, signs)
    inside, at = support.byte().topk(width, dim=1)  # [B, n]; rows with fewer are padded
    inside = inside.bool() & usable[:, None]
    F_S = F[torch.arange(len(F), device=F.device)[:, None], at]
    F_S = F_S if bool(inside.all()) else F_S * inside[..., None]
    gram = F_S @ F_S.mT + torch.diag_embed((~inside).to(F.dtype))
    lower, info = torch.linalg.cholesky_ex(gram)
    target = (Fv.gather(1, at) - lam[:, None] * signs.gather(1, at)) * inside
    x = torch.cholesky_solve(target[..., None], lower)[..., 0]
    solved = usable & (info == 0) & x.isfinite().all(1)
    x = torch.where(solved[:, None] & inside, x, 0.0)
    w = torch.zeros_like(Fv).scatter_(1, at, x)
    c = correlation(F, v - (x[:, None] @ F_S)[:, 0])
    flipped = support & (w.sign() != signs)
    joining = ~support & (problem.violation(c) > lam[:, None] * (1 + _SLACK))
    optimal = solved & ~(flipped | joining).any(1)
    return Round(
        w, solved, optimal, support & ~flipped | joining, torch.where(joining, c.sign(), signs)
    )


def polish(problem: Problem, near: Tensor) -> tuple[Tensor, Tensor]:
    """The exact solution from a weighting near it.

    Args:
        near: `[B, K]`: its support and signs are the first guess.

    Returns:
        w `[B, K]`, and `[B]` whether it is the optimum; where it is not, w is `near`.
    """
    support, signs = near != 0, near.sign()
    w, done = near.clone(), torch.zeros(len(near), dtype=torch.bool, device=near.device)
    trying, changed = ~done, torch.full_like(support.sum(1), support.shape[1])
    for round_ in range(ROUNDS):
        guess = mend(problem, problem.lam, support, signs)
        fresh = trying & guess.optimal
        w = torch.where(fresh[:, None], guess.w, w)
        last, changed = changed, (support != guess.support).sum(1)
        nearing = (changed < last) | (round_ < _LENIENT)
        done, trying = done | fresh, trying & guess.solved & ~guess.optimal & nearing
        if not bool(trying.any()):
            break
        support, signs = guess.support, guess.signs
    return w, done


def follow_path(problem: Problem, most: int, widest: int) -> tuple[Tensor, Tensor]:
    """Follow the solution from λ_max, where it is 0, down to λ.

    At every level the support of the level above is the first guess, and is nearly right. There is
    no guarantee that a guess is mended in a few rounds, hence nearer levels where it was not.

    Args:
        most: rounds in all. widest: phrases with weight at which to give up.

    Returns:
        w `[B, K]`, the optimum, or that of the last level that was reached; `[B]` rounds.
    """
    Fv, start = problem.Fv, problem.lam_max
    touched = problem.violation(Fv) >= start[:, None] * (1 - 1e-12)
    signs = torch.where(touched, Fv.sign(), 0.0)
    support, kept, kept_signs = touched, touched, signs
    above, level = start, torch.maximum(STEP * start, problem.lam)
    w = torch.zeros_like(Fv)
    open_ = torch.ones(len(w), dtype=torch.bool, device=w.device)
    here, retries, rounds = (torch.zeros_like(open_, dtype=torch.long) for _ in range(3))
    for _ in range(most):
        guess = mend(problem, level, support, signs)
        here, rounds = here + 1, rounds + open_.long()
        reached = open_ & guess.optimal
        w = torch.where(reached[:, None], guess.w, w)
        open_ = open_ & ~(reached & (level <= problem.lam))
        failed = ~guess.optimal & (~guess.solved | (here >= ROUNDS))
        retries = retries + failed.long()
        open_ = open_ & (retries <= _MOST_RETRIES) & ((w != 0).sum(1) <= widest)
        if not bool(open_.any()):
            break
        down, back = guess.optimal[:, None], failed[:, None]
        kept = torch.where(down, support, kept)
        kept_signs = torch.where(down, signs, kept_signs)
        support = torch.where(back, kept, guess.support)
        signs = torch.where(back, kept_signs, guess.signs)
        nearer = (level * above).sqrt()
        above = torch.where(guess.optimal, level, above)
        below = torch.maximum(STEP * level, problem.lam)
        level = torch.where(guess.optimal, below, torch.where(failed, nearer, level))
        here = torch.where(guess.optimal | failed, 0, here)
    return w, rounds
