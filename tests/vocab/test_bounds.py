"""Where bounds are claimed and where not; texts that pruning in mode "full" had lost."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
from transformers import TopKLogitsWarper

import infer_kit as ik
from infer_kit.demo import text as demo
from infer_kit.vocab import reducer
from infer_kit.vocab.reducer import ZeroProbability

pytestmark = pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")

TEXT = "Mia hid behind a bench."


@pytest.fixture(scope="module")
def members() -> list:
    return [(model.double(), tokenizer) for model, tokenizer in map(demo.load, demo.NAMES)]


@pytest.mark.parametrize("weights", ["fixed_share", "entropy", lambda laws, prior: prior])
def test_no_bound_is_claimed_for_weights_that_follow_from_the_members(members, weights) -> None:
    ensemble = ik.Ensemble(members, weights=weights, eps=0.05)
    out = ensemble.generate("One day", max_new_tokens=4)
    assert out.tv_bound is None and out.steps[0].tv_bounds == []
    score = ensemble.logprob(TEXT)
    assert score.low == score.high
    ended = ensemble.logprob(TEXT, end=True)
    assert ended.low == ended.high < score.low


@pytest.mark.parametrize("weights", [None, "bayes"])
def test_a_prompt_does_not_widen_the_bounds_of_every_step(members, weights) -> None:
    """What is not known of the prompt counts once."""
    ensemble = ik.Ensemble(members, weights=weights, eps=0.05)
    alone, after = ensemble.logprob(TEXT * 4), ensemble.logprob(TEXT * 4, "Mia hid behind a be")
    assert after.high - after.low < alone.high - alone.low + 0.2
    exact = ik.Ensemble(members, weights=weights, eps=0).logprob(TEXT * 4, "Mia hid behind a be")
    assert after.low <= exact.low <= after.high and exact.high - exact.low < 1e-9


@pytest.mark.parametrize("place", [0, 1])
def test_mode_full_takes_up_what_it_dropped(members, place) -> None:
    """Its best sequences at each step are not those that go on with the text."""
    late = ik.ReducedLM(*members[place]).logprob(TEXT).low
    for eps in (1e-2, 1e-3, 1e-6):
        score = ik.ReducedLM(*members[place], mode="full", eps=eps).logprob(TEXT)
        exact_at_least = late - 1e-2  # "late" is a part of "full"
        assert score.high >= exact_at_least and score.low == pytest.approx(late, abs=0.1)


def test_what_was_pruned_away_is_called_so(members, monkeypatch) -> None:
    monkeypatch.setattr(reducer, "_SPARES", 0)
    with pytest.raises(ZeroProbability) as caught:
        ik.ReducedLM(*members[0], mode="full", eps=1e-2).logprob(TEXT)
    assert "dropped at eps=0.01; give a smaller eps" in str(caught.value.hint)


def test_symbols_are_counted_from_the_prompts_end(members) -> None:
    lm = ik.ReducedLM(*members[0], token_warpers=[TopKLogitsWarper(3)], healing=0)
    places = []
    for prompt in ("The", "The cat sat "):
        with pytest.raises(ZeroProbability, match=r"\(symbol \d+ of the text\)") as caught:
            lm.logprob("\x01", prompt)
        places.append(str(caught.value).split("(symbol ")[1].split()[0])
    assert places == ["0", "0"]


def test_logits_that_are_not_finite_are_named(members) -> None:
    model = copy.deepcopy(members[0][0])
    model.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ik.InferKitError, match="its logits are not finite"):
        ik.ReducedLM(model, members[0][1]).generate("One")


def test_ends_of_all_members_that_share_a_tokenizer_end_a_text(members) -> None:
    """A base model whose only end is its text's, and a chat model that ends its turns."""
    model, tokenizer = members[0]
    vocabulary = ik.Vocabulary.from_hf(tokenizer, model)
    assert len(vocabulary.end_ids) == 2
    base = replace(vocabulary, end_ids=vocabulary.end_ids[:1])
    prompt = "<|im_start|>user\nWhere did Mia and Ines meet?<|im_end|>\n<|im_start|>assistant\n"
    pairs = [(model, base), (model, vocabulary)]
    out = [
        ik.Ensemble(order).generate(prompt, max_new_tokens=60).text
        for order in (pairs, pairs[::-1])
    ]
    assert out[0] == out[1] and "\n" not in out[0]
    assert ik.Ensemble(pairs, pool="product").generate(prompt, max_new_tokens=2).tv_bound is None
