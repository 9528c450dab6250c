"""Forests of tokens give the logits of plain forwards over whole sequences."""

from __future__ import annotations

import copy
import random
import re
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.vocab import tree_kv
from infer_kit.vocab.batched_kv import _Block
from infer_kit.vocab.causal_model import position_limit
from infer_kit.vocab.language_models import BatchedKV, TreeKV, language_model
from infer_kit.vocab.tree_kv import why_no_tree
from tests.tiny import TEXT_GRID, TEXT_SWEEP, available, shared_lvlm, shared_text_model, text_model
from tests.tiny.text import WINDOW

# Why the others have a row a node.
ROWS = {
    "bloom": "takes no positions",
    "mpt": "takes no positions",
    "llama4_text": "place in the cache for its position",
    "qwen3_next": "of its own kind",
    "qwen3_5_text": "of its own kind",
    "lfm2": "a layer of its cache is a LinearAttentionLayer",
    "falcon_h1": "of its own kind",
    "bamba": "of its own kind",
    "jamba": "of its own kind",
    "granitemoehybrid": "keep a state",
}
TREES = tuple(family for family in (*TEXT_GRID, *TEXT_SWEEP) if family not in ROWS)
# Beyond tests/tiny's lists: what they need, and whether their state can be kept by rows.
OTHERS: dict[str, tuple[dict[str, Any], bool]] = {
    "mamba": ({"state_size": 8}, True),
    "mamba2": ({"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}, True),
    "roformer": ({"is_decoder": True}, True),  # no positions as an argument, and no padding
    "gpt_neo": ({"num_layers": 2, "attention_types": [[["global", "local"], 1]],
                 "num_heads": 4, "window_size": WINDOW}, True),
    "rwkv": ({"attention_hidden_size": 32}, False),
    "recurrent_gemma": ({"num_hidden_layers": 3, "lru_width": 32}, False),
    "minimax": ({"num_local_experts": 4, "num_experts_per_tok": 2}, False),
    "nemotron_h": (
        {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "n_routed_experts": 4},
        False,
    ),
    "openai-gpt": ({"n_embd": 32, "n_head": 4, "n_layer": 2}, False),
}  # fmt: skip
# Float32 inside, whatever the model's type: rotary tables, scores, states. The others are exact.
FLOAT32_INSIDE = {"bloom", "mpt", "gptj", "llama4_text", "qwen3_5_text", "falcon_h1", "bamba"}
# Float64 fails in their own forwards: experts in one product, or a constant of XGLM's.
NO_FLOAT64 = {"qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba"}
NO_FLOAT64 |= {"granitemoehybrid", "xglm"}
FLOAT64 = tuple(f for f in (*TREES, *ROWS) if f not in FLOAT32_INSIDE | NO_FLOAT64)


def model_of(family: str, **overrides: Any) -> PreTrainedModel:
    found, why = available(family)
    if not found:
        pytest.skip(why)
    return text_model(family, **overrides) if overrides else shared_text_model(family)


def double(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).double()


def last_logits(model: PreTrainedModel, sequence: Sequence[int]) -> Tensor:
    """`[len(sequence), V]` of a plain forward: no cache, no mask, one sequence."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(sequence)]), use_cache=False).logits[0]


class Walk:
    """Random tokens over a forest, and what the forest answered to every sequence."""

    def __init__(self, forest: TreeKV | BatchedKV, model: PreTrainedModel, seed: int = 0) -> None:
        self.forest, self.model, self.random = forest, model, random.Random(seed)
        self.sequence: dict[int, tuple[int, ...]] = {}
        self.answers: dict[tuple[int, ...], Tensor] = {}
        self.live: list[int] = []

    def prefill(self, lengths: Sequence[int]) -> list[int]:
        prompts = [[self.random.randrange(3, 160) for _ in range(n)] for n in lengths]
        return self._answered([tuple(p) for p in prompts], *self.forest.prefill(prompts))

    def extend(self, parents: Sequence[int]) -> list[int]:
        nodes = [(parent, self.random.randrange(3, 160)) for parent in parents]
        sequences = [(*self.sequence[parent], token) for parent, token in nodes]
        return self._answered(sequences, *self.forest.extend(nodes))

    def keep(self, live: Sequence[int]) -> None:
        self.forest.keep(live)
        self.live = list(live)

    def _answered(
        self, sequences: list[tuple[int, ...]], handles: list[int], logits: Tensor
    ) -> list[int]:
        assert logits.shape == (len(sequences), 160) and not logits.requires_grad
        self.sequence |= zip(handles, sequences, strict=True)
        self.answers |= zip(sequences, logits, strict=True)
        self.live += handles
        return handles

    def error(self) -> float:
        """The largest error of a logit, by the largest logit."""
        beginnings = {s[:n] for s in self.answers for n in range(len(s))}
        worst, scale = 0.0, 0.0
        for sequence in self.answers.keys() - beginnings:
            plain = last_logits(self.model, sequence)
            for n, row in enumerate(plain, 1):
                answer = self.answers.get(sequence[:n])
                if answer is not None:
                    worst = max(worst, float((answer - row).abs().max()))
                    scale = max(scale, float(row.abs().max()))
        return worst / scale


def walk(forest: TreeKV | BatchedKV, model: PreTrainedModel, seed: int | None = None) -> float:
    """Prompts on both sides of the window, forks and deep branches, `keep` in between; error."""
    w = Walk(forest, model, zlib.crc32(type(model).__name__.encode()) if seed is None else seed)
    tips = w.prefill([3, 11, 1, 20])
    for step in range(12):
        forks = [w.random.choice(w.live) for _ in range(2)]
        tips[step % 4] = w.extend([*forks, tips[step % 4], tips[step % 4]])[-1]
        if step % 3 == 2:
            w.keep(tips + w.random.sample(w.live, 2))
    tips += w.prefill([5, 9])  # beside trees that have grown
    w.extend([tips[0], tips[5]])
    w.keep([tips[0], tips[5]])
    tip = tips[0]
    for _ in range(2 * WINDOW):
        tip = w.extend([tip])[0]
    w.keep([tip])
    w.extend([tip])  # it sees all there is
    w.extend([tip, tip])
    return w.error()


@pytest.fixture
def no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache closes gaps at every `keep`, or nearly."""
    monkeypatch.setattr(tree_kv, "_GARBAGE", 0)


# -- equality with plain forwards


@pytest.mark.parametrize("family", TREES)
@pytest.mark.usefixtures("no_garbage")
def test_a_tree_equals_plain_forwards(family: str) -> None:
    model = model_of(family)
    forest = language_model(model)
    assert type(forest) is TreeKV
    # Rounding of float32, of the plain forward too; with float64 below nothing is left of it.
    deep = NO_FLOAT64 | {"gemma4_text", "gemma3n_text"}  # more steps to round
    assert walk(forest, model) <= (3e-6 if family in deep else 1.5e-6)


@pytest.mark.parametrize("family", FLOAT64)
@pytest.mark.usefixtures("no_garbage")
def test_in_float64_nothing_is_left_of_the_difference(family: str) -> None:
    model = double(model_of(family))
    forest = language_model(model)
    assert forest.prefill([[5]])[1].dtype == torch.float64
    # Transformers' eager attention has its softmax in float32 (Gemma 2, from 5.24 on).
    eager = model.config._attn_implementation == "eager"
    assert walk(forest, model) <= (1e-6 if eager else 1e-12)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_experts_in_float64(family: str) -> None:
    model = double(model_of(family))
    model.set_experts_implementation("eager")  # the default multiplies no float64
    assert walk(TreeKV(model), model) <= 1e-12


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mistral", "falcon", "opt"])
def test_eager_attention(family: str) -> None:
    model = double(model_of(family))
    model.set_attn_implementation("eager")  # its softmax is in float32
    forest = language_model(model)
    assert type(forest) is TreeKV
    assert walk(forest, model) <= 1e-6


@pytest.mark.parametrize("attention, hidden", [("sdpa", 0.0), ("eager", torch.finfo().min)])
def test_masks_are_bool_or_added(attention: str, hidden: float) -> None:
    model = text_model("gemma3_text")
    model.set_attn_implementation(attention)
    given: list[dict[str, Tensor]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, kwargs: given.append(kwargs["attention_mask"]), with_kwargs=True
    )
    forest = TreeKV(model)
    a, b = forest.prefill([[5] * (WINDOW + 1), [6]])[0]
    assert forest.calls == 1
    forest.extend([(a, 7), (b, 7)])
    packed, new = given
    assert set(new) == {"full_attention", "sliding_attention"}
    assert {mask.dtype for mask in new.values()} == {torch.bool if not hidden else torch.float32}
    shown = {kind: (mask if not hidden else mask == 0)[0, 0].int() for kind, mask in new.items()}
    a_sees, b_sees = [1] * (WINDOW + 1) + [0, 1, 0], [0] * (WINDOW + 1) + [1, 0, 1]
    assert shown["full_attention"].tolist() == [a_sees, b_sees]
    assert shown["sliding_attention"].tolist() == [[0, 0, *a_sees[2:]], b_sees]
    assert packed["full_attention"].shape == (1, 1, WINDOW + 2, WINDOW + 2)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.usefixtures("no_garbage")
def test_more_trees(seed: int) -> None:
    for family in ("gemma3_text", "mistral", "opt"):
        model = double(model_of(family))
        assert walk(TreeKV(model), model, seed) <= 1e-12


@pytest.mark.parametrize("family", ROWS)
def test_a_row_a_node_equals_plain_forwards(family: str) -> None:
    model = model_of(family)
    forest = language_model(model)
    assert type(forest) is BatchedKV and forest.cached
    assert re.search(ROWS[family], str(why_no_tree(model)))
    assert walk(forest, model) <= 5e-6


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_equal_plain_forwards(family: str) -> None:
    overrides, cached = OTHERS[family]
    model = model_of(family, **overrides)
    if not torch.allclose(last_logits(model, [5, 6])[0], last_logits(model, [5])[0], atol=1e-5):
        pytest.skip("RoFormer sees ahead in transformers before 5.19")
    forest = language_model(model)
    assert type(forest) is BatchedKV and forest.cached == cached
    assert walk(forest, model) <= 5e-6


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_rows_equal_trees(family: str) -> None:
    model = double(model_of(family))
    assert walk(BatchedKV(model), model) <= 1e-12


# -- forwards and what they are given


def test_requests_share_forwards() -> None:
    model = model_of("llama")
    forest = TreeKV(model)
    prompts = [[5, 6, 7], [8], [5, 6, 7], [9, 10]]
    handles, logits = forest.prefill(prompts)
    assert forest.calls == 1 and forest.rows == 0
    assert handles[0] == handles[2] and len(set(handles)) == 3  # equal prompts are one node
    assert torch.equal(logits[0], logits[2])
    for prompt, row in zip(prompts, logits, strict=True):
        torch.testing.assert_close(row, last_logits(model, prompt)[-1], atol=1e-5, rtol=0)
    forest.extend([(handle, 11) for handle in handles])
    assert forest.calls == 2 and forest.rows == 4
    assert forest.extend([])[0] == [] and forest.prefill([])[0] == [] and forest.calls == 2


def test_prompts_are_packed_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_kv, "PACKED", 16)
    model = double(model_of("gemma3_text"))
    forest = TreeKV(model)
    w = Walk(forest, model)
    tips = w.prefill([9, 7, 1, 40, 3, 13, 1])  # 9 + 7 | 1 | 40 | 3 + 13 | 1
    assert forest.calls == 5
    w.extend(tips)
    assert w.error() <= 1e-12


def test_a_prompt_alone_is_read_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(model_of("gemma3_text"))
    forest = TreeKV(model)
    w = Walk(forest, model)
    first = w.prefill([3, 5])
    with monkeypatch.context() as patch:
        patch.setattr(TreeKV, "_masks", None)  # fails if it is called
        long = w.prefill([50])
    w.extend([*first, *long])
    assert w.error() <= 1e-12


def test_one_branch_alone_is_read_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(model_of("gemma3_text"))
    monkeypatch.setattr(TreeKV, "_masks", None)  # fails if it is called
    w = Walk(TreeKV(model), model)
    tips = w.prefill([3])
    for _ in range(2 * WINDOW):
        tips = w.extend(tips)
    assert w.error() <= 1e-12


def test_rows_of_unequal_length_share_a_forward() -> None:
    model = model_of("llama")
    forest = BatchedKV(model)
    handles, _ = forest.prefill([[5, 6, 7], [8, 9, 10], [5, 6, 7], [11]])
    assert forest.calls == 2  # by length
    assert handles[0] == handles[2]
    new, _ = forest.extend([(handle, 12) for handle in handles])
    forest.extend([(handle, 12) for handle in (*handles, *new)])
    assert forest.calls == 4 and forest.rows == 12
    assert forest.extend([])[0] == [] and forest.prefill([])[0] == []


def test_rows_in_any_order() -> None:
    model = double(model_of("lfm2"))
    w = Walk(BatchedKV(model), model)
    a, b, c = w.prefill([4, 4, 4])
    d, e, f = w.extend([c, a, b])
    w.extend([f, a, d, e, d, c])
    assert w.error() <= 1e-12


def test_long_prompts_of_one_length_do_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_kit.vocab.batched_kv._READ_TOGETHER", 8)
    forest = BatchedKV(model_of("llama"))
    forest.prefill([[token] * 4 for token in range(3, 8)] + [[token] * 9 for token in (3, 4)])
    assert forest.calls == 3 + 2


# -- forgetting


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
def test_keep_forgets_all_but_the_ancestors(kind: Any) -> None:
    forest = kind(model_of("llama"))
    (a, b), _ = forest.prefill([[5, 6], [7]])
    (c, d), _ = forest.extend([(a, 8), (a, 9)])
    (e,), _ = forest.extend([(c, 10)])
    forest.keep([e])
    forest.extend([(a, 11), (c, 11), (e, 11)])  # ancestors are not forgotten
    for gone in (b, d):
        with pytest.raises(InferKitError, match=f"There is no node {gone}: no call returned it"):
            forest.extend([(e, 5), (gone, 5)])
        with pytest.raises(InferKitError, match=f"There is no node {gone}"):
            forest.keep([e, gone])
    forest.extend([(e, 12)])  # a refused call changes nothing
    forest.keep([])
    with pytest.raises(InferKitError, match="There is no node"):
        forest.extend([(e, 5)])
    assert forest.prefill([[5, 6]])[0][0] not in (a, b, c, d, e)


def test_gaps_are_closed_when_they_are_worth_it() -> None:
    model = double(model_of("llama"))
    forest = TreeKV(model)
    w = Walk(forest, model)
    (tip,) = w.prefill([20])
    for tokens in range(1, 41):
        tip = w.extend([tip] * 4)[0]
        w.keep([tip])
        used = 20 + tokens
        assert used <= forest._fill.slots <= used + 64 + used // 8
    assert forest._fill.slots < 20 + 4 * 40  # closed at least once
    w.extend([tip, tip])
    assert w.error() <= 1e-12
    forest.keep([])
    assert forest._fill.slots == 0 and all(not layer._room for layer in forest._layers)


def test_a_trunk_in_the_middle_is_dropped() -> None:
    model = double(model_of("mistral"))
    forest = TreeKV(model)
    w = Walk(forest, model)
    tips = w.prefill([10, 100, 12])
    tips = w.extend(tips)
    w.keep([tips[0], tips[2]])
    assert forest._fill.slots == 24
    tips = w.extend([tips[0], tips[2], tips[2]])
    tips += w.prefill([7])
    w.extend(tips)
    assert w.error() <= 1e-12


def test_the_cache_outgrows_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_kv, "_ROOM", 2)
    for family in ("mistral", "deepseek_v3"):  # the latter: keys and values of unequal width
        model = model_of(family)
        assert walk(TreeKV(model), model) <= 3e-6


