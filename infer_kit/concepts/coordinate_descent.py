"""Coordinate descent by scikit-learn: fast where few phrases have weight."""

import warnings

import torch
from torch import Tensor

from infer_kit.concepts.active_set import polish
from infer_kit.concepts.certificate import Problem, duality_gap

_ROUGH = 1e-4  # scikit-learn's default; where the support is found then, the rest is polishing


def coordinate_descent(problem: Problem, tol: float, most: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's `Lasso` in float64, roughly, then polished; to `tol` where that is not enough.

    Image features have length 1 here, so that its tolerance is one of the gap.

    Args:
        most: sweeps over the phrases.

    Returns:
        w `[B, K]`, and `[B]` sweeps.
    """
    w, sweeps = _fit(problem, _ROUGH, most)
    w, exact = polish(problem, w)
    if not bool(exact.all()):
        finer, more = _fit(problem, tol, most)
        finer, _ = polish(problem, finer)
        again = duality_gap(problem, finer) < duality_gap(problem, w)
        w, sweeps = torch.where(again[:, None], finer, w), sweeps + ~exact * more
    return w, sweeps


def _fit(problem: Problem, tol: float, most: int) -> tuple[Tensor, Tensor]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    found, sweeps = [], []
    # its samples are our d dimensions: it fits one image at a time
    for F, v, lam in zip(problem.F, problem.v, problem.lam.tolist(), strict=True):
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
