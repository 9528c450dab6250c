"""Statistics of what each stream contributed, against brute force and against `score`."""

from __future__ import annotations

import math
import weakref
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.recording import Recorder
from infer_kit.errors import InferKitError
from infer_kit.pool import Step
from infer_kit.token_statistics import TokenStatistics
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    MIXTURE,
    SAMPLING,
    SIGNED,
    Crops,
    assert_engine,
    lookup_rows,
    model_of,
    text_rows,
)
from tests.engine.reference import pooled_scores
from tests.tiny import reference_logits

TRACE: dict[str, Any] = {"trace": True, "return_dict_in_generate": True}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampling": SAMPLING | {"num_return_sequences": 2},
    "beams": BEAMS,
    "beam sampling": SAMPLING | {"num_beams": 3},
    "drafts": LOOKUP,
}
ways = pytest.mark.parametrize("way", WAYS)


def _traced(way: str, pool: str = "product", family: str = "llama") -> tuple[Any, ...]:
    """Rows of three streams with their weights, the engine, its output, the new tokens."""
    rows = lookup_rows(3) if way == "drafts" else text_rows(2, 3)
    weights = [SIGNED[:3], [0.5, 1.0, 0.0]] if pool == "product" else [MIXTURE[3], [0.4, 0.6, 0.0]]
    weights = weights[: len(rows)]
    lm = CoupledLM([model_of(family)] * 3, pool=pool)
    torch.manual_seed(0)
    out = lm.generate(rows, weights, **TRACE, **WAYS[way])
    assert_engine(out, "fused")
    prompt = max(row[0]["input_ids"].shape[1] for row in rows)
    return rows, weights, lm, out, out.sequences[:, prompt:]


