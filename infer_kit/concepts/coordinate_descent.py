"""Coordinate descent by scikit-learn: fast where few phrases have weight."""

import warnings

import torch
from torch import Tensor

from infer_kit.concepts.active_set import polish
from infer_kit.concepts.certificate import Problem, correlation, duality_gap

_ROUGH = 1e-4  # scikit-learn's default; where the support is found then, the rest is polishing


def coordinate_descent(problem: Problem, tol: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's `Lasso` in float64, roughly, then polished; to `tol` where that is not enough.

    Args:
        tol: `[B]`. most: sweeps over the phrases.

    Returns:
        w `[B, K]`, and `[B]` sweeps.
    """
    w, sweeps = _fit(problem, [_ROUGH] * len(problem.v), most)
    w, exact = polish(problem, correlation(problem.F, problem.v), w)
    if not bool(exact.all()):
        size = problem.v.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        finer, more = _fit(problem, (tol / size).tolist(), most)
        finer, _ = polish(problem, correlation(problem.F, problem.v), finer)
        again = duality_gap(problem, finer) < duality_gap(problem, w)
        w, sweeps = torch.where(again[:, None], finer, w), sweeps + ~exact * more
    return w, sweeps


def _fit(problem: Problem, tols: list[float], most: int) -> tuple[Tensor, Tensor]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    found, sweeps = [], []
    # its samples are our d dimensions: it fits one image at a time
    for F, v, lam, tol in zip(problem.F, problem.v, problem.lam.tolist(), tols, strict=True):
        d = F.shape[1]
        lasso = Lasso(
            lam / d, fit_intercept=False, tol=tol, max_iter=most, positive=problem.positive
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the gap says it better
            lasso.fit(F.T.cpu().numpy(), v.cpu().numpy())
        found.append(torch.from_numpy(lasso.coef_))
        sweeps.append(int(lasso.n_iter_))
    device = problem.v.device
    return torch.stack(found).to(device), torch.tensor(sweeps, device=device)
