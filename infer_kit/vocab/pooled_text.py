"""One text read by several reducers at once, and their pooled law of the next symbol."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infer_kit.errors import InferKitError
from infer_kit.vocab.reducer import CertifiedReducer, ZeroProbability
from infer_kit.vocab.trie import Float
from infer_kit.vocab.weighting import Weighting

Pool = str | Callable[[Float, Float], Float]

_UNCHECKED = 0.01  # share of eps that symbols may have which nobody looked into


@dataclass
class Record:
    """What happened at each symbol: weights [n, N], bounds [n] and members' log-probabilities."""

    weights: list[Float] = field(default_factory=list)
    tv_bounds: list[float] = field(default_factory=list)
    logprobs: list[Float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Symbols so far."""
        return len(self.low)

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
        self._now: Float | None = None  # weights of this step, where they depend on its laws
        self._law: Float | None = None
        self._log_total = 0.0  # of a product before it was normalised
        self._bound = 0.0

    def foresee(self, symbols: Sequence[int]) -> None:
        """Tell the reducers what will come after the next symbol, so that they read it together."""
        for reducer in self.reducers:
            reducer.ahead = symbols

    def fork(self) -> "PooledText":
        twin = PooledText([r.fork() for r in self.reducers], self._weighting, self._pool)
        twin.record = self.record.copy()
        twin._weights, twin._now = self._weights, self._now
        twin._law, twin._log_total, twin._bound = self._law, self._log_total, self._bound
        return twin

    @property
    def length(self) -> int:
        """Symbols since the prompt."""
        return self.record.length

    @property
    def weights(self) -> Float:
        """[N] weights of the step that comes."""
        if not self._weighting.needs_laws:
            return self._weights
        if self._now is None:
            weights = self._weighting.at(self._weights, self._laws())
            if self._pool == "mixture":
                if not (weights.min() >= 0 and weights.sum() > 0):
                    raise InferKitError(
                        f"The weights of a mixture are not negative and not all 0, got {weights}."
                    )
                weights = weights / weights.sum()
            self._now = weights
        return self._now

    def _laws(self) -> Float:
        return np.stack([reducer.next() for reducer in self.reducers])

    @property
    def _is_bounded(self) -> bool:
        return self._pool == "mixture" and self._weighting.rule in (None, "bayes")

    @property
    def tv_bound(self) -> float | None:
        """Bound on the total variation between `law()` and the exact one.

        None for pools but a mixture, and for weights that follow from what the members say ("bayes"
        excepted, which is the mixture of whole texts): nothing bounds how far these are off.
        """
        if not self._is_bounded:
            return None
        self.law()
        return self._bound

    def law(self) -> Float:
        """[symbols + 1] pooled law of the next symbol, END last.

        Left out are symbols that some member cannot write at all, and, unless every segmentation
        counts (mode "full"), those that would not be UTF-8.
        """
        if self._law is None:
            laws, weights = self._laws(), self.weights
            # A member without mass for a symbol may have it in what it left unread.
            ledgers = np.array([[reducer.ledger] for reducer in self.reducers])
            unread = (laws == 0) & (ledgers > 0)
            writable = ((laws > 0) | unread).all(0)
            for reducer in self.reducers:
                if reducer.reduction.mode != "full":
                    writable &= reducer.reduction.may_write(reducer.character)
            if self._pool != "mixture":
                shares = ledgers / (1 + ledgers) / np.maximum(unread.sum(1, keepdims=True), 1)
                laws = np.where(unread, shares, laws)
            pooled = np.where(writable, self._pooled(laws, weights, writable), 0.0)
            missed = self._leave_out(pooled, unread)
            total = float(pooled.sum())
            if not total > 0:
                raise ZeroProbability(
                    "Nothing can follow that all members can write, after "
                    f"{self.reducers[0].text[-40:]!r}."
                )
            # Given that a symbol is one of those left, laws differ by this much more.
            bound = (self._mixture_bound(weights, ledgers[:, 0]) + missed) / (total + missed)
            self._bound = min(1.0, bound + self._weights_bound())
            self._log_total += math.log(total)
            self._law = pooled / total
        return self._law

    def _pooled(self, laws: Float, weights: Float, writable: NDArray[np.bool_]) -> Float:
        """[symbols + 1], not normalised."""
        if self._pool == "mixture":
            return weights @ laws
        if callable(self._pool):
            pooled = np.asarray(self._pool(laws, weights), np.float64)
            fits = pooled.shape == laws.shape[1:]
            if not (fits and (pooled >= 0).all() and np.isfinite(pooled).all()):
                raise InferKitError(
                    f"The pool function returned shape {list(pooled.shape)}; expected masses "
                    f"{list(laws.shape[1:])}, nowhere negative nor infinite."
                )
            return pooled
        logs = weights @ np.log(np.where(writable, laws, 1.0))
        self._log_total = float(logs[writable].max(initial=-np.inf))
        return np.exp(logs - self._log_total)

    def _leave_out(self, pooled: Float, unread: NDArray[np.bool_]) -> float:
        """Set to 0 what a member cannot write after all; the most probable are looked into.

        Returns:
            The mass of those left out though they may be writable.
        """
        if not unread.any():
            return 0.0
        doubtful = np.flatnonzero(unread.any(0) & (pooled > 0))
        doubtful = doubtful[np.argsort(-pooled[doubtful], kind="stable")]
        rest = float(pooled[doubtful].sum())
        kept, missed = float(pooled.sum()) - rest, 0.0
        enough = _UNCHECKED * max(reducer.eps for reducer in self.reducers) * (kept + rest)
        for place, symbol in enumerate(doubtful.tolist()):
            if rest <= enough and kept > 0:
                pooled[doubtful[place:]] = 0.0
                return missed + max(rest, 0.0)
            mass = float(pooled[symbol])
            rest -= mass
            unsure = [r for r, no in zip(self.reducers, unread[:, symbol], strict=True) if no]
            if all(reducer.may_follow(symbol) for reducer in unsure):
                kept += mass
                continue
            pooled[symbol] = 0.0
            if any(reducer.reduction.mode == "full" for reducer in unsure):
                missed += mass  # what was dropped there is not known
        return missed

    def _mixture_bound(self, weights: Float, ledgers: Float) -> float:
        """Bound on the total variation of the mixture of the members' laws."""
        if self._weighting.rule != "bayes":
            return float(weights @ (ledgers / (1 + ledgers)))
        dropped = float(weights @ ledgers)  # of one law of whole texts
        return dropped / (1 + dropped)

    def _weights_bound(self) -> float:
        """What the weights may add: posteriors know the prompt up to factors exp(-given) to 1."""
        if self._weighting.rule != "bayes":
            return 0.0
        return math.tanh(max(reducer.given for reducer in self.reducers) / 4)

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
        if self._pool == "mixture" and len(parts) == 1:
            return *parts[0], members
        low, high = math.fsum(self.record.low), math.fsum(self.record.high)
        if end and self._pool == "mixture":
            masses = np.array(parts)
            masses[:, 0] += [reducer.given for reducer in self.reducers]
            least, most = self._ratios(self.weights, self._log_masses(), masses)
            low, high = low + least, high + most
        elif end:
            low = high = low + _log(self.law()[-1])
        return low, high, members

    def before(self) -> "Before":
        """What must be known of a step before its symbol is read."""
        if self._pool != "mixture":
            self.law()
        bound = self.tv_bound if self._law is not None else None  # a scored text needs no law
        return Before(self.weights, bound, self._log_masses())

    def after(self, symbol: int, before: "Before") -> None:
        """Learn from a symbol that all reducers have read."""
        now = self._log_masses()
        likely = np.exp(now[:, 0] - before.log_masses[:, 0])
        record, weights = self.record, before.weights
        record.weights.append(weights)
        record.logprobs.append(np.log(likely))
        if before.tv_bound is not None:
            record.tv_bounds.append(before.tv_bound)
        if self._pool == "mixture":
            low, high = self._ratios(weights, before.log_masses, now)
        elif self._pool == "product":  # of a symbol that was left out of the law as well
            low = high = float(weights @ np.log(likely)) - self._log_total
        else:
            low = high = _log(self.law()[symbol])
        record.low.append(low)
        record.high.append(high)
        self._weights = self._weighting.after(self._weights, likely, now[:, 0])
        self._law = self._now = None

    def _log_masses(self) -> Float:
        return np.array([reducer.log_masses for reducer in self.reducers])

    def _ratios(self, weights: Float, before: Float, after: Float) -> tuple[float, float]:
        """Log-probability, under the mixture, of going on as the members did.

        P(ys)/P(y), where each P lies between the retained mass and that with the ledger's. Equal
        bounds, of the retained masses, where nothing bounds the weights.

        Args:
            before, after: [N, 2] bounds of the logs of the members' masses.
        """
        if not self._is_bounded:
            value = _log(float(weights @ np.exp(after[:, 0] - before[:, 0])))
            return value, value
        least = float(weights @ np.exp(after[:, 0] - before[:, 1]))
        most = float(weights @ np.exp(after[:, 1] - before[:, 0]))
        return _log(least), min(0.0, _log(most))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True)
class Before:
    """Weights [N], bound, and bounds [N, 2] of the logs of the members' masses before a step."""

    weights: Float
    tv_bound: float | None
    log_masses: Float
