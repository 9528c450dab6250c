"""Modes "late" and "early", pruning with certificates, prompts and reading ahead."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, TopKLogitsWarper

from infer_kit.vocab.conditioning import Conditioning, condition_on_ids, unsettled
from infer_kit.vocab.language_models import language_model
from infer_kit.vocab.reading import Reader
from infer_kit.vocab.reducer import CertifiedReducer, ZeroProbability
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import kinds, trained
from tests.vocab.reference import (
    SlowCanonical,
    SlowReducer,
    Symbols,
    TokenLaw,
    UncachedLM,
    cheap,
    conditioned,
    hashed,
    opened,
    reached,
    read,
    total_variation,
    uncached,
)

LONGEST = 4
TEXTS = {
    "english": "They'll say it's 1,234 days;  won't  they?\n\n  def f(x):\n        return\tx",
    "scripts": "größer über Straße, رسالة 机器学 🎉👍🏽!",
    "added": "a<think>b </think>  c    d       e<tool_call><t größe <th",
}


def text_for(kind: str, text: str) -> bytes:
    """A text as the model would write it, its dummy prefix included."""
    kept = " ".join(text.split()) if kind == "wordpiece" else text
    return kinds.vocabulary(kind).prefix + kept.encode()


def partial_to(kind: str, text: bytes, seed: int = 0) -> tuple[UncachedLM, Symbols]:
    """A language model that likes the text's tokens, and what it starts from."""
    vocabulary = kinds.vocabulary(kind)
    favoured = [id for id, token in enumerate(vocabulary.tokens) if token and token in text]
    return hashed(vocabulary.size, seed, favoured=favoured), (vocabulary.end_ids[0],)


@cache
def reduction(kind: str, mode: str) -> Reduction:
    return Reduction(kinds.vocabulary(kind), mode=mode)


@cache
def slow_canonical(kind: str) -> SlowCanonical:
    return SlowCanonical(kinds.vocabulary(kind), kind not in kinds.UNSPLIT)


def check_against_slow(kind: str, mode: str, text: bytes) -> CertifiedReducer:
    lm, prompt = partial_to(kind, text)
    vocabulary = kinds.vocabulary(kind)
    slow = SlowReducer(TokenLaw(lm, vocabulary, prompt), vocabulary, mode, slow_canonical(kind))
    reducer, reader = opened(reduction(kind, mode), lm, prompt)
    rows = 0
    for place, byte in enumerate(text):
        slow.advance(byte)
        read(reducer, reader, [byte])
        assert math.exp(reducer.logprob()[0]) == pytest.approx(slow.mass(), rel=1e-10)
        rows += slow.hypotheses
        # One row of the model for every sequence of tokens that may have ended here, no more.
        assert reducer.stats.rows == rows
        if place % 8 == 0:
            assert total_variation(reducer.next(), slow.next()) < 1e-12
    assert math.exp(reducer.logprob_end()[0]) == pytest.approx(slow.end(), rel=1e-10)
    return reducer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_late_is_the_law_of_canonical_tokens(kind: str, text: str) -> None:
    reducer = check_against_slow(kind, "late", text_for(kind, TEXTS[text]))
    assert reducer.stats.leak > 0


@pytest.mark.parametrize("kind", ["few_letters_bpe", "unsplit_bpe", "signed_bpe"])
def test_early_is_the_law_of_canonical_tokens_renormalised(kind: str) -> None:
    reducer = check_against_slow(kind, "early", text_for(kind, "all  ab'll\nb"))
    assert reducer.stats.leak == 0


def few_letters(mode: str, eps: float = 0.0, seed: int = 0) -> tuple[CertifiedReducer, Reader]:
    vocabulary = kinds.vocabulary("few_letters_bpe")
    return opened(reduction("few_letters_bpe", mode), hashed(vocabulary.size, seed), (2,), eps)


LETTERS = b"abl' \n"


