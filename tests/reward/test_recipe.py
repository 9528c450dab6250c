"""`Rewarded` is `compose` for chats: the same tokens, parts that add up, β = 0 the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infer_kit.errors import InferKitError
from infer_kit.methods.baselines import Direct
from infer_kit.methods.named import build
from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward
from infer_kit.reward.recipe import Rewarded
from tests.reward.models import VOCAB, gpt2, llama
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(VOCAB)
CHATS = ["the rain in the street", "a stone", "is the ring on a plane?"]
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def base() -> Any:
    return llama(0)


@pytest.fixture(scope="module")
def reward() -> PortableReward:
    return PortableReward(gpt2(1), TOKENIZER)


def ids_of(messages: str) -> torch.Tensor:
    content = [{"type": "text", "text": messages}]
    row = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True,
        return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    return row["input_ids"]


@pytest.mark.parametrize("beta", [0.0, 0.7, 2.0, -0.5])
def test_the_answers_are_those_of_the_composed_model(
    beta: float, base: Any, reward: PortableReward
) -> None:
    method = Rewarded(base, TOKENIZER, reward, beta=beta)
    out = method.generate(CHATS, **GREEDY)
    mixed = compose(base, reward, beta=beta, tokenizer=TOKENIZER)
    for text, ids in zip(CHATS, out.tokens, strict=True):
        prompt = ids_of(text)
        expected = mixed.generate(prompt, **GREEDY)[0, prompt.shape[1] :].tolist()
        assert ids == expected
    if beta == 0:
        assert out.tokens == Direct(base, TOKENIZER).generate(CHATS, **GREEDY).tokens
    else:
        for trace in out.trace:
            assert trace.streams[0] == "base" and len(trace.streams) == 2
            assert trace.parts.sum(1) == pytest.approx(trace.margin, abs=1e-4)


def test_proxy_tuning_is_three_streams(base: Any) -> None:
    tuned, untuned = llama(5), llama(6)
    method = Rewarded(base, TOKENIZER, tuned=tuned, untuned=untuned, beta=0.5)
    out = method.generate(CHATS[0], **GREEDY)
    assert out.trace.streams == ("base", "tuned", "untuned")
    assert out.trace.weights[0].tolist() == [1.0, 0.5, -0.5]
    mixed = compose(
        base, implicit=((tuned, TOKENIZER), (untuned, TOKENIZER)), beta=0.5, tokenizer=TOKENIZER
    )
    prompt = ids_of(CHATS[0])
    assert out.tokens[0] == mixed.generate(prompt, **GREEDY)[0, prompt.shape[1] :].tolist()


def test_beta_can_be_swept_and_can_be_a_budget(base: Any, reward: PortableReward) -> None:
    method = Rewarded(base, TOKENIZER, reward)
    swept = method.sweep(CHATS, ["a", "b", "c"], [0.0, 1.0], progress=False, **GREEDY)
    alone = [
        Rewarded(base, TOKENIZER, reward, beta=b).generate(CHATS, **GREEDY).text for b in (0.0, 1.0)
    ]
    assert [list(row) for row in swept.predictions] == alone
    budget = Rewarded(base, TOKENIZER, reward, beta="kl:0.05").generate(CHATS[0], **GREEDY)
    assert len({round(float(w), 4) for w in budget.trace.weights[:, 1]}) > 1


def test_a_reward_is_given_as_a_folder_by_name(
    base: Any, reward: PortableReward, tmp_path: Path
) -> None:
    reward.save_pretrained(tmp_path)
    named = build("reward", base, TOKENIZER, {"reward": str(tmp_path), "beta": "0.7"})
    direct = Rewarded(base, TOKENIZER, reward, beta=0.7)
    answers = (m.generate(CHATS, **GREEDY).tokens for m in (named, direct))
    assert next(answers) == next(answers)


def test_what_is_no_reward_is_refused(base: Any) -> None:
    with pytest.raises(InferKitError, match="nothing to compose the base with"):
        Rewarded(base, TOKENIZER)
    with pytest.raises(InferKitError, match="tuned and untuned go together"):
        Rewarded(base, TOKENIZER, tuned=llama(5))
    with pytest.raises(InferKitError, match="beta"):
        Rewarded(base, TOKENIZER, PortableReward(gpt2(1), TOKENIZER), beta="much")
