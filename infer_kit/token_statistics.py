"""What each stream contributed to chosen tokens: the figures behind a `Trace`.

Shape letters: R sequences, K streams, n positions, V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infer_kit.pool import mixture, product
from infer_kit.pooling import Pooling


@dataclass
class TokenStatistics:
    """Figures for `n` chosen tokens of R sequences, natural logarithms, float32.

    Attributes:
        chosen: `[R, n]` int64, the tokens.
        pooled: `[R, n]` log π of the chosen token under the normalised pool.
        logprobs: `[R, n, K]` log p_k of the chosen token; NaN where a sequence lacks the stream.
        weights: `[R, n, K]` the weights in force.
        runner_up: `[R, n]` int64, the best token other than the chosen one.
        runner_up_pooled: `[R, n]` log π of it.
        runner_up_logprobs: `[R, n, K]` log p_k of it.
        top: `[R, n, K]` int64, each stream's own best token.
        decisive: `[R, n, K]` bool, whether the pool's best token would be another one without
            this stream; False throughout for a pool function, which has no "without".
        divergence: `[R, n]` Jensen–Shannon divergence between the streams, in nats, at most log K.
        candidates: `[R, n, C]` int64, each stream's best tokens, the pool's, the chosen one and the
            runner-up, each once, ascending; −1 fills up. None where they were not asked for, as
            the three below.
        candidate_logprobs: `[R, n, C, K]` log p_k of each; NaN where there is none.
        floors: `[R, n, K]` log p_k of each stream's best token that is no candidate; −∞ where
            there is none.
        pooled_floor: `[R, n]` log π of the pool's best token that is no candidate.
    """

    chosen: Tensor
    pooled: Tensor
    logprobs: Tensor
    weights: Tensor
    runner_up: Tensor
    runner_up_pooled: Tensor
    runner_up_logprobs: Tensor
    top: Tensor
    decisive: Tensor
    divergence: Tensor
    candidates: Tensor | None = None
    candidate_logprobs: Tensor | None = None
    floors: Tensor | None = None
    pooled_floor: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name, those that there are."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> "TokenStatistics":
        """The same with `function` applied to every tensor."""
        return TokenStatistics(**{name: function(v) for name, v in self.tensors().items()})

    @staticmethod
    def concatenate(parts: list["TokenStatistics"]) -> "TokenStatistics":
        """Join along the tokens."""
        return TokenStatistics(
            **{
                name: torch.cat([getattr(part, name) for part in parts], dim=1)
                for name in parts[0].tensors()
            }
        )


def token_statistics(
    pooling: Pooling,
    logits: Tensor,
    weights: Tensor,
    pooled: Tensor,
    chosen: Tensor,
    candidates: int = 0,
) -> TokenStatistics:
    """Figures for the tokens `chosen` `[R, n]`.

    Args:
        pooling: the pool that made `pooled`.
        logits: `[R, K, n, V]` of the streams. weights: `[R, K]` or `[R, K, n]`.
        pooled: `[R, n, V]` scores, any additive constant.
        candidates: how many of each stream's best tokens to keep; 0 for none.
    """
    w = (weights if weights.dim() == 3 else weights[..., None]).expand(logits.shape[:3])
    absent = (w == 0) & (not callable(pooling.pool))
    logprobs = logits.log_softmax(-1)
    log_pi = pooled.log_softmax(-1)
    best = pooled.topk(2, dim=-1).indices  # [R, n, 2]
    runner_up = torch.where(best[..., 0] == chosen, best[..., 1], best[..., 0])

    def of(token: Tensor) -> Tensor:
        """log p_k of one token at each position, `[R, n, K]`."""
        index = token[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        values = logprobs.gather(-1, index).squeeze(-1).masked_fill(absent, torch.nan)
        return values.transpose(1, 2)

    kept: dict[str, Tensor] = {}
    if candidates:
        kept = _candidates(logprobs, log_pi, ~absent, chosen, runner_up, candidates)
    return TokenStatistics(
        **kept,
        chosen=chosen,
        pooled=log_pi.gather(-1, chosen[..., None]).squeeze(-1),
        logprobs=of(chosen),
        weights=w.transpose(1, 2),
        runner_up=runner_up,
        runner_up_pooled=log_pi.gather(-1, runner_up[..., None]).squeeze(-1),
        runner_up_logprobs=of(runner_up),
        top=logits.argmax(-1).transpose(1, 2),
        decisive=_decisive(pooling, logprobs, w, pooled).transpose(1, 2) & ~absent.transpose(1, 2),
        divergence=_jensen_shannon(logprobs, ~absent),
    )


def _candidates(
    logprobs: Tensor, log_pi: Tensor, present: Tensor, chosen: Tensor, runner_up: Tensor, n: int
) -> dict[str, Tensor]:
    """The tokens that another choice could be made from, and what is known of all others.

    Args:
        logprobs: `[R, K, n, V]`. log_pi: `[R, n, V]`. present: `[R, K, n]` bool.
    """
    n = min(n, logprobs.shape[-1])
    own = logprobs.topk(n, dim=-1).indices
    own = torch.where(present[..., None], own, chosen[:, None, :, None])  # absent: none of its own
    places = [own.transpose(1, 2).flatten(2), log_pi.topk(n, dim=-1).indices]
    ids = torch.cat([*places, chosen[..., None], runner_up[..., None]], dim=-1).sort(-1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[..., 1:] = ids[..., 1:] == ids[..., :-1]
    by_stream = ids[:, None].expand(-1, logprobs.shape[1], -1, -1)
    values = logprobs.gather(-1, by_stream).masked_fill(again[:, None], torch.nan)
    return {
        "candidates": ids.masked_fill(again, -1),
        "candidate_logprobs": values.permute(0, 2, 3, 1),
        "floors": logprobs.scatter(-1, by_stream, -torch.inf).amax(-1).transpose(1, 2),
        "pooled_floor": log_pi.scatter(-1, ids, -torch.inf).amax(-1),
    }


def _decisive(pooling: Pooling, logprobs: Tensor, weights: Tensor, pooled: Tensor) -> Tensor:
    """`[R, K, n]` bool: would the pool's best token be another one without stream k?"""
    if callable(pooling.pool):
        return torch.zeros(logprobs.shape[:3], dtype=torch.bool, device=logprobs.device)
    best = pooled.argmax(-1)
    flags = []
    for k in range(logprobs.shape[1]):
        others = weights.to(logprobs, copy=True)
        others[:, k] = 0.0
        # anew, since what only stream k excludes comes back
        rest = (product if pooling.pool == "product" else mixture)(logprobs, others)
        experts = [e for e in pooling.experts if e != k]
        rest = pooling.cut_off(rest, logprobs, others, experts)
        alone = (weights != 0).sum(1) == 1  # nothing is left without it
        flags.append((rest.argmax(-1) != best) | (alone & (weights[:, k] != 0)))
    return torch.stack(flags, dim=1)


def _jensen_shannon(logprobs: Tensor, present: Tensor) -> Tensor:
    """Mean KL of the present streams from their mean distribution, `[R, n]`."""
    share = present / present.sum(1, keepdim=True)  # [R, K, n]
    probs = logprobs.exp()
    mean = torch.einsum("rkn,rknv->rnv", share, probs)
    entropy_of_mean = -torch.special.xlogy(mean, mean).sum(-1)
    finite = logprobs.clamp_min(torch.finfo(logprobs.dtype).min)  # 0 · −inf is NaN
    entropies = -torch.einsum("rknv,rknv->rkn", probs, finite)
    return (entropy_of_mean - (share * entropies).sum(1)).clamp_min(0.0)