def test_ancestors_without_a_row_are_read_again() -> None:
    model = double(model_of("gemma3_text"))
    forest = BatchedKV(model)
    w = Walk(forest, model)
    a, b = w.prefill([12, 3])
    (c,) = w.extend([a])
    w.keep([c, b])
    calls, rows = forest.calls, forest.rows
    w.extend([a, b, c])
    assert (forest.calls, forest.rows) == (calls + 2, rows + 2 + 13)
    w.extend([a])
    assert w.error() <= 1e-12


def test_rows_of_no_use_are_dropped() -> None:
    model = double(model_of("gemma3_text"))
    forest = BatchedKV(model)
    w = Walk(forest, model)
    (long, *short) = w.prefill([30, 3, 3])
    new = w.extend([long, *short])
    block = forest._nodes[new[1]].block
    assert block is not None and block.lengths == [31, 4, 4]
    w.keep([new[1]])
    block = forest._nodes[new[1]].block
    assert isinstance(block, _Block) and block.lengths == [4]
    sliding, full = block.cache.layers
    assert full.keys.shape[0] == 1 and full.keys.shape[2] == 4  # without its padding
    assert sliding.keys.shape[2] == 4 and sliding.get_seq_length() == 4
    w.extend([new[1]])
    assert w.error() <= 1e-12


