"""Members that share a tokenizer: `CoupledLM` under the names of `Ensemble`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import infer_kit as ik
from infer_kit.demo import text
from tests.tiny import text_model
from tests.vocab.taught import Member, counted

WEIGHTS = (0.8, 0.2)
PROMPTS = ["Once upon a time", "The fox", "Mia and To"]
TEXTS = ["Tom ran to the river.", "The fox ate 3 fish!", "Où est le café?"]
CHAT = [{"role": "user", "content": "Who ran?"}]


@cache
def members() -> list[Member]:
    """A model that ships, and a random one with the same tokenizer; in float64."""
    model, tokenizer = text.load("a")
    other = text_model("llama", vocab_size=len(tokenizer), seed=3)
    return [(model.double(), tokenizer), (other.double(), tokenizer)]


def ids_of(prompt: str) -> list[int]:
    found: list[int] = members()[0][1](prompt, add_special_tokens=False)["input_ids"]
    return found


def rows(prompts: list[str]) -> list[Any]:
    return [[{"input_ids": torch.tensor([ids_of(prompt)])}] * 2 for prompt in prompts]


@torch.no_grad()
def logprobs(model: Any, before: list[int], ids: list[int]) -> Tensor:
    """[n, V] of each token of `ids` after all that come before it, without a cache."""
    logits = model(torch.tensor([[*before, *ids]]), use_cache=False).logits[0]
    return logits[len(before) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_what_is_written_is_what_a_coupled_lm_writes(pool: str) -> None:
    ensemble = ik.Ensemble(members(), WEIGHTS, pool)
    assert ensemble.alphabet == "tokens"
    coupled = ik.CoupledLM([model for model, _ in members()], weights=list(WEIGHTS), pool=pool)
    end = members()[0][1].eos_token_id
    for options in ({}, {"do_sample": True}, {"num_beams": 3}):
        torch.manual_seed(1)
        with counted(members()) as calls:
            out = ensemble.generate(PROMPTS, max_new_tokens=16, **options)
        torch.manual_seed(1)
        expected = coupled.generate(rows(PROMPTS), max_new_tokens=16, eos_token_id=end, **options)
        assert out.sequences.tolist() == expected.tolist()
        longest = max(len(ids_of(prompt)) for prompt in PROMPTS)
        decoded = members()[0][1].batch_decode(expected[:, longest:], skip_special_tokens=True)
        assert out.text == [part.rstrip("\ufffd") for part in decoded]
        assert out.calls == tuple(calls) and out.leak == (0.0, 0.0)
        assert out.tv_bound == (0.0 if pool == "mixture" else None)


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_scores_are_pooled_by_hand(pool: str) -> None:
    scores = ik.Ensemble(members(), WEIGHTS, pool).logprob(TEXTS, prompt="Mia. ")
    weights = torch.tensor(WEIGHTS)[:, None, None].double()
    both = ids_of("Mia. ")
    for score, piece in zip(scores, TEXTS, strict=True):
        whole = ids_of("Mia. " + piece)
        cut = next((n for n, id in enumerate(both) if whole[n] != id), len(both))
        laws = torch.stack([logprobs(m, whole[:cut], whole[cut:]) for m, _ in members()])
        if pool == "mixture":
            pooled = (weights * laws.exp()).sum(0).log()
        else:
            pooled = (weights * laws).sum(0).log_softmax(-1)
        at = torch.tensor(whole[cut:])[:, None]
        assert score.low == score.high == pytest.approx(float(pooled.gather(1, at).sum()), abs=1e-5)
        own = [float(law.gather(1, at).sum()) for law in laws]
        np.testing.assert_allclose(np.transpose(score.members)[0], own, atol=1e-5)
        assert score.length == len(piece.encode())


def test_the_end_is_any_token_that_ends_a_text() -> None:
    ensemble = ik.Ensemble(members(), WEIGHTS)
    (vocabulary, _) = ensemble.vocabularies
    going, ended = (ensemble.logprob("The fox", end=end).low for end in (False, True))
    ids = [*vocabulary.empty_ids, *vocabulary.encode("The fox")]
    ends = torch.tensor(vocabulary.end_ids)
    laws = [logprobs(model, ids, [0])[0] for model, _ in members()]
    share = sum(w * law.exp()[ends].sum() for w, law in zip(WEIGHTS, laws, strict=True))
    assert ended - going == pytest.approx(float(share.log()), abs=1e-5)


@pytest.mark.parametrize("weights", ["bayes", "fixed_share", "entropy"])
def test_weights_that_go_along_work_over_tokens(weights: str) -> None:
    """Against a loop over the tokens; the law is over tokens with text and END."""
    ensemble = ik.Ensemble(members(), weights)
    assert ensemble.alphabet == "tokens"
    (vocabulary, _) = ensemble.vocabularies
    ids = vocabulary.encode(TEXTS[0])
    whole = torch.stack([logprobs(m, list(vocabulary.empty_ids), ids) for m, _ in members()]).exp()
    ends = whole[:, :, list(vocabulary.end_ids)].sum(-1, keepdim=True)
    parts = whole[:, :, torch.from_numpy(vocabulary.text_ids)], ends
    laws = torch.cat(parts, -1).numpy()
    laws /= laws.sum(-1, keepdims=True)
    place = {id: n for n, id in enumerate(vocabulary.text_ids.tolist())}
    now, expected = np.array([0.5, 0.5]), 0.0
    for step, id in enumerate(map(place.__getitem__, ids)):
        if weights == "entropy":
            logs = np.log(np.where(laws[:, step] > 0, laws[:, step], 1))
            now = np.exp((laws[:, step] * logs).sum(-1))
            now /= now.sum()
        share = now @ laws[:, step, id]
        expected += np.log(share)
        if weights != "entropy":
            now = now * laws[:, step, id] / share
        if weights == "fixed_share":
            now = 0.99 * now + 0.01 * 0.5
    score = ensemble.logprob(TEXTS[0])
    assert score.low == pytest.approx(expected, abs=1e-8) and score.high - score.low < 1e-8
    out = ensemble.generate(PROMPTS[0], max_new_tokens=8)
    assert len(out.text) > 8 and out.sequences.shape == (1, 8)
    assert out.tv_bound == (0.0 if weights == "bayes" else None)


def test_a_chat_is_read_in_the_members_template() -> None:
    ensemble = ik.Ensemble(members(), (1.0, 0.0))
    assert len(ensemble.models) == 1
    both = ik.Ensemble([members()[0]] * 2, (0.5, 0.5))
    model, tokenizer = members()[0]
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    answer = ids_of("Tom ran.")
    own = logprobs(model, ids, answer).gather(1, torch.tensor(answer)[:, None]).sum()
    assert both.logprob("Tom ran.", prompt=CHAT).low == pytest.approx(float(own), abs=1e-5)
    plain = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert both.generate(CHAT, max_new_tokens=12).sequences.tolist() == plain.tolist()


def test_texts_end_with_the_stop_string_found() -> None:
    ensemble = ik.Ensemble(members(), (0.9, 0.1))
    whole = ensemble.generate("Once upon a time", max_new_tokens=24).text
    stop = whole[9:12]
    out = ensemble.generate("Once upon a time", max_new_tokens=24, stop_strings=[stop])
    assert out.text == whole[: whole.index(stop) + 3]
    again = ensemble.generate("Once upon a time", max_new_tokens=24, stop_strings=["n a time"])
    assert again.text == whole  # the prompt is not looked at
