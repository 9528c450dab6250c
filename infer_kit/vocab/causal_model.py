"""A causal language model as a forest of tokens uses it: checked inputs, counted forwards."""

import re
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.arguments import context_length
from infer_kit.engine.model_facts import forward_parameters
from infer_kit.errors import InferKitError, PromptTooLong

Handle = int
"""A node of a forest: a token of a tree, after all its ancestors. Never given out twice."""

# Names of tables with a row for each position: learned (GPT-2, OPT) or computed once (GPT-J).
_POSITION_TABLE = re.compile(
    r"(^|\.)(wpe|pos(ition)?s?_(emb|enc)\w*|embed_positions?)(\.weights?)?$"
)
# Families whose prompts are read in both directions.
_BOTH_WAYS = frozenset({"paligemma", "pi0", "git", "cpmant"})


class CausalModel:
    """What `TreeKV` and `BatchedKV` share: a model's forward, its limits and the checks of inputs.

    Attributes:
        model: the model itself. config: that of its language part.
        parameters: names of the arguments of its forward.
        calls: forwards made.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises: `InferKitError` for models that are not causal, and for RoBERTa's family."""
        self.name = type(model).__name__
        if model.config.is_encoder_decoder:
            raise InferKitError(
                f"{self.name} is an encoder-decoder, which gives no law of a text's beginning.",
                "Pass a decoder-only model.",
            )
        both_ways = getattr(model.config.get_text_config(), "use_bidirectional_attention", None)
        if model.config.model_type in _BOTH_WAYS or both_ways in (True, "all"):
            raise InferKitError(
                f"{self.name} reads a text in both directions, so that no law of a next token "
                "follows from what is before it.",
                "Pass a causal model.",
            )
        if any(hasattr(part, "create_position_ids_from_input_ids") for part in model.modules()):
            raise InferKitError(
                f"{self.name} counts positions from its padding token, not from 0.",
                "Pass a decoder-only model; this family (RoBERTa) is not supported.",
            )
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.parameters = forward_parameters(model)
        self.calls = 0
        self._embedding: Any = model.get_input_embeddings()
        self._limit = position_limit(model)
        self._trained = context_length(model)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        return self._embedding.weight.dtype

    def check(self, tokens: Sequence[int], longest: int) -> None:
        """Raise if the model cannot read these tokens, or sequences of `longest` tokens."""
        rows = self._embedding.weight.shape[0]
        if min(tokens) < 0 or max(tokens) >= rows:
            wrong = next(token for token in tokens if not 0 <= token < rows)
            raise InferKitError(f"{self.name} has no token {wrong}: its ids are 0 to {rows - 1}.")
        if self._limit is not None and longest > self._limit[0]:
            raise PromptTooLong(
                f"A sequence of {longest} tokens is too long for {self.name}: {self._limit[1]}.",
                "Shorten the prompt, or generate less.",
            )
        if self._trained is not None and longest > self._trained:
            warnings.warn(
                f"A sequence is longer than the {self._trained:,} positions that {self.name} was "
                "made for: what it says from there on is worth little.",
                stacklevel=2,
            )
            self._trained = None  # said once

    def check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise if a prompt is empty or cannot be read."""
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise InferKitError(
                    f"Prompt {index} has no token, and a model gives no law after nothing.",
                    "Begin with the model's bos token, or its end token where it has no bos.",
                )
            self.check(prompt, len(prompt))

    def __call__(self, **inputs: Any) -> Tensor:
        """One forward. Returns: logits `[rows, n, V]`, float64 from a float64 model, else float32.

        Raises: `InferKitError` if the model is in training mode, or has no head.
        """
        if self.model.training:
            raise InferKitError(
                f"{self.name} is in training mode, where dropout makes its law random.",
                "Call model.eval() first.",
            )
        with torch.no_grad():
            output = self.model(**inputs, return_dict=True)
        self.calls += 1
        logits = getattr(output, "logits", None)
        if logits is None:
            raise InferKitError(
                f"{self.name} returns no logits.", "Load it by AutoModelForCausalLM."
            )
        return logits if logits.dtype == torch.float64 else logits.float()

    def no_logits(self) -> Tensor:
        """The logits `[0, V]` of no sequence."""
        return torch.empty(0, self.config.vocab_size, device=self.device)


def forgotten(handle: Handle) -> InferKitError:
    """The error for a handle that names no node."""
    return InferKitError(
        f"There is no node {handle}: no call returned it, or `keep` was told that it is not needed."
    )


def position_limit(model: PreTrainedModel) -> tuple[int, str] | None:
    """The most tokens of a sequence that a model reads rightly, and why; None without a limit.

    A table of positions ends. Rotary positions do not, but those of type "dynamic" and "longrope"
    turn all keys anew once a sequence is longer than the model was trained on, so that keys kept
    from before are wrong.
    """
    config = model.config.get_text_config(decoder=True)
    if config.model_type == "mpt":  # a table of distances
        return int(config.max_seq_len), f"it has {config.max_seq_len} positions"
    size = getattr(config, "max_position_embeddings", None)
    decoder = model.get_decoder() or model  # not the images' tower, which has a table of its own
    tensors = chain(decoder.named_parameters(), decoder.named_buffers())
    if any(_POSITION_TABLE.search(name) for name, _ in tensors):
        return None if size is None else (int(size), f"it has {size} positions")
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        rope_type = kind.get("rope_type")
        if rope_type in ("dynamic", "longrope"):
            trained = int(kind.get("original_max_position_embeddings") or size or 0)
            return trained, f"beyond {trained} it changes the keys of all tokens ({rope_type})"
    return None
