"""The classes of harnesses that are not installed, as far as our adapters use them."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


class Lmms:
    """`lmms_eval.api.model.lmms` of 0.7.3, without what no adapter calls."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank


@pytest.fixture
def lmms_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`InferKitLMMS`, on the real base class where lmms-eval is installed."""
    if importlib.util.find_spec("lmms_eval") is None:
        module = ModuleType("lmms_eval.api.model")
        module.lmms = Lmms  # type: ignore[attr-defined]
        for name in ("lmms_eval", "lmms_eval.api"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "lmms_eval.api.model", module)
        monkeypatch.delitem(sys.modules, "infer_kit.harness.lmms_model", raising=False)
    from infer_kit.harness.lmms_model import InferKitLMMS

    return InferKitLMMS
