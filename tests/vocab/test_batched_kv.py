"""Forests with a row of a cache for each node."""

from __future__ import annotations

import pytest

from infer_kit.vocab.batched_kv import _Block
from infer_kit.vocab.language_models import BatchedKV, language_model
from tests.vocab.forests import Walk, double, model_of, walk


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_rows_equal_trees(family: str) -> None:
    model = double(model_of(family))
    assert walk(BatchedKV(model), model) <= 1e-12


def test_a_place_in_the_cache_that_counts_as_position() -> None:
    model = model_of("llama4_text", floor_scale=3, attn_scale=2.0)  # scores grow with the place
    forest = language_model(model)
    assert type(forest) is BatchedKV and walk(forest, model) <= 5e-6  # rows are not padded
    calls = forest.calls
    forest.extend([(handle, 5) for handle in forest.prefill([[5, 6], [7]])[0]])
    assert forest.calls == calls + 4


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


def test_falcon_with_alibi() -> None:
    model = model_of("falcon", alibi=True)
    forest = language_model(model)
    assert type(forest) is BatchedKV
    assert walk(forest, model) <= 3e-6