def test_early_loses_nothing() -> None:
    """The sum over all symbols of P(ys), and P(y END), is P(y)."""
    masses: dict[Symbols, float] = {}
    laws = {}
    for y, here in reached(*few_letters("early"), LETTERS, 4):
        masses[y] = math.exp(here.logprob()[0])
        masses[(*y, 256)] = math.exp(here.logprob_end()[0])
        laws[y] = here.next()
        assert abs(laws[y].sum() - 1) < 1e-12
        assert here.stats.leak == 0
    for y, law in laws.items():
        if len(y) < 4:
            onward = np.array([masses.get((*y, s), 0.0) for s in (*LETTERS, 256)])
            assert onward.sum() == pytest.approx(masses[y], rel=1e-12)
            np.testing.assert_allclose(law[[*LETTERS, 256]] * masses[y], onward, rtol=1e-11)
    assert len(laws) > 400


# Certificates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["late", "early"])
def test_pruned_laws_are_within_their_bound(mode: str, seed: int) -> None:
    """More than 100,000 states in all."""
    states, closest = 0, 0.0
    exact = {
        y: (here.next(), here.logprob()[0])
        for y, here in reached(*few_letters(mode, seed=seed), LETTERS, LONGEST)
    }
    for eps in (1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.6):
        for y, here in reached(*few_letters(mode, eps, seed), LETTERS, LONGEST):
            states += 1
            law, logprob = exact[y]
            error = total_variation(law, here.next())
            assert error <= here.tv_bound + 1e-12 <= eps + 2e-12
            closest = max(closest, error / max(here.tv_bound, 1e-9))
            low, high = here.logprob()
            assert low - 1e-10 <= logprob <= high + 1e-10
            assert here.stats.largest_ledger <= 16
    assert states > 10_000 and closest > 0.5


def test_a_text_turns_out_to_be_impossible() -> None:
    """Laws with zeros: what was left unread may have no mass after all."""
    vocabulary = kinds.vocabulary("unsplit_bpe")
    pruned = Reduction(vocabulary, warpers=[TopKLogitsWarper(20)])
    failed = 0
    for seed in range(60):
        lm, prompt = partial_to("unsplit_bpe", b"the  lighthouse keeper", seed)
        reducer, reader = opened(pruned, lm, prompt, eps=0.3)
        try:
            read(reducer, reader, b"the light")
        except ZeroProbability:
            failed += 1
    assert 10 < failed < 60


# Trained models ----------------------------------------------------------------------------------

OWN = "Once upon a time, there was a little girl named Lily. She"
FOREIGN = "Der Bär läuft: x = [1,  2]\n 从前"


@cache
def trained_model(name: str) -> tuple[Reduction, UncachedLM, Symbols]:
    folder = trained.data(f"models/{name}/hf")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    vocabulary = Vocabulary.from_hf(AutoTokenizer.from_pretrained(folder), model)
    return Reduction(vocabulary), uncached(model), vocabulary.empty_ids


@pytest.mark.parametrize("text", [OWN, FOREIGN], ids=["own", "foreign"])
@pytest.mark.parametrize("name", ["stories260K", "aidreams260K"])
def test_trained_models_are_pruned_within_eps(name: str, text: str) -> None:
    reduction_, lm, prompt = trained_model(name)
    spelled = reduction_.vocabulary.prefix + text.encode()
    exact, reader = opened(reduction_, lm, prompt)
    laws, logprobs = [], []
    for byte in spelled:
        read(exact, reader, [byte])
        laws.append(exact.next())
        logprobs.append(exact.logprob()[0])
    assert exact.stats.rows <= 1.05 * len(spelled)
    for eps in (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 5e-2):
        pruned, reader = opened(reduction_, lm, prompt, eps)
        for byte, law, logprob in zip(spelled, laws, logprobs, strict=True):
            read(pruned, reader, [byte])
            error = total_variation(law, pruned.next())
            assert error <= pruned.tv_bound + 1e-12 <= eps + 2e-12
            low, high = pruned.logprob()
            assert low - 1e-9 <= logprob <= high + 1e-9
        assert pruned.stats.largest_ledger <= 64
        assert pruned.stats.rows <= 1.05 * len(spelled)


# Rows of the model -------------------------------------------------------------------------------

