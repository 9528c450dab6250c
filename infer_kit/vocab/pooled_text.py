"""One text read by several reducers at once, and their pooled law of the next symbol."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer
from infer_kit.vocab.trie import Float
from infer_kit.vocab.weighting import Weighting

Pool = str | Callable[[Float, Float], Float]


@dataclass
class Record:
    """What happened at each symbol: weights [n, N], bounds [n] and members' log-probabilities."""

    weights: list[Float] = field(default_factory=list)
    tv_bounds: list[float] = field(default_factory=list)
    logprobs: list[Float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def copy(self) -> "Record":
        return Record(*(list(part) for part in vars(self).values()))


class PooledText:
    r"""N reducers over one alphabet that have read the same text.

    Args:
        reducers: one a member, each after its own prompt.
        weighting: of the members.
        pool: "mixture" $\sum_i w_i q_i$; "product" $\prod_i q_i^{w_i}$, normalised; or a function
            of (laws [N, symbols + 1], weights [N]) that gives a law [symbols + 1].
    """

    def __init__(
        self, reducers: Sequence[CertifiedReducer], weighting: Weighting, pool: Pool
    ) -> None:
        self.reducers = list(reducers)
        self.record = Record()
        self._weighting = weighting
        self._pool = pool
        self._weights = weighting.start()
        self._law: Float | None = None

    def fork(self) -> "PooledText":
        twin = PooledText([r.fork() for r in self.reducers], self._weighting, self._pool)
        twin.record = self.record.copy()
        twin._weights = self._weights
        return twin

    @property
    def weights(self) -> Float:
        """[N] weights of the step that comes."""
        if not self._weighting.needs_laws:
            return self._weights
        return self._weighting.at(self._weights, self._laws())

    def _laws(self) -> Float:
        return np.stack([reducer.next() for reducer in self.reducers])

    @property
    def tv_bound(self) -> float | None:
        """Bound on the total variation between `law()` and the exact one; None for no mixture."""
        if self._pool != "mixture":
            return None
        bounds = [reducer.tv_bound for reducer in self.reducers]
        return float(self.weights @ np.array(bounds))

    def law(self) -> Float:
        """[symbols + 1] pooled law of the next symbol, END last.

        A symbol that some member cannot write at all is left out.
        """
        if self._law is None:
            laws, weights = self._laws(), self.weights
            if callable(self._pool):
                pooled = np.asarray(self._pool(laws, weights), np.float64)
            elif self._pool == "product":
                used = weights != 0
                with np.errstate(divide="ignore"):
                    logs = weights[used] @ np.log(np.maximum(laws[used], 1e-300))
                pooled = np.exp(logs - logs.max())
            else:
                pooled = weights @ laws
            pooled = np.where((laws > 0).all(0), pooled, 0.0)
            self._law = pooled / pooled.sum()
        return self._law

    def logprob(self, end: bool) -> tuple[float, float, tuple[tuple[float, float], ...]]:
        """Bounds on the log-probability of the symbols read, pooled and for each member.

        Args:
            end: whether the text ends here.
        """
        parts = [r.logprob_end() if end else r.logprob() for r in self.reducers]
        members = tuple(parts)
        if self._weighting.rule == "bayes":  # the mixture of whole texts
            prior = np.log(self._weighting.start())
            low, high = (float(np.logaddexp.reduce(prior + side)) for side in np.transpose(parts))
            return low, min(0.0, high), members
        low, high = math.fsum(self.record.low), math.fsum(self.record.high)
        if end:
            law = self.law()[-1]
            bound = self.tv_bound or 0.0
            low += math.log(max(law - bound, 0.0) or 1e-300)
            high += math.log(min(law + bound, 1.0))
        return low, high, members

    def before(self) -> "Before":
        """What must be known of a step before its symbol is read."""
        if self._pool != "mixture":
            self.law()
        return Before(self.weights, self.tv_bound, [r.logprob() for r in self.reducers])

    def after(self, symbol: int, before: "Before") -> None:
        """Learn from a symbol that all reducers have read."""
        low, high = np.transpose(before.logprobs)
        new_low, new_high = np.transpose([reducer.logprob() for reducer in self.reducers])
        # P(ys)/P(y), where each P lies between the retained mass and that with the ledger's.
        likely = np.exp(new_low - low)
        record, weights = self.record, before.weights
        record.weights.append(weights)
        record.logprobs.append(np.log(likely))
        if before.tv_bound is not None:
            record.tv_bounds.append(before.tv_bound)
        if self._pool == "mixture":
            record.low.append(math.log(weights @ np.exp(new_low - high)))
            record.high.append(math.log(min(1.0, weights @ np.exp(new_high - low))))
        else:
            record.low.append(math.log(self.law()[symbol]))
            record.high.append(record.low[-1])
        self._weights = self._weighting.after(self._weights, likely)
        self._law = None


@dataclass(frozen=True)
class Before:
    """Weights [N], bound and members' log-probability bounds before a step."""

    weights: Float
    tv_bound: float | None
    logprobs: list[tuple[float, float]]


def advance_together(
    texts: Sequence[PooledText], symbols: Sequence[int], readers: Sequence[Reader]
) -> None:
    """Every text goes on by its symbol; each model's forwards are shared by all texts."""
    before = [text.before() for text in texts]
    for member, reader in enumerate(readers):
        reducers = [text.reducers[member] for text in texts]
        steps = [r.advance(symbol) for r, symbol in zip(reducers, symbols, strict=True)]
        reader.run(steps, reducers)
    for text, symbol, known in zip(texts, symbols, before, strict=True):
        text.after(symbol, known)
