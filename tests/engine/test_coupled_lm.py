"""The grid: families × streams × requests × ways of decoding, each against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    MIXTURE,
    PRODUCT,
    SAMPLING,
    SIGNED,
    Crops,
    assert_reference,
    lookup_rows,
    model_of,
    text_rows,
)
from tests.engine.reference import ReferenceLM, greedy_loop
from tests.tiny import TEXT_GRID

WAYS: dict[str, tuple[str, list[float] | None, dict[str, Any]]] = {
    "greedy": ("product", PRODUCT, GREEDY),
    "sampling": ("product", PRODUCT, SAMPLING | {"num_return_sequences": 2}),
    "beams": ("product", PRODUCT, BEAMS | {"max_new_tokens": 4}),
    "mixture": ("mixture", None, GREEDY),
    "signed": ("product", SIGNED, GREEDY),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("family", TEXT_GRID)
def test_equals_the_reference(family: str, streams: int, requests: int, way: str) -> None:
    pool, weights, options = WAYS[way]
    weights = MIXTURE[streams] if weights is None else weights[:streams]
    rows = text_rows(requests, streams)
    assert_reference(model_of(family), rows, [weights] * requests, pool, **options)


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("family", TEXT_GRID)
def test_prompt_lookup_equals_the_reference(
    family: str, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = Crops(monkeypatch)
    rows = lookup_rows(streams)
    ours = assert_reference(model_of(family), rows, [PRODUCT[:streams]], **LOOKUP)
    assert max(crops.removed) > 0, "no draft was ever rejected"
    assert len(crops.removed) < ours.sequences.shape[1] - rows[0][0]["input_ids"].shape[1], (
        "no draft was ever accepted"
    )


@pytest.mark.parametrize("family", TEXT_GRID)
def test_equals_a_loop_without_generate(family: str) -> None:
    model, rows = model_of(family), text_rows(2, 3)
    weights = [SIGNED[:3], PRODUCT[:3]]
    ours = assert_reference(model, rows, weights, **GREEDY)
    reference = ReferenceLM([model] * 3, rows, weights)
    prompt = max(row[0]["input_ids"].shape[1] for row in rows)
    for request in range(2):
        written = greedy_loop(reference, request, GREEDY["max_new_tokens"])
        assert ours.sequences[request, prompt:][: len(written)].tolist() == written


def test_outputs_are_not_degenerate() -> None:
    """The grid would prove little if every stream wanted the same tokens."""
    model, rows = model_of("llama"), text_rows(1, 2)
    continuations = set()
    for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, 0.5]):
        ours = assert_reference(model, rows, [weights], **GREEDY)
        new = ours.sequences[0, rows[0][0]["input_ids"].shape[1] :]
        assert len(set(new.tolist())) > 2
        continuations.add(tuple(new.tolist()))
    assert len(continuations) == 3
    assert torch.isfinite(torch.stack(ours.logits)).all()
