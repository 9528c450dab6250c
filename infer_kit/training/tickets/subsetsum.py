r"""Which of n given numbers sum nearest to a number: exactly, and for many problems at once.

$\min_{m \in \{0,1\}^n} |\sum_b m_b x_b - w|$ by meeting in the middle (Horowitz and Sahni,
"Computing Partitions with Applications to the Knapsack Problem", JACM 1974): of the $2^{n/2}$ sums
s of the first half and r of the second, the pair with the least $|s - (w - r)|$ is wanted. With all
s and w − r sorted together, such a pair are neighbours: whatever lies between two numbers of
different kind is no further from one of them. So n = 40 costs $2^{20}$ and not $2^{40}$.

`approx_product` makes of it the masks under which a random product of matrices is a given matrix.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError

LIMIT = 40
"""The most numbers that a subset is taken of: 2^20 sums a half, some 90 MB."""

# Sums that are sorted at a time. Caches hold the arrays of 256 KiB; twice that takes twice the
# time, because memory then goes back to the system after each, and its pages are asked for anew.
_CHUNK = 1 << 15

_Array = NDArray[np.float64]


def best_subset(x: Tensor, w: Tensor, *, progress: bool = False) -> tuple[Tensor, Tensor]:
    r"""The subset of x whose sum is nearest to w.

    Exact up to the rounding of float64 sums. Of equally near subsets it is always the same one,
    whatever else is in the batch: with s and r as above, the one with the least min(s, w − r), then
    the least index of s and of r, bit b of an index being whether the b-th number is taken.

    The sums are sorted by NumPy on the CPU, which has a vectorised sort; PyTorch's takes some
    twenty times as long on a processor with AVX-512.

    Args:
        x: `[..., n]` real numbers, n ≤ 40. w: `[...]`; the leading dimensions are broadcast.
        progress: show a bar.

    Returns:
        The mask, bool `[..., n]`, and |sum of what it takes − w|, float64 `[...]`, on x's device.

    Raises:
        InferKitError: n > 40, a number that is not finite, or shapes that do not broadcast.
    """
    if x.dim() == 0:
        raise InferKitError("x has no dimension, and its last one is the n numbers of a problem.")
    n = x.shape[-1]
    if n > LIMIT:
        raise InferKitError(
            f"x has n = {n} numbers, and {LIMIT} is the most: time and memory are 2^(n/2)",
            "Leave numbers out; 24 random ones already come within some 1e-7 of w.",
        )
    given, asked = finite("x", x).cpu(), finite("w", w).cpu()
    try:
        size = given.abs().sum(-1) + asked.abs()
    except RuntimeError:
        raise InferKitError(
            f"x has {list(x.shape)} numbers and w {list(w.shape)}; w has one for each problem of x",
            "The dimensions of x before its last and those of w have to broadcast.",
        ) from None
    if not size.isfinite().all():
        raise InferKitError("The numbers of x and w are so large that their sums overflow float64.")
    lead = size.shape
    numbers = given.expand(*lead, n).reshape(lead.numel(), n).numpy()
    aims = asked.expand(lead).reshape(-1).numpy()

    mask, error = np.empty(numbers.shape, bool), np.empty(aims.shape)
    step = max(1, _CHUNK >> (n - n // 2 + 1))
    with tqdm(total=len(aims), desc="Subset sums", unit="sum", disable=not progress) as bar:
        for start in range(0, len(aims), step):
            at = slice(start, start + step)
            mask[at], error[at] = _meet_in_the_middle(numbers[at], aims[at])
            bar.update(len(aims[at]))
    back = (torch.from_numpy(a).to(x.device) for a in (mask, error))
    return next(back).reshape(*lead, n), next(back).reshape(lead)


def approx_product(
    W: Tensor, A: Tensor, B: Tensor, *, progress: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Masks under which $(A \odot M_A)(B \odot M_B)^\top \approx W$.

    The construction of "The Strong Lottery Ticket Hypothesis for Multi-Head Attention Mechanisms"
    (AAAI 2026, arXiv 2511.04217): with n' = n // d1, row i of A keeps block i alone, the columns
    [i n', (i+1) n'), so that entry (i, j) of the product is a sum over a subset of
    A[i, block i] · B[j, block i], which nothing else depends on. The n − d1 n' columns left over
    are masked. The paper shows that good subsets exist; here each is the best one.

    Args:
        W: `[..., d1, d2]`. A: `[..., d1, n]`. B: `[..., d2, n]`; the same leading dimensions.
        progress: show a bar.

    Returns:
        M_A `[..., d1, n]` and M_B `[..., d2, n]`, bool.

    Raises:
        InferKitError: shapes that do not fit, n < d1, n // d1 > 40, or a number that is not finite.
    """
    shapes = f"W {list(W.shape)}, A {list(A.shape)}, B {list(B.shape)}"
    if (
        min(W.dim(), A.dim(), B.dim()) < 2
        or not W.shape[:-2] == A.shape[:-2] == B.shape[:-2]
        or A.shape[-1] != B.shape[-1]
        or W.shape[-2:] != (A.shape[-2], B.shape[-2])
    ):
        raise InferKitError(
            f"{shapes} do not fit.", "W is [..., d1, d2], A [..., d1, n] and B [..., d2, n]."
        )
    d1, n = A.shape[-2:]
    m = block_length(n, d1)
    for name, matrix in (("W", W), ("A", A), ("B", B)):
        finite(name, matrix)

    def blocks(matrix: Tensor) -> Tensor:
        """`[..., row, block, n']`"""
        return matrix[..., : d1 * m].unflatten(-1, (d1, m))

    a = blocks(A.double()).diagonal(dim1=-3, dim2=-2).mT  # [..., i, n']: block i of row i
    b = blocks(B.double()).transpose(-3, -2)  # [..., i, j, n']
    taken, _ = best_subset(a[..., :, None, :] * b, W, progress=progress)
    M_A, M_B = torch.zeros_like(A, dtype=torch.bool), torch.zeros_like(B, dtype=torch.bool)
    blocks(M_A).diagonal(dim1=-3, dim2=-2).fill_(True)
    blocks(M_B).copy_(taken.transpose(-3, -2))
    return M_A, M_B


