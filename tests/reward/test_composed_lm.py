"""A composed model decodes what the uncached product of its members writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

import infer_kit as ik
from infer_kit.errors import InferKitError, UnsupportedArgument
from infer_kit.reward.compose import compose
from infer_kit.reward.composed_lm import ComposedLM
from infer_kit.reward.portable import PortableReward
from tests.engine.reference import ReferenceLM
from tests.reward.models import VOCAB, gpt2, llama, saved
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(VOCAB)
PROMPTS = ["the rain in", "a stone", "on the other hand, it"]
GREEDY = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return llama(0, rows=VOCAB + 4)  # padded rows, as real heads have them


@pytest.fixture(scope="module")
def reward() -> PortableReward:
    return PortableReward(gpt2(1), TOKENIZER)


@pytest.fixture(scope="module")
def composed(base, reward) -> ComposedLM:
    return compose(base, reward, beta=0.8, tokenizer=TOKENIZER)


def ids_of(text: str) -> Tensor:
    return TOKENIZER(text, return_tensors="pt")["input_ids"]


def uncached(composed: ComposedLM, ids: Tensor, steps: int) -> list[int]:
    """Greedy, every model reading everything anew, in float64."""
    ids = ids.clone()
    for _ in range(steps):
        scores = torch.zeros(composed.vocab_size, dtype=torch.float64)
        for model, weight in zip(composed.members, composed.weights, strict=True):
            with torch.no_grad():
                last = model(ids).logits[0, -1, : composed.vocab_size].double()
            scores += weight * last.log_softmax(-1)
        token = int(scores.argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        if token == 2:
            break
    return ids[0].tolist()


@pytest.mark.parametrize("beta", [0.0, 0.8, -0.5, 3.0])
@pytest.mark.parametrize("text", PROMPTS)
def test_greedy_is_the_uncached_loop(composed, text: str, beta: float) -> None:
    composed.set_beta(beta)
    found = composed.generate(ids_of(text), **GREEDY)[0].tolist()
    assert found == uncached(composed, ids_of(text), 12)
    composed.set_beta(0.8)


def test_left_padded_batches_beams_and_samples(composed) -> None:
    batch = TOKENIZER(PROMPTS, return_tensors="pt", padding=True)
    for options in (
        GREEDY,
        GREEDY | {"num_beams": 4},
        GREEDY | {"num_beams": 4, "num_return_sequences": 2},
    ):
        together = composed.generate(**batch, **options)
        width = batch["input_ids"].shape[1]
        copies = options.get("num_return_sequences", 1)
        for place, text in enumerate(PROMPTS):
            alone = composed.generate(ids_of(text), **options)
            length = ids_of(text).shape[1]
            for copy in range(copies):
                row = together[place * copies + copy]
                assert row[:width].tolist() == batch["input_ids"][place].tolist()
                new = [token for token in row[width:].tolist() if token != 0]
                assert new == [t for t in alone[copy][length:].tolist() if t != 0]
    torch.manual_seed(0)
    one = composed.generate(ids_of("the"), do_sample=True, max_new_tokens=8)
    torch.manual_seed(0)
    assert torch.equal(one, composed.generate(ids_of("the"), do_sample=True, max_new_tokens=8))


def test_beams_are_those_of_the_uncached_model(composed, base, reward) -> None:
    rows = [[{"input_ids": ids_of(text)}] * 2 for text in PROMPTS]
    reference = ReferenceLM([base, reward.model], rows, [[1.0, 0.8]] * 3, vocab_size=VOCAB)
    batch = TOKENIZER(PROMPTS, return_tensors="pt", padding=True)
    for options in ({"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 3}):
        expected = reference.write(**GREEDY, **options).sequences
        assert composed.generate(**batch, **GREEDY, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("drafter", ["base", "reward"])
def test_assisted_decoding_is_greedy(composed, base, reward, drafter: str) -> None:
    model = llama(0) if drafter == "base" else reward.model
    assisted = composed.generate(ids_of("the rain in"), assistant_model=model, **GREEDY)
    assert torch.equal(assisted, composed.generate(ids_of("the rain in"), **GREEDY))


def test_lengths_count_padding_that_all_prompts_have(composed, base) -> None:
    ids = ids_of("the rain in")
    wide = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    limit = wide.shape[1] + 5
    settings = GenerationConfig(max_length=limit, pad_token_id=0, eos_token_id=2)
    for options in ({"max_length": limit}, {"generation_config": settings}):
        found = composed.generate(wide, do_sample=False, **options)  # the mask follows from padding
        assert found.shape == (1, limit) and found[0, :3].tolist() == [0, 0, 0]
        plain = composed.generate(ids, max_new_tokens=5, do_sample=False)
        assert found[0, 3:].tolist() == plain[0].tolist()
    with pytest.raises(InferKitError, match="Prompt 0 is empty"):
        composed.generate(torch.zeros(1, 3, dtype=torch.long))


def test_half_precision_members_are_widened_before_they_are_added(base) -> None:
    one, two = llama(0).bfloat16(), gpt2(1).bfloat16()
    mixed = compose(one, {"r": ((two, TOKENIZER), 0.7)}, beta=1.0, tokenizer=TOKENIZER)
    ids = ids_of("the rain in")
    with torch.no_grad():
        expected = one(ids).logits.double() + 0.7 * two(ids).logits.double()
        found = mixed(ids).logits
    assert found.dtype == torch.float32
    assert float((found.double() - expected).abs().max()) <= 1e-4


def test_a_member_drafts_where_the_tokenizers_are_named(composed, base) -> None:
    ids = ids_of("the rain in")
    named = {"tokenizer": TOKENIZER, "assistant_tokenizer": TOKENIZER}
    assisted = composed.generate(ids, assistant_model=base, **named, **GREEDY)
    assert torch.equal(assisted, composed.generate(ids, **GREEDY))


def test_forward_gives_the_logits_of_whole_sequences(composed, base, reward) -> None:
    batch = TOKENIZER(PROMPTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = composed(**batch).logits
    assert found.shape == (*batch["input_ids"].shape, VOCAB)
    for place, text in enumerate(PROMPTS):
        ids = ids_of(text)
        with torch.no_grad():
            z, r = base(ids).logits[0, :, :VOCAB], reward.model(ids).logits[0]
        mine = found[place, -ids.shape[1] :]
        assert torch.allclose(mine, z + 0.8 * r, atol=1e-4)
    last = composed(**batch, logits_to_keep=1).logits
    assert torch.allclose(last, found[:, -1:], atol=1e-5)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        loss = composed(**batch, labels=labels).loss
    logprobs = found[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    kept = labels[:, 1:] != -100
    assert float(loss) == pytest.approx(-float(logprobs[kept].mean()), abs=1e-5)


def test_strength_zero_is_the_base_alone(composed, base, reward) -> None:
    composed.set_beta(0.0)
    ids = ids_of("the rain in")
    with torch.no_grad():
        assert torch.equal(composed(ids).logits, base(ids).logits[..., :VOCAB])
    calls = []
    hook = reward.model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = composed.generate(ids, **GREEDY)
    hook.remove()
    composed.set_beta(0.8)
    narrow = llama(0)  # its padded rows can be chosen, ours not
    narrow.load_state_dict(
        base.state_dict()
        | {
            name: tensor[:VOCAB]
            for name, tensor in base.state_dict().items()
            if tensor.shape[:1] == (VOCAB + 4,)
        }
    )
    assert not calls and torch.equal(found, narrow.generate(ids, **GREEDY))


def test_a_model_that_occurs_twice_is_run_once() -> None:
    """DeRa: (1 - a) z_ref + a z_aligned."""
    ref, aligned = llama(0), llama(1)
    dera = compose(
        ref, implicit=((aligned, TOKENIZER), (ref, TOKENIZER)), beta=0.3, tokenizer=TOKENIZER
    )
    assert dera.weights == pytest.approx([0.7, 0.3]) and len(dera.members) == 2
    ids = ids_of("the rain in")
    with torch.no_grad():
        expected = 0.7 * ref(ids).logits + 0.3 * aligned(ids).logits
        assert torch.allclose(dera(ids).logits, expected, atol=1e-4)
    same = dera.set_beta(0.0).generate(ids, **GREEDY)
    assert torch.equal(same, ref.generate(ids, **GREEDY))
    other = dera.set_beta(1.0).generate(ids, **GREEDY)
    assert torch.equal(other, aligned.generate(ids, **GREEDY))


def test_an_implicit_reward_is_eft(base) -> None:
    tuned, untuned = gpt2(1), gpt2(2)
    pairs = (tuned, TOKENIZER), (untuned, TOKENIZER)
    eft = compose(base, implicit=pairs, beta=0.6, tokenizer=TOKENIZER)
    assert eft.weights == [1.0, 0.6, -0.6]
    assert eft.generate(ids_of("a stone"), **GREEDY)[0].tolist() == uncached(
        eft, ids_of("a stone"), 12
    )


def test_several_rewards_and_language_models_as_rewards(base, reward) -> None:
    arm = llama(5)
    several = compose(
        base,
        {"one": (reward, 0.5), "arm": ((arm, TOKENIZER), -0.25)},
        beta=2.0,
        tokenizer=TOKENIZER,
    )
    assert several.weights == [1.0, 1.0, -0.5]
    assert several.generate(ids_of("a stone"), **GREEDY)[0].tolist() == uncached(
        several, ids_of("a stone"), 12
    )
    assert compose(base, [reward, reward], tokenizer=TOKENIZER).weights == [1.0, 2.0]


def test_scores_and_sweeps(composed) -> None:
    prompts = [ids_of(text)[0] for text in PROMPTS]
    texts = [ids_of(text)[0, 1:] for text in ("he ran", "er", "in the end")]
    scores = composed.score(prompts, texts)
    betas = (0.0, 0.8, 2.0)
    found = composed.sweep(prompts, texts, betas)
    total = sum(float(row.sum()) for row in scores.pooled)
    count = sum(map(len, texts))
    assert found[0.8] == pytest.approx(-total / count, abs=1e-5) and composed.beta == 0.8
    listed = composed.sweep([p.tolist() for p in prompts], [t.tolist() for t in texts], betas)
    assert listed == found
    masked = [text.clone() for text in texts]
    masked[0][0] = -100
    assert composed.sweep(prompts, masked, [0.8])[0.8] != found[0.8]
    with pytest.raises(InferKitError, match="Prompt 0 is empty"):
        composed.sweep([prompts[0][:0]], texts[:1], [1.0])
    with pytest.raises(InferKitError, match="ids from 999 to 999; there are 160"):
        composed.sweep(prompts[:1], [torch.tensor([999])], [1.0])
    with pytest.raises(InferKitError, match="Got 1 prompts and 3 continuations"):
        composed.sweep(prompts[:1], texts, [1.0])
    assert composed.beta == 0.8
    with pytest.raises(InferKitError, match="all are -100"):
        composed.sweep(prompts[:1], [torch.full((3,), -100)], [1.0])


def test_it_is_saved_as_a_recipe(tmp_path: Path) -> None:
    base = saved(llama(0), tmp_path / "base")
    reward = PortableReward(saved(gpt2(1), tmp_path / "gpt2"), TOKENIZER, beta=0.7)
    mixed = compose(base, reward)
    assert mixed.beta == 0.7
    with pytest.raises(InferKitError, match="reward has no path"):
        mixed.save_pretrained(tmp_path / "mixed")
    reward.save_pretrained(tmp_path / "reward")
    compose(base, str(tmp_path / "reward"), beta=0.4).save_pretrained(tmp_path / "mixed")
    again = ComposedLM.from_pretrained(tmp_path / "mixed")
    assert again.beta == 0.4 and again.weights == [1.0, 0.4]
    ids = ids_of("the rain in")
    expected = compose(base, reward, beta=0.4).generate(ids, **GREEDY)
    assert torch.equal(again.generate(ids, **GREEDY), expected)
    assert {file.name for file in (tmp_path / "mixed").iterdir()} == {"composed.json"}
    with pytest.raises(InferKitError, match="no composed.json"):
        ComposedLM.from_pretrained(tmp_path / "base")


def test_it_quacks_like_a_language_model(composed, base) -> None:
    assert composed.config.model_type == base.config.model_type
    assert composed.config.vocab_size == VOCAB and base.config.vocab_size == VOCAB + 4
    assert composed.device == base.device and composed.dtype == base.dtype
    assert composed.eval() is composed and composed.tie_weights() is None
    assert composed.name_or_path == base.name_or_path
    coupled = composed.coupled()
    assert isinstance(coupled, ik.CoupledLM)


def test_refusals(composed, base, reward) -> None:
    ids = ids_of("the rain in")
    with pytest.raises(InferKitError, match=r"beta is nan; expected a finite number"):
        composed.set_beta(math.nan)
    with pytest.raises(InferKitError, match="beta is nan"):
        compose(base, reward, beta=math.nan, tokenizer=TOKENIZER)
    with pytest.raises(UnsupportedArgument, match="past_key_values cannot work here"):
        composed(ids, past_key_values=object())
    with pytest.raises(InferKitError, match="Prompt 0 is padded on the right"):
        composed.generate(ids, attention_mask=torch.tensor([[1] * (ids.shape[1] - 1) + [0]]))
    with pytest.raises(InferKitError, match=r"needs input_ids \[B, T\]"):
        composed.generate()
    with pytest.raises(UnsupportedArgument, match="has its own prompts and weights"):
        composed.generate(ids, weights=[1.0, 0.0])
    with pytest.raises(UnsupportedArgument, match="labels need all logits"):
        composed(ids, labels=ids, logits_to_keep=1)
    with pytest.raises(UnsupportedArgument, match="guidance_scale"):
        composed.generate(ids, guidance_scale=2.0)
    with pytest.raises(InferKitError, match="nothing to compose the base with"):
        compose(base, tokenizer=TOKENIZER)
    with pytest.raises(InferKitError, match="No tokenizer is known for the base"):
        compose(llama(0), reward)
    with pytest.raises(
        InferKitError, match=r"base \(LlamaForCausalLM\) has 150 columns, fewer than the base's 160"
    ):
        compose(llama(0, rows=150), reward, tokenizer=TOKENIZER)
    with pytest.raises(InferKitError, match="Reward 'x' is 3; expected"):
        compose(base, {"x": 3}, tokenizer=TOKENIZER)
