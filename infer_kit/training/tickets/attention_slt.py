r"""A random attention head that computes a given one once some of its weights are masked.

Otsuka et al., "The Strong Lottery Ticket Hypothesis for Multi-Head Attention Mechanisms" (AAAI
2026, arXiv 2511.04217). A head depends on its weights through two products alone,

$$\mathrm{head}(x) = \mathrm{softmax}(x\,W_{QK}\,x^\top)\,x\,W_{VO}, \qquad
  W_{QK} = W_Q W_K^\top / \sqrt{d_K}, \quad W_{VO} = W_V W_O,$$

and a wider random head reaches both by subset sums (`subsetsum.approx_product`). The source has
$Q, K \sim U[-n_K^{1/4}, n_K^{1/4}]$ and $V, O \sim U[-1, 1]$: then $Q/n_K^{1/4}$ and
$K/n_K^{1/4}$ are $U[-1, 1]$, and their product has the source's own $1/\sqrt{n_K}$ in it.

With target matrices of spectral norm ≤ 1, H heads and inputs within α the paper asks for
$n_K \ge d_1 C \log(8 H \alpha^3 d_1^{1.5}/\epsilon)$ and
$n_V \ge d_1 C \log(2 H \alpha d_1 \sqrt{d_2}/\epsilon)$; the error is then ≤ ε with probability
≥ 1 − ε, whatever the number of tokens. Where this differs: the subsets are the best ones, so widths
up to 41 d1 − 1 are possible and far smaller ones do than the constants of the proof.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.rng import uniform
from infer_kit.training.tickets.subsetsum import approx_product, block_length, finite


class Masks(NamedTuple):
    """What of a head's matrices is kept: bool, in the shapes of `Head`."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


@dataclass(frozen=True)
class Head:
    """Attention of one head, or of several in leading dimensions, without biases or causal mask.

    Attributes:
        q, k: `[..., d1, dK]`. v: `[..., d1, dV]`. o: `[..., dV, d2]`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    def __post_init__(self) -> None:
        q, k, v, o = self.matrices
        if (
            min(m.dim() for m in self.matrices) < 2
            or not q.shape[:-2] == k.shape[:-2] == v.shape[:-2] == o.shape[:-2]
            or q.shape != k.shape
            or q.shape[-2] != v.shape[-2]
            or v.shape[-1] != o.shape[-2]
        ):
            names = zip("qkvo", self.matrices, strict=True)
            given = ", ".join(f"{name} {list(matrix.shape)}" for name, matrix in names)
            raise InferKitError(
                f"The matrices of a head do not fit: {given}.",
                "q and k are [..., d1, dK], v [..., d1, dV] and o [..., dV, d2].",
            )

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v, o."""
        return self.q, self.k, self.v, self.o

    def __call__(self, x: Tensor) -> Tensor:
        """softmax(x q kᵀ xᵀ / √dK) x v o for each head.

        The leading dimensions of x and of the head are broadcast. Multi-head attention is the sum
        over the heads: `head(x).sum(0)` of heads `[H, ...]` and x `[T, d1]`,
        `head(x[:, None]).sum(1)` of x `[N, T, d1]`.

        Args:
            x: `[..., T, d1]` in the dtype of the head.

        Returns:
            `[..., T, d2]`.
        """
        scores = (x @ self.q) @ (x @ self.k).mT / self.q.shape[-1] ** 0.5
        return scores.softmax(-1) @ (x @ self.v) @ self.o

    def masked(self, masks: Masks) -> "Head":
        """The head with 0 where a mask is False."""
        return Head(*(w * m for w, m in zip(self.matrices, masks, strict=True)))


@dataclass(frozen=True)
class PrunedHead:
    """What `prune_head` found.

    Attributes:
        masks: of the source. head: the source under them.
        qk_error, vo_error: float64 `[...]`, one a head: the largest difference between an entry of
            the merged product and the target's.
    """

    masks: Masks
    head: Head
    qk_error: Tensor
    vo_error: Tensor


def merge_qk(W_Q: Tensor, W_K: Tensor) -> Tensor:
    """W_Q W_Kᵀ / √dK: `[..., d1, d1]` of two `[..., d1, dK]`."""
    return W_Q @ W_K.mT / W_Q.shape[-1] ** 0.5


