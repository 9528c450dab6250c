r"""Sparse codes with a certificate: the weights of phrases that rebuild an image's feature.

$$w = \arg\min_w \tfrac12 |v - F^\top w|^2 + \lambda |w|_1, \qquad z = F^\top w$$

Yamaguchi et al., *Zero-shot Concept Bottleneck Models*, arXiv 2502.09018. Differs from it: the
paper solves by scikit-learn's defaults, which stop unconverged; here every result has its duality
gap, by default at most 1e-9.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from infer_kit.concepts.active_set import follow_path
from infer_kit.concepts.admm import admm
from infer_kit.concepts.certificate import Problem, duality_gap, rebuild
from infer_kit.concepts.coordinate_descent import coordinate_descent, rough_descent
from infer_kit.concepts.exchange import exchange
from infer_kit.concepts.identical_phrases import representatives, shared_out
from infer_kit.errors import InferKitError

Scale = Literal["sklearn", "squared", "lambda"]
Solver = Literal["auto", "active_set", "admm", "cd"]

# Of λ/λ_max, with weights of both signs: below the first many phrases have weight, and ADMM is the
# fastest; above the second few, and coordinate descent is, on a CPU. Measured at K 2048, d 512.
_DENSE, _SPARSE = 0.015, 0.05
_WIDE = 3  # a support of more than d over this is for ADMM
# What each solver leaves above tol goes to the next.
_ORDER: dict[str, tuple[str, ...]] = {
    "auto": ("rough_cd", "active_set", "admm", "exchange"),
    "active_set": ("active_set", "admm", "exchange"),
    "admm": ("admm", "exchange"),
    "cd": ("cd", "exchange"),
}
# Solvers aim at this share of tol: an error of w is like the square root of the gap.
_EXACT = 1e-5
_ON_GPU = 64  # problems at a time; on a CPU one, whose phrases then stay in the cache


@dataclass(frozen=True)
class Code:
    r"""Weights of K phrases, for each of B images. For one image the fields have no first axis.

    Attributes:
        w: `[B, K]` float64. z: `[B, d]` float64, $F^\top w$.
        gap: `[B]` float64, an upper bound of how far the objective is above the least one.
        n_iter: `[B]`, rounds, steps or sweeps of the solver.
        converged: `[B]`, whether gap ≤ tol·|v|².
        lam, lam_max: `[B]`; w is 0 exactly where λ ≥ λ_max.
        unique: `[B]`; False where phrases with the same feature share a weight.
    """

    w: Tensor
    z: Tensor
    gap: Tensor
    n_iter: Tensor
    converged: Tensor
    lam: Tensor
    lam_max: Tensor
    unique: Tensor

    def verdict(self) -> "Verdict":
        """What `warn_of` needs of it."""
        return Verdict(self.gap, self.converged, self.unique)

    @property
    def empty(self) -> Tensor:
        """`[B]`: whether every weight is 0."""
        return (self.w == 0).all(-1)

    @property
    def nnz(self) -> Tensor:
        """`[B]`: how many phrases have weight."""
        return (self.w != 0).sum(-1)

    @classmethod
    def cat(cls, parts: "Sequence[Code]") -> "Code":
        """The code of the images of several."""
        return cls(
            **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)}
        )

    def __getitem__(self, at: int) -> "Code":
        """The code of one image of several."""
        return Code(**{f.name: getattr(self, f.name)[at] for f in fields(self)})


@dataclass(frozen=True)
class Verdict:
    """gap, converged, unique: of `Code`, of B images."""

    gap: Tensor
    converged: Tensor
    unique: Tensor

    @classmethod
    def cat(cls, parts: "Sequence[Verdict]") -> "Verdict":
        """That of the images of several."""
        gap, converged, unique = (
            torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)
        )
        return cls(gap, converged, unique)


def lasso_lambda(alpha: float, d: int, scale: Scale = "sklearn") -> float:
    r"""λ of the objective above, from the number of another convention.

    Args:
        alpha: "sklearn": of $\frac1{2d}|v-F^\top w|^2 + \alpha|w|_1$, so λ = αd (the paper's 1e-5);
            "squared": of $|v-F^\top w|^2 + a|w|_1$ (the form printed in the paper, and SpLiCE's),
            so λ = a/2; "lambda": λ itself.
        d: dimensions of the features.

    Raises:
        InferKitError: alpha is no number above 0; the scale is unknown.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not math.isfinite(alpha):
        raise InferKitError(f"alpha is a number above 0, got {alpha!r}.")
    if alpha <= 0:
        raise InferKitError(
            f"alpha is above 0, got {alpha!r}.",
            hint="Without a penalty every phrase has weight, and nothing is explained.",
        )
    factors = {"sklearn": float(d), "squared": 0.5, "lambda": 1.0}
    if scale not in factors:
        raise InferKitError(f"Unknown scale {scale!r}: use sklearn, squared or lambda.")
    return float(alpha) * factors[scale]


def sparse_code(
    F: Any,
    v: Any,
    alpha: float,
    scale: Scale = "sklearn",
    positive: bool = False,
    solver: Solver = "auto",
    tol: float = 1e-9,
    max_iter: int = 3000,
) -> Code:
    """Weights of phrases by the lasso, certified.

    Args:
        F: phrase features, `[K, d]` for all images, or `[B, K, d]`; numbers of any kind.
        v: image features, `[d]` or `[B, d]`.
        alpha, scale: see `lasso_lambda`.
        positive: weights ≥ 0.
        solver: "active_set" follows the solution down from λ_max; "admm"; "cd" is scikit-learn's
            coordinate descent; "auto" takes the one that is fast at this λ/λ_max. They differ in
            speed alone: each ends with an exact step on the support that it found, and what is
            then above `tol` is finished one phrase at a time.
        tol: of the gap, relative to |v|².
        max_iter: rounds, steps or sweeps.

    Returns:
        The code. Its gap is always reported; where it is above `tol`, a `ConvergenceWarning` of
        scikit-learn says so. Of phrases with the same feature, bit for bit, each has an equal part
        of a weight, and `unique` is False. Permuted phrases have permuted weights, unless features
        depend on one another otherwise (F_j = −F_i, small integers): several weightings may be
        optimal then, and one of them is returned.

    Raises:
        InferKitError: shapes do not fit; numbers are not finite; an argument is unknown.
    """
    code, alone = solve(F, v, alpha, scale, positive, solver, tol, max_iter)
    warn_of(code.verdict(), tol)
    return code[0] if alone else code


@torch.no_grad()
def solve(
    F: Any,
    v: Any,
    alpha: float,
    scale: Scale,
    positive: bool,
    solver: Solver,
    tol: float,
    max_iter: int,
) -> tuple[Code, bool]:
    """`sparse_code` without its warnings: the code `[B, …]`, and whether v was one image."""
    check_solver(solver, tol, max_iter)
    F, v, alone = _checked(F, v)
    lam = lasso_lambda(alpha, v.shape[1], scale)
    size = _ON_GPU if v.is_cuda else 1
    parts = [
        _solve(F[at : at + size] if F.dim() == 3 else F, rows, lam, positive, solver, tol, max_iter)
        for at, rows in zip(range(0, len(v), size), v.split(size), strict=True)
    ]
    return Code.cat(parts), alone


def check_solver(solver: Any, tol: Any, max_iter: Any) -> None:
    """Refuse settings of a solver that cannot work."""
    if solver not in get_args(Solver):
        raise InferKitError(f"Unknown solver {solver!r}: use {', '.join(get_args(Solver))}.")
    if not tol > 0 or max_iter < 1:
        raise InferKitError(f"tol is above 0 and max_iter from 1 on, got {tol} and {max_iter}.")


def _checked(F: Any, v: Any) -> tuple[Tensor, Tensor, bool]:
    try:
        F, v = torch.as_tensor(F), torch.as_tensor(v)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferKitError(f"F and v are tables of numbers: {error}") from error
    given, alone = v.shape, v.dim() == 1
    v = v[None] if alone else v
    fits = (
        v.dim() == 2 and F.dim() in (2, 3) and F.shape[-1] == v.shape[1] and 0 not in F.shape
    ) and (F.dim() == 2 or len(F) == len(v))
    if not fits or not len(v):
        raise InferKitError(
            f"F has shape {list(F.shape)} and v {list(given)}; expected [K, d] or [B, K, d], and "
            "[d] or [B, d], none of them 0."
        )
    if not all(math.isfinite(float(end)) for x in (F, v) for end in x.aminmax()):
        raise InferKitError("F or v has numbers that are not finite.")
    if v.device.type == "mps":  # which has no float64
        v = v.cpu()
    return F.to(v.device), v.double(), alone


def _solve(
    F: Tensor, v: Tensor, lam: float, positive: bool, solver: Solver, tol: float, most: int
) -> Code:
    """The code of some images, all at once."""
    F = F.double().expand(len(v), -1, -1) if F.dim() == 2 else F.double()
    size = v.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    # the solution scales with v and λ together; ADMM's ρ is meant for unit features
    first = representatives(F)
    alone = first == torch.arange(F.shape[1], device=F.device)
    merged = F if bool(alone.all()) else F * alone[..., None]
    problem = Problem(merged, v / size[:, None], lam / size, positive)
    lam_max = problem.lam_max
    w = torch.zeros(F.shape[:2], dtype=F.dtype, device=F.device)
    n_iter = torch.zeros(len(v), dtype=torch.long, device=F.device)
    # w = 0 is the solution at λ_max
    gap = torch.zeros_like(lam_max).masked_fill(problem.lam < lam_max, torch.inf)
    for name in _ORDER[solver]:
        wanted = gap > _EXACT * tol
        if solver == "auto":
            wanted = wanted & _suits(name, problem, w)
        at = wanted.nonzero()[:, 0]
        if len(at):
            part = problem if len(at) == len(v) else _rows(problem, at)
            found, took = _run(name, part, w[at], _EXACT * tol, most)
            w, n_iter = w.index_copy(0, at, found), n_iter.index_add(0, at, took)
            gap = gap.index_copy(0, at, duality_gap(part, found))
    if not bool(alone.all()):
        w = shared_out(w, first)
        gap = duality_gap(Problem(F, problem.v, problem.lam, positive), w)
    shared = (~alone).any(1) & ((shared_out(alone.to(F.dtype), first) < 1) & (w != 0)).any(1)
    return Code(
        w=w * size[:, None],
        z=rebuild(F, w * size[:, None]),
        gap=gap * size.square(),
        n_iter=n_iter,
        converged=gap <= tol,
        lam=torch.full_like(size, lam),
        lam_max=lam_max * size,
        unique=~shared,
    )


def _suits(name: str, problem: Problem, w: Tensor) -> Tensor:
    """`[B]`: the images that "auto" tries a solver on, of those that are left.

    Args:
        w: `[B, K]`, of those before it.
    """
    every = torch.ones_like(problem.lam, dtype=torch.bool)
    ratio = problem.lam / problem.lam_max
    signed = every & (not problem.positive)
    few = (~signed | (ratio >= _SPARSE)) & (problem.lam.device.type == "cpu")
    if name == "rough_cd":
        return few
    if name == "active_set":
        return ~few & (~signed | (ratio >= _DENSE))
    if name == "admm":  # what coordinate descent nearly solved, with few phrases, is left to
        return ~few | (_WIDE * (w != 0).sum(1) > problem.F.shape[2])  # the last one
    return every


def _run(
    name: str, problem: Problem, start: Tensor, tol: float, most: int
) -> tuple[Tensor, Tensor]:
    """Weights and steps of one solver."""
    if name == "rough_cd":
        return rough_descent(problem, most)
    if name == "active_set":
        return follow_path(problem, most, widest=problem.F.shape[2] // _WIDE)
    if name == "exchange":
        return exchange(problem, start, tol, most)
    return (admm if name == "admm" else coordinate_descent)(problem, tol, most)


def _rows(problem: Problem, at: Tensor) -> Problem:
    return Problem(problem.F[at], problem.v[at], problem.lam[at], problem.positive)


def warn_of(code: Verdict, tol: float, what: str = "The lasso", level: int = 3) -> None:
    """Warn of images whose weights did not converge, or are not unique.

    Args:
        what: did not converge. level: of the stack that the warnings point at.
    """
    if not bool(code.converged.all()):
        from sklearn.exceptions import ConvergenceWarning

        late = (~code.converged).nonzero()[:, 0]
        worst = float(code.gap[late].max())
        warnings.warn(
            f"{what} did not converge for {len(late)} of {len(code.gap)} images (first: number "
            f"{int(late[0])}): the largest duality gap is {worst:.1e}, wanted {tol:.0e}·|v|². Give "
            "a larger alpha, tol or max_iter.",
            ConvergenceWarning,
            stacklevel=level,
        )
    if not bool(code.unique.all()):
        shared = int((~code.unique).sum())
        warnings.warn(
            f"The weights are not unique for {shared} of {len(code.gap)} images: phrases with the "
            "same feature share a weight in equal parts.",
            stacklevel=level,
        )
