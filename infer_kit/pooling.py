"""The pool of one `generate` call: weights laid out for the streams that run, checked once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.pool import PoolFunction, Step, WeightFunction, mixture, plausible, product

Weights = Sequence[float] | Sequence[Sequence[float]] | Tensor | WeightFunction


@dataclass(frozen=True)
class Pooling:
    """Which streams run, and how their logits become one.

    Attributes:
        pool: "product", "mixture", or a function of (logprobs `[R, K, n, V]`, weights `[R, K]`).
        weights: `[B, K]` float32 over the streams that run, 0 where a request lacks one; None
            where `weight_function` gives them.
        weight_function: gives `[R, K]` or `[R, K, n]` weights from a `Step`.
        present: `[B, K]` bool, the (request, stream) pairs that run.
        streams: indices of the K running streams among those that the caller named.
        normalize: divide function-given weights by their sum.
        plausibility: β of the plausibility cut-off, 0 for none.
        experts: places among `streams` of those whose distribution, or normalised weighted product,
            says what is plausible.
    """

    pool: str | PoolFunction
    weights: Tensor | None
    weight_function: WeightFunction | None
    present: Tensor
    streams: tuple[int, ...]
    normalize: bool = False
    plausibility: float = 0.0
    experts: tuple[int, ...] = ()

    @cached_property
    def is_identity(self) -> bool:
        """One stream of weight exactly 1: its raw logits are the answer, untouched."""
        if callable(self.pool) or self.weights is None or len(self.streams) > 1:
            return False
        if self.plausibility:
            return False
        return bool((self.weights == 1).all())

    @cached_property
    def signed(self) -> bool:
        """Whether −inf needs guarding: some weight is negative, or not known in advance."""
        return self.weights is None or bool((self.weights < 0).any())

    def on(self, device: torch.device) -> "Pooling":
        """The same with its tensors on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, weights=weights, present=self.present.to(device))

    def weights_at(self, logits: Tensor, request: Tensor, position: int) -> Tensor:
        """`[R, K]` or `[R, K, n]` float32 weights for logits `[R, K, n, V]`.

        Args:
            logits: of the streams.
            request: `[R]`, the request of each sequence.
            position: index of the first token being chosen among the new ones.
        """
        if self.weights is not None:
            return self.weights.index_select(0, request)
        assert self.weight_function is not None
        n = logits.shape[2]
        step = Step(
            logprobs=logits.log_softmax(-1),
            position=torch.arange(position, position + n, device=logits.device),
            request=request,
        )
        weights = torch.as_tensor(self.weight_function(step), dtype=torch.float32)
        weights = weights.to(logits.device)
        allowed = {(*logits.shape[:2],), (*logits.shape[:2], n)}
        if tuple(weights.shape) not in allowed:
            raise InferKitError(
                f"The weight function returned a tensor of shape {tuple(weights.shape)}; expected "
                f"[R, K] = {list(logits.shape[:2])} or [R, K, n] = {list(logits.shape[:3])}."
            )
        absent = ~self.present.index_select(0, request)
        weights = weights.masked_fill(absent if weights.dim() == 2 else absent[..., None], 0.0)
        if self.normalize:
            weights = weights / weights.sum(1, keepdim=True)
        self._check_step(weights)
        return weights

    def _check_step(self, weights: Tensor) -> None:
        """Refuse what a weight function may not return; one read by the host."""
        wrong = ~weights.isfinite().all(1) | (weights == 0).all(1)
        if self.pool == "mixture":
            wrong |= (weights < 0).any(1) | ((weights.sum(1) - 1).abs() > 1e-4)
        if bool(wrong.any()):
            rule = "≥ 0 and sum to 1 over the streams" if self.pool == "mixture" else "not all 0"
            raise InferKitError(
                f"The weight function returned {weights[wrong.nonzero()[0][0]].tolist()}; weights "
                f"of a {self.pool if isinstance(self.pool, str) else 'pool'} are finite and {rule}."
            )

    def __call__(self, logits: Tensor, weights: Tensor, request: Tensor) -> Tensor:
        """Pooled scores at the scale of raw logits.

        What `generate` does next is not always shift invariant (a repetition penalty), so the
        free constant is set such that equal streams give back their own logits.

        Args:
            logits: `[R, K, n, V]` float32. weights: `[R, K]` or `[R, K, n]`.
            request: `[R]`, the request of each sequence.

        Returns:
            `[R, n, V]` float32; −inf for what the cut-off excludes.
        """
        pooled = self._pooled(logits, weights, request)
        return self.cut_off(pooled, logits, weights, self.experts)

    def cut_off(
        self, pooled: Tensor, logits: Tensor, weights: Tensor, experts: Sequence[int]
    ) -> Tensor:
        """Scores `[R, n, V]` without the tokens that the experts find implausible.

        Args:
            experts: places among the K streams; several are a product, its weights normalised.
        """
        if not self.plausibility or not experts:
            return pooled
        chosen = list(experts)
        expert = logits[:, chosen[0]]
        if len(chosen) > 1:
            total = weights[:, chosen].sum(1, keepdim=True)
            shares = torch.where(total != 0, weights[:, chosen] / total, 1 / len(chosen))
            expert = product(logits[:, chosen], shares)
        return plausible(pooled, expert, self.plausibility)

    def _pooled(self, logits: Tensor, weights: Tensor, request: Tensor) -> Tensor:
        if self.pool == "product":
            return product(logits, weights, signed=self.signed)
        log_z = logits.logsumexp(-1, keepdim=True)
        logprobs = logits - log_z
        if callable(self.pool):
            pooled = self.pool(logprobs, weights)
            expected = [logits.shape[0], *logits.shape[2:]]
            found = list(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
            if found != expected:
                raise InferKitError(
                    f"The pool function returned {found}; expected a tensor [R, n, V] = {expected}."
                )
            present = self.present.index_select(0, request)[..., None, None]
            return pooled + (log_z * present).sum(1) / present.sum(1)
        w = weights if weights.dim() == 3 else weights[..., None]
        return mixture(logprobs, weights) + (w[..., None] * log_z).sum(1)


def resolve_pooling(
    pool: str | PoolFunction,
    weights: Weights | None,
    present: Tensor,
    normalize: bool = False,
    plausibility: float = 0.0,
    experts: Sequence[int] = (0,),
) -> Pooling:
    """Check the weights of one call and find out which streams need to run.

    Args:
        pool: "product", "mixture" or a function.
        weights: `[K]`, `[B, K]`, a function of the step, or None for 1 each (product and
            functions) or 1 / (number of streams) each (mixture).
        present: `[B, K]` bool, the streams that each request has.
        normalize: divide the weights of each request by their sum.
        plausibility: β of the plausibility cut-off, between 0 (none) and 1.
        experts: the streams that say what is plausible.

    Raises:
        InferKitError: a weight is not finite, an expert has none, a mixture's is negative or they
            do not sum to 1, all weights of a request are zero, or the shape is neither `[K]` nor
            `[B, K]`.
    """
    every = tuple(range(present.shape[1]))
    experts = tuple(experts) if plausibility else ()
    if callable(weights):
        _check_experts(present, plausibility, experts)
        return Pooling(pool, None, weights, present, every, normalize, plausibility, experts)
    table = _table(weights, present, pool)
    if normalize:
        total = table.sum(1, keepdim=True)
        if bool((total.abs() < 1e-12).any()):
            request = int((total.abs() < 1e-12).squeeze(1).nonzero()[0])
            raise InferKitError(
                f"Weights of request {request} sum to 0 and cannot be normalised: "
                f"{table[request].tolist()}."
            )
        table = table / total
    _check(table, present, pool)
    if callable(pool):  # it may use a stream of weight 0, so every stream runs
        _check_experts(present, plausibility, experts)
        return Pooling(pool, table.float(), None, present, every, False, plausibility, experts)
    table = table.float()  # as the weights will be used: some may vanish
    running = present & (table != 0)
    _check_experts(running, plausibility, experts)
    streams = tuple(k for k in every if bool(running[:, k].any()))
    kept = list(streams)
    return Pooling(
        pool,
        table[:, kept],
        None,
        running[:, kept],
        streams,
        plausibility=plausibility,
        experts=tuple(streams.index(k) for k in experts if k in streams),
    )


def _check_experts(running: Tensor, plausibility: float, experts: Sequence[int]) -> None:
    """Raise unless in every request some expert runs."""
    if not experts:
        return
    there = [k for k in experts if k < running.shape[1]]
    lacking = (~running[:, there].any(1)).nonzero()[:, 0].tolist()
    if lacking:
        raise InferKitError(
            f"Stream {', '.join(map(str, experts))} says what is plausible "
            f"(plausibility={plausibility:g}), but it does not run in request {lacking[0]}: it is "
            "missing or has weight 0.",
            hint="Give it weight, or set plausibility=0.",
        )


def as_table(weights: Sequence | Tensor) -> Tensor:
    """Given weights as a float64 tensor on the host.

    Raises:
        InferKitError: they are not numbers.
    """
    try:
        return torch.as_tensor(weights, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferKitError(
            f"Weights are numbers, [K] or [B, K], or a function of the step; got {weights!r}."
        ) from error


def _table(weights: Sequence | Tensor | None, present: Tensor, pool: str | Callable) -> Tensor:
    """Weights as `[B, K]` float64, 0 where a request has no such stream."""
    requests, streams = present.shape
    if weights is None:
        table = present.double()
        return table / table.sum(1, keepdim=True) if pool == "mixture" else table
    table = as_table(weights)
    if tuple(table.shape) == (streams,):
        table = table.expand(requests, streams)
    elif tuple(table.shape) != (requests, streams):
        raise InferKitError(
            f"Weights have shape {list(table.shape)}; expected [{streams}] (one a stream) or "
            f"[{requests}, {streams}] (one a request and stream)."
        )
    return table.masked_fill(~present, 0.0) if bool(table.isfinite().all()) else table


def _check(table: Tensor, present: Tensor, pool: str | Callable) -> None:
    for request, row in enumerate(table.tolist()):
        if not all(math.isfinite(w) for w in row):
            raise InferKitError(f"Weights of request {request} are not finite: {row}.")
        if all(w == 0 for w in row):
            raise InferKitError(f"All weights of request {request} are 0: no stream would be run.")
        if pool == "mixture":
            if min(row) < 0:
                raise InferKitError(
                    f"A mixture needs weights ≥ 0, got {row} for request {request}. "
                    "Negative weights work with pool='product'."
                )
            if abs(sum(row) - 1) > 1e-5:
                raise InferKitError(
                    f"Mixture weights must sum to 1, got {row} (sum {sum(row):g}) for request "
                    f"{request}. Pass normalize=True to divide them by their sum."
                )
