"""What the docstrings of metrics show is what they give."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["choices", "gqa", "numbers", "ptb", "vqa", "yes_no"])
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"infer_kit.evaluation.metrics.{name}"))
    assert found.attempted > 0 and found.failed == 0
