"""What each stream contributed to each token, kept while `generate` runs.

Shape letters: R sequences, K streams, n positions, V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infer_kit.engine.pooling import Pooling


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


class Recorder:
    """Collects `TokenStatistics` during one `generate` call.

    The token drawn from a step is known only when the next step feeds it, so each step's logits
    wait until then; one step is held at a time, never the whole answer's.
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._history: list[TokenStatistics] = []
        self._fed: Tensor | None = None
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None

    def offer(self, fed: Tensor, logits: Tensor, weights: Tensor, pooled: Tensor) -> None:
        """A step was run: `fed` `[R, n]` went in, `pooled` `[R, n, V]` came out."""
        self._settle(fed[:, 0])
        self._fed = fed
        self._pending = (logits, weights, pooled)

    def crop(self, tokens: int) -> None:
        """The last `tokens` positions of the pending step were rejected drafts."""
        if not tokens or self._pending is None or self._fed is None:
            return
        if tokens >= self._fed.shape[1]:
            self._pending = self._fed = None
            return
        logits, weights, pooled = self._pending
        if weights.dim() == 3:
            weights = weights[..., :-tokens]
        self._pending = (logits[:, :, :-tokens], weights, pooled[:, :-tokens])
        self._fed = self._fed[:, :-tokens]

    def gather(self, index: Tensor) -> None:
        """Sequence i becomes a copy of the old sequence `index[i]`."""
        self._history = [part.map(lambda t: t.index_select(0, index)) for part in self._history]
        if self._pending is not None and self._fed is not None:
            logits, weights, pooled = (t.index_select(0, index) for t in self._pending)
            self._pending = (logits, weights, pooled)
            self._fed = self._fed.index_select(0, index)

    def finish(self, last: Tensor) -> TokenStatistics:
        """The figures of all tokens; `last` `[R]` is the final one, which was never fed."""
        self._settle(last)
        return TokenStatistics.concatenate(self._history)

    def _settle(self, following: Tensor) -> None:
        if self._pending is None or self._fed is None:
            return
        chosen = torch.cat([self._fed[:, 1:], following[:, None]], dim=1)
        self._history.append(token_statistics(self.pooling, *self._pending, chosen))
        self._pending = None


def _decisive(pooling: Pooling, logprobs: Tensor, weights: Tensor, pooled: Tensor) -> Tensor:
    """`[R, K, n]` bool: would the pool's best token be another one without stream k?"""
    if callable(pooling.pool):
        return torch.zeros(logprobs.shape[:3], dtype=torch.bool, device=logprobs.device)
    best = pooled.argmax(-1)
    flags = []
    for k in range(logprobs.shape[1]):
        part = logprobs[:, k]
        w = weights[:, k, :, None]
        if pooling.pool == "product":
            rest = pooled - w * part.masked_fill(torch.isneginf(part), 0.0)
        else:
            rest = pooled.softmax(-1) - w * part.exp()
        alone = (weights != 0).sum(1) == 1  # nothing is left without it
        flags.append((rest.argmax(-1) != best) | (alone & (weights[:, k] != 0)))
    return torch.stack(flags, dim=1)


def _jensen_shannon(logprobs: Tensor, present: Tensor) -> Tensor:
    """Mean KL of the present streams from their mean distribution, `[R, n]`."""
    share = present / present.sum(1, keepdim=True)  # [R, K, n]
    probs = logprobs.exp()
    mean = (share[..., None] * probs).sum(1)
    entropy_of_mean = -torch.special.xlogy(mean, mean).sum(-1)
    entropies = -torch.special.xlogy(probs, probs).sum(-1)
    return (entropy_of_mean - (share * entropies).sum(1)).clamp_min(0.0)
