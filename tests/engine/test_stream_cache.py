"""The state of a call: continued, shared by threads, taken back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from torch import Tensor
from transformers import DynamicCache

from infer_kit.engine.cache_name import cache_of
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.stream_cache import StreamCache
from infer_kit.errors import InferKitError
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    OUTPUT,
    SAMPLING,
    SIGNED,
    assert_engine,
    lookup_rows,
    model_of,
    state_of,
    text_rows,
)
from tests.engine.reference import ReferenceLM, Row
from tests.tiny import TEXT_GRID
from tests.tiny.reference import extended_row

BEFORE_5_18 = version.parse(transformers.__version__) < version.parse("5.18")


def _grown(rows: list[list[Row | None]], new: Tensor) -> list[list[Row | None]]:
    """The contexts with new tokens `[B, n]` written after every prompt."""
    model = model_of("llama")
    return [
        [extended_row(model, dict(row), new[b]) for row in request]
        for b, request in enumerate(rows)
    ]


@pytest.mark.parametrize("mode", ["fused", "serial"])
@pytest.mark.parametrize("way", ["greedy", "sampling", "drafts"])
@pytest.mark.parametrize("family", TEXT_GRID)
def test_a_returned_state_can_be_continued(family: str, way: str, mode: str) -> None:
    if family == "gemma3_text" and way == "drafts" and BEFORE_5_18:
        pytest.skip("plain generate fails too: a sliding layer that recorded its past goes on so")
    model = model_of(family)
    rows = lookup_rows(3) if way == "drafts" else text_rows(1, 3)
    options = {"greedy": GREEDY, "sampling": SAMPLING, "drafts": LOOKUP}[way]
    lm = CoupledLM([model] * 3, SIGNED[:3], mode=mode)
    first = lm.generate(rows, **OUTPUT, **options)
    prompt = rows[0][0]["input_ids"].shape[1]
    told = torch.tensor([[30, 31, 32]])
    ids = torch.cat([first.sequences, told], dim=1)
    second = lm.generate(None, input_ids=ids, past_key_values=cache_of(first), **OUTPUT,
                         **GREEDY)  # fmt: skip
    assert cache_of(second) is cache_of(first)
    assert_engine(second, mode)
    reference = ReferenceLM([model] * 3, _grown(rows, ids[:, prompt:]), [SIGNED[:3]])
    theirs = reference.write(**GREEDY)
    assert torch.equal(second.sequences, theirs.sequences)
    for a, b in zip(second.logits, theirs.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_continued_state_takes_no_weights_and_no_trace() -> None:
    lm = CoupledLM([model_of("llama")] * 2)
    for options in ({"weights": [1.0, 2.0]}, {"trace": True}):
        with pytest.raises(InferKitError, match="keeps its weights, images and limits"):
            lm.generate(None, input_ids=torch.ones(1, 1, dtype=torch.long), **options)


def test_what_cannot_continue_a_state_is_refused() -> None:
    lm = CoupledLM([model_of("llama")] * 2)
    out = lm.generate(text_rows(1, 2), **OUTPUT, **GREEDY)
    cache, ids = cache_of(out), torch.cat([out.sequences, torch.tensor([[9]])], dim=1)
    with pytest.raises(InferKitError, match=r"generate\(\) needs rows; to continue a state"):
        lm.generate(None)
    with pytest.raises(InferKitError, match="to continue a state, it needs input_ids"):
        lm.generate(None, input_ids=ids, past_key_values=DynamicCache())
    for wrong in (ids[:, :-2], ids.repeat(2, 1), ids[0]):
        with pytest.raises(InferKitError, match=r"holds 1 sequences of 17 tokens|of shape \["):
            lm.generate(None, input_ids=wrong, past_key_values=cache)
    for options in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        with pytest.raises(InferKitError, match="must be 1"):
            lm.generate(None, input_ids=ids, past_key_values=cache, **options)
    lm.generate(None, input_ids=ids, past_key_values=cache, **GREEDY)


def test_forward_needs_a_state() -> None:
    with pytest.raises(InferKitError, match=r"called through generate\(rows\) or score"):
        CoupledLM(model_of("llama"))(torch.ones(1, 3, dtype=torch.long))


def test_eight_threads_share_one_engine() -> None:
    """All state is in the call's cache: nothing is left on the models or on the engine."""
    lm = CoupledLM([model_of("llama"), model_of("qwen3"), model_of("llama")])
    jobs: list[dict[str, Any]] = [
        {
            "rows": text_rows(1 + n % 3, 3, seed=n),
            "weights": [1.0, 0.1 * n - 0.4, 0.3],
            **(BEAMS if n % 2 else GREEDY),
        }
        for n in range(8)
    ]
    alone = [lm.generate(**job) for job in jobs]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda job: lm.generate(**job), jobs))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["fused", "serial"])
