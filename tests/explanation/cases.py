"""Traces of random streams, with the log-probabilities of the whole vocabulary beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from infer_kit.pooling import Pooling, resolve_pooling
from infer_kit.token_statistics import token_statistics
from infer_kit.trace import Trace, trace_of


@dataclass(frozen=True)
class Case:
    """A trace, and what it was made of: `logits` `[K, T, V]` float32."""

    trace: Trace
    pooling: Pooling
    logits: Tensor

    def log_pi(self, weights: np.ndarray, t: int) -> np.ndarray:
        """`[V]` log π of the whole vocabulary at one token, in float64."""
        logprobs = self.logits[None, :, t : t + 1].double().log_softmax(-1)
        pooling = replace(self.pooling, weights=None)  # weights of any sign may come, and of 0
        request = torch.zeros(1, dtype=torch.long)
        pooled = pooling(logprobs, torch.tensor(weights)[None], request)
        return pooled[0, 0].log_softmax(-1).numpy()

    def best(self, weights: np.ndarray, t: int) -> set[int]:
        """The pool's best tokens of the whole vocabulary."""
        log_pi = self.log_pi(weights, t)
        return set(np.flatnonzero(log_pi == log_pi.max()).tolist())


def case(
    seed: int,
    streams: int = 3,
    weights: tuple[float, ...] | None = None,
    pool: str = "product",
    plausibility: float = 0.0,
    experts: tuple[int, ...] = (0,),
    vocabulary: int = 40,
    tokens: int = 6,
    depth: int = 3,
    spread: float = 2.0,
    holes: float = 0.0,
    written: str = "greedy",
) -> Case:
    """Random logits, streams resembling each other; `holes`: how often a logit is −∞."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    logits = spread * (normal(1, tokens, vocabulary) + 0.7 * normal(streams, tokens, vocabulary))
    gone = torch.rand(logits.shape, generator=random) < holes
    gone[..., :4] = False
    logits = logits.masked_fill(gone, -torch.inf)
    given = weights or tuple([1.0 / streams] * streams)
    pooling = resolve_pooling(
        pool,
        torch.tensor([given]),
        torch.ones(1, streams, dtype=torch.bool),
        plausibility=plausibility,
        experts=experts,
    )
    kept = list(pooling.streams)
    logits = logits[kept]
    assert pooling.weights is not None
    request = torch.zeros(1, dtype=torch.long)
    pooled = pooling(logits[None], pooling.weights, request)
    chosen = pooled.argmax(-1)
    if written == "other":
        chosen = (chosen + 1) % vocabulary
    statistics = token_statistics(
        pooling, logits[None], pooling.weights, pooled, chosen, candidates=depth
    )
    trace = trace_of(
        statistics,
        0,
        tokens,
        slots=range(len(kept)),
        streams=[f"stream {k}" for k in kept],
        idle=[f"stream {k}" for k in range(streams) if k not in kept],
        pool=pool,
        decode=lambda token: f"<{token}>",
        plausibility=pooling.plausibility,
        experts=pooling.experts,
    )
    return Case(trace, pooling, logits)
