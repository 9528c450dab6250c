"""The certified lasso: against slow solvers and scikit-learn, and its laws."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch import Tensor

from infer_kit.concepts import lasso
from infer_kit.concepts.active_set import polish
from infer_kit.concepts.admm import soft_threshold
from infer_kit.concepts.certificate import Problem, duality_gap, kkt_violation, objective
from infer_kit.concepts.lasso import Code, Solver, lasso_lambda, sparse_code
from infer_kit.errors import InferKitError
from infer_kit.testing import assert_sparse_code_law
from tests.concepts.lassos import (
    Case,
    by_coordinates,
    cases,
    clip_like,
    gap_of,
    objective_of,
    unit,
)

SOLVERS = get_args(Solver)


def solved(case: Case, solver: Any = "auto", **options: Any) -> Code:
    """The code of a case; phrases with the same feature are no matter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The weights are not unique")
        return sparse_code(case.F, case.v, case.lam, "lambda", case.positive, solver, **options)


def problem_of(case: Case) -> Problem:
    lam = torch.tensor([case.lam], dtype=torch.float64)
    return Problem(case.F[None], case.v[None], lam, case.positive)


def sklearn_lasso(F: Tensor, v: Tensor, alpha: float, positive: bool, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = Lasso(alpha, fit_intercept=False, positive=positive, **options)
        fit.fit(F.numpy().T, v.numpy())
    return torch.from_numpy(fit.coef_).double()


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_problem_is_solved_and_certified(solver: str) -> None:
    for case in cases(200, seed=1):
        code = solved(case, solver)
        size = float(case.v @ case.v)
        assert code.converged and float(code.gap) <= 1e-9 * size, case
        assert gap_of(case, code.w) <= 1e-9 * size + 1e-13, case  # as published, recomputed
        assert not case.positive or float(code.w.min()) >= 0, case
        torch.testing.assert_close(code.z, case.F.T @ code.w, atol=1e-10, rtol=0)


def test_the_objective_is_the_textbooks() -> None:
    for case in cases(40, seed=2, phrases=25, dimensions=12, smallest=1e-2):
        code = solved(case)
        slow = objective_of(case, by_coordinates(case, sweeps=300))
        assert objective_of(case, code.w) <= slow + 1e-9 * float(case.v @ case.v), case


def test_the_weights_are_the_textbooks_where_they_are_unique() -> None:
    for case in cases(60, seed=3, phrases=25, dimensions=30, smallest=3e-2):
        if case.kind not in ("gaussian", "common mean"):
            continue
        torch.testing.assert_close(
            solved(case).w, by_coordinates(case), atol=1e-8, rtol=0, msg=str(case)
        )


def test_optimality_conditions() -> None:
    for case in cases(100, seed=4):
        if case.kind in ("gaussian", "common mean"):
            assert_sparse_code_law(case.F, case.v, solved(case).w, case.lam, case.positive)


def test_the_soft_threshold() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert soft_threshold(x, torch.tensor(1.0), False).tolist() == [-1, 0, 0, 0, 1]
    assert soft_threshold(x, torch.tensor(1.0), True).tolist() == [0, 0, 0, 0, 1]


def test_polishing_calls_nothing_else_the_optimum() -> None:
    """From a support that lacks phrases, and from one that has too many."""
    g = torch.Generator().manual_seed(0)
    ended = []
    for case in cases(60, seed=10, smallest=1e-3):
        if case.kind not in ("gaussian", "common mean"):
            continue
        best = solved(case).w
        for near in (
            best * (torch.rand(len(best), generator=g) < 0.6),
            best + 1e-3 * torch.rand(len(best), generator=g) * (torch.rand(len(best)) < 0.1),
        ):
            w, exact = polish(problem_of(case), near[None])
            ended.append(bool(exact))
            if exact:
                torch.testing.assert_close(w[0], best, atol=1e-8, rtol=0)
            else:
                assert torch.equal(w[0], near)
    assert 10 <= sum(ended) < len(ended)


def test_the_law_notices_what_is_not_the_optimum() -> None:
    F, v = clip_like(60, 24)
    w = sparse_code(F, v, 1e-3).w
    assert_sparse_code_law(F, v, w, 24e-3)
    with pytest.raises(AssertionError, match="The duality gap is"):
        assert_sparse_code_law(F, v, 1.01 * w, 24e-3)
    with pytest.raises(AssertionError, match="The optimality conditions are"):
        assert_sparse_code_law(F, v, w + 1e-6 * (w != 0), 24e-3, tol=1e-3)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("alpha", [1e-5, 1e-4, 1e-3])
def test_at_clips_geometry_against_scikit_learn(alpha: float, positive: bool) -> None:
    """Acceptance check 2: not above the published setting, and within 1e-4 of a tight fit."""
    F, v = clip_like(400, 96)
    case = Case("clip", F, v, lasso_lambda(alpha, 96), positive)
    code = solved(case)
    published = sklearn_lasso(F.float(), v.float(), alpha, positive)
    tight = sklearn_lasso(F, v, alpha, positive, tol=1e-12, max_iter=200_000)
    ours, theirs = (float(objective(problem_of(case), w[None])) for w in (code.w, tight))
    assert ours <= objective_of(case, published) + 1e-12
    assert abs(ours - theirs) <= 1e-4 * theirs
    assert float(code.gap) <= 1e-9
    assert float(kkt_violation(problem_of(case), code.w[None])) < 1e-6


def test_the_polished_gap_is_at_rounding() -> None:
    F, v = clip_like(600, 128, seed=1)
    for solver in SOLVERS:
        assert float(sparse_code(F, v, 3e-5, solver=solver).gap) < 1e-12, solver


def test_solvers_agree() -> None:
    F, v = clip_like(600, 128, seed=2)
    found = [sparse_code(F, v, 1e-4, solver=solver).w for solver in SOLVERS]
    for w in found[1:]:
        torch.testing.assert_close(w, found[0], atol=1e-10, rtol=0)


def test_scales() -> None:
    """Acceptance check 3: α of scikit-learn, a = 2dα of the printed form, and λ = dα."""
    F, v = clip_like(100, 32)
    w = sparse_code(F, v, 1e-3).w
    for alpha, scale in ((2 * 32 * 1e-3, "squared"), (32 * 1e-3, "lambda")):
        torch.testing.assert_close(sparse_code(F, v, alpha, scale).w, w, atol=1e-8, rtol=0)
    assert lasso_lambda(1e-5, 512) == pytest.approx(5.12e-3)
    assert lasso_lambda(0.25, 512, "squared") == 0.125


@pytest.mark.parametrize("positive", [False, True])
def test_at_lambda_max_nothing_has_weight(positive: bool) -> None:
    """Acceptance check 4: exactly 0 from λ_max on, and something just below."""
    F, v = clip_like(50, 16, seed=3)
    c = F @ v
    most = float(c.max() if positive else c.abs().max())
    for lam in (most * (1 + 1e-12), 2 * most):
        code = sparse_code(F, v, lam, "lambda", positive)
        assert code.empty and not code.w.any() and float(code.gap) == 0 and code.converged
        assert float(code.lam_max) == pytest.approx(most, rel=1e-12)
    below = sparse_code(F, v, 0.99 * most, "lambda", positive)
    assert not below.empty and below.nnz >= 1


def test_weights_that_must_be_positive_where_none_can_be() -> None:
    v = unit(torch.ones(4, dtype=torch.float64))
    code = sparse_code(-torch.eye(4, dtype=torch.float64), v, 0.1, "lambda", positive=True)
    assert code.empty and float(code.lam_max) == 0 and code.converged


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(1, 7), (3, 7), (7, 7), (40, 7), (5, 1)])
def test_any_shape(shape: tuple[int, int], solver: Any) -> None:
    F = unit(torch.randn(*shape, dtype=torch.float64)) + 0.01 * torch.randn(shape)
    v = unit(torch.randn(shape[1], dtype=torch.float64))
    assert sparse_code(F, v, 1e-3, solver=solver).converged