PLAIN = {
    "english": "They'll say it's 1,234 days; won't they? HE'S 40. The gulls argued over it.",
    "code": "def area(w: float) -> float:\n        return w * 2\n\n\n    if x  ==  3:\n\t\tpass\n",
    "german": "Gestern überquerten die Mädchen die Straße; größere Vögel flohen um 17:45.",
    "arabic": "كتب المعلم رسالة طويلة إلى تلاميذه، ثم أغلق",
    "chinese": "清晨的市场里挤满了人，卖鱼的老人正在和顾客讨价",
}


def rows_of(kind: str, text: bytes, eps: float) -> tuple[float, CertifiedReducer, int]:
    """Rows a byte, the reducer at the end, and the most hypotheses that it had."""
    vocabulary = kinds.vocabulary(kind)
    reducer, reader = opened(
        reduction(kind, "late"), cheap(vocabulary.size), vocabulary.end_ids[:1], eps
    )
    most = 0
    for byte in text:
        read(reducer, reader, [byte])
        most = max(most, sum(1 for _ in reducer.nodes()))
    return reducer.stats.rows / len(text), reducer, most


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_rows_a_byte(kind: str) -> None:
    for eps, most in ((0.0, 1.06), (1e-6, 1.05), (1e-3, 1.0)):
        total, size = 0.0, 0
        for text in PLAIN.values():
            spelled = text_for(kind, text)
            rows, reducer, nodes = rows_of(kind, spelled, eps)
            stats = reducer.stats
            assert stats.revivals <= 0.5 * len(spelled)
            # At eps 0 a row for each sequence of tokens that may have ended here: two where what
            # follows decides how white space or an incomplete character is cut.
            assert rows <= (1.05 if eps == 1e-3 else 1.2)
            assert stats.largest_ledger <= 16 and nodes <= 48
            total, size = total + stats.rows, size + len(spelled)
        assert total <= most * size
    if kind in kinds.UNSPLIT:
        assert rows_of(kind, text_for(kind, PLAIN["code"]), 0.0)[0] <= 1.0


def test_runs_of_spaces_and_of_digits_do_not_pile_up() -> None:
    text = b"a" + b" " * 40 + b"b\n\n\n\n    \n  c" + b"=" * 40 + b" " + b"1234567890" * 3
    for kind in ("byte_level_bpe", "split_bpe", "added_bpe", "unsplit_bpe", "whole_word_bpe"):
        for eps in (0.0, 1e-6, 1e-3):
            rows, reducer, nodes = rows_of(kind, text, eps)
            assert rows <= (1.1 if eps == 1e-3 else 1.35) and nodes <= 80
            assert reducer.stats.largest_ledger <= 32


# Prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_healed_prompt_is_as_if_it_had_not_been_cut(kind: str) -> None:
    vocabulary, late = kinds.vocabulary(kind), reduction(kind, "late")
    whole = text_for(kind, "The lighthouse keeper's daughter hadn't seen Schloßgärtchen")
    lm, start = partial_to(kind, whole)
    healed, by_one, by_none = [], [], []
    for end in range(10, 48, 2):
        text = whole[len(vocabulary.prefix) : end].decode()
        ids = vocabulary.encode(text)
        reducer, reader = opened(late, lm, start)
        law = read(reducer, reader, vocabulary.spell(ids)).next()

        def error(conditioning: Conditioning, law: np.ndarray = law) -> float:
            return total_variation(law, conditioned(late, lm, conditioning)[0].next())

        count = unsettled(late, [*start, *ids])
        healed.append(error(condition_on_ids(vocabulary, [*start, *ids], count)))
        by_one.append(error(Conditioning((*start, *ids[:-1]), tuple(ids[:-1]), (ids[-1],))))
        by_none.append(error(Conditioning((*start, *ids), tuple(ids), ())))
    assert max(healed) < 1e-9
    assert max(by_one) > 1e-3 and np.mean(by_none) > 0.1