# -- limits and refusals


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "xglm"])
def test_a_table_of_positions_ends(kind: Any, family: str) -> None:
    model = model_of(family, max_position_embeddings=20)
    forest = kind(model)
    (tip,), _ = forest.prefill([[5] * 20])
    with pytest.raises(PromptTooLong, match="of 21 tokens is too long for .*: it has 20 positions"):
        forest.extend([(tip, 6)])
    with pytest.raises(PromptTooLong, match="A sequence of 21 tokens is too long"):
        forest.prefill([[5], [5] * 21])
    assert forest.calls == 1


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "mamba"])
def test_other_positions_do_not(family: str) -> None:
    model = model_of(family, **OTHERS.get(family, ({"max_position_embeddings": 8},))[0])
    assert position_limit(model) is None
    assert walk(language_model(model), model) <= 3e-6


def test_mpt_has_as_many_distances_as_positions() -> None:
    forest = language_model(model_of("mpt", max_seq_len=20))
    forest.prefill([[5] * 20])
    with pytest.raises(PromptTooLong, match="it has 20 positions"):
        forest.prefill([[5] * 21])


def test_rotary_positions_that_depend_on_the_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = model_of("llama", rope_parameters=rope, max_position_embeddings=24)
    forest = language_model(model)
    w = Walk(forest, model)
    tips = w.prefill([24, 3])
    w.extend(tips[1:])
    assert w.error() <= 1e-6
    with pytest.raises(PromptTooLong, match="beyond 24 it changes the keys of all tokens .dynamic"):
        forest.extend([(tips[0], 5)])
    factors = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16, **factors}
    rope |= {"rope_theta": 10000.0}
    model = model_of("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    assert position_limit(model) == (
        16,
        "beyond 16 it changes the keys of all tokens (longrope)",
    )


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
def test_inputs_that_cannot_work(kind: Any) -> None:
    forest = kind(model_of("llama"))
    with pytest.raises(InferKitError, match="Prompt 1 has no token") as caught:
        forest.prefill([[5], []])
    assert "bos" in str(caught.value.hint)
    with pytest.raises(
        InferKitError, match="LlamaForCausalLM has no token 160: its ids are 0 to 159"
    ):
        forest.prefill([[5, 160]])
    (tip,), _ = forest.prefill([[5]])
    with pytest.raises(InferKitError, match="has no token -1"):
        forest.extend([(tip, 5), (tip, -1)])
    assert forest.calls == 1


