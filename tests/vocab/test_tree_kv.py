"""Forests in one row of a cache: masks, forwards shared by requests, closed gaps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infer_kit.vocab import tree_kv, tree_layer
from infer_kit.vocab.language_models import TreeKV, language_model
from tests.tiny import text_model
from tests.tiny.text import WINDOW
from tests.vocab.forests import Walk, double, last_logits, model_of, walk
from tests.vocab.forests import no_garbage as no_garbage


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
    monkeypatch.setattr(tree_kv, "ROOM", 2)
    monkeypatch.setattr(tree_layer, "ROOM", 2)
    for family in ("mistral", "deepseek_v3"):  # the latter: keys and values of unequal width
        model = model_of(family)
        assert walk(TreeKV(model), model) <= 3e-6
