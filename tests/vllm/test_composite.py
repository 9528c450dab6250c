"""Composites equal a slow reference: every member's whole context, no cache, float64 pool."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import infer_kit as ik
from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.vllm.composite import (
    Composite,
    check_members,
    composite_overrides,
    implicit_overrides,
    reward_overrides,
)
from infer_kit.vllm.settings import engine_arguments
from tests.tiny.text import text_model
from tests.tiny.tokenizers import tiny_tokenizer
from tests.vllm.folders import HEAD

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

VOCAB = 160
TIE = 2e-4
WINDOW = 8
NEW = 12

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a": ("llama", {}),
    "b": (
        "qwen2",
        {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"num_hidden_layers": 3},
    ),
    "window": ("mistral", {"sliding_window": WINDOW, "num_attention_heads": 4}),
    "capped": (
        "gemma2",
        {"sliding_window": WINDOW, "final_logit_softcapping": 2.0, "tie_word_embeddings": True},
    ),
    "padded": ("llama", {"vocab_size": 176}),
    "tuned": ("llama", {}),
    "other": ("llama", {}),
    "recurrent": (
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
    ),
    "short": ("llama", {"max_position_embeddings": 64}),
}


def saved(folder: Path, name: str) -> str:
    """A model that answers its whole context, with peaked distributions, and its tokenizer."""
    family, given = FAMILIES[name]
    overrides = HEAD | given | {"eos_token_id": None}
    rows = overrides.pop("vocab_size", VOCAB)
    model = text_model(family, rows, seed=sorted(FAMILIES).index(name), **overrides)
    if family != "gemma2":  # its head is tied to its embeddings
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(3)
    model.save_pretrained(folder / name)
    if name != "other":
        tiny_tokenizer(VOCAB).save_pretrained(folder / name)
    return str(folder / name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("composite")
    return {name: saved(folder, name) for name in FAMILIES}


def load(folder: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@contextmanager
def engine(base: str, overrides: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """One engine at a time: what vLLM ends with one, others in the process lose too."""
    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 48,
        "block_size": 32,
        "kv_cache_memory_bytes": 60_000_000,
        "hf_overrides": overrides or {},
    }
    llm = vllm.LLM(**engine_arguments(model=base, **(settings | options)))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def pooled(
    logits: Sequence[Tensor], weights: Sequence[float], mode: str, cutoff: float = 0.0
) -> Tensor:
    """The pool written out: `[V]` float64 log-probabilities of members' logits `[V]`."""
    logprobs = [each.double().log_softmax(-1) for each in logits]
    if mode == "product":
        scores = sum(w * p for w, p in zip(weights, logprobs, strict=True))
    else:
        scores = sum(w * p.exp() for w, p in zip(weights, logprobs, strict=True)).log()
    if cutoff:
        scores = scores.masked_fill(logprobs[0] < logprobs[0].max() + math.log(cutoff), -math.inf)
    return scores.log_softmax(-1)


@torch.no_grad()
def reference(
    models: Sequence[PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    weights: Sequence[float],
    mode: str,
    cutoff: float = 0.0,
    stream_weights: Sequence[float] = (1.0,),
) -> tuple[list[tuple[int, float]], float]:
    """Greedy tokens with their log-probabilities, and the smallest lead of a first over a second.

    Several prompts are a group: the composite's distributions of them, as a product.
    """
    contexts = [list(prompt) for prompt in prompts]
    out, lead = [], math.inf
    for _ in range(NEW):
        streams = []
        for context in contexts:
            ids = torch.tensor([context])
            logits = [model(ids, use_cache=False).logits[0, -1, :VOCAB] for model in models]
            streams.append(pooled(logits, weights, mode, cutoff))
        law = sum(w * s for w, s in zip(stream_weights, streams, strict=True)).log_softmax(-1)
        first, second = law.topk(2).values.tolist()
        lead = min(lead, first - second)
        token = int(law.argmax())
        out.append((token, float(law[token])))
        for context in contexts:
            context.append(token)
    return out, lead


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, VOCAB) for _ in range(rng.randrange(1, 100))] for _ in range(count)]