@pytest.mark.parametrize("kind", [TreeKV, BatchedKV])
def test_training_mode_is_refused(kind: Any) -> None:
    model = text_model("llama").train()
    forest = kind(model)
    with pytest.raises(InferKitError, match="LlamaForCausalLM is in training mode") as caught:
        forest.prefill([[5]])
    assert "eval()" in str(caught.value.hint) and model.training
    model.eval()
    (tip,), _ = forest.prefill([[5]])
    model.train()
    with pytest.raises(InferKitError, match="training mode"):
        forest.extend([(tip, 5)])


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(InferKitError, match="T5ForConditionalGeneration is an encoder-decoder"):
        language_model(T5ForConditionalGeneration(config))


def test_models_that_read_both_ways_are_refused() -> None:
    model = model_of("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(InferKitError, match="Gemma3ForCausalLM reads a text in both directions"):
        language_model(model)
    with pytest.raises(InferKitError, match="PaliGemmaForCondit.* reads a text in both directions"):
        language_model(shared_lvlm("paligemma").model)


def test_the_text_of_vision_language_models() -> None:
    for family in ("qwen2_vl", "gemma3"):  # M-RoPE; windows through the outer model
        model = shared_lvlm(family).model
        forest = language_model(model)
        assert type(forest) is TreeKV
        assert walk(forest, model) <= 3e-6


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(InferKitError, match="LlamaModel returns no logits"):
        language_model(model_of("llama").model).prefill([[5]])


def test_positions_counted_from_the_padding_are_refused() -> None:
    model = model_of("roberta", is_decoder=True)
    with pytest.raises(InferKitError, match="RobertaForCausalLM counts positions from its padding"):
        language_model(model)


def test_the_choice_goes_by_attention_and_kind() -> None:
    model = text_model("llama")
    for attention in ("flash_attention_2", "flex_attention", "paged|sdpa"):
        model.config._attn_implementation_internal = attention
        assert f"attention is {attention}" in str(why_no_tree(model))
        assert type(language_model(model)) is BatchedKV
        with pytest.raises(InferKitError, match="LlamaForCausalLM cannot be a TreeKV: its attent"):
            TreeKV(model)
    assert "ALiBi" in str(why_no_tree(model_of("falcon", alibi=True)))
    with pytest.raises(InferKitError, match="JambaForCausalLM cannot be a TreeKV: .* own kind"):
        TreeKV(model_of("jamba"))


def test_falcon_with_alibi() -> None:
    model = model_of("falcon", alibi=True)
    forest = language_model(model)
    assert type(forest) is BatchedKV
    assert walk(forest, model) <= 3e-6


def test_half_precision_gives_float32() -> None:
    model = copy.deepcopy(model_of("gemma3_text")).bfloat16()
    for forest in (TreeKV(model), BatchedKV(model)):
        (tip, other), logits = forest.prefill([[5, 6, 7], [8]])
        more = forest.extend([(tip, 9), (other, 9)])[1]
        assert logits.dtype == more.dtype == torch.float32
        plain = last_logits(model, [5, 6, 7, 9])[-1].float()
        assert float((more[0] - plain).abs().max()) < 0.1
