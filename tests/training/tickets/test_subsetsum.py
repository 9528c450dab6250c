"""Subset sums against all subsets, and products of masked matrices against plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import subsetsum
from infer_kit.training.tickets.subsetsum import approx_product, best_subset, block_length


def least_error(x: list[float], w: float) -> float:
    """Over all subsets, one by one."""
    return min(
        abs(sum(itertools.compress(x, taken)) - w)
        for taken in itertools.product((0, 1), repeat=len(x))
    )


def least_errors(x: Tensor, w: Tensor) -> Tensor:
    """`[P]`: over all subsets of each row, in one product."""
    n = x.shape[1]
    subsets = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    return (x @ subsets.double().T - w[:, None]).abs().amin(1)


def error_of(x: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return ((x.double() * mask).sum(-1) - w.double()).abs()


def numbers(kind: str, g: torch.Generator, *shape: int) -> Tensor:
    if kind == "integers":  # full of ties, and sums that are exact
        return torch.randint(-4, 5, shape, generator=g).double()
    if kind == "repeated":
        return torch.randint(1, 3, shape, generator=g).double() / 3
    x = torch.rand(shape, generator=g, dtype=torch.float64)
    if kind == "negative":
        return -x
    if kind == "zeros":
        return (2 * x - 1) * (x > 0.5)
    return {"signed": 2 * x - 1, "of all sizes": 10 ** (12 * x - 6), "far": x / 100}[kind]


KINDS = ("integers", "repeated", "negative", "zeros", "signed", "of all sizes", "far")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", range(13))
def test_the_best_subset_is_that_of_brute_force(n: int, kind: str) -> None:
    g = torch.Generator().manual_seed(n)
    count = 400 if n < 10 else 60
    x = numbers(kind, g, count, n)
    w = numbers("signed" if kind == "far" else kind, g, count) * (1 + n / 4)
    if kind == "integers":
        w = w.round()
    mask, error = best_subset(x, w)
    assert mask.dtype == torch.bool and mask.shape == (count, n)
    assert error.dtype == torch.float64 and error.shape == (count,)
    size = x.abs().sum(1) + w.abs()
    assert bool(((error - least_errors(x, w)).abs() <= 1e-15 * size).all())
    assert bool(((error - error_of(x, mask, w)).abs() <= 1e-15 * size).all())


def test_it_is_that_of_plain_python() -> None:
    g = torch.Generator().manual_seed(0)
    for n in (0, 1, 2, 3, 7, 8):
        x, w = numbers("signed", g, 5, n), numbers("signed", g, 5)
        error = best_subset(x, w)[1]
        slow = [least_error(a, b) for a, b in zip(x.tolist(), w.tolist(), strict=True)]
        torch.testing.assert_close(error, torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("n", [13, 20, 25, 31])
def test_a_planted_subset_is_found(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    x = numbers("signed", g, 3, n)
    planted = torch.rand(3, n, generator=g) < 0.5
    mask, error = best_subset(x, (x * planted).sum(-1))
    assert float(error.max()) < 1e-14
    if n < 25:  # of more numbers, other subsets come as near as float64 tells
        assert torch.equal(mask, planted)


def test_the_most_numbers_that_are_taken_fit_into_memory() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = numbers("signed", g, 40), numbers("signed", g)
    mask, error = best_subset(x, w)
    assert float(error) < 1e-10
    torch.testing.assert_close(error_of(x, mask, w), error, atol=1e-14, rtol=0)


def test_ties_are_broken_as_documented_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([1.0, 1, 2, 1, 1, 2])
    mask, error = best_subset(x, torch.tensor(2.0))
    # The least of s and w − r is 0: nothing of the first half, and first of the second 1 + 1.
    assert mask.int().tolist() == [0, 0, 0, 1, 1, 0] and error == 0
    mask, error = best_subset(torch.tensor([0.0, 2, 0, 2]), torch.tensor(1.0))
    assert mask.int().tolist() == [0, 0, 0, 1] and error == 1  # −1 is nearer to 0 than 0 to 1 is

    g = torch.Generator().manual_seed(0)
    x, w = numbers("integers", g, 500, 9), numbers("integers", g, 500)
    mask, error = best_subset(x, w)
    monkeypatch.setattr(subsetsum, "_CHUNK", 1)  # one at a time
    alone = best_subset(x, w)
    assert torch.equal(mask, alone[0]) and torch.equal(error, alone[1])
    shuffled = torch.randperm(500, generator=g)
    assert torch.equal(best_subset(x[shuffled], w[shuffled])[0], mask[shuffled])


def documented_choice(x: list[float], w: float) -> list[int]:
    """The subset that the documented order of ties picks, pair by pair."""
    half = len(x) // 2

    def sums(numbers: list[float]) -> list[float]:
        taken = range(2 ** len(numbers))
        return [sum(v for b, v in enumerate(numbers) if i >> b & 1) for i in taken]

    s, r = sums(x[:half]), sums(x[half:])
    pairs = itertools.product(range(len(s)), range(len(r)))
    i, j = min(
        pairs, key=lambda p: (abs(s[p[0]] + r[p[1]] - w), min(s[p[0]], w - r[p[1]]), p[0], p[1])
    )
    return [i >> b & 1 for b in range(half)] + [j >> b & 1 for b in range(len(x) - half)]


def test_ties_are_broken_in_that_order_by_plain_python() -> None:
    g = torch.Generator().manual_seed(0)
    for n in (1, 4, 7, 10):
        x, w = numbers("integers", g, 30, n), numbers("integers", g, 30)
        slow = [documented_choice(a, b) for a, b in zip(x.tolist(), w.tolist(), strict=True)]
        assert best_subset(x, w)[0].int().tolist() == slow


def test_leading_dimensions_are_broadcast() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = numbers("signed", g, 4, 1, 7), numbers("signed", g, 3)
    mask, error = best_subset(x, w)
    assert mask.shape == (4, 3, 7) and error.shape == (4, 3)
    for i, j in itertools.product(range(4), range(3)):
        one = best_subset(x[i, 0], w[j])
        assert torch.equal(one[0], mask[i, j]) and torch.equal(one[1], error[i, j])
    for shape in ((0, 5), (2, 0, 5)):
        mask, error = best_subset(torch.zeros(shape), torch.zeros(shape[:-1]))
        assert mask.shape == shape and error.shape == shape[:-1]


def test_arithmetic_is_float64_whatever_is_given() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = numbers("signed", g, 5, 11).float().requires_grad_(), numbers("signed", g, 5).half()
    mask, error = best_subset(x, w)
    again = best_subset(x.detach().double(), w.double())
    assert torch.equal(mask, again[0]) and torch.equal(error, again[1])
    assert best_subset(torch.tensor([3, 5]), torch.tensor(8))[1] == 0  # of int64


def test_progress_is_shown_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    best_subset(torch.ones(3, 2), torch.ones(3))
    assert not capsys.readouterr().err
    best_subset(torch.ones(3, 2), torch.ones(3), progress=True)
    assert "3/3" in capsys.readouterr().err


def slow_product(W: Tensor, A: Tensor, B: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The construction by loops over the entries, and brute force for each."""
    (d1, d2), n = W.shape, A.shape[1]
    m = n // d1
    error, M_A = np.zeros((d1, d2)), np.zeros((d1, n), bool)
    for i in range(d1):
        for j in range(d2):
            products = [float(A[i, c]) * float(B[j, c]) for c in range(i * m, (i + 1) * m)]
            error[i, j] = least_error(products, float(W[i, j]))
        M_A[i, i * m : (i + 1) * m] = True
    return error, M_A