def greedy(**options: Any) -> Any:
    return vllm.SamplingParams(
        temperature=0, max_tokens=NEW, logprobs=0, ignore_eos=True, **options
    )


def generate(llm: Any, prompts: Sequence[Sequence[int]], params: Any) -> list[Any]:
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return llm.generate(inputs, params, use_tqdm=False)


def check(outputs: Sequence[Any], wanted: Sequence[tuple[list[tuple[int, float]], float]]) -> None:
    """Tokens equal and log-probabilities within 1e-4; near-ties are left out, and few."""
    ties = 0
    for output, (want, lead) in zip(outputs, wanted, strict=True):
        answer = output.outputs[0]
        if list(answer.token_ids) != [token for token, _ in want] and lead < TIE:
            ties += 1
            continue
        assert list(answer.token_ids) == [token for token, _ in want]
        got = [
            place[token].logprob for place, (token, _) in zip(answer.logprobs, want, strict=True)
        ]
        torch.testing.assert_close(
            torch.tensor(got), torch.tensor([p for _, p in want]), atol=1e-4, rtol=0
        )
    assert ties <= len(wanted) // 5


# -- products, and groups of a composite ------------------------------------------------------


@pytest.fixture(scope="class")
def product(folders: dict[str, str]) -> Iterator[Any]:
    weights = [1.0, 0.6, -0.4]
    members = [folders["b"], folders["window"]]
    made = composite_overrides(members, weights, base=folders["a"])
    models = [load(folder) for folder in (folders["a"], *members)]
    with engine(folders["a"], made) as llm:
        yield SimpleNamespace(llm=llm, weights=weights, models=models)


class TestProduct:
    """Members of another size, of another family, with a window; prompts longer than a step."""

    def test_plain_requests(self, product: Any) -> None:
        prompts = random_prompts(8)
        want = [reference(product.models, [p], product.weights, "product") for p in prompts]
        check(generate(product.llm, prompts, greedy()), want)

    def test_prefix_cache(self, product: Any) -> None:
        start = [token for prompt in random_prompts(9, seed=5) for token in prompt][:128]
        first, second = [*start, 7, 8, 9], [*start, 11]
        generate(product.llm, [first], greedy())
        outputs = generate(product.llm, [second], greedy())
        assert outputs[0].num_cached_tokens >= 64
        check(outputs, [reference(product.models, [second], product.weights, "product")])

    def test_groups_of_a_composite(self, product: Any) -> None:
        """Two contexts on three models: six distributions a token."""
        prompts, others = random_prompts(4, seed=1), random_prompts(4, seed=2)
        params = [
            greedy(extra_args={"coupled": {"members": [{"prompt_token_ids": o, "weight": -0.3}]}})
            for o in others
        ]
        want = [
            reference(product.models, pair, product.weights, "product", stream_weights=(1.0, -0.3))
            for pair in zip(prompts, others, strict=True)
        ]
        check(generate(product.llm, prompts, params), want)


# -- mixtures, soft caps, the cut-off ---------------------------------------------------------


def test_mixture_with_a_cut_off_and_a_soft_cap(folders: dict[str, str]) -> None:
    """Gemma's own logits: a soft cap after the head, windows in every other layer."""
    weights, cutoff = [0.5, 0.2, 0.3], 0.3
    members = [folders["capped"], folders["b"]]
    made = composite_overrides(members, weights, "mixture", plausibility=cutoff)
    models = [load(folder) for folder in (folders["a"], *members)]
    prompts = random_prompts(6, seed=3)
    want = [reference(models, [p], weights, "mixture", cutoff) for p in prompts]
    with engine(folders["a"], made) as llm:
        check(generate(llm, prompts, greedy()), want)


# -- laws -------------------------------------------------------------------------------------


