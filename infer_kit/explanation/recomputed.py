r"""The choice of a token under other weights, from what its trace kept, and whether it is certain.

A trace with candidates holds log p_k of a few tokens in every stream, and for all others bounds:
`floors`, what no other token exceeds in a stream, and `pooled_floor`, what none exceeds in the pool
at the weights in force. From these follows a bound on what any other token can reach.

For a product, weights $w$ and any $t \ge 0$ for which $u = w - t w^*$ is not negative, $w^*$ being
the weights in force, a token v that is no candidate has

$\sum_k w_k \log p_k(v) = t \sum_k w^*_k \log p_k(v) + \sum_k u_k \log p_k(v)
\le t F + \sum_k u_k f_k$,

F the pooled floor (not normalised) and f the floors. With $w \ge 0$, t = 0 will do; with a negative
weight t must be at least $w_k / w^*_k$ there, and where no t is left nothing bounds v: log p_k(v)
has no lower bound. For a mixture the same holds of probabilities. The bound is linear in t, so its
least value is at an end of the interval.

Plausibility cut-off: where even the best of the other tokens is below the threshold none is left.
A single expert does not depend on the weights; of several the threshold moves, and F with it, so
that F is not used.

Everything is in float64, from figures of float32; what these leave open is called uncertain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer_kit.errors import InferKitError
from infer_kit.trace import Trace

ROUNDING = 2e-5
"""Nats that figures of float32 leave open, a unit of weight."""

TIE = "tokens are equal up to rounding"
OUTSIDE = "a token outside the stored ones might win"
CUT = "a token is at the edge of the cut-off up to rounding, or the edge is not known"
NONE = "no stored token is left"


@dataclass(frozen=True)
class Stored:
    """What a trace knows of one token's choice.

    Attributes:
        pool: "product" or "mixture".
        texts: C candidates. ids: `[C]`. logprobs: `[C, K]`.
        floors: `[K]`. pooled_floor: log π.
        in_force: `[K]` the weights that were in force.
        chosen: place of the token that was written.
        anchor: place of a token whose log π is known, and that log π.
        plausibility: β. experts: streams.
    """

    pool: str
    texts: tuple[str, ...]
    ids: np.ndarray
    logprobs: np.ndarray
    floors: np.ndarray
    pooled_floor: float
    in_force: np.ndarray
    chosen: int
    anchor: tuple[int, float]
    plausibility: float
    experts: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """A token's choice under some weights.

    Attributes:
        place: of the pool's best token among the candidates; of those that are equal up to
            rounding the one that was written. None where none is left.
        text: of it. token_id: of it, −1 where none is left.
        scores: `[C]` pooled scores, not normalised, −∞ where excluded.
        log_pi: `[C]` log π, where `exact` is False an upper bound. NaN where there is none: of a
            token at the edge of the cut-off; under other weights than those in force of all, where
            the edge is not known or a token is at it.
        exact: whether log π is known.
        doubt: why another token might be the pool's best; empty where none can be.
    """

    place: int | None
    text: str
    token_id: int
    scores: np.ndarray
    log_pi: np.ndarray
    exact: bool
    doubt: str

    @property
    def certain(self) -> bool:
        """Whether no token of the whole vocabulary can be better."""
        return not self.doubt


def recomputed(
    trace: Trace, weights: Sequence[float] | np.ndarray | None = None
) -> tuple[Choice, ...]:
    """The greedy choice at each token, given the tokens before it as they were written.

    Args:
        trace: with candidates.
        weights: `[K]` or `[T, K]`, as the pool takes them (normalised, where they are to be); None
            for those in force.

    Raises:
        InferKitError: the trace has no candidates or is of a pool function, weights are not K, not
            finite or all 0, or cannot be a mixture's.
    """
    tokens = stored(trace)
    table = trace.weights if weights is None else np.asarray(weights, dtype=np.float64)
    if table.shape not in {(len(trace.streams),), trace.weights.shape}:
        raise InferKitError(
            f"Weights have shape {list(table.shape)}; this trace has {len(trace)} tokens and the "
            f"streams {[*trace.streams]}."
        )
    table = np.broadcast_to(table, trace.weights.shape)
    for row in table:
        if not np.isfinite(row).all() or not row.any():
            raise InferKitError(f"Weights are finite and not all 0, got {row.tolist()}.")
        if trace.pool == "mixture" and (row.min() < 0 or abs(row.sum() - 1) > 1e-4):
            raise InferKitError(f"Weights of a mixture are ≥ 0 and sum to 1, got {row.tolist()}.")
    return tuple(choose(token, row) for token, row in zip(tokens, table, strict=True))


def stored(trace: Trace) -> tuple[Stored, ...]:
    """A trace token by token.

    Raises:
        InferKitError: it has no candidates, or is of a pool function.
    """
    if trace.pool not in ("product", "mixture"):
        raise InferKitError(f"A {trace.pool} pool cannot be recomputed: it is a function.")
    if (
        trace.candidates is None
        or trace.candidate_ids is None
        or trace.candidate_logprobs is None
        or trace.floors is None
        or trace.pooled_floor is None
    ):
        raise InferKitError("The trace has no candidates.", hint="Record it with trace=10, say.")
    out = []
    for t, ids in enumerate(trace.candidate_ids):
        chosen = int(np.flatnonzero(ids == trace.token_ids[t])[0])
        anchor = (chosen, float(trace.pooled[t]))
        if not math.isfinite(anchor[1]):  # a processor chose what was cut off
            other = trace.candidates[t].index(trace.runner_up[t])
            anchor = (other, float(trace.runner_up_pooled[t]))
        out.append(
            Stored(
                trace.pool,
                trace.candidates[t],
                ids,
                trace.candidate_logprobs[t],
                trace.floors[t],
                float(trace.pooled_floor[t]),
                trace.weights[t],
                chosen,
                anchor,
                trace.plausibility,
                trace.experts,
            )
        )
    return tuple(out)


def choose(token: Stored, weights: np.ndarray) -> Choice:
    """The pool's best token under weights `[K]`, see `Choice`."""
    as_it_was = bool(np.allclose(weights, token.in_force, rtol=1e-6, atol=1e-9))
    w = token.in_force if as_it_was else weights
    slack = ROUNDING * max(1.0, float(np.abs(w).sum()))
    raw = _scores(token.pool, token.logprobs, w)
    cut = _cut_off(token, w)
    scores = np.where(cut.kept, raw, -np.inf)
    best = float(scores.max())
    if best == -np.inf:
        return Choice(None, "", -1, scores, scores, False, NONE)
    near = np.flatnonzero(scores >= best - slack)
    place = token.chosen if token.chosen in near else int(scores.argmax())
    bound = -np.inf if cut.others_out else _bound(token, w)
    if bool((cut.open & (raw >= best - slack)).any()) or not cut.known:
        doubt = CUT
    elif bound >= best - slack:
        doubt = OUTSIDE
    else:
        doubt = TIE if len(near) > 1 else ""
    exact, shift, unsure = cut.known, _log_sum(scores), cut.open
    if as_it_was and math.isfinite(scores[token.anchor[0]]):
        # with a higher edge some of those that are kept have π = 0, and what they have here is more
        shift = float(scores[token.anchor[0]]) - token.anchor[1]
        unsure = cut.open & (np.arange(len(scores)) != token.anchor[0])
    elif not cut.known or cut.open.any():
        # shares among tokens of which some may be out are no bounds
        exact, shift = False, math.nan
    elif bound > -np.inf:
        exact = token.pool == "mixture" and not token.experts
        shift = 0.0 if exact else shift
    log_pi = np.where(unsure, np.nan, scores - shift)
    return Choice(place, token.texts[place], int(token.ids[place]), scores, log_pi, exact, doubt)