@pytest.mark.parametrize("d1, d2, n", [(1, 1, 1), (2, 1, 9), (3, 2, 20), (2, 4, 17), (4, 4, 4)])
def test_a_masked_product_is_that_of_plain_loops(d1: int, d2: int, n: int) -> None:
    g = torch.Generator().manual_seed(n)
    W, A, B = (numbers("signed", g, *shape) for shape in ((d1, d2), (d1, n), (d2, n)))
    M_A, M_B = approx_product(W, A, B)
    error, kept = slow_product(W, A, B)
    reached = (A * M_A) @ (B * M_B).T
    np.testing.assert_allclose((reached - W).abs().numpy(), error, atol=1e-14, rtol=0)
    assert np.array_equal(M_A.numpy(), kept)
    assert not M_B[:, n // d1 * d1 :].any()  # what no block holds


def test_a_masked_product_comes_near_in_a_batch_as_alone() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((5, 2, 3, 2), (5, 2, 3, 60), (5, 2, 2, 60))  # n' = 20
    W, A, B = (numbers("signed", g, *shape) for shape in shapes)
    M_A, M_B = approx_product(W, A, B)
    off = ((A * M_A) @ (B * M_B).mT - W).abs()
    assert float(off.median()) < 5e-6
    assert float((off < 1e-4).double().mean()) > 0.95  # some entries of W exceed every sum
    for i, j in itertools.product(range(5), range(2)):
        alone = approx_product(W[i, j], A[i, j], B[i, j])
        assert torch.equal(alone[0], M_A[i, j]) and torch.equal(alone[1], M_B[i, j])


def test_what_cannot_be_a_problem_is_refused() -> None:
    one = torch.ones(())
    with pytest.raises(InferKitError, match="x has n = 41 numbers, and 40 is the most"):
        best_subset(torch.ones(41), one)
    with pytest.raises(InferKitError, match="1 of the 3 numbers of x are not finite"):
        best_subset(torch.tensor([1.0, torch.nan, 2.0]), one)
    with pytest.raises(InferKitError, match="2 of the 2 numbers of w are not finite"):
        best_subset(torch.ones(2, 3), torch.tensor([torch.inf, -torch.inf]))
    with pytest.raises(InferKitError, match="overflow"):
        best_subset(torch.full((3,), 1e308, dtype=torch.float64), one)
    with pytest.raises(InferKitError, match="w is complex"):
        best_subset(torch.ones(3), one * 1j)
    with pytest.raises(InferKitError, match=r"x has \[2, 5\] numbers and w \[3\]"):
        best_subset(torch.ones(2, 5), torch.ones(3))
    with pytest.raises(InferKitError, match="x has no dimension"):
        best_subset(one, one)


def test_matrices_that_do_not_fit_are_refused() -> None:
    W, A, B = torch.ones(2, 3), torch.ones(2, 8), torch.ones(3, 8)
    approx_product(W, A, B)
    for wrong in ((W.T, A, B), (W, A[:, :7], B), (W, A[None], B), (W, A, B[:2]), (W, A[0], B)):
        with pytest.raises(InferKitError, match=r"W \[.*\], A \[.*\], B \[.*\] do not fit"):
            approx_product(*wrong)
    with pytest.raises(InferKitError, match="n = 1 columns are fewer than the d1 = 2 rows"):
        approx_product(W, A[:, :1], B[:, :1])
    with pytest.raises(InferKitError, match="n = 82 .*so that n = 81 is the limit"):
        approx_product(W, torch.ones(2, 82), torch.ones(3, 82))
    with pytest.raises(InferKitError, match="16 of the 16 numbers of A are not finite"):
        approx_product(W, A / 0, B)
    with pytest.raises(InferKitError, match="no rows"):
        approx_product(torch.ones(0, 3), torch.ones(0, 8), B)
    assert block_length(81, 2) == 40