def merge_vo(W_V: Tensor, W_O: Tensor) -> Tensor:
    """W_V W_O: `[..., d1, d2]` of `[..., d1, dV]` and `[..., dV, d2]`."""
    return W_V @ W_O


def draw_source(
    seed: int,
    d1: int,
    d2: int,
    n_k: int,
    n_v: int | None = None,
    heads: tuple[int, ...] = (),
    name: str = "head",
) -> Head:
    r"""The random head of the theory: $Q, K \sim U[-n_K^{1/4}, n_K^{1/4}]$, $V, O \sim U[-1, 1]$.

    Args:
        seed, name: a head is the same function of these on every machine.
        d1, d2: widths of input and output. n_k, n_v: inner widths; n_v is n_k if not given.
        heads: leading dimensions.

    Returns:
        A head of float64.

    Raises:
        InferKitError: a width below 1.
    """
    n_v = n_k if n_v is None else n_v
    for width, what in ((d1, "d1"), (d2, "d2"), (n_k, "n_k"), (n_v, "n_v")):
        if width < 1:
            raise InferKitError(f"{what} = {width}, and a width is 1 or more.")

    def draw(matrix: str, rows: int, columns: int, bound: float) -> Tensor:
        shape = (*heads, rows, columns)
        index = torch.arange(torch.Size(shape).numel())
        return ((2 * uniform(seed, f"{name}.{matrix}", index).double() - 1) * bound).view(shape)

    wide = n_k**0.25
    return Head(
        draw("q", d1, n_k, wide),
        draw("k", d1, n_k, wide),
        draw("v", d1, n_v, 1),
        draw("o", n_v, d2, 1),
    )


def prune_head(target: Head, source: Head, *, progress: bool = False) -> PrunedHead:
    """The masks under which a wide random head is nearest to a given one, entry by entry.

    An entry of the target's products that exceeds every sum of its block is missed by the rest,
    which makes the errors heavy-tailed: with spectral norms of 1 and d1 = 2, an error is above 1e-3
    in 60, 10, 2.4 and 0.5 % of heads of width 24, 32, 40 and 48. `qk_error` and `vo_error` tell.

    Args:
        target, source: heads of the same d1, d2 and leading dimensions, each target head made of
            the source head at its place; any widths dK, dV of the target, n_K, n_V of the source.
        progress: show a bar for each of the two products.

    Raises:
        InferKitError: heads that do not fit, a source narrower than d1 or wider than 41 d1 − 1, or
            a weight that is not finite.
    """
    shape, other = (h.v.shape[:-1] + h.o.shape[-1:] for h in (target, source))
    if shape != other:
        raise InferKitError(
            f"Target and source have [..., d1, d2] of {list(shape)} and {list(other)}.",
            "They need the same inputs, outputs and heads; the inner widths may differ.",
        )
    d1 = source.q.shape[-2]
    n_k, n_v = source.q.shape[-1], source.v.shape[-1]
    block_length(n_k, d1, "The source's n_K")
    block_length(n_v, d1, "The source's n_V")
    W_Q, W_K, W_V, W_O = (
        finite(f"the target's {n}", w) for n, w in zip("qkvo", target.matrices, strict=True)
    )
    Q, K, V, O = (  # noqa: E741
        finite(f"the source's {n}", w) for n, w in zip("qkvo", source.matrices, strict=True)
    )

    W_QK, W_VO, root = merge_qk(W_Q, W_K), merge_vo(W_V, W_O), n_k**0.25
    M_Q, M_K = approx_product(W_QK, Q / root, K / root, progress=progress)
    M_V, M_O = approx_product(W_VO, V, O.mT, progress=progress)
    masks = Masks(M_Q, M_K, M_V, M_O.mT)
    reached_qk, reached_vo = merge_qk(Q * M_Q, K * M_K), merge_vo(V * M_V, O * M_O.mT)
    return PrunedHead(
        masks,
        source.masked(masks),
        (reached_qk - W_QK).abs().amax((-2, -1)),
        (reached_vo - W_VO).abs().amax((-2, -1)),
    )
