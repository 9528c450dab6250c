"""Fused and serial decoding: the same logits, the engine that was asked for, bf16's own noise."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from infer_kit.engine.coupled_lm import CoupledLM
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    OUTPUT,
    PRODUCT,
    SAMPLING,
    SIGNED,
    assert_engine,
    assert_reference,
    lookup_rows,
    model_of,
    state_of,
    text_row,
    text_rows,
)
from tests.tiny import TEXT_GRID, text_model

WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sampling": SAMPLING | {"num_return_sequences": 2},
    "beams": BEAMS | {"max_new_tokens": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*TEXT_GRID, "bloom", "qwen3_next"])
def test_serial_equals_the_reference(family: str, way: str) -> None:
    assert_reference(
        model_of(family), text_rows(2, 3), [SIGNED[:3], PRODUCT[:3]],
        mode="serial", engine="serial", **WAYS[way],
    )  # fmt: skip


@pytest.mark.parametrize("family", TEXT_GRID)
def test_serial_drafts_equal_the_reference(family: str) -> None:
    assert_reference(model_of(family), lookup_rows(3), [PRODUCT[:3]], mode="serial",
                     engine="serial", **LOOKUP)  # fmt: skip


def test_serial_with_ragged_requests() -> None:
    rows = text_rows(3, 3)
    rows[0], rows[2] = rows[0][:1], [rows[2][0], None, rows[2][2]]
    weights = [[1.0, 0.0, 0.0], PRODUCT[:3], [1.0, 0.0, -0.4]]
    for way in WAYS.values():
        assert_reference([model_of("llama")] * 3, rows, weights, mode="serial", engine="serial",
                         **way)  # fmt: skip


def test_fused_and_serial_give_the_same_logits() -> None:
    rows = text_rows(3, 4)
    out = [
        CoupledLM([model_of("gemma3_text")] * 4, SIGNED, mode=mode).generate(
            rows, **OUTPUT, **GREEDY
        )
        for mode in ("fused", "serial")
    ]
    assert_engine(out[0], "fused")
    assert_engine(out[1], "serial")
    for a, b in zip(out[0].logits, out[1].logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_one_forward_a_step_whatever_the_streams() -> None:
    """Fused: B · K rows in one call; each prompt alone but for those of equal length."""
    model = model_of("llama")
    rows = [[text_row(9, 1), text_row(4, 2)], [text_row(9, 3), text_row(4, 4)]]
    shapes: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(list(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        CoupledLM([model] * 2).generate(rows, **GREEDY | {"max_new_tokens": 3})
    finally:
        handle.remove()
    assert sum(rows * length for rows, length in shapes[:-2]) == 2 * 9 + 2 * 4
    assert shapes[-2:] == [[4, 1], [4, 1]]


def test_prompts_run_once_however_many_beams() -> None:
    model = model_of("llama")
    tokens: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        CoupledLM([model] * 2).generate(
            [[text_row(9, 1), text_row(5, 2)]], max_new_tokens=2, num_beams=4
        )
    finally:
        handle.remove()
    assert tokens == [9, 5, 8]


def test_no_mask_where_nothing_is_padded() -> None:
    model = model_of("llama")
    lm = CoupledLM([model] * 2)
    for lengths, masked in (((6, 6), False), ((6, 7), True)):
        cache = state_of(lm, [[text_row(length, 1) for length in lengths]], 1)
        assert (cache._groups[0].mask is not None) == masked


def test_equal_prompts_prefilled_together_keep_their_order() -> None:
    """Lengths 7, 4, 7, 4, 7: two batches, whose rows are interleaved."""
    rows = [[text_row(length, 10 * b + k) for k, length in enumerate((7, 4, 7, 4, 7))]
            for b in range(2)]  # fmt: skip
    weights = [[1.0, -0.3, 0.4, 0.2, 0.5], [0.3, 0.9, -0.2, 0.5, 0.1]]
    for way in WAYS.values():
        assert_reference(model_of("qwen3"), rows, weights, **way)


def test_modes_that_work_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("auto", "fused", "serial"):
            lm = CoupledLM([model_of("llama")] * 2, mode=mode)
            out = lm.generate(text_rows(1, 2), **OUTPUT, **GREEDY)
            assert_engine(out, "serial" if mode == "serial" else "fused")


def test_attention_implementations() -> None:
    for implementation in ("eager", "sdpa"):
        model = text_model("gemma3_text", attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        assert_reference(model, text_rows(2, 3), [SIGNED[:3]] * 2, **BEAMS)


def test_bf16_noise_of_batching_is_below_its_own() -> None:
    """Fused against serial in bf16, measured by bf16 against fp32; never token by token."""
    precise = text_model("llama")
    rough = text_model("llama").bfloat16()
    rows = [[text_row(3 + 5 * k + b, 20 * b + k) for k in range(4)] for b in range(6)]
    new = torch.randint(3, 160, (6, 8), generator=torch.Generator().manual_seed(0))

    def logprobs(model: Any, mode: str) -> Tensor:
        cache = state_of(CoupledLM([model] * 4, mode=mode), rows, 6)
        assert cache.engines == (mode,)
        with torch.no_grad():
            steps = [cache.step(new[:, t : t + 1]) for t in range(8)]
        return torch.cat(steps, dim=2).log_softmax(-1)

    fused, serial = logprobs(rough, "fused"), logprobs(rough, "serial")
    exact = logprobs(precise, "serial")
    own = (serial - exact).std()
    assert own > 1e-3
    assert (fused - serial).std() / own < 0.6
    assert (fused - exact).std() / own < 1.2
