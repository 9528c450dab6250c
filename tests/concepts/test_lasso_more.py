"""Each solver of the lasso alone: what one leaves is finished by others, and is not seen there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from infer_kit.concepts.active_set import follow_path, mend
from infer_kit.concepts.admm import admm
from infer_kit.concepts.certificate import Problem, duality_gap, kkt_violation, objective
from infer_kit.concepts.coordinate_descent import coordinate_descent, rough_descent
from infer_kit.concepts.exchange import _exchange, exchange
from infer_kit.concepts.identical_phrases import representatives, shared_out
from infer_kit.concepts.lasso import sparse_code
from tests.concepts.lassos import clip_like, unit


def problem(
    positive: bool, shares: tuple[float, ...] = (0.5, 0.1, 0.03), K: int = 120, d: int = 40
) -> Problem:
    """Images with phrases of their own, at unlike shares of λ_max."""
    made = [clip_like(K, d, seed) for seed in range(len(shares))]
    F, v = torch.stack([F for F, _ in made]), torch.stack([v for _, v in made])
    c = torch.einsum("bkd,bd->bk", F, v)
    most = (c if positive else c.abs()).amax(1)
    return Problem(F, v, most * torch.tensor(shares, dtype=torch.float64), positive)


def alone(name: str, given: Problem) -> tuple[Tensor, Tensor]:
    if name == "path":
        return follow_path(given, 500, widest=40)
    if name == "admm":
        return admm(given, 1e-13, 320)
    if name == "cd":
        return coordinate_descent(given, 1e-13, 20_000)
    if name == "rough":
        return rough_descent(given, 3000)
    return exchange(given, torch.zeros(given.F.shape[:2], dtype=torch.float64), 1e-13, 3000)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", ["path", "admm", "cd", "rough", "exchange"])
def test_each_ends_at_the_optimum(name: str, positive: bool) -> None:
    given = problem(positive)
    w, steps = alone(name, given)
    assert float(duality_gap(given, w).max()) < 1e-13
    assert float(kkt_violation(given, w).max()) < 1e-9
    assert w.shape == given.F.shape[:2] and steps.shape == (3,) and bool((steps > 0).all())
    if positive:
        assert float(w.min()) >= 0
    else:
        assert float(w.min()) < 0 < float(w.max())  # the other sign is at work


@pytest.mark.parametrize("name, most", [("path", 40), ("admm", 80), ("exchange", 60)])
def test_each_is_as_fast_as_it_was(name: str, most: int) -> None:
    _, steps = alone(name, problem(False))
    assert int(steps.max()) <= most


def test_admm_ends_where_many_phrases_have_weight() -> None:
    given = problem(False, (0.003, 0.003, 0.003), 400, 96)
    w, steps = admm(given, 1e-13, 320)
    assert float(duality_gap(given, w).max()) < 1e-13 and int(steps.max()) <= 80


def test_more_steps_of_admm_are_never_worse() -> None:
    given = problem(False, (1e-3, 3e-4, 1e-4, 3e-5), 400, 96)
    last = torch.full((4,), torch.inf, dtype=torch.float64)
    for most in (20, 80, 140, 200, 260, 320):  # where it is polished
        gap = duality_gap(given, admm(given, 1e-13, most)[0])
        assert bool((gap <= last).all()), most
        last = gap
    assert float(last.max()) > 1e-6  # some are never finished, and have their best


def test_what_a_rough_descent_leaves_is_finished() -> None:
    given = problem(False, (0.01, 0.01, 0.01), 400, 96)
    assert float(duality_gap(given, rough_descent(given, 3000)[0]).min()) > 1e-4
    assert float(duality_gap(given, coordinate_descent(given, 1e-13, 3000)[0]).max()) < 1e-13


@pytest.mark.parametrize("start", ["nothing", "anything"])
def test_an_exchange_never_makes_it_worse(start: str) -> None:
    g = torch.Generator().manual_seed(0)
    for positive in (False, True):
        given = problem(positive, (0.02,))
        near = torch.zeros(1, 120, dtype=torch.float64)
        if start == "anything":
            near[:, :30] = torch.randn(30, generator=g, dtype=torch.float64)
            near = near.abs() if positive else near
        last = objective(given, near)
        for most in range(1, 60):
            w, _ = _exchange(given, near[0], 1e-13, most)  # before it is polished
            now = objective(given, w[None])
            assert float(now - last) <= 1e-12, most
            last = now


def test_an_exchange_mends_a_wrong_start() -> None:
    given = problem(False)
    g = torch.Generator().manual_seed(0)
    start = torch.randn(3, 120, generator=g, dtype=torch.float64)
    start = start * (torch.rand(3, 120, generator=g) < 0.2)
    w, _ = exchange(given, start, 1e-13, 3000)
    assert float(duality_gap(given, w).max()) < 1e-13


def test_a_guess_is_mended() -> None:
    """Phrases with the wrong sign leave, those that violate λ join with theirs."""
    given = problem(False, (0.1,))
    best = alone("exchange", given)[0]
    right = mend(given, given.lam, best != 0, best.sign())
    assert bool(right.optimal) and bool(right.solved)
    torch.testing.assert_close(right.w, best, atol=1e-10, rtol=0)
    least = int(best[0].abs().argmax())
    lacking = (best != 0).clone()
    lacking[0, least] = False
    guess = mend(given, given.lam, lacking, best.sign() * lacking)
    assert bool(guess.solved) and not bool(guess.optimal)
    assert bool(guess.support[0, least]) and guess.signs[0, least] == best[0, least].sign()
    wrong = best.sign()
    wrong[0, least] *= -1
    assert not bool(mend(given, given.lam, best != 0, wrong).optimal)


def test_equal_rows_are_found_and_others_are_not() -> None:
    F = unit(torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    F[0, 7], F[0, 19], F[0, 28] = F[0, 3], F[0, 3], F[0, 3]
    F[1, 11] = F[1, 29]
    F[1, 5] = F[1, 4] + torch.tensor([1e-14, -1e-14, 0, 0, 0, 0])
    expected = torch.arange(30).repeat(2, 1)
    expected[0, [7, 19, 28]] = 3
    expected[1, 29] = 11
    assert torch.equal(representatives(F), expected)
    assert torch.equal(representatives(1e-6 * F), expected)
    w = torch.zeros(2, 30)
    w[0, 3], w[1, 11], w[1, 4] = 4.0, 3.0, 1.0
    shared = torch.zeros(2, 30)
    shared[0, [3, 7, 19, 28]], shared[1, [11, 29]], shared[1, 4] = 1.0, 1.5, 1.0
    assert torch.equal(shared_out(w, expected), shared)


def test_a_longer_image_has_a_larger_lambda_max_and_gap() -> None:
    F, v = clip_like(80, 32)
    one, long = (sparse_code(F, n * v, n * 0.02, "lambda") for n in (1, 50))
    assert float(long.lam_max) == pytest.approx(50 * float(one.lam_max))
    assert float(long.lam_max) == pytest.approx(50 * float((F @ v).abs().max()))


def test_convergence_is_relative_to_the_image() -> None:
    """A gap that is fine for a long image is not for a short one."""
    from sklearn.exceptions import ConvergenceWarning

    F, v = clip_like(400, 96)
    options: dict[str, Any] = {"scale": "lambda", "solver": "admm", "max_iter": 1}
    for n in (1e-6, 1.0, 1e6):
        with pytest.warns(ConvergenceWarning, match="first: number 0"):
            code = sparse_code(F, n * v, n * 1e-4, **options)
        assert not code.converged and float(code.gap) > 1e-9 * n**2
