"""Next-token rows equal transformers' own, whole vocabulary, with the prefix cache."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infer_kit.errors import InferKitError
from infer_kit.vllm.composite import composite_overrides
from tests.vllm.folders import load_text, text_folder

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from infer_kit.vllm.nexttoken import next_token_overrides, next_token_rows  # noqa: E402

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rows")
    other = text_folder(folder / "b", "qwen2", seed=1, hidden_size=128, num_attention_heads=4)
    return text_folder(folder / "a"), other


@contextmanager
def engine(base: Path, overrides: dict[str, Any], **options: Any) -> Iterator[Any]:
    llm = vllm.LLM(
        str(base),
        hf_overrides=overrides,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=48,
        block_size=32,
        kv_cache_memory_bytes=40_000_000,
        **options,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def random_prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    prompts = [[rng.randrange(4, 160) for _ in range(rng.randrange(1, 100))] for _ in range(count)]
    start = [rng.randrange(4, 160) for _ in range(96)]
    return [*prompts, *([*start, last] for last in range(4, 10))]


@torch.no_grad()
def reference(folder: Path, prompts: list[list[int]]) -> torch.Tensor:
    model, _ = load_text(folder)
    rows = [model(torch.tensor([p]), use_cache=False).logits[0, -1] for p in prompts]
    return torch.stack(rows).double().log_softmax(-1)


def test_rows_of_a_model(models: tuple[Path, Path]) -> None:
    prompts = random_prompts(10)
    want = reference(models[0], prompts)
    with engine(models[0], next_token_overrides(), runner="pooling") as llm:
        for _ in range(2):  # the second time from the cache
            rows = next_token_rows(llm, prompts)
            assert rows.dtype == torch.float32 and tuple(rows.shape) == (16, 160)
            torch.testing.assert_close(rows.double(), want, atol=1e-5, rtol=0)
        last = [{"prompt_token_ids": prompts[-1]}]
        again = llm.encode(last, pooling_task="classify", use_tqdm=False)
        assert again[0].num_cached_tokens >= 64
        with pytest.raises(InferKitError, match="Prompt 1 is empty"):
            next_token_rows(llm, [[5], []])
        with pytest.raises(InferKitError, match="There are no prompts"):
            next_token_rows(llm, [])
        with pytest.raises(InferKitError, match="Prompt 0 has an id of 160; the model has 160"):
            next_token_rows(llm, [[160]])


def test_rows_of_a_composite(models: tuple[Path, Path]) -> None:
    made = next_token_overrides(composite_overrides([models[1]], [1.0, -0.5], base=models[0]))
    prompts = random_prompts(6)
    want = (reference(models[0], prompts) - 0.5 * reference(models[1], prompts)).log_softmax(-1)
    with engine(models[0], made, runner="pooling") as llm:
        rows = next_token_rows(llm, prompts)
    torch.testing.assert_close(rows.double(), want, atol=1e-5, rtol=0)


def test_another_engine_is_refused() -> None:
    config = SimpleNamespace(hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]))
    engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=config))
    with pytest.raises(InferKitError, match="LlamaForCausalLM, which gives no next-token rows"):
        next_token_rows(SimpleNamespace(llm_engine=engine), [[5]])  # type: ignore[arg-type]


def test_the_plugin_is_an_entry_point() -> None:
    """vLLM finds the classes by it, in each of its processes."""
    found = {point.name: point.value for point in entry_points(group="vllm.general_plugins")}
    assert found.get("infer_kit") == "infer_kit.vllm.plugin:register"