def block_length(n: int, d1: int, name: str = "n") -> int:
    """n' = n // d1, the numbers that an entry of a product is made of.

    Args:
        n, d1: columns and rows of A. name: what n is called in a message.

    Raises:
        InferKitError: n < d1, or n' > 40.
    """
    most = (LIMIT + 1) * d1 - 1
    if not 0 < d1 <= n:
        raise InferKitError(
            f"{name} = {n} columns are fewer than the d1 = {d1} rows, each of which needs one"
            if d1
            else "The matrices have no rows (d1 = 0).",
            f"Take {name} from {d1} to {most}." if d1 else None,
        )
    if n > most:
        raise InferKitError(
            f"{name} = {n} columns are {n // d1} for each of d1 = {d1} rows; a subset is taken of "
            f"at most {LIMIT}, so that {name} = {most} is the limit",
            f"Take fewer columns: at {name} = {24 * d1} the error is some 1e-7 already.",
        )
    return n // d1


def finite(name: str, numbers: Tensor) -> Tensor:
    """The numbers as float64 without a gradient, refused by name if one is not finite or real."""
    if numbers.is_complex():
        raise InferKitError(f"{name} is complex, and subsets are taken of real numbers.")
    numbers = numbers.detach().double()
    bad = int((~numbers.isfinite()).sum())
    if bad:
        raise InferKitError(f"{bad} of the {numbers.numel()} numbers of {name} are not finite.")
    return numbers


def _meet_in_the_middle(x: _Array, w: _Array) -> tuple[NDArray[np.bool_], _Array]:
    """Masks `[P, n]` and errors `[P]` of x `[P, n]` and w `[P]`."""
    half = x.shape[1] // 2
    s, r = _sums(x[:, :half]), _sums(x[:, half:])
    needed = w[:, None] - r
    numbers = np.concatenate([s, needed], 1)
    order = np.argsort(numbers, 1)
    gap = np.diff(np.take_along_axis(numbers, order, 1), axis=1)
    first = order < s.shape[1]
    # Only a sum of s and one that is needed make a pair.
    np.putmask(gap, first[:, 1:] == first[:, :-1], np.inf)
    at = gap.argmin(1)[:, None]
    pair = np.take_along_axis(order, np.concatenate([at, at + 1], 1), 1)
    # The order of equal numbers is the sort's affair, so the first of each is looked up.
    i = (s == np.take_along_axis(s, pair.min(1, keepdims=True), 1)).argmax(1)
    j = pair.max(1, keepdims=True) - s.shape[1]
    j = (needed == np.take_along_axis(needed, j, 1)).argmax(1)
    row = np.arange(len(x))
    bits = [i[:, None] >> np.arange(half), j[:, None] >> np.arange(x.shape[1] - half)]
    return np.concatenate(bits, 1) & 1 == 1, np.abs(s[row, i] + r[row, j] - w)


def _sums(x: _Array) -> _Array:
    """`[P, 2^k]` sums of the subsets of x `[P, k]`; bit b of the index: x[:, b] is taken."""
    sums = np.zeros((len(x), 1))
    for number in x.T:
        sums = np.concatenate([sums, sums + number[:, None]], 1)
    return sums