def test_one_model_of_weight_one_is_the_base(folders: dict[str, str]) -> None:
    """Bitwise, with every log-probability; the member of weight 0 is not even loaded."""
    prompts = random_prompts(4, seed=4)
    params = vllm.SamplingParams(temperature=0, max_tokens=4, logprobs=VOCAB, ignore_eos=True)
    answers = []
    for made in ({}, composite_overrides([folders["b"]], [1.0, 0.0], base=folders["a"])):
        with engine(folders["a"], made, max_logprobs=VOCAB) as llm:
            answers.append(generate(llm, prompts, params))
            if made:
                assert llm.apply_model(lambda model: model.members) == [("m0",)]
    for plain, composite in zip(*answers, strict=True):
        assert plain.outputs[0].token_ids == composite.outputs[0].token_ids
        for left, right in zip(
            plain.outputs[0].logprobs, composite.outputs[0].logprobs, strict=True
        ):
            assert {t: p.logprob for t, p in left.items()} == {
                t: p.logprob for t, p in right.items()
            }


# -- rewards ----------------------------------------------------------------------------------


def composed_reference(model: Any, prompts: Sequence[Sequence[int]]) -> list[Any]:
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        lead, want = math.inf, []
        for _ in range(NEW):
            law = model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(-1)
            first, second = law.topk(2).values.tolist()
            lead = min(lead, first - second)
            want.append((int(law.argmax()), float(law.max())))
            ids = torch.cat([ids, law.argmax()[None, None]], dim=1)
        out.append((want, lead))
    return out


@torch.no_grad()
def test_portable_reward_as_compose(folders: dict[str, str], tmp_path: Path) -> None:
    """A base whose head is padded: the 16 rows without a token are left out, as in compose."""
    reward = ik.PortableReward(load(folders["b"]), tiny_tokenizer(VOCAB), beta=0.7)
    reward.save_pretrained(tmp_path / "reward")
    base = folders["padded"]
    made = reward_overrides(tmp_path / "reward", base=base)
    assert made["vocab_size"] == VOCAB
    prompts = random_prompts(5, seed=6)
    model = ik.compose(load(base), reward)
    generated = model.generate(torch.tensor(prompts[:1]), max_new_tokens=NEW)
    want = composed_reference(model, prompts)
    assert generated[0, len(prompts[0]) :].tolist() == [token for token, _ in want[0][0]]
    with engine(base, made, skip_tokenizer_init=False) as llm:
        check(generate(llm, prompts, greedy()), want)
        with pytest.raises(Exception, match="out of vocabulary"):
            generate(llm, [[VOCAB + 3]], greedy())


@torch.no_grad()
def test_implicit_reward_as_compose(folders: dict[str, str]) -> None:
    """The untuned model is the base (DeRa): two models run, not three."""
    base, tuned = folders["a"], folders["tuned"]
    made = implicit_overrides(tuned, base, beta=0.4)
    prompts = random_prompts(5, seed=7)
    ref = load(base)
    model = ik.compose(ref, implicit=(load(tuned), ref), beta=0.4)
    want = composed_reference(model, prompts)
    with engine(base, made) as llm:
        assert llm.apply_model(lambda model: model.members) == [("m0", "m1")]
        check(generate(llm, prompts, greedy()), want)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([1.0], {}, "Got 1 weights for 2 models: the base and 1 members"),
        ([1.0, math.nan], {}, "not finite"),
        ([0.0, 0.0], {}, "All weights are 0"),
        ([1.0, "much"], {}, "weights is a list of numbers"),
        ([1.5, -0.5], {"mode": "mixture"}, "A mixture needs weights ≥ 0"),
        ([0.5, 0.4], {"mode": "mixture"}, "must sum to 1"),
        ([1.0, 1.0], {"mode": "vote"}, "mode is 'vote'"),
        ([1.0, 1.0], {"plausibility": 2}, "plausibility is from 0 to 1"),
        ([0.0, 1.0], {"plausibility": 0.1}, "has weight 0"),
    ],
)
def test_refused_weights(
    folders: dict[str, str], weights: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferKitError, match=message):
        composite_overrides([folders["b"]], weights, **options)


