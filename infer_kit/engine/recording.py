"""Keeps the figures of each token while `generate` runs.

Shape letters: R sequences, K streams, n positions, V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infer_kit.pooling import Pooling
from infer_kit.token_statistics import TokenStatistics, token_statistics


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

    def __init__(self, pooling: Pooling, candidates: int = 0) -> None:
        """Args: pooling: of the call. candidates: see `token_statistics`."""
        self.pooling = pooling
        self.candidates = candidates
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
                self.candidates,
            )
        )
        self._pending = []
