"""A real pretrained model on both backends: SmolLM2-135M-Instruct (`tests/real/conftest.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

import infer_kit as ik
from infer_kit.testing import assert_backend_law
from tests.real.conftest import smollm2  # noqa: F401
from tests.vllm.engines import engine

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
QUESTIONS = ("What is the capital of France?", "Name three fruits.", "Why is the sky blue?")
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def both(
    smollm2: tuple[Any, Any],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Any, Any, Any]]:
    """The model, its tokenizer, and an engine that serves it."""
    model, tokenizer = smollm2
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with engine(folder, max_model_len=1024, kv_cache_memory_bytes=None, max_logprobs=20) as llm:
        yield model, tokenizer, llm


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("RED", {"weight": 0.5, "rationale_generation": {"max_new_tokens": 24}}, {}),
    ("RED", {"weight": "kl:0.1"}, {"rationale": ["It is Paris.", "Apples.", "It scatters."]}),
    ("CFG", {"scale": 1.5}, {}),
    ("ContextAware", {}, {"context": ["Paris is now called Lutece.", "Zorbs.", "It is green."]}),
]


@pytest.mark.filterwarnings("ignore:The rationale of prompt")
@pytest.mark.parametrize("name, settings, inputs", CASES)
def test_backend_law(
    both: tuple[Any, Any, Any], name: str, settings: dict[str, Any], inputs: dict[str, Any]
) -> None:
    model, tokenizer, llm = both
    method = getattr(ik, name)
    sides = [method(side, tokenizer, **settings) for side in (model, llm)]
    assert_backend_law(*sides, CHATS, max_new_tokens=16, **inputs)
