"""Caches of unequal prompts joined into one batch: exact under any padding, or refused."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from infer_kit.engine.cache_merge import check_mergeable, merge_caches
from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import NotMergeable
from tests.engine.cases import assert_reference, model_of, state_of, text_row
from tests.tiny import TEXT_GRID, reference_logits, text_model
from tests.tiny.text import WINDOW

FAMILIES = (*TEXT_GRID, "bloom", "mpt", "gemma4_text", "qwen3_5_text", "lfm2")


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_of_1_to_64_changes_nothing(family: str) -> None:
    """65 prompts in one batch, the shortest behind 64 pads; three steps, in float64."""
    model_of(family)
    model = text_model(family).double()
    rows = [[text_row(70 - pad, pad)] for pad in range(65)]
    cache = state_of(CoupledLM(model), rows, len(rows))
    assert cache.engines == ("fused",)
    generator = torch.Generator().manual_seed(0)
    new = torch.randint(3, 160, (65, 3), generator=generator)
    ours = torch.cat([cache.step(new[:, t : t + 1]) for t in range(3)], dim=2)[:, 0]
    for pad, row in enumerate(rows):
        theirs = reference_logits(model, row[0], new[pad : pad + 1])[1:]
        torch.testing.assert_close(ours[pad], theirs, atol=1e-5, rtol=0, msg=f"{pad} pads")


@pytest.mark.parametrize("length", [1, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1])
@pytest.mark.parametrize("other", [1, WINDOW - 1, WINDOW, 3 * WINDOW])
def test_sliding_windows_of_unequal_prompts(length: int, other: int) -> None:
    """Both sides of the window, in either order; the layers are joined at the longest."""
    rows = [[text_row(length, 1), text_row(other, 2)]]
    assert_reference(
        model_of("gemma3_text"), rows, [[1.0, 0.7]], max_new_tokens=10, do_sample=False
    )


def _cache(model_name: str, length: int, seed: int = 0) -> DynamicCache:
    model = model_of(model_name)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(text_row(length, seed)["input_ids"], **{CACHE: cache}, use_cache=True)
    return cache


def test_pads_are_on_the_left_and_zero() -> None:
    caches = [_cache("llama", 3, 1), _cache("llama", 6, 2)]
    short = caches[0].layers[1].keys.clone()
    merged = merge_caches(caches, [3, 6])
    assert merged is caches[0]
    assert merged.get_seq_length() == 6
    for layer in merged.layers:
        assert layer.keys.shape[0] == layer.values.shape[0] == 2
        assert not layer.keys[0, :, :3].any() and not layer.values[0, :, :3].any()
    assert torch.equal(merged.layers[1].keys[0, :, 3:], short[0])


def test_a_sliding_layer_counts_the_longest_prompt() -> None:
    merged = merge_caches([_cache("gemma3_text", 3), _cache("gemma3_text", 20)], [3, 20])
    sliding, full = merged.layers
    assert sliding.cumulative_length == 20 and sliding.keys.shape[-2] == WINDOW - 1
    assert full.keys.shape[-2] == 20


def test_the_others_are_emptied() -> None:
    caches = [_cache("llama", 3), _cache("llama", 5)]
    merge_caches(caches, [3, 5])
    assert all(layer.keys is None for layer in caches[1].layers)


def test_one_cache_is_returned_as_it_is() -> None:
    cache = _cache("llama", 3)
    keys = cache.layers[0].keys
    assert merge_caches([cache], [3]) is cache and cache.layers[0].keys is keys


def test_unknown_layers_are_refused() -> None:
    class Quantized(DynamicLayer):
        pass

    cache = _cache("llama", 3)
    cache.layers[1].__class__ = Quantized
    with pytest.raises(NotMergeable, match="Cache layer 1 is a Quantized, which cannot be merged"):
        check_mergeable(cache, 3)
    imitation = type("DynamicLayer", (DynamicLayer,), {})
    cache.layers[1].__class__ = imitation
    with pytest.raises(NotMergeable, match="Cache layer 1 is a DynamicLayer, which cannot"):
        check_mergeable(cache, 3)
    static = StaticCache(config=model_of("llama").config, max_cache_len=8)
    with pytest.raises(NotMergeable, match="Cache layer 0 is a StaticLayer"):
        check_mergeable(static, 3)


def test_layers_that_hold_other_than_the_prompt_are_refused() -> None:
    with pytest.raises(
        NotMergeable, match=r"layer 0 holds 5 states for a prompt of 3 tokens \(cro"
    ):
        check_mergeable(_cache("llama", 5), 3)


def test_layers_of_unequal_type_are_refused() -> None:
    with pytest.raises(NotMergeable, match="Cache layer 0 differs in type between the prompts"):
        merge_caches([_cache("llama", 3), _cache("gemma3_text", 3)], [3, 3])


def test_layers_filled_for_some_prompts_only_are_refused() -> None:
    caches = [_cache("llama", 3), _cache("llama", 3)]
    caches[1].layers[1].keys = None
    with pytest.raises(NotMergeable, match="Cache layer 1 holds states for some prompts only"):
        merge_caches(caches, [3, 3])


def test_recurrent_states_that_differ_are_refused() -> None:
    caches = [_cache("qwen3_next", 3), _cache("qwen3_next", 4)]
    states = caches[1].layers[0].recurrent_states
    for key in states:
        states[key] = None
    with pytest.raises(NotMergeable, match="Cache layer 0: recurrent_states differ between"):
        merge_caches(caches, [3, 4])