@dataclass(frozen=True)
class _CutOff:
    """Who passes: `kept` `[C]`; `open` `[C]`, where rounding decides; whether no other token does
    (`others_out`); and whether the threshold is known."""

    kept: np.ndarray
    open: np.ndarray
    others_out: bool
    known: bool


def _cut_off(token: Stored, w: np.ndarray) -> _CutOff:
    every = np.ones(len(token.ids), dtype=bool)
    if not token.experts or not token.plausibility:
        return _CutOff(every, ~every, False, True)
    shares = _shares(token, w)
    expert = _scores("product", token.logprobs, shares)
    others = _linear_bound(token.floors, shares) if (shares >= 0).all() else math.inf
    if _excluded(token.floors, shares):
        others = -math.inf
    peak = float(expert.max())
    threshold = peak + math.log(token.plausibility)
    with np.errstate(invalid="ignore"):  # of −∞ alone
        edge = np.abs(expert - threshold) <= ROUNDING
    edge[int(expert.argmax())] = False  # the best passes whatever β is
    known = others <= peak
    return _CutOff(expert >= threshold, edge, known and others < threshold - ROUNDING, known)


def _shares(token: Stored, w: np.ndarray) -> np.ndarray:
    """`[K]` weights of the experts in what says what is plausible, 0 for the others."""
    shares, experts = np.zeros(len(w)), list(token.experts)
    if len(experts) == 1:
        shares[experts] = 1.0
        return shares
    total = float(w[experts].sum())
    shares[experts] = w[experts] / total if total else 1 / len(experts)
    return shares


