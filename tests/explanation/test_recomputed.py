"""The recomputed choice against the whole vocabulary: never a false certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infer_kit.errors import InferKitError
from infer_kit.explanation.recomputed import CUT, NONE, OUTSIDE, TIE, recomputed
from tests.explanation.cases import Case, case

KINDS: dict[str, dict] = {
    "product": {"weights": (1.0, 0.5, 0.3)},
    "signed": {"weights": (1.5, -0.5)},
    "signed, three": {"weights": (2.5, -0.5, -0.6)},
    "signed, a cut-off": {"weights": (2.0, -1.0), "plausibility": 0.1},
    "a cut-off by two": {
        "weights": (0.6, 0.5, -0.4), "plausibility": 0.3, "experts": (0, 1), "spread": 1.0,
    },
    "a cut-off by signed shares": {
        "weights": (1.1, -0.3, 0.4), "plausibility": 0.3, "experts": (0, 1), "spread": 1.0,
    },
    "a cut-off of one": {"weights": (1.3, -0.3), "plausibility": 1.0},
    "mixture": {"weights": (0.5, 0.2, 0.3), "pool": "mixture"},
    "mixture, a cut-off": {"weights": (0.5, 0.5), "pool": "mixture", "plausibility": 0.2},
    "excluded tokens": {"weights": (1.0, 0.7, -0.4), "holes": 0.3},
    "flat streams": {"weights": (1.0, 0.6), "spread": 0.2},
    "flat and signed": {"weights": (1.8, -0.8), "spread": 0.3},
    "nearly everything kept": {"weights": (1.2, -0.6), "depth": 14, "holes": 0.5},
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


def _made(kind: str, seed: int, **more: object) -> Case:
    given = KINDS[kind] | more
    return case(seed, streams=len(given["weights"]), **given)


def _others(made: Case, random: np.random.Generator) -> list[np.ndarray]:
    """Weights to try: near those in force, on the way to few streams, beyond, anywhere."""
    w = made.trace.weights[0]
    count = len(w)
    one = np.eye(count)[int(random.integers(count))]
    tried = [w * 1.7, 0.5 * w + 0.5 * one, 1.4 * w - 0.4 * one, w + random.normal(size=count), one]
    tried += [np.abs(random.normal(size=count)), w + np.where(one > 0, 0.2, 0.0)]
    if made.trace.pool == "mixture":
        return [np.abs(t) / np.abs(t).sum() for t in tried]
    return tried


@kinds
def test_at_the_weights_in_force_it_is_the_token_that_was_chosen(kind: str) -> None:
    for seed in range(20):
        made = _made(kind, seed)
        choices = recomputed(made.trace)
        assert [c.token_id for c in choices] == made.trace.token_ids.tolist()
        assert [c.text for c in choices] == list(made.trace.tokens)
        for t, choice in enumerate(choices):
            assert choice.exact or choice.doubt == CUT
            if choice.exact:
                assert choice.log_pi[choice.place] == pytest.approx(made.trace.pooled[t], abs=1e-5)
        if not kind.startswith(("a cut-off by", "a cut-off of")):
            assert sum(c.certain for c in choices) >= len(choices) - 1  # a near tie now and then


@kinds
def test_no_certificate_is_false(kind: str) -> None:
    certified = doubtful = 0
    for seed in range(24):
        made = _made(kind, seed, written="other" if seed % 3 == 0 else "greedy")
        random = np.random.default_rng(seed)
        for weights in _others(made, random):
            for t, choice in enumerate(recomputed(made.trace, weights)):
                best = made.best(weights, t)
                if choice.certain:
                    certified += 1
                    assert choice.token_id in best, (seed, weights, t)
                else:
                    doubtful += 1
                    assert choice.doubt in (OUTSIDE, TIE, CUT, NONE)
    assert certified > 60
    assert doubtful > 0 or kind == "a cut-off of one"


@kinds
def test_log_pi_is_that_of_the_whole_vocabulary_or_above(kind: str) -> None:
    exact = bounds = unknown = 0
    for seed in range(20):
        made = _made(kind, seed)
        random = np.random.default_rng(seed)
        for weights in [made.trace.weights[0], *_others(made, random)]:
            for t, choice in enumerate(recomputed(made.trace, weights)):
                if choice.place is None:
                    continue
                pooled = made.log_pi(weights, t)[made.trace.candidate_ids[t]]
                left = np.isfinite(choice.log_pi)
                if np.isnan(choice.log_pi).all():
                    unknown += 1
                    assert choice.doubt == CUT and not choice.exact
                elif choice.exact:
                    exact += 1
                    assert choice.log_pi[left] == pytest.approx(pooled[left], abs=1e-4)
                else:
                    bounds += 1
                    assert (choice.log_pi[left] >= pooled[left] - 1e-4).all()
    assert exact > 0
    assert (unknown > 0) == (kind in ("a cut-off by two", "a cut-off by signed shares"))


def test_what_the_edge_of_the_cut_off_leaves_open_has_no_log_pi() -> None:
    made = case(3, 2, (2.0, -1.0), plausibility=0.3, tokens=1)
    trace = made.trace
    place = int(np.flatnonzero(trace.candidate_ids[0] == trace.token_ids[0])[0])
    logprobs = trace.candidate_logprobs[0].copy()
    other = (place + 1) % len(logprobs)
    logprobs[:, 0] = logprobs[:, 0].max() - 9.0
    logprobs[place, 0] = -0.1
    logprobs[other, 0] = -0.1 + np.log(0.3) + 1e-6
    trace = replace(trace, candidate_logprobs=(logprobs,))
    (own,) = recomputed(trace)
    assert own.exact and np.flatnonzero(np.isnan(own.log_pi)).tolist() == [other]
    assert own.log_pi[place] == pytest.approx(trace.pooled[0])
    (moved,) = recomputed(trace, [2.5, -1.5])
    assert not moved.exact and np.isnan(moved.log_pi).all()


def test_what_nothing_bounds_is_never_certain() -> None:
    """Beyond the weights in force a negative stream may raise a token without end."""
    for seed in range(20):
        made = case(seed, 2, (1.5, -0.5))
        for choice in recomputed(made.trace, [2.0, -1.5]):
            assert choice.doubt in (OUTSIDE, TIE)
        between = recomputed(made.trace, [1.2, -0.2])
        assert any(choice.certain for choice in between)


def test_a_cut_off_makes_negative_weights_certain() -> None:
    found = [
        c.certain for seed in range(10)
        for c in recomputed(case(seed, 2, (2.0, -1.0), plausibility=0.3).trace, [4.0, -3.0])
    ]  # fmt: skip
    assert np.mean(found) > 0.5


def test_equal_tokens_are_a_tie_and_the_written_one_stays() -> None:
    made = case(0, 1, (1.0,), tokens=1)
    trace = made.trace
    place = int(np.flatnonzero(trace.candidate_ids[0] == trace.token_ids[0])[0])
    for other in range(len(trace.candidate_ids[0])):
        logprobs = trace.candidate_logprobs[0].copy()
        logprobs[other] = logprobs[place] + 1e-6
        (choice,) = recomputed(replace(trace, candidate_logprobs=(logprobs,)), [2.0])
        assert choice.token_id == trace.token_ids[0]
        assert choice.doubt == (TIE if other != place else "")


def test_a_stream_of_weight_zero_excludes_nothing() -> None:
    made = case(3, 2, (1.0, 0.5), tokens=1)
    logprobs = made.trace.candidate_logprobs[0].copy()
    best = int(logprobs[:, 0].argmax())
    logprobs[best, 1] = -np.inf
    trace = replace(made.trace, candidate_logprobs=(logprobs,))
    assert recomputed(trace, [1.0, 0.0])[0].place == best
    assert recomputed(trace, [1.0, 0.1])[0].place != best
    assert recomputed(trace, [1.0, -0.1])[0].scores[best] == -np.inf


def test_where_everything_is_excluded_nothing_is_chosen() -> None:
    made = case(3, 2, (1.0, 0.5), tokens=1)
    logprobs = np.full_like(made.trace.candidate_logprobs[0], -np.inf)
    trace = replace(made.trace, candidate_logprobs=(logprobs,))
    (choice,) = recomputed(trace, [1.0, 1.0])
    assert choice.place is None and choice.token_id == -1 and choice.doubt == NONE


def test_weights_of_each_token() -> None:
    made = case(1, 2, (1.0, 0.5), tokens=3)
    table = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    ours = [c.token_id for c in recomputed(made.trace, table)]
    for t, weights in enumerate(table):
        assert ours[t] == recomputed(made.trace, weights)[t].token_id
    assert ours[2] == made.trace.token_ids[2]


def test_what_cannot_be_is_refused() -> None:
    trace = case(1, 2, (1.0, 0.5)).trace
    with pytest.raises(InferKitError, match="The trace has no candidates"):
        recomputed(replace(trace, candidates=None))
    with pytest.raises(InferKitError, match="A custom pool cannot be recomputed"):
        recomputed(replace(trace, pool="custom"))
    with pytest.raises(InferKitError, match=r"shape \[3\]; this trace has 6 tokens"):
        recomputed(trace, [1.0, 2.0, 3.0])
    with pytest.raises(InferKitError, match="not all 0"):
        recomputed(trace, [0.0, 0.0])
    with pytest.raises(InferKitError, match="mixture are ≥ 0 and sum to 1"):
        recomputed(replace(trace, pool="mixture"), [1.0, 1.0])