def test_refused_folders(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="is no folder"):
        composite_overrides([tmp_path / "nowhere"], [1.0, 1.0])
    with pytest.raises(InferKitError, match=r"there is no config\.json"):
        composite_overrides([tmp_path], [1.0, 1.0])
    with pytest.raises(InferKitError, match="a list of folders"):
        composite_overrides(folders["b"], [1.0, 1.0])
    with pytest.raises(InferKitError, match="among the overrides"):
        Composite.of({})
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InferKitError, match="an encoder-decoder"):
        composite_overrides([tmp_path], [1.0, 1.0])
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(InferKitError, match="images or other inputs"):
        composite_overrides([tmp_path], [1.0, 1.0])
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}'
    )
    with pytest.raises(InferKitError, match="quantised"):
        composite_overrides([tmp_path], [1.0, 1.0])


def test_other_tokens_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    load(folders["a"]).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer(VOCAB)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(VocabularyMismatch, match="the ids mean the same") as caught:
        composite_overrides([tmp_path], [1.0, 1.0], base=folders["a"])
    assert "Ensemble" in caught.value.hint
    with pytest.raises(VocabularyMismatch, match="no tokenizer that says which rows"):
        composite_overrides([folders["other"]], [1.0, 1.0], base=folders["padded"])
    composite_overrides([folders["other"]], [1.0, 1.0], base=folders["a"])  # of one size: as given


def test_heads_padded_to_unequal_sizes(folders: dict[str, str]) -> None:
    given = composite_overrides([folders["b"]], [1.0, 1.0])
    with pytest.raises(VocabularyMismatch, match="a head of 160 rows, fewer than the 176"):
        check_members(folders["padded"], given)
    known = composite_overrides([folders["b"]], [1.0, 1.0], base=folders["padded"])
    assert known["vocab_size"] == VOCAB and "vocab_size" not in given
    check_members(folders["a"], composite_overrides([folders["padded"]], [1.0, 1.0]))


def test_refused_rewards(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="holds no portable reward"):
        reward_overrides(tmp_path)
    reward = ik.PortableReward(load(folders["b"]), [f"t{n}" for n in range(VOCAB)])
    reward.save_pretrained(tmp_path)
    with pytest.raises(VocabularyMismatch, match="made for other tokens"):
        reward_overrides(tmp_path, base=folders["a"])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InferKitError, match="an adapter"):
        reward_overrides(tmp_path)
    config = tmp_path / "prt_config.json"
    config.write_text(config.read_text().replace("causal-lm", "classification"))
    with pytest.raises(InferKitError, match="a reward for classification"):
        reward_overrides(tmp_path)


@pytest.mark.parametrize(
    ("member", "message"),
    [("recurrent", "keeps a recurrent state"), ("short", "fewer tokens than the engine's")],
)
def test_refused_as_the_engine_starts(folders: dict[str, str], member: str, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        with engine(folders["a"], composite_overrides([folders[member]], [1.0, 1.0])):
            pass


def test_refused_settings_of_the_engine() -> None:
    from infer_kit.vllm.composite_model import _check_engine

    good = SimpleNamespace(
        model_config=SimpleNamespace(enable_prompt_embeds=False, quantization=None),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        load_config=SimpleNamespace(load_format="auto"),
        lora_config=None,
        speculative_config=None,
    )
    _check_engine(good)
    for name, value, message in (
        ("lora_config", object(), "LoRA"),
        ("parallel_config", SimpleNamespace(pipeline_parallel_size=2), "pipeline parallelism"),
        ("load_config", SimpleNamespace(load_format="gguf"), "load_format='gguf'"),
        ("speculative_config", SimpleNamespace(method="eagle3"), "reads hidden states"),
        (
            "model_config",
            SimpleNamespace(enable_prompt_embeds=False, quantization="fp8"),
            "quantization='fp8'",
        ),
    ):
        with pytest.raises(InferKitError, match=message):
            _check_engine(SimpleNamespace(**(vars(good) | {name: value})))


def test_overrides_say_what_they_were_made_of(folders: dict[str, str]) -> None:
    made = composite_overrides([folders["b"], folders["b"], folders["a"]], [1.0, 0.5, 0.0, 0.25])
    composite = Composite.of(made)
    assert composite.weights == (1.0, 0.5, 0.25)
    assert composite.merged(folders["a"]) == ((folders["a"], folders["b"]), (1.25, 0.5))
    assert Composite.of(SimpleNamespace(**made)) == replace(composite)