@pytest.mark.parametrize("family", TEXT_GRID)
def test_tokens_are_taken_back_exactly(family: str, mode: str) -> None:
    """Step, crop, step again: the logits of a state that never saw the cropped tokens."""
    lm = CoupledLM([model_of(family)] * 3, mode=mode)
    rows = text_rows(2, 3)
    rows[1] = rows[1][:2]
    wrong = torch.randint(3, 160, (2, 4), generator=torch.Generator().manual_seed(1))
    right = torch.randint(3, 160, (2, 3), generator=torch.Generator().manual_seed(2))
    states = []
    for drafts in (False, True):
        cache = state_of(lm, rows, 2)
        cache.activate_past_recording()
        for tokens in (4, 2) if drafts else ():
            cache.step(wrong[:, :tokens])
            cache.crop(-tokens)
        assert cache.get_seq_length() == max(r[0]["input_ids"].shape[1] for r in rows)
        first = cache.step(right[:, :2])
        cache.crop(0)
        _assert_sizes(cache)
        states.append(torch.cat([first, cache.step(right[:, 2:])], dim=2))
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)


def _assert_sizes(cache: StreamCache) -> None:
    """A crop leaves nothing behind: masks as long as the states, sliding layers within a window."""
    (group,) = cache._groups
    if group.engine == "fused":
        length = group.cache.get_seq_length(1)
        assert group.mask.shape[1] == length
    caches = [group.cache] if group.engine == "fused" else [s.cache for s in group.states]
    for layer in (layer for c in caches for layer in c.layers):
        window = getattr(layer, "sliding_window", None)
        assert window is None or layer.keys.shape[-2] < window


@pytest.mark.parametrize("mode", ["fused", "serial"])
def test_sequences_are_selected_repeated_and_reordered(mode: str) -> None:
    """Two beams a request, requests with unequally many streams, two models."""
    lm = CoupledLM([model_of("qwen3"), model_of("llama"), model_of("qwen3")], mode=mode)
    rows = text_rows(3, 3)
    rows[1] = rows[1][:1]
    token = torch.tensor([[7], [8], [50], [51], [90], [91]])
    after = torch.tensor([[21], [22], [23], [24], [25], [26]])

    def grown() -> StreamCache:
        cache = state_of(lm, rows, 6)
        cache.step(token)
        return cache

    for change, index in (
        (lambda c: c.reorder_cache(torch.tensor([1, 1, 2, 3, 5, 4])), [1, 1, 2, 3, 5, 4]),
        (lambda c: c.batch_select_indices(torch.tensor([4, 3, 0])), [4, 3, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    ):
        cache = grown()
        change(cache)
        assert cache.request.tolist() == [n // 2 for n in index]
        ids = after[: len(index)].repeat(2, 1)[: len(index)]
        ours = cache.step(ids)
        for new, old in enumerate(index):  # each alone: the token that was fed to it, then this
            alone = state_of(lm, [rows[old // 2]], 1)
            alone.step(token[old : old + 1])
            theirs = alone.step(ids[new : new + 1])
            streams = theirs.shape[1]  # request 1 has but one
            torch.testing.assert_close(ours[new : new + 1, :streams], theirs, atol=1e-5, rtol=0)


def test_crop_takes_negative_numbers() -> None:
    cache = state_of(CoupledLM(model_of("llama")), text_rows(1, 1), 1)
    with pytest.raises(ValueError, match="minus the number of tokens to remove"):
        cache.crop(3)
    assert cache.get_max_length() == -1
    assert not cache.is_compileable


@pytest.mark.skipif(BEFORE_5_18, reason="nobody asks before 5.18")
@pytest.mark.parametrize("mode", ["fused", "serial"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
def test_croppable_is_what_has_no_recurrent_state(family: str, mode: str) -> None:
    """Asked by transformers 5.24 after the prefill."""
    lm = CoupledLM([model_of(family), model_of("llama")], mode=mode)
    assert state_of(lm, text_rows(1, 2), 1).is_croppable == (family != "qwen3_next")