@ways
@pytest.mark.parametrize("chunk", [1, 2, Recorder.CHUNK])
@pytest.mark.parametrize("pool", ["product", "mixture"])
def test_statistics_are_those_of_score(
    way: str, pool: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "CHUNK", chunk)
    rows, weights, lm, out, new = _traced(way, pool)
    assert torch.equal(out.statistics.chosen, new)
    each = len(new) // len(rows)
    spread = [rows[r // each] for r in range(len(new))]
    scored = lm.score(spread, list(new), [weights[r // each] for r in range(len(new))])
    for field in fields(TokenStatistics):
        ours, theirs = (getattr(s, field.name) for s in (out.statistics, scored.statistics))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0, equal_nan=True, msg=field.name)
    for r in range(len(new)):
        torch.testing.assert_close(scored.pooled[r], scored.statistics.pooled[r])


@ways
def test_parts_sum_to_the_margin(way: str) -> None:
    statistics = _traced(way)[3].statistics
    parts = statistics.weights * (statistics.logprobs - statistics.runner_up_logprobs)
    margin = statistics.pooled - statistics.runner_up_pooled
    torch.testing.assert_close(parts.nansum(-1), margin, atol=1e-5, rtol=0)
    assert (margin < 0).any() or way not in ("sampling", "beam sampling")
    absent = statistics.weights == 0
    assert torch.equal(statistics.logprobs.isnan(), absent)
    assert absent.any() or way == "drafts"


@pytest.mark.parametrize("way", ["sampling", "beams", "drafts"])
@pytest.mark.parametrize("pool", ["product", "mixture"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_figure_against_brute_force(family: str, pool: str, way: str) -> None:
    rows, weights, _, out, new = _traced(way, pool, family)
    each = len(new) // len(rows)
    for r, tokens in enumerate(new):
        w = weights[r // each]
        streams = torch.stack(
            [reference_logits(model_of(family), dict(row), tokens[None, :-1])
             for row in rows[r // each]]
        ).double()  # [K, n, V]  # fmt: skip
        for t, token in enumerate(tokens.tolist()):
            _check_token(out.statistics, r, t, token, streams[:, t], w, pool)


def _check_token(
    statistics: TokenStatistics,
    r: int,
    t: int,
    token: int,
    logits: Tensor,
    w: list[float],
    pool: str,
) -> None:
    log_p = logits.log_softmax(-1)
    log_pi = pooled_scores(logits, w, pool).log_softmax(-1)
    ranks = log_pi.argsort(descending=True).tolist()
    other = ranks[1] if ranks[0] == token else ranks[0]
    assert statistics.runner_up[r, t] == other
    _close(statistics.pooled[r, t], log_pi[token])
    _close(statistics.runner_up_pooled[r, t], log_pi[other])
    active = [k for k in range(len(w)) if w[k] != 0]
    for k in active:
        _close(statistics.logprobs[r, t, k], log_p[k, token])
        _close(statistics.runner_up_logprobs[r, t, k], log_p[k, other])
        _close(statistics.weights[r, t, k], torch.tensor(w[k]))
        assert statistics.top[r, t, k] == log_p[k].argmax()
    for k in range(len(w)):
        without = [0.0 if j == k else w[j] for j in range(len(w))]
        expected = k in active and (
            not any(without) or int(pooled_scores(logits, without, pool).argmax()) != ranks[0]
        )
        assert bool(statistics.decisive[r, t, k]) == expected
    mean = log_p[active].exp().mean(0)
    divergence = sum(float((log_p[k].exp() * (log_p[k] - mean.log())).sum()) for k in active) / len(
        active
    )
    _close(statistics.divergence[r, t], torch.tensor(divergence))
    assert 0 <= statistics.divergence[r, t] <= math.log(len(active)) + 1e-6


@pytest.mark.parametrize("experts", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("pool", ["product", "mixture"])
@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_who_decided_under_a_cut_off(pool: str, beta: float, experts: tuple[int, ...]) -> None:
    """Without a stream the others are pooled anew, and the experts among them cut off."""
    model, weights = model_of("llama"), [0.6, 0.1, 0.3]

    def best(logits: Tensor, w: list[float]) -> int:
        scores = pooled_scores(logits, w, pool)
        left = [k for k in experts if w[k] != 0]
        if left:
            total = sum(w[k] for k in left)
            expert = sum(w[k] / total * logits[k].log_softmax(-1) for k in left)
            scores[expert < expert.max() + math.log(beta)] = -torch.inf
        return int(scores.argmax())

    lm = CoupledLM([model] * 3, weights, pool, plausibility=beta, experts=experts)
    apart = 0
    for seed in range(6):
        rows = text_rows(2, 3, seed)
        out = lm.generate(rows, **TRACE, **GREEDY)
        new = out.sequences[:, -GREEDY["max_new_tokens"] :]
        for b, tokens in enumerate(new):
            streams = torch.stack(
                [reference_logits(model, dict(row), tokens[None, :-1]) for row in rows[b]]
            ).double()
            for t in range(len(tokens)):
                together = best(streams[:, t], weights)
                for k in range(3):
                    without = [0.0 if j == k else w for j, w in enumerate(weights)]
                    alone = best(streams[:, t], without)
                    assert bool(out.statistics.decisive[b, t, k]) == (alone != together)
                    uncut = int(pooled_scores(streams[:, t], without, pool).argmax())
                    apart += alone != uncut
    assert apart > 0


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-5, rtol=0)


def test_drafts_are_rejected_while_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = Crops(monkeypatch)
    _traced("drafts")
    assert max(crops.removed) > 0


def test_weights_in_force_at_each_token() -> None:
    def weigh(step: Step) -> Tensor:
        falling = 1.0 - 0.25 * step.position
        return torch.stack([torch.ones_like(falling), falling])[None].expand(
            len(step.request), 2, -1
        )

    lm = CoupledLM([model_of("llama")] * 2, weigh)
    for rows, options in ((text_rows(2, 2), GREEDY), (lookup_rows(2), LOOKUP)):
        out = lm.generate(rows, **TRACE, **options)
        n = out.statistics.chosen.shape[1]
        expected = torch.stack([torch.ones(n), 1.0 - 0.25 * torch.arange(n)], dim=-1)
        assert torch.equal(out.statistics.weights, expected.expand(len(rows), -1, -1))
        parts = out.statistics.weights * (
            out.statistics.logprobs - out.statistics.runner_up_logprobs
        )
        margin = out.statistics.pooled - out.statistics.runner_up_pooled
        torch.testing.assert_close(parts.nansum(-1), margin, atol=1e-5, rtol=0)


def test_statistics_of_a_single_stream() -> None:
    out = CoupledLM(model_of("llama")).generate(text_rows(2, 1), **TRACE, **GREEDY)
    assert out.statistics.decisive.all()  # without it nothing is left
    assert out.statistics.divergence.abs().max() < 1e-5
    torch.testing.assert_close(out.statistics.pooled, out.statistics.logprobs[..., 0])


def test_a_pool_function_has_no_decisive_streams() -> None:
    lm = CoupledLM([model_of("llama")] * 2, pool=lambda lp, w: lp.mean(1))
    out = lm.generate(text_rows(2, 2), **TRACE, **GREEDY)
    assert not out.statistics.decisive.any()
    assert out.statistics.logprobs.isfinite().all()


def test_tracing_changes_nothing() -> None:
    lm = CoupledLM([model_of("gpt2")] * 3, SIGNED[:3])
    for way in ("greedy", "sampling", "beams"):
        torch.manual_seed(3)
        plain = lm.generate(text_rows(2, 3), **WAYS[way])
        torch.manual_seed(3)
        traced = lm.generate(text_rows(2, 3), **TRACE, **WAYS[way])
        assert torch.equal(plain, traced.sequences)


# score


def test_score_of_continuations_of_unequal_length() -> None:
    model, rows, w = model_of("qwen3"), text_rows(3, 2), [[1.0, -0.5], [0.3, 0.7], [1.0, 0.0]]
    continuations = [[5, 9, 33], [140], [8, 8, 8, 8, 8, 100]]
    scores = CoupledLM([model] * 2).score(rows, continuations, w)
    for b, tokens in enumerate(continuations):
        ids = torch.tensor([tokens])
        streams = torch.stack([reference_logits(model, dict(r), ids[:, :-1]) for r in rows[b]])
        for t, token in enumerate(tokens):
            log_pi = pooled_scores(streams[:, t], w[b], "product").log_softmax(-1)
            _close(scores.pooled[b][t], log_pi[token])
            for k in (0, 1):
                log_p = streams[k, t].log_softmax(-1)[token]
                if w[b][k]:
                    _close(scores.streams[b][t, k], log_p)
                else:
                    assert scores.streams[b][t, k].isnan()


def test_score_is_checked() -> None:
    lm, rows = CoupledLM([model_of("llama")] * 2), text_rows(2, 2)
    with pytest.raises(InferKitError, match="one continuation for every request: got 1 for 2"):
        lm.score(rows, [[5]])
    with pytest.raises(InferKitError, match="The continuation of request 1 is empty"):
        lm.score(rows, [[5], []])
    with pytest.raises(
        InferKitError, match="request 1 has token ids from 7 to 500; there are 160 tokens"
    ):
        lm.score(rows, [[5], [7, 500]])


def test_a_bounded_number_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace holds its figures, not the answer's logits."""
    monkeypatch.setattr(Recorder, "CHUNK", 2)
    held: list[weakref.ref] = []
    alive: list[int] = []
    offer = Recorder.offer

    def counted(self: Recorder, fed: Tensor, logits: Tensor, *rest: Tensor) -> None:
        held.append(weakref.ref(logits))
        offer(self, fed, logits, *rest)
        alive.append(sum(logits() is not None for logits in held))

    monkeypatch.setattr(Recorder, "offer", counted)
    CoupledLM([model_of("llama")] * 2).generate(text_rows(1, 2), **TRACE, **GREEDY)
    assert len(alive) == GREEDY["max_new_tokens"]
    assert max(alive) <= 3
