"""Models pooled over bytes, as lm-evaluation-harness asks them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from infer_kit.demo import text as demo_text
from infer_kit.errors import InferKitError, PromptTooLong, UnsupportedArgument
from infer_kit.vocab.ensemble import Ensemble
from tests.harness.requests import requests, scores, texts

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

PAIR = {"pretrained": "demo-text-a", "ensemble": "demo-text-b", "device": "cpu"}
TOLERANCE = 5e-5  # nats: the members' float32, read in other batches
ASKED = [
    ("One morning, Mi", "a hid behind a bench."),
    ("One morning, Mi", "a and Emma"),
    ("One morning, Mi", "les"),
    ("", "Mia hid"),
    ("The swan", " is a large animal."),
]


def load(**options: Any) -> Any:
    from infer_kit.harness.lm import InferKitLM

    return InferKitLM(**{**PAIR, **options})


@pytest.fixture(scope="module")
def exact() -> Any:
    return load(eps=0, batch_size=4)


@pytest.fixture(scope="module")
def reference() -> Ensemble:
    members = [demo_text.load("a"), demo_text.load("b")]
    return Ensemble(members, weights=[0.5, 0.5], vocabulary="bytes", eps=0)


def test_scores_are_those_of_the_ensemble(exact: Any, reference: Ensemble) -> None:
    for (context, text), (score, _) in zip(ASKED, scores(exact, *ASKED), strict=True):
        expected = reference.logprob(text, context or None)
        assert score == pytest.approx(expected.low, abs=TOLERANCE)
        assert expected.high - expected.low < 1e-9


@pytest.mark.parametrize(
    "settings", [{"weights": "bayes"}, {"pool": "product"}, {"weights": "3+1"}]
)
def test_so_are_those_of_other_pools(settings: dict[str, Any]) -> None:
    lm = load(eps=0, batch_size=8, **settings)
    members = [demo_text.load("a"), demo_text.load("b")]
    weights = [3.0, 1.0] if settings.get("weights") == "3+1" else settings.get("weights")
    expected = Ensemble(
        members, weights=weights, pool=settings.get("pool", "mixture"), vocabulary="bytes", eps=0
    )
    for (context, text), (score, _) in zip(ASKED, scores(lm, *ASKED), strict=True):
        assert score == pytest.approx(expected.logprob(text, context or None).low, abs=TOLERANCE)


def test_a_score_is_a_difference_of_whole_texts(exact: Any, reference: Ensemble) -> None:
    # A context this short is read in bytes altogether, so that nothing is conditioned on tokens.
    (score, _), (begun, _), (whole, _) = scores(exact, ("Mi", "a hid"), ("", "Mi"), ("", "Mia hid"))
    # A mixture of constant weights has no memory: its steps add up.
    assert score == pytest.approx(whole - begun, abs=TOLERANCE)
    assert whole == pytest.approx(reference.logprob("Mia hid").low, abs=TOLERANCE)


def test_one_model_over_bytes_is_its_own_marginal() -> None:
    """log P(y): all ways to cut y into tokens, the last of which may go on beyond y."""
    lm = load(ensemble=None, vocabulary="bytes", mode="full", eps=0)
    model, _ = demo_text.load("a")
    vocabulary = lm.ensemble.vocabularies[0]
    kept = [n for n, token in enumerate(vocabulary.tokens) if token] + list(vocabulary.end_ids)

    def marginal(rest: bytes, ids: tuple[int, ...]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        law = logits[kept].softmax(0).tolist()
        total = 0.0
        for token, mass in zip(kept, law, strict=True):
            spelled = vocabulary.tokens[token]
            if not spelled:
                continue
            if spelled.startswith(rest):
                total += mass
            elif rest.startswith(spelled):
                total += mass * marginal(rest[len(spelled) :], (*ids, token))
        return total

    for text in ("Mi", "A bo", "é"):
        ((score, _),) = scores(lm, ("", text))
        expected = marginal(vocabulary.prefix + text.encode(), tuple(vocabulary.empty_ids))
        assert score == pytest.approx(math.log(expected), abs=1e-5)


@pytest.mark.parametrize("weights", ["0.5+0.5", "bayes"])
def test_continuations_that_exclude_each_other_have_at_most_probability_1(weights: str) -> None:
    lm = load(weights=weights, batch_size=32)  # eps as it is by default: bounds, not numbers
    characters = [*map(chr, range(32, 127)), "\n", "é", "ü"]
    found = scores(lm, *[("One morning, Mi", one) for one in characters])
    total = math.fsum(math.exp(score) for score, _ in found)
    assert 0.9 < total <= 1.0


def test_greedy_is_what_greedy_decoding_writes(exact: Any, reference: Ensemble) -> None:
    context = "One morning, Mi"
    said = reference.generate(context, max_new_tokens=12).text
    pairs = [(context, said), (context, said[:5]), (context, said[:-1] + "~"), (context, "~")]
    assert [greedy for _, greedy in scores(exact, *pairs)] == [True, True, False, False]
    ((_, other),) = scores(load(weights="1+0", eps=0), (context, said))
    assert other is (Ensemble([demo_text.load("a")], vocabulary="bytes", eps=0)
                     .generate(context, max_new_tokens=12).text == said)  # fmt: skip


def test_a_batch_is_its_requests_alone(exact: Any) -> None:
    alone = [scores(exact, pair)[0] for pair in ASKED]
    whole = load(eps=0, batch_size=64)
    for one, other, small in zip(alone, scores(whole, *ASKED), scores(exact, *ASKED), strict=True):
        assert one[0] == pytest.approx(other[0], abs=TOLERANCE)
        assert small[0] == pytest.approx(other[0], abs=TOLERANCE)
        assert one[1] == other[1] == small[1]


def test_a_context_is_read_once_for_all_its_continuations() -> None:
    lm = load(batch_size=8)
    context = "One morning, Mia and Emma played hide and seek in the garden. " * 3
    read: list[int] = []
    for model in lm.ensemble.models:
        model.register_forward_pre_hook(
            lambda _, args, kwargs: read.append((*args, kwargs.get("input_ids"))[0].numel()),
            with_kwargs=True,
        )
    scores(lm, (context, " Mia"))
    once, read[:] = sum(read), []
    scores(lm, *[(context, f" {name}") for name in ("Mia", "Emma", "Paul", "They")])
    assert sum(read) < 2 * once


def test_rolling_is_the_whole_text(exact: Any, reference: Ensemble) -> None:
    asked = requests("loglikelihood_rolling", ("Mia hid.",), ("The swan is large.",))
    found = exact.loglikelihood_rolling(asked, disable_tqdm=True)
    expected = [reference.logprob(text).low for text in ("Mia hid.", "The swan is large.")]
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_what_is_written_is_the_ensembles(exact: Any, reference: Ensemble) -> None:
    settings = {"until": ["."], "max_gen_toks": 10, "do_sample": False}
    prompts = ["One morning, Mi", "The swan", "", "My aunt has a b"]
    found = texts(exact, *[(prompt, settings) for prompt in prompts])
    alone = [reference.generate(p, max_new_tokens=40, stop_strings=["."]).text for p in prompts]
    assert found == [text.split(".")[0] for text in alone]
    first = Ensemble([demo_text.load("a")], vocabulary="bytes", eps=0)
    assert found != [first.generate(p, max_new_tokens=40).text.split(".")[0] for p in prompts]


def test_limits_count_tokens_of_so_many_bytes() -> None:
    lm = load(bytes_per_token=1.5)
    assert [len(t) for t in texts(lm, ("One morning, Mi", {"max_gen_toks": 4}))] == [6]


def test_sampling_is_the_ensembles(exact: Any, reference: Ensemble) -> None:
    torch.manual_seed(3)
    (found,) = texts(exact, ("One morning, Mi", {"temperature": 1.3, "max_gen_toks": 8}))
    torch.manual_seed(3)
    out = reference.generate(
        ["One morning, Mi"], max_new_tokens=32, do_sample=True, temperature=1.3
    )
    assert [found] == out.text


def test_a_chat_is_read_in_each_members_own_template(exact: Any, reference: Ensemble) -> None:
    chat = [{"role": "user", "content": "Tell me a story."}]
    context = exact.apply_chat_template(chat)
    (found,) = texts(exact, (context, {"max_gen_toks": 8}))
    assert found == reference.generate(chat, max_new_tokens=32).text
    ((score, _),) = scores(exact, (context, "One"))
    assert score == pytest.approx(reference.logprob("One", chat).low, abs=TOLERANCE)
    template = exact.chat_template(True)
    assert "demo-text-a: " in template and "demo-text-b: " in template


def test_chats_that_cannot_be(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InferKitError, match="gen_prefix with --apply_chat_template cannot work"):
        exact.apply_chat_template([], add_generation_prompt=False)
    with pytest.raises(InferKitError, match="members have templates of their own"):
        exact.chat_template("tool_use")
    monkeypatch.setattr(exact, "_tokenizers", lambda: [object(), object()])
    with pytest.raises(InferKitError, match="demo-text-a has no chat template"):
        exact.chat_template(True)


def test_texts_are_not_cut(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_kit.harness.byte_lm.context_length", lambda _: 8)
    with pytest.raises(PromptTooLong, match="texts are not cut here"):
        scores(exact, ("One morning, Mia", " and Emma played hide and seek in the café."))
    assert len(scores(exact, ("One", " mo"))) == 1  # six bytes are no more than six tokens


def test_results_say_how_exact_they_are() -> None:
    lm = load()
    assert lm.get_model_info()["widest_bound_nats"] == 0
    scores(lm, *ASKED)
    assert 0 < lm.get_model_info()["widest_bound_nats"] < 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"wieghts": "0.5+0.5"}, "has no argument 'wieghts'. Did you mean 'weights'?"),
        ({"weights": "1"}, "Got 1 weights for 2 models"),
        ({"ensemble": "nowhere/at/all"}, "ensemble=nowhere/at/all: there is no such model"),
        ({"vocabulary": "tokens"}, "the harness pools over bytes"),
        ({"reward": "r"}, "reward= adds scores of tokens and ensemble= pools over bytes"),
        ({"ensemble": None, "weights": "bayes"}, "weights= is for several models"),
        ({"bytes_per_token": 0}, "bytes_per_token=0 must be positive"),
        ({"batch_size": "many"}, "batch_size='many'"),
    ],
)
def test_refusals_come_before_loading(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import infer_kit.harness.byte_lm as module

    monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(InferKitError, match=re.escape(message)):
        load(**options)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InferKitError, match="is evaluated by one process") as caught:
        load()
    assert "torchrun" in str(caught.value.hint)


def test_unknown_generation_arguments_are_refused(exact: Any) -> None:
    with pytest.raises(UnsupportedArgument, match="Did you mean 'top_p'"):
        texts(exact, ("One", {"topp": 0.9}))


def test_a_cache_belongs_to_one_configuration(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    path = str(tmp_path / "cache.db")
    first = CachingLM(load(), path)
    before = scores_of_cached(first)
    assert scores_of_cached(CachingLM(load(batch_size=4), path)) == before  # the same model
    with pytest.raises(InferKitError, match="was made with other model arguments"):
        CachingLM(load(weights="1+0"), path)


def scores_of_cached(lm: Any) -> Any:
    return lm.loglikelihood(requests("loglikelihood", *ASKED))


def test_an_interrupted_run_goes_on_from_the_cache(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    asked = {
        "loglikelihood": requests("loglikelihood", *ASKED[:2]),
        "loglikelihood_rolling": requests("loglikelihood_rolling", ("Mia hid.",)),
        "generate_until": requests("generate_until", ("One morning, Mi", {"max_gen_toks": 3})),
    }
    path = str(tmp_path / "cache.db")
    first = CachingLM(load(), path)
    said = {kind: getattr(first.lm, kind)(some) for kind, some in asked.items()}  # cut off here
    again = CachingLM(load(), path)
    again.lm.ensemble = None  # nothing is left to be asked
    assert {kind: getattr(again, kind)(some) for kind, some in asked.items()} == said
