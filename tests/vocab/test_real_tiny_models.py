"""Two models that somebody else trained, with unlike tokenizers, as an ensemble over bytes."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import infer_kit as ik
from tests.vocab import trained
from tests.vocab.taught import Member, is_utf8_so_far

pytestmark = pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")

NAMES = ("stories260K", "aidreams260K")
PROMPTS = ["Once upon a time", ""]
SEEDS, LONG = 100, 40
END = 256


@cache
def member(name: str) -> Member:
    folder = trained.data(f"models/{name}/hf")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def members() -> list[Member]:
    return [member(name) for name in NAMES]


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_a_hundred_samples_and_no_dead_state(eps: float) -> None:
    """Each model is forced onto bytes that it finds nearly impossible by the other."""
    ensemble = ik.Ensemble(members(), eps=eps)
    torch.manual_seed(0)
    out = ensemble.generate(
        PROMPTS, max_new_tokens=LONG, do_sample=True, num_return_sequences=SEEDS // len(PROMPTS)
    )
    assert len(set(out.text)) > 0.9 * SEEDS
    written = 0
    for row, record in zip(out.sequences.tolist(), out.steps, strict=True):
        data = bytes(id for id in row if id < END)
        assert is_utf8_so_far(data) and len(data) <= LONG
        assert len(data) == LONG or END in row  # went on to its end
        assert record.length >= len(data) - 1
        written += record.length
        assert max(record.tv_bounds) <= eps
        assert np.isfinite(record.logprobs).all()
    assert written > 0.9 * SEEDS * LONG
    assert 0 < out.tv_bound <= eps
    assert max(out.rows) <= 2 * written  # those read ahead included


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_what_one_writes_the_other_can_read(eps: float) -> None:
    """Samples of each model alone are scored under both, and under the pair with its regret."""
    torch.manual_seed(1)
    ensemble = ik.Ensemble(members(), "bayes", eps=eps)
    for own, author in enumerate(members()):
        out = ik.ReducedLM(*author, eps=eps).generate(
            "", max_new_tokens=60, do_sample=True, num_return_sequences=10
        )
        better = 0
        for score in ensemble.logprob([text for text in out.text if text]):
            lows = [low for low, _ in score.members]
            assert all(map(math.isfinite, lows)) and score.low <= score.high
            assert score.low >= max(lows) - math.log(2) - 1e-9
            assert score.high - score.low <= 2e-3 + 1e3 * eps
            better += int(np.argmax(lows)) == own
        assert better >= 8


@pytest.mark.parametrize("name", NAMES)
def test_rows_a_byte_on_own_text(name: str) -> None:
    torch.manual_seed(2)
    exact = ik.ReducedLM(*member(name), eps=0, prefetch=None)
    options = {"do_sample": True, "num_return_sequences": 4, "min_new_tokens": 100}
    own = exact.generate("", max_new_tokens=100, **options).text
    found = []
    for eps in (0.0, 1e-6, 1e-3):
        lm = ik.ReducedLM(*member(name), eps=eps, prefetch=None)
        rows = symbols = 0
        for text in own:
            (state,), (reader,) = lm._start(lm._conditionings([None]))
            (reducer,) = state.reducers
            for byte in text.encode():
                reader.run([reducer.advance(byte)], [reducer])
            rows, symbols = rows + reader.rows, symbols + reducer.stats.symbols
        found.append(rows / symbols)
    assert found[0] <= 1.05 and found == sorted(found, reverse=True)
