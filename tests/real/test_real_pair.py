"""Two real pretrained models with unlike tokenizers over bytes (`conftest.py`)."""

import math
from dataclasses import replace

import pytest
from transformers import TextStreamer

from evals.benchmarks.real_pair import EPS, RULES, Member, Score, beginning, ensemble, score
from evals.benchmarks.real_texts import SAMPLES
from infer_kit.vocab.ensemble import Ensemble, ReducedLM

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

# English, code, German, Chinese.
TEXTS = [beginning(sample.text, 100) for sample in SAMPLES[:4]]
SENTENCE = "The ferry leaves the island every morning at eight o'clock."
NOISE = 1e-3  # nats: float32, summed over a text
GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def members(smollm2, gemma) -> list[Member]:
    return [Member.of(*smollm2), Member.of(*gemma)]


@pytest.fixture(scope="module")
def scores(members) -> list[Score]:
    return score(members, TEXTS)


@pytest.fixture(scope="module")
def bayes(members) -> Ensemble:
    return ensemble(members, "bayes")


def test_gemma_begins_with_its_begin_token(members) -> None:
    """Its tokenizer, read from GGUF, no longer puts it there; without it the model babbles."""
    gemma = members[1]
    assert gemma.tokenizer.encode(SENTENCE)[0] != gemma.tokenizer.bos_token_id
    assert gemma.vocabulary.begin_ids == (gemma.tokenizer.bos_token_id,)
    bits = ReducedLM(gemma.model, gemma.vocabulary).logprob(SENTENCE).bits_per_byte
    assert 0.2 < bits < 1.5
    unbegun = replace(gemma.vocabulary, begin_ids=(), empty_ids=gemma.vocabulary.end_ids)
    assert ReducedLM(gemma.model, unbegun).logprob(SENTENCE).bits_per_byte > bits + 0.2


def test_a_text_is_at_least_as_probable_as_its_tokens(scores) -> None:
    for one in scores:
        for (low, high), tokens in zip(one.members, one.tokens, strict=True):
            assert low <= high < low + 2 * EPS
            assert high > tokens - NOISE
            assert low < tokens + 1  # other segmentations of a whole word are rare


def test_bayes_is_within_log_2_of_the_better_member(scores) -> None:
    for one in scores:
        assert one.regret <= math.log(2) + 1e-9
        low, high = one.pools["Bayes"]
        assert max(low for low, _ in one.members) - low <= math.log(2) + 1e-9
        assert high <= max(high for _, high in one.members)


def test_at_most_about_one_row_a_byte(scores) -> None:
    for one in scores:
        for stats in one.stats:
            assert stats.symbols == one.length
            assert stats.rows <= 1.05 * one.length
            assert stats.largest_ledger <= 64


@pytest.mark.parametrize("rule", RULES)
def test_the_ensemble_gives_the_scores_of_the_shared_pass(members, scores, rule) -> None:
    public = ensemble(members, RULES[rule]).logprob(TEXTS[0])
    assert (public.low, public.high) == pytest.approx(scores[0].pools[rule], abs=NOISE)
    for mine, theirs in zip(public.members, scores[0].members, strict=True):
        assert mine == pytest.approx(theirs, abs=NOISE)


def test_a_streamed_answer_is_its_text(bayes) -> None:
    pieces: list[str] = []

    class Collected(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append(text)

    out = bayes.generate(
        "In the garden behind the house",
        max_new_tokens=40,
        streamer=Collected(bayes.tokenizer),
        **GREEDY,
    )
    assert len(pieces) > 2 and "".join(pieces) == out.text
    assert len(out.text.encode()) == 40
    assert out.alphabet == "bytes" and 0 < out.tv_bound < 2 * EPS
    assert len(out.leak) == len(out.calls) == len(out.rows) == 2


def test_a_half_typed_word_is_completed(bayes) -> None:
    prompt = "The capital of France is Par"
    assert bayes.generate(prompt, max_new_tokens=3, **GREEDY).text.startswith("is")
    law = bayes.law(prompt)
    assert law[ord("i")] > 0.9
    unhealed = Ensemble(
        [(m, v) for m, v in zip(bayes.models, bayes.vocabularies, strict=True)], healing=0
    )
    assert unhealed.law(prompt)[ord("i")] < law[ord("i")]


def test_a_model_that_wants_other_tokens_than_its_tokenizer_is_told_of(members) -> None:
    """The tokenizer cuts 首|都是, the model would go on 首都|是: most of its mass."""
    gemma = members[1]
    lm = ReducedLM(gemma.model, gemma.vocabulary)
    with pytest.warns(UserWarning, match="its tokenizer would not write"):
        out = lm.generate("中国的首都是", max_new_tokens=6, **GREEDY)
    assert out.leak[0] > 0.05


def test_a_batch_writes_what_each_prompt_writes_alone(bayes) -> None:
    prompts = [
        "My favourite season is",
        "def add(a, b):\n    return",
        "Die Hauptstadt von Frankreich ist",
        "今天早上下雨了，我们",
    ]
    together = bayes.generate(prompts, max_new_tokens=15, **GREEDY)
    alone = [bayes.generate(prompt, max_new_tokens=15, **GREEDY) for prompt in prompts]
    assert together.text == [out.text for out in alone]
    for member in range(2):
        assert together.calls[member] < 0.7 * sum(out.calls[member] for out in alone)