def test_duplicates_share_their_weight() -> None:
    F, v = clip_like(60, 24, seed=4)
    alone = sparse_code(F, v, 1e-3)
    most = int(alone.w.abs().argmax())
    with pytest.warns(UserWarning, match="not unique for 1 of 1 images"):
        twice = sparse_code(torch.cat([F, F[[most, most]]]), v, 1e-3)
    assert not twice.unique and alone.unique
    torch.testing.assert_close(twice.z, alone.z, atol=1e-9, rtol=0)
    third = alone.w[most] / 3
    torch.testing.assert_close(twice.w[[most, 60, 61]], third.expand(3), atol=1e-9, rtol=0)


def test_duplicates_without_weight_are_no_matter() -> None:
    F, v = clip_like(60, 24, seed=4)
    w = sparse_code(F, v, 1e-3).w
    none = int((w == 0).nonzero()[0])
    again = sparse_code(torch.cat([F, F[[none]]]), v, 1e-3)  # a warning would be an error
    assert again.unique
    torch.testing.assert_close(again.w[:60], w, atol=1e-10, rtol=0)


@pytest.mark.parametrize("positive", [False, True])
def test_permuted_phrases_have_permuted_weights(positive: bool) -> None:
    """Acceptance check 5, which the published solver fails."""
    F, v = clip_like(600, 96, seed=5)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    w = sparse_code(F, v, 1e-5, positive=positive).w
    torch.testing.assert_close(
        sparse_code(F[order], v, 1e-5, positive=positive).w, w[order], atol=1e-7, rtol=0
    )
    if not positive:
        theirs = sklearn_lasso(F.float(), v.float(), 1e-5, False)
        permuted = sklearn_lasso(F[order].float(), v.float(), 1e-5, False)
        assert float((permuted - theirs[order]).abs().max()) > 1e-4


