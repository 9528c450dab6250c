"""Forests give the logits of plain forwards, for every family, by the engine that is meant."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from infer_kit.errors import InferKitError
from infer_kit.vocab.forest_facts import why_no_tree
from infer_kit.vocab.language_models import BatchedKV, TreeKV, language_model
from tests.tiny import shared_lvlm, text_model
from tests.vocab.forests import (
    FLOAT64,
    NO_FLOAT64,
    OTHERS,
    ROWS,
    TREES,
    double,
    last_logits,
    model_of,
    walk,
    walked,
)
from tests.vocab.forests import no_garbage as no_garbage


@pytest.mark.parametrize("family", TREES)
@pytest.mark.usefixtures("no_garbage")
def test_a_tree_equals_plain_forwards(family: str) -> None:
    model = model_of(family)
    forest = language_model(model)
    assert type(forest) is TreeKV
    # Rounding of float32, of the plain forward too; with float64 below nothing is left of it.
    found = walked(forest, model)
    logit, probability = found.errors()
    assert probability <= 1e-6
    if family in ("gemma4_text", "gemma3n_text"):
        # More steps to round: on some CPUs the plain forward is 4e-6 from float64 by itself.
        ours, plain = found.rounding(double(model))
        assert ours <= 2 * plain <= 1e-5
    else:
        assert logit <= (3e-6 if family in NO_FLOAT64 else 1.5e-6)


@pytest.mark.parametrize("family", FLOAT64)
@pytest.mark.usefixtures("no_garbage")
def test_in_float64_nothing_is_left_of_the_difference(family: str) -> None:
    model = double(model_of(family))
    forest = language_model(model)
    assert forest.prefill([[5]])[1].dtype == torch.float64
    # Transformers' eager attention has its softmax in float32 (Gemma 2, from 5.24 on).
    eager = model.config._attn_implementation == "eager"
    assert walk(forest, model) <= (1e-6 if eager else 1e-12)


@pytest.mark.parametrize("family", ROWS)
def test_a_row_a_node_equals_plain_forwards(family: str) -> None:
    model = model_of(family)
    forest = language_model(model)
    assert type(forest) is BatchedKV and forest.cached
    assert re.search(ROWS[family], str(why_no_tree(model)))
    logit, probability = walked(forest, model).errors()
    assert probability <= 1e-6
    assert logit <= 5e-6


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_equal_plain_forwards(family: str) -> None:
    overrides, cached = OTHERS[family]
    model = model_of(family, **overrides)
    if not torch.allclose(last_logits(model, [5, 6])[0], last_logits(model, [5])[0], atol=1e-5):
        pytest.skip("RoFormer sees ahead in transformers before 5.19")
    forest = language_model(model)
    assert type(forest) is BatchedKV and forest.cached == cached
    logit, probability = walked(forest, model).errors()
    assert probability <= 1e-6
    assert logit <= 5e-6


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


def test_the_text_of_vision_language_models() -> None:
    for family in ("qwen2_vl", "gemma3"):  # M-RoPE; windows through the outer model
        model = shared_lvlm(family).model
        forest = language_model(model)
        assert type(forest) is TreeKV
        assert walk(forest, model) <= 3e-6


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
