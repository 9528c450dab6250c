r"""ADMM for the lasso: slow to be exact and sure to come near; polished on its support.

Boyd et al., *Distributed optimization and statistical learning via ADMM*, 2011, section 6.4.
"""

import torch
from torch import Tensor

from infer_kit.concepts.active_set import polish
from infer_kit.concepts.certificate import Problem, correlation, duality_gap, rebuild

_FIRST, _EVERY = 20, 60  # steps before the first polish, and between two
_MOST = 320  # what is not solved by then is better finished by `exchange`
_WEIGHT = 0.03  # λ/ρ: the soft threshold, in the size of a phrase's weight
_RELAXED = 1.6


def admm(problem: Problem, tol: float, most: int) -> tuple[Tensor, Tensor]:
    """Iterate until the gap is at most `tol`.

    The inverse that each step needs is that of a d × d matrix, by the Woodbury identity. float64:
    at these ρ the iteration is useless in float32.

    Args:
        most: steps.

    Returns:
        w `[B, K]`, and `[B]` steps.
    """
    F, lam = problem.F, problem.lam
    rho = (lam / _WEIGHT)[:, None]
    eye = torch.eye(F.shape[2], dtype=F.dtype, device=F.device)
    M = torch.cholesky_inverse(torch.linalg.cholesky(F.mT @ F + rho[..., None] * eye))
    Fv = problem.Fv
    z, u = torch.zeros_like(Fv), torch.zeros_like(Fv)
    best, gap = z, duality_gap(problem, z)
    steps = torch.zeros(len(z), dtype=torch.long, device=z.device)
    done, most = 0, min(most, _MOST)
    while done < most:
        for _ in range(min(_EVERY if done else _FIRST, most - done)):
            q = Fv + rho * (z - u)
            x = (q - correlation(F, (rebuild(F, q)[:, None] @ M)[:, 0])) / rho
            h = _RELAXED * x + (1 - _RELAXED) * z
            z = soft_threshold(h + u, lam[:, None] / rho, problem.positive)
            u = u + h - z
            done += 1
        open_ = gap > tol
        w, _ = polish(problem, z)
        new = duality_gap(problem, w)
        better = open_ & (new < gap)
        best = torch.where(better[:, None], w, best)
        gap, steps = torch.where(better, new, gap), torch.where(open_, done, steps)
        if bool((gap <= tol).all()):
            break
    return best, steps


def soft_threshold(x: Tensor, by: Tensor, positive: bool) -> Tensor:
    """Shrink towards 0; one-sided for weights ≥ 0."""
    return (x - by).clamp_min(0) if positive else x.sign() * (x.abs() - by).clamp_min(0)
