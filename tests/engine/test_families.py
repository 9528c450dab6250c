"""Every text family that is claimed: greedy, beams and drafts, each against the reference."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.cases import (
    GREEDY,
    LOOKUP,
    Crops,
    assert_reference,
    lookup_rows,
    model_of,
    text_rows,
)
from tests.tiny import TEXT_SWEEP

SERIAL: tuple[str, ...] = ()
"""Families whose caches cannot be merged: none."""
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY | {"max_new_tokens": 5},
    "beams": GREEDY | {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2},
    "drafts": LOOKUP | {"max_new_tokens": 6},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", TEXT_SWEEP)
def test_equals_the_reference(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, crops = model_of(family), Crops(monkeypatch)
    engine = "serial" if family in SERIAL else "fused"
    if way != "drafts":
        rows = text_rows(2, 2)
        assert_reference(model, rows, [[1.0, 0.6], [0.8, -0.4]], engine=engine, **WAYS[way])
        return
    if model._is_stateful:
        pytest.skip(f"{family} has recurrent state, which cannot take drafts back")
    assert_reference(model, lookup_rows(2), [[1.0, 0.5]], engine=engine, **WAYS[way])
    assert max(crops.removed) > 0
