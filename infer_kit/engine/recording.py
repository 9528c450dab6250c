"""What each stream contributed to each token, kept while `generate` runs.

Shape letters: R sequences, K streams, n positions, V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infer_kit.engine.pooling import Pooling
from infer_kit.pool import mixture, product


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

    def map(self, function: Callable[[Tensor], Tensor]) -> "TokenStatistics":
        """The same with `function` applied to every tensor."""
        return TokenStatistics(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    @staticmethod
    def concatenate(parts: list["TokenStatistics"]) -> "TokenStatistics":
        """Join along the tokens."""
        return TokenStatistics(
            **{
                f.name: torch.cat([getattr(part, f.name) for part in parts], dim=1)
                for f in fields(TokenStatistics)
            }
        )


def token_statistics(
    pooling: Pooling, logits: Tensor, weights: Tensor, pooled: Tensor, chosen: Tensor
) -> TokenStatistics:
    """Figures for the tokens `chosen` `[R, n]`.

    Args:
        pooling: the pool that made `pooled`.
        logits: `[R, K, n, V]` of the streams. weights: `[R, K]` or `[R, K, n]`.
        pooled: `[R, n, V]` scores, any additive constant.
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

    return TokenStatistics(
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


@dataclass
class _Pending:
    """One step whose figures wait: what was fed `[R, n]`, and what came out."""

    fed: Tensor
    logits: Tensor
    weights: Tensor
    pooled: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "_Pending":
        return _Pending(*(function(getattr(self, f.name)) for f in fields(self)))


class Recorder:
    """Collects `TokenStatistics` during one `generate` call.

    The token drawn from a step is known only when the next step feeds it, so each step's logits
    wait until then; they wait for up to `CHUNK` steps, because the figures of many steps together
    cost little more than those of one.
    """

    CHUNK = 16

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._history: list[TokenStatistics] = []
        self._pending: list[_Pending] = []

    def offer(self, fed: Tensor, logits: Tensor, weights: Tensor, pooled: Tensor) -> None:
        """A step was run: `fed` `[R, n]` went in, `pooled` `[R, n, V]` came out."""
        if len(self._pending) >= self.CHUNK:
            self._settle(fed[:, 0])
        if weights.dim() == 2:
            weights = weights[..., None].expand(*weights.shape, fed.shape[1])
        self._pending.append(_Pending(fed, logits, weights, pooled))

    def crop(self, tokens: int) -> None:
        """The last `tokens` positions of the last step were rejected drafts."""
        if not tokens or not self._pending:
            return
        last = self._pending.pop()
        keep = last.fed.shape[1] - tokens
        if keep > 0:
            self._pending.append(
                _Pending(
                    last.fed[:, :keep],
                    last.logits[:, :, :keep],
                    last.weights[..., :keep],
                    last.pooled[:, :keep],
                )
            )

    def gather(self, index: Tensor) -> None:
        """Sequence i becomes a copy of the old sequence `index[i]`."""
        self._history = [part.map(lambda t: t.index_select(0, index)) for part in self._history]
        self._pending = [step.map(lambda t: t.index_select(0, index)) for step in self._pending]

    def finish(self, last: Tensor) -> TokenStatistics:
        """The figures of all tokens; `last` `[R]` is the final one, which was never fed."""
        self._settle(last)
        return TokenStatistics.concatenate(self._history)

    def _settle(self, following: Tensor) -> None:
        """Figures of all pending steps; `following` `[R]` is the token after the last of them."""
        if not self._pending:
            return
        steps = self._pending
        fed = torch.cat([step.fed for step in steps], dim=1)
        chosen = torch.cat([fed[:, 1:], following[:, None]], dim=1)
        self._history.append(
            token_statistics(
                self.pooling,
                torch.cat([step.logits for step in steps], dim=2),
                torch.cat([step.weights for step in steps], dim=2),
                torch.cat([step.pooled for step in steps], dim=1),
                chosen,
            )
        )
        self._pending = []


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
