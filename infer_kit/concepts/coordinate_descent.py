"""Coordinate descent by scikit-learn: fast where few phrases have weight."""

import warnings

import torch
from torch import Tensor

from infer_kit.concepts.active_set import polish
from infer_kit.concepts.certificate import Problem, duality_gap

_ROUGH, _SWEEPS = 1e-2, 100  # enough to find most of the support; polishing does the rest


def rough_descent(problem: Problem, most: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's `Lasso` in float32, stopped early, then polished: often the optimum.

    Args:
        most: sweeps over the phrases.

    Returns:
        w `[B, K]`, and `[B]` sweeps.
    """
    w, sweeps = _fit(problem, torch.float32, _ROUGH, min(most, _SWEEPS))
    return polish(problem, w)[0], sweeps


def coordinate_descent(problem: Problem, tol: float, most: int) -> tuple[Tensor, Tensor]:
    """The same, and in float64 down to `tol` where that is not the optimum.

    Image features have length 1 here, so that scikit-learn's tolerance is one of the gap.
    """
    w, sweeps = rough_descent(problem, most)
    gap = duality_gap(problem, w)
    if bool((gap > tol).any()):
        finer, more = _fit(problem, torch.float64, tol, most)
        finer = polish(problem, finer)[0]
        better = duality_gap(problem, finer) < gap
        w = torch.where(better[:, None], finer, w)
        sweeps = sweeps + (gap > tol) * more
    return w, sweeps


def _fit(problem: Problem, dtype: torch.dtype, tol: float, most: int) -> tuple[Tensor, Tensor]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    found, sweeps = [], []
    # its samples are our d dimensions: it fits one image at a time
    for F, v, lam in zip(problem.F, problem.v, problem.lam.tolist(), strict=True):
        lasso = Lasso(
            lam / F.shape[1], fit_intercept=False, tol=tol, max_iter=most,
            positive=problem.positive, copy_X=False,
        )  # fmt: skip
        samples, sample = (x.to(dtype).cpu().numpy() for x in (F, v))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the gap says it better
            lasso.fit(samples.T, sample, check_input=False)
        found.append(torch.from_numpy(lasso.coef_).double())
        sweeps.append(int(lasso.n_iter_))
    device = problem.v.device
    return torch.stack(found).to(device), torch.tensor(sweeps, device=device)
