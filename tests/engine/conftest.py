"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infer_kit.engine.coupled_lm import CoupledLM
from tests.engine.cases import model_of
from tests.tiny import shared_lvlm, shared_text_model


@pytest.fixture
def nothing_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """No forward pass of the shared models, unless the test asks for `may_run`."""
    calls: list[int] = []
    models = [shared_text_model("llama"), shared_lvlm("llava").model]
    handles = [m.register_forward_pre_hook(lambda *_: calls.append(1)) for m in models]
    yield
    for handle in handles:
        handle.remove()
    assert bool(calls) == ("may_run" in request.fixturenames), f"{len(calls)} forward passes"


@pytest.fixture
def may_run() -> None:
    """Asked for by tests in which something is generated."""


@pytest.fixture
def lm() -> CoupledLM:
    """Two streams of one model."""
    return CoupledLM([model_of("llama")] * 2)