def test_the_image_itself_as_a_phrase() -> None:
    """Acceptance check 6: w = 1 − λ on it, 0 elsewhere, and a residual of λ."""
    F, v = clip_like(300, 64, seed=6)
    for lam in (0.01, 0.3):
        code = sparse_code(torch.cat([F, v[None]]), v, lam, "lambda")
        expected = torch.zeros(301, dtype=torch.float64)
        expected[300] = 1 - lam
        torch.testing.assert_close(code.w, expected, atol=1e-9, rtol=0)
        assert float((v - code.z).norm()) == pytest.approx(lam, abs=1e-9)


def test_batches_are_their_images() -> None:
    F = torch.stack([clip_like(80, 32, seed=s)[0] for s in range(5)])
    v = torch.stack([clip_like(80, 32, seed=s)[1] for s in range(5)])
    for solver in SOLVERS:
        code = sparse_code(F, v, 3e-4, solver=solver)
        for b in range(5):
            alone = sparse_code(F[b], v[b], 3e-4, solver=solver)
            torch.testing.assert_close(code[b].w, alone.w, atol=1e-12, rtol=0)
            assert code[b].n_iter == alone.n_iter
    shared = sparse_code(F[0], v, 3e-4)
    alone = sparse_code(F[0], v[3], 3e-4)
    torch.testing.assert_close(shared.w[3], alone.w, atol=1e-12, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_solved_together(solver: Any) -> None:
    """As on a GPU: many at a time, with supports of unlike size, some empty, some harder."""
    F = torch.stack([unit(torch.randn(40, 20, dtype=torch.float64)) for _ in range(30)])
    v = torch.stack([unit(torch.randn(20, dtype=torch.float64)) for _ in range(30)])
    v = v * torch.logspace(-1.7, 0, 30, dtype=torch.float64)[:, None]  # the first have no phrase
    for positive in (False, True):
        one_by_one = sparse_code(F, v, 0.03, "lambda", positive, solver)
        whole = lasso._solve(F, v, 0.03, positive, solver, 1e-9, 3000)
        assert bool(whole.converged.all()) and bool(whole.empty[0])
        assert len(set(whole.nnz.tolist())) > 5
        torch.testing.assert_close(whole.w, one_by_one.w, atol=1e-9, rtol=0)


def test_numbers_of_other_kinds() -> None:
    F, v = clip_like(80, 32)
    w = sparse_code(F, v, 1e-3).w
    for kind in (torch.float32, torch.float16):
        near = sparse_code(F.to(kind), v.to(kind), 1e-3)
        assert near.w.dtype == torch.float64 and near.converged
        assert float((near.z - F.T @ w).norm()) < 0.05
    arrays = sparse_code(F.numpy(), v.numpy(), 1e-3)
    torch.testing.assert_close(arrays.w, w, atol=0, rtol=0)
    lists = sparse_code(F.tolist(), v.tolist(), 1e-3)
    assert float((lists.z - F.T @ w).norm()) < 1e-3  # torch reads lists as float32


def test_a_longer_image_has_longer_weights() -> None:
    F, v = clip_like(80, 32)
    w = sparse_code(F, v, 0.02, "lambda").w
    torch.testing.assert_close(sparse_code(F, 100 * v, 2.0, "lambda").w, 100 * w, atol=1e-9, rtol=0)


def test_a_solver_that_does_not_converge_says_so() -> None:
    F, v = clip_like(400, 96)
    for solver in SOLVERS:
        with pytest.warns(
            ConvergenceWarning,
            match=r"did not converge for 1 of 1 images \(first: number 0\): the largest duality "
            r"gap is \d\.\de-?\d+, wanted 1e-09",
        ):
            code = sparse_code(F, v, 1e-6, solver=solver, max_iter=2)
        assert not code.converged and float(code.gap) > 1e-9
        assert float(code.gap) >= objective_of(
            Case("", F, v, float(code.lam), False), code.w
        ) - objective_of(Case("", F, v, float(code.lam), False), sparse_code(F, v, 1e-6).w)


def test_the_warning_names_the_images_that_did_not_converge() -> None:
    F, v = clip_like(400, 96)
    for solver in SOLVERS:
        with pytest.warns(ConvergenceWarning, match=r"for 1 of 2 images \(first: number 1\)"):
            code = sparse_code(F, torch.stack([1e-6 * v, v]), 1e-5, solver=solver, max_iter=1)
        assert code.converged.tolist() == [True, False]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"alpha": 0}, r"alpha is above 0, got 0\."),
        ({"alpha": -1.0}, r"alpha is above 0, got -1\.0\."),
        ({"alpha": float("nan")}, "alpha is a number above 0, got nan"),
        ({"alpha": "small"}, "alpha is a number above 0, got 'small'"),
        ({"scale": "glmnet"}, "Unknown scale 'glmnet': use sklearn, squared or lambda"),
        ({"solver": "fista"}, "Unknown solver 'fista': use auto, active_set, admm, cd"),
        ({"tol": 0.0}, r"tol is above 0 and max_iter from 1 on, got 0\.0 and 3000"),
        ({"max_iter": 0}, "max_iter from 1 on"),
        ({"v": torch.zeros(5)}, r"F has shape \[4, 3\] and v \[5\]; expected \[K, d\]"),
        ({"F": torch.zeros(0, 3)}, r"F has shape \[0, 3\]"),
        ({"F": torch.zeros(2, 4, 3), "v": torch.zeros(3, 3)}, r"F has shape \[2, 4, 3\]"),
        ({"v": torch.tensor([1.0, float("inf"), 0.0])}, "numbers that are not finite"),
        ({"F": torch.full((4, 3), float("nan"))}, "numbers that are not finite"),
        ({"F": "phrases"}, "F and v are tables of numbers"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    given = {"F": torch.eye(4)[:, :3], "v": torch.ones(3), "alpha": 1e-3, **arguments}
    with pytest.raises(InferKitError, match=message):
        sparse_code(**given)


def test_the_certificate_bounds_the_excess() -> None:
    """At any weighting: the published formula, never negative, never below the excess."""
    g = torch.Generator().manual_seed(0)
    for case in cases(60, seed=8, smallest=1e-3):
        best = objective_of(case, solved(case).w)
        for size in (0.0, 1e-3, 1.0):
            w = solved(case).w + size * torch.randn(len(case.F), generator=g, dtype=torch.float64)
            w = w.clamp_min(0) if case.positive else w
            gap = float(duality_gap(problem_of(case), w[None]))
            assert gap >= 0
            assert gap == pytest.approx(gap_of(case, w), rel=1e-9, abs=1e-12), case
            assert gap >= objective_of(case, w) - best - 1e-9, case


def test_a_weighting_below_zero_has_no_certificate_where_it_may_not_be() -> None:
    case = next(case for case in cases(20, seed=9) if case.positive)
    w = -torch.ones(1, len(case.F), dtype=torch.float64)
    assert float(duality_gap(problem_of(case), w)) == np.inf