def _scores(pool: str, logprobs: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`[C]` pooled scores of `logprobs` `[C, K]`; −∞ in a stream with weight excludes."""
    active = w != 0
    values, w = logprobs[:, active], w[active]
    if pool == "mixture":
        return np.array([_log_sum(row) for row in values + np.log(w)])
    excluded = np.isneginf(values)
    sums = (np.where(excluded, 0.0, values) * w).sum(1)
    return np.where(excluded.any(1), -np.inf, sums)


def _bound(token: Stored, w: np.ndarray) -> float:
    """What no token outside the candidates exceeds, before a cut-off; ∞ where nothing is known."""
    if token.pool == "product" and _excluded(token.floors, w):
        return -math.inf
    before, place = token.in_force, token.anchor[0]
    score = float(_scores(token.pool, token.logprobs[[place]], before)[0])
    floor = score - token.anchor[1] + token.pooled_floor
    # a stream that has no weight any more may have excluded what is now allowed
    known = len(token.experts) < 2 and bool((w[before != 0] != 0).all())
    if known and floor == -math.inf:
        return -math.inf
    low, high = 0.0, 0.0
    if known:
        low = max([0.0, *(w[before < 0] / before[before < 0])])
        high = min([math.inf, *(w[before > 0] / before[before > 0])])
        high = low if math.isinf(high) else high
    found = math.inf
    for t in (low, high):
        rest = w - t * before
        if t < 0 or low > high * (1 + 1e-9) or (rest < -1e-9 * np.abs(w)).any():
            continue
        rest = np.where(np.abs(rest) <= 1e-9 * np.abs(w), 0.0, rest)
        found = min(found, _combined(token, rest, t, floor))
    return found


def _combined(token: Stored, rest: np.ndarray, t: float, floor: float) -> float:
    """t times the pool in force and `rest` `[K]` of the streams, at their floors."""
    if token.pool == "product":
        return (t * floor if t else 0.0) + _linear_bound(token.floors, rest)
    active = rest > 0
    parts = [*(token.floors[active] + np.log(rest[active]))]
    return _log_sum(np.array([*parts, floor + math.log(t)] if t else parts))


def _linear_bound(floors: np.ndarray, w: np.ndarray) -> float:
    active = w != 0
    return float((floors[active] * w[active]).sum())


def _excluded(floors: np.ndarray, w: np.ndarray) -> bool:
    """Whether some stream with weight excludes every token that is no candidate."""
    return bool(np.isneginf(floors[w != 0]).any())


def _log_sum(values: np.ndarray) -> float:
    """log Σ e^v; −∞ of none."""
    top = float(values.max(initial=-np.inf))
    return top if math.isinf(top) else top + math.log(float(np.exp(values - top).sum()))
