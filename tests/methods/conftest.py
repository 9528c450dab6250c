"""A tiny random LLaVA that reads chats with pictures, and a tiny text model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from infer_kit.methods.parallel_icl import ParallelICL
from infer_kit.methods.prompts import Prompts
from infer_kit.methods.red import RED
from tests.tiny import shared_text_model, tiny_lvlm
from tests.tiny.tokenizers import tiny_processor, tiny_tokenizer

SHORT = Prompts("{question} why?", "{question}", "notes: {rationale} {question}")


def picture(seed: int) -> Image.Image:
    """A picture of noise, its own for each seed."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def chat(question: str, *images: Any) -> list[dict[str, Any]]:
    """One user turn: images, then the question."""
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


@pytest.fixture(scope="session")
def lvlm() -> PreTrainedModel:
    tiny = tiny_lvlm("llava")
    tiny.model.generation_config.suppress_tokens = tiny.image_token_ids
    return tiny.model


@pytest.fixture(scope="session")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture
def red(lvlm: PreTrainedModel, processor: Any) -> Callable[..., RED]:
    """`RED` on the tiny LLaVA, with short prompts and short rationales."""

    def make(**options: Any) -> RED:
        options.setdefault("prompts", SHORT)
        options.setdefault("rationale_generation", {"max_new_tokens": 6, "min_new_tokens": 6})
        return RED(lvlm, processor, **options)

    return make


@pytest.fixture(scope="session")
def text_pair() -> tuple[PreTrainedModel, Any]:
    """A tiny text model and its tokenizer."""
    return shared_text_model("llama"), tiny_tokenizer()


@pytest.fixture
def tower_calls(lvlm: PreTrainedModel) -> Iterator[list[int]]:
    """Grows by one with each pass through the vision tower."""
    calls: list[int] = []
    handle = lvlm.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.fixture
def model_calls(lvlm: PreTrainedModel) -> Iterator[list[int]]:
    """Grows by one with each forward of the model or of its tower."""
    calls: list[int] = []
    modules = (lvlm, lvlm.model.vision_tower)
    handles = [m.register_forward_pre_hook(lambda *_: calls.append(1)) for m in modules]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.fixture
def icl(lvlm: PreTrainedModel, processor: Any) -> Callable[..., ParallelICL]:
    """A fitted `ParallelICL` on the tiny LLaVA."""
    from tests.methods.icl_cases import demonstrations  # it needs the pictures made here

    seven = demonstrations()

    def make(demos: Any = seven, features: Any = None, **options: Any) -> ParallelICL:
        return ParallelICL(lvlm, processor, **options).fit(demos, features=features)

    return make
