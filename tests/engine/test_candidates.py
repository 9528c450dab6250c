"""Candidates of a trace: which tokens are kept, and what is known of all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.recording import Recorder
from infer_kit.errors import InferKitError
from infer_kit.pool import Step
from infer_kit.token_statistics import TokenStatistics
from tests.engine.cases import BEAMS, GREEDY, LOOKUP, SAMPLING, lookup_rows, model_of, text_rows
from tests.engine.reference import pooled_scores
from tests.tiny import reference_logits

WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampling": SAMPLING | {"num_return_sequences": 2},
    "beams": BEAMS,
    "drafts": LOOKUP,
}
WEIGHTS = [[1.0, 0.5, -0.3], [0.5, 1.0, 0.0]]


def _traced(way: str, trace: Any = 3, **options: Any) -> tuple[Any, TokenStatistics, torch.Tensor]:
    rows = lookup_rows(3) if way == "drafts" else text_rows(2, 3)
    lm = CoupledLM([model_of("llama")] * 3, **options)
    out = lm.generate(
        rows, WEIGHTS[: len(rows)], trace=trace, return_dict_in_generate=True, **WAYS[way]
    )
    prompt = max(row[0]["input_ids"].shape[1] for row in rows)
    return rows, out.statistics, out.sequences[:, prompt:]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunk", [1, Recorder.CHUNK])
def test_against_the_whole_vocabulary(
    way: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "CHUNK", chunk)
    rows, found, new = _traced(way)
    assert found.candidates is not None and found.candidate_logprobs is not None
    assert found.floors is not None and found.pooled_floor is not None
    each = len(new) // len(rows)
    for r, tokens in enumerate(new):
        w = WEIGHTS[r // each]
        runs = [k for k in range(3) if w[k] != 0]
        logits = torch.stack(
            [reference_logits(model_of("llama"), dict(row), tokens[None, :-1])
             for row in rows[r // each]]
        ).double()  # fmt: skip
        for t, token in enumerate(tokens.tolist()):
            log_p = logits[:, t].log_softmax(-1)
            log_pi = pooled_scores(logits[:, t], w, "product").log_softmax(-1)
            ranks = log_pi.argsort(descending=True).tolist()
            expected = {token, ranks[1] if ranks[0] == token else ranks[0], *ranks[:3]}
            for k in runs:
                expected |= set(log_p[k].topk(3).indices.tolist())
            ids = [i for i in found.candidates[r, t].tolist() if i >= 0]
            assert ids == sorted(expected)
            kept = found.candidate_logprobs[r, t][found.candidates[r, t] >= 0]
            rest = [v for v in range(log_p.shape[1]) if v not in expected]
            for k in runs:
                _close(kept[:, k], log_p[k, ids])
                _close(found.floors[r, t, k], log_p[k, rest].max())
            _close(found.pooled_floor[r, t], log_pi[rest].max())


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=2e-5, rtol=0)


def test_more_than_there_are_are_all_and_nothing_is_left() -> None:
    _, found, _ = _traced("greedy", 1000)
    assert found.candidates is not None and found.floors is not None
    assert found.pooled_floor is not None
    assert (found.candidates >= 0).sum(-1).eq(160).all()
    assert found.floors.isneginf().all() and found.pooled_floor.isneginf().all()


def test_without_a_number_nothing_more_is_kept() -> None:
    for trace in (True, np.True_):
        _, found, _ = _traced("greedy", trace)
        assert found.candidates is None and found.floors is None
        assert "candidates" not in found.tensors()


def test_a_number_of_numpy_is_one() -> None:
    assert _traced("greedy", np.int64(2))[1].candidates is not None


def test_a_cut_off_leaves_no_floor_to_the_pool() -> None:
    _, found, _ = _traced("greedy", 3, plausibility=0.99, experts=(0,))
    assert found.pooled_floor is not None and found.floors is not None
    assert found.pooled_floor.isneginf().all() and found.floors[0].isfinite().all()


def test_a_weight_of_zero_at_a_step_keeps_the_log_probabilities() -> None:
    def weigh(step: Step) -> torch.Tensor:
        off = (step.position % 2 == 0).float()
        return torch.stack([torch.ones_like(off), off])[None].expand(len(step.request), 2, -1)

    lm = CoupledLM([model_of("llama")] * 2, weigh)
    out = lm.generate(text_rows(2, 2), trace=2, return_dict_in_generate=True, **GREEDY)
    found = out.statistics
    there = found.candidates >= 0
    assert found.logprobs[:, 1, 1].isnan().all()
    assert found.candidate_logprobs[there].isfinite().all()


@pytest.mark.parametrize("trace", [0, -1, "True", "3", 1.5, None, [1]], ids=repr)
def test_other_values_are_refused_at_the_call(trace: Any) -> None:
    lm = CoupledLM([model_of("llama")] * 2)
    with pytest.raises(InferKitError, match="trace is True, False, or how many candidates"):
        lm.generate(text_rows(1, 2), trace=trace, return_dict_in_generate=True, **GREEDY)