def test_probabilities_after_a_prompt_are_conditional() -> None:
    kind = "unsplit_bpe"
    late, (lm, start) = reduction(kind, "late"), partial_to(kind, b"the lighthouse keeper")
    ids = [*start, *kinds.vocabulary(kind).encode("the lighth")]
    healed = condition_on_ids(kinds.vocabulary(kind), ids, unsettled(late, ids))
    reducer, reader = opened(late, lm, start)
    before = read(reducer, reader, b"the lighth").logprob()[0]
    whole = read(reducer, reader, b"ouse").logprob()[0]
    for eps in (0.0, 0.05):
        after, reader = conditioned(late, lm, healed, eps)
        assert after.logprob()[1] - after.logprob()[0] <= 2 * math.log1p(after.ledger) + 1e-12
        low, high = read(after, reader, b"ouse").logprob()
        assert low - 1e-10 <= whole - before <= high + 1e-10
        assert eps > 0 or low == pytest.approx(high, abs=1e-10)


# Forks, and reading ahead ------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.03])
def test_forks_go_their_own_way(eps: float) -> None:
    kind, text = "o200k_bpe", b"they'll  say it"
    lm, start = partial_to(kind, text)
    late = reduction(kind, "late")
    reducer, reader = opened(late, lm, start, eps)
    read(reducer, reader, b"they'")
    state = reducer.next().copy(), reducer.logprob(), reducer.stats.rows
    left, right = reducer.fork(), reducer.fork()
    for a, b in zip(b"ll say", b"s they", strict=True):  # in turns
        read(left, reader, [a])
        read(right, reader, [b])
    np.testing.assert_array_equal(reducer.next(), state[0])
    assert (reducer.logprob(), reducer.stats.rows) == state[1:]
    for fork, rest in ((left, b"ll say"), (right, b"s they")):
        alone, own = opened(late, lm, start, eps)
        read(alone, own, b"they'" + rest)
        assert fork.logprob() == alone.logprob()
        np.testing.assert_array_equal(fork.next(), alone.next())
        assert fork.stats.rows == alone.stats.rows


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_reading_ahead_changes_nothing_but_the_calls(eps: float) -> None:
    kind, text = "signed_bpe", b" The lighthouse keeper's daughter hadn't seen the sea."
    late, calls = reduction(kind, "late"), {}
    for prefetch in (None, 0.02):
        lm, start = partial_to(kind, text)
        reducer, reader = opened(late, lm, start, eps, prefetch)
        logprobs = []
        for byte in text:
            read(reducer, reader, [byte])
            reader.forget([reducer])
            logprobs.append(reducer.logprob()[0])
        calls[prefetch] = reader.calls, reader.rows, logprobs
    assert calls[0.02][0] < calls[None][0] and calls[0.02][1] > calls[None][1]
    np.testing.assert_allclose(calls[0.02][2], calls[None][2], rtol=0, atol=1e-9)


def test_reading_ahead_of_a_cached_model_changes_nothing() -> None:
    reduction_, _, prompt = trained_model("stories260K")
    folder = trained.data("models/stories260K/hf")
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    found = []
    for prefetch in (None, 0.02):
        reducer, reader = opened(reduction_, language_model(model), prompt, 1e-3, prefetch)
        for byte in (" " + OWN).encode():
            read(reducer, reader, [byte])
            reader.forget([reducer])
        found.append((reducer.logprob()[0], reader.calls))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    assert found[1][1] < found[0][1]


def test_many_reducers_share_forwards() -> None:
    kind = "byte_level_bpe"
    texts = (b"the lighthouse ", b"the daughter of", b"it's the keeper")
    late, (lm, start) = reduction(kind, "late"), partial_to(kind, b"".join(texts))
    shared = Reader(late, lm, None)
    answers = shared.begin([start] * 3)
    reducers = [CertifiedReducer(late, 1e-3) for _ in texts]
    for reducer, answer in zip(reducers, answers, strict=True):
        reducer.open(answer)
    for bytes_ in zip(*texts, strict=True):
        steps = [r.advance(byte) for r, byte in zip(reducers, bytes_, strict=True)]
        shared.run(steps, reducers)
    together = shared.calls - 1
    alone_calls = []
    for reducer, text in zip(reducers, texts, strict=True):
        alone, own = opened(late, lm, start, 1e-3)
        before = own.calls
        read(alone, own, text)
        alone_calls.append(own.calls - before)
        assert alone.logprob() == pytest.approx(reducer.logprob(), abs=1e-12)
    assert together <= len(texts[0]) < 0.5 * sum(alone_calls)
