"""Texts of a batch that go on at their own pace write what they write in step, in fewer calls."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

import infer_kit as ik
from tests.vocab.taught import pair

pytestmark = pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")

PROMPTS = [
    "The lighthouse kee",
    "A small boat drifted sl",
    "",
    "清晨的市",
    "It costs $3,499",
    "The",
]
ENGLISH = ["The lighthouse kee", "A small boat drifted sl", "It costs $3,499", "The"]
IN_STEP = {"logits_processor": LogitsProcessorList()}  # a caller's own processors count ids
LONG = 40


@pytest.fixture(scope="module")
def ensemble() -> ik.Ensemble:
    return ik.Ensemble(pair(in_double=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": LONG},
        {"stop_strings": ["er", "e s"]},
        {"suppress_tokens": list(b"e")},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 1e-3, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_what_is_written_does_not_depend_on_the_pace(ensemble: ik.Ensemble, options: dict) -> None:
    own = ensemble.generate(PROMPTS, max_new_tokens=LONG, **options)
    step = ensemble.generate(PROMPTS, max_new_tokens=LONG, **options, **IN_STEP)
    assert own.text == step.text and len(set(own.text)) == len(PROMPTS)
    assert own.sequences.tolist() == step.sequences.tolist()
    assert own.output[:, 1:].tolist() == own.sequences.tolist()
    for mine, theirs in zip(own.steps, step.steps, strict=True):
        count = min(mine.length, theirs.length)  # what ends a text may have been read, or not
        assert count >= theirs.length - 1
        np.testing.assert_allclose(mine.logprobs[:count], theirs.logprobs[:count], atol=1e-9)


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_calls_are_those_of_the_slowest_text(pool: str) -> None:
    ensemble = ik.Ensemble(pair(), pool=pool)
    alone = [ensemble.generate(prompt, max_new_tokens=LONG).calls for prompt in ENGLISH]
    calls = ensemble.generate(ENGLISH, max_new_tokens=LONG).calls
    step = ensemble.generate(ENGLISH, max_new_tokens=LONG, **IN_STEP).calls
    for mine, theirs, singles in zip(calls, step, np.transpose(alone), strict=True):
        # A text waits for whichever of its members needs a forward.
        assert mine <= 1.5 * singles.max() < 0.6 * singles.sum()
        assert mine <= theirs
    lm = ik.ReducedLM(*pair()[0])
    slowest = max(lm.generate(prompt, max_new_tokens=LONG).calls[0] for prompt in ENGLISH)
    assert lm.generate(ENGLISH, max_new_tokens=LONG).calls[0] <= slowest + 3


def test_texts_to_score_go_at_their_own_pace(ensemble: ik.Ensemble) -> None:
    texts = ["The lighthouse keeper's daughter hadn't", "It costs $3,499.00", "A", "清晨的市场"]
    together = ensemble.logprob(texts)
    alone = [ensemble.logprob(text) for text in texts]
    for mine, single in zip(together, alone, strict=True):
        assert mine.low == pytest.approx(single.low, abs=1e-9)
        assert mine.high == pytest.approx(single.high, abs=1e-9)
    slowest = np.max([score.calls for score in alone], axis=0)
    assert (np.array(together[0].calls) <= 1.5 * slowest).all()


def test_what_looks_at_the_ids_before_is_in_step(ensemble: ik.Ensemble) -> None:
    for options in (
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [list(b"th")]},
        {"num_beams": 2},
        {"exponential_decay_length_penalty": (4, 1.5)},
    ):
        together = ensemble.generate(PROMPTS, max_new_tokens=16, **options)
        alone = [ensemble.generate(prompt, max_new_tokens=16, **options) for prompt in PROMPTS]
        assert together.text == [out.text for out in alone], options
    out = ensemble.generate(
        PROMPTS, max_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    assert len(out.output.scores) == 6


def test_samples_follow_each_texts_own_law(ensemble: ik.Ensemble) -> None:
    """Waiting changes no frequencies."""
    prompts = ["", "The"]
    torch.manual_seed(0)
    many = 1500
    out = ensemble.generate(
        prompts, max_new_tokens=3, do_sample=True, temperature=1.0, num_return_sequences=many
    )
    for place, prompt in enumerate(prompts):
        drawn = Counter(
            bytes(row[row < 256].tolist()) for row in out.sequences[place * many :][:many]
        )
        # The joint of three symbols: from the second on some texts wait for others.
        texts = [text.decode() for text in drawn if text.isascii() and len(text) == 3]
        scores = ensemble.logprob(texts, prompt or None)
        masses = [many * math.exp(score.low) for score in scores]
        expected = {t.encode(): mass for t, mass in zip(texts, masses, strict=True) if mass > 5}
        chi = sum((drawn[text] - count) ** 2 / count for text, count in expected.items())
        assert len(expected) >= 2
        assert chi < len(expected) + 5 * math.sqrt(2 * len(expected))
