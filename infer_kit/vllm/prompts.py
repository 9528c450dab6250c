"""Chats as inputs of vLLM's engine, by the model's own processor and chat template."""

import contextlib
import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from vllm.exceptions import VLLMValidationError

from infer_kit.chats import Chat, load_images
from infer_kit.engine.image_noise import add_noise
from infer_kit.engine.rows import RowMaker
from infer_kit.errors import InferKitError, PromptTooLong

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.inputs import EngineInput


@dataclass(frozen=True)
class Prompt:
    """One rendered context.

    Attributes:
        input: what vLLM's engine takes; images are processed, placeholders expanded.
        text: as the chat template writes it. special: whether special tokens were added to that.
        images: in the order of their placeholders.
        begun: whether it goes on from a beginning that the prefix cache has seen.
    """

    input: "EngineInput"
    text: str
    special: bool
    images: tuple[Any, ...] = ()
    begun: bool = False

    @property
    def ids(self) -> list[int]:
        """Token ids, placeholders expanded."""
        return self.input["prompt_token_ids"]


def hollow_model(config: "ModelConfig") -> PreTrainedModel:
    """The transformers model that an engine serves, without its weights.

    It knows what the transformers backend asks of a model: its vocabulary, its image placeholder,
    its generation config.

    Raises:
        InferKitError: transformers has no such model.
    """
    kind = config.hf_config.model_type
    several = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    loader = AutoModelForImageTextToText if several else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = loader.from_config(
                config.hf_config, trust_remote_code=config.trust_remote_code
            ).eval()
    except (ValueError, KeyError, ImportError) as error:
        raise InferKitError(
            f"Methods need the transformers model of {config.model!r}, and there is none: {error}",
            hint="CoupledLLM.generate_groups takes any model that vLLM has.",
        ) from error
    with contextlib.suppress(OSError):  # it may have none
        model.generation_config = GenerationConfig.from_pretrained(
            config.model, revision=config.revision
        )
    return model


class PromptMaker:
    """Renders chats with one processor for one engine."""

    def __init__(
        self, processor: Any, config: "VllmConfig", renderer: Any, chat_template: str | None
    ) -> None:
        """Args:
        processor, chat_template: see `RowMaker`.
        config: of the engine. renderer: its own.
        """
        self.model = hollow_model(config.model_config)
        self.rows = RowMaker(processor, self.model, chat_template)
        self.limit = config.model_config.max_model_len
        self._renderer = renderer
        self._takes_images = bool(config.model_config.is_multimodal_model)

    def prompt(self, chat: Chat, request: int, answer: bool = True, begun: bool = False) -> Prompt:
        """A chat, and the start of the assistant's answer unless `answer` is False.

        Raises:
            PromptTooLong: it leaves no room for an answer. InferKitError: see `RowMaker.row`.
        """
        prompt = self.unbounded(chat, request, answer, begun)
        if len(prompt.ids) >= self.limit:
            raise PromptTooLong(
                f"Prompt {request}: the prompt is {len(prompt.ids):,} tokens, the engine takes "
                f"{self.limit:,} with the answer.",
                hint="Start the engine with a larger max_model_len, where the model allows it.",
            )
        return prompt

    def unbounded(
        self, chat: Chat, request: int, answer: bool = True, begun: bool = False
    ) -> Prompt:
        """The same, however long."""
        chat = load_images(chat, request)
        text, special = self.rows.text(chat, request, answer)
        images = tuple(p["image"] for turn in chat for p in turn["content"] if p["type"] == "image")
        if not images:
            # by the tokenizer alone, where vLLM may add tokens of its own
            ids = self.rows.tokenizer(text, add_special_tokens=special)["input_ids"]
            if not ids:
                raise InferKitError(f"Prompt {request} is empty.")
            return Prompt(_tokens(ids), text, special, begun=begun)
        if not self._takes_images:
            raise InferKitError(
                f"Prompt {request} has {len(images)} image(s), but the engine's model reads text "
                "only."
            )
        return Prompt(self._processed(text, special, images, request), text, special, images, begun)

    def last_token(self, prompt: Prompt) -> Prompt:
        """What is left of a prompt when nothing is said."""
        return Prompt(_tokens(prompt.ids[-1:]), "", False)

    def noised(self, prompt: Prompt, step: int, seed: int) -> Prompt:
        """The prompt with noise on its processed images, as the transformers backend adds it."""
        # the noise is of all images together, so their names are
        every = "-".join(prompt.input["mm_hashes"]["image"])
        name = hashlib.sha256(f"{every} {step} {seed}".encode()).hexdigest()
        uuids = [f"noised-{name}-{n}" for n in range(len(prompt.images))]
        made = self._processed(prompt.text, prompt.special, prompt.images, 0, uuids)
        items = copy.deepcopy(made["mm_kwargs"]["image"])
        made["mm_kwargs"]["image"] = items
        pixels = [item["pixel_values"].data for item in items]
        for item, part in zip(items, _noised(pixels, step, seed), strict=True):
            item["pixel_values"].data = part
        return Prompt(made, prompt.text, prompt.special, prompt.images, prompt.begun)

    def _processed(
        self,
        text: str,
        special: bool,
        images: Sequence[Any],
        request: int,
        uuids: Sequence[str] | None = None,
    ) -> "EngineInput":
        """By vLLM's own processor, which knows what the model's forward takes."""
        given: dict[str, Any] = {"prompt": text, "multi_modal_data": {"image": list(images)}}
        if uuids is not None:
            given["multi_modal_uuids"] = {"image": list(uuids)}
        tokens = self._renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=special)
        try:
            # apart from the cache that takes what is rendered as sent: not all of it is
            (made,) = self._renderer.render_cmpl([given], tokens, skip_mm_cache=True)
        except (ValueError, RuntimeError, VLLMValidationError) as error:
            raise InferKitError(f"Prompt {request}: vLLM cannot process it: {error}") from error
        return made


def _noised(pixels: Sequence[torch.Tensor], step: int, seed: int) -> list[torch.Tensor]:
    """Each picture with its part of the noise that all of them together get."""
    noised = add_noise(torch.cat([p.reshape(-1) for p in pixels]), step, seed)
    parts = noised.split([p.numel() for p in pixels])
    return [part.reshape(p.shape) for part, p in zip(parts, pixels, strict=True)]


def _tokens(ids: list[int]) -> "EngineInput":
    return {"type": "token", "prompt_token_ids": [int(i) for i in ids]}
