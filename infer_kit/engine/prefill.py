"""Prefill: one forward over each stream's prompt, unpadded, by the model's own preparation."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from infer_kit.engine.cache_name import CACHE, cache_of
from infer_kit.errors import InferKitError

# Prompts of equal length share one prefill while it stays below this many tokens: beyond that
# the matrix products are large enough alone, and the activations need the memory.
_BATCH_TOKENS = 4096
_TEXT_KEYS = {"input_ids", "attention_mask"}


@dataclass(frozen=True)
class Entry:
    """One stream of one request: its inputs, and where its distribution belongs.

    Attributes:
        request: index of the request.
        stream: index among the streams that are run, the pool's K axis.
        inputs: what the processor returned for one unpadded prompt.
    """

    request: int
    stream: int
    inputs: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Tokens of the prompt, image placeholders included."""
        return self.inputs["input_ids"].shape[1]


@dataclass
class Prefilled:
    """The state of one or more prompts of equal length after their prefill.

    Attributes:
        entries: the prompts, in batch order.
        logits: `[len(entries), 1, V]` at the last prompt position.
        cache: the model's own cache.
        position: the position ids of the last prompt token, `[..., len(entries), 1]` (a leading
            axis for M-RoPE), or None where the model's forward takes none.
        kwargs: what `generate` would carry to the next step; the serial group goes on from it.
        outputs: the model's output object, without its logits.
    """

    entries: list[Entry]
    logits: Tensor
    cache: Cache
    position: Tensor | None
    kwargs: dict[str, Any]
    outputs: Any


def forward_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the arguments that the model's forward takes."""
    return set(inspect.signature(model.forward).parameters)


def cross_attention_layers(model: PreTrainedModel) -> frozenset[int]:
    """Indices of the layers whose cache holds the image, not the tokens (Mllama)."""
    config = model.config.get_text_config(decoder=True)
    return frozenset(getattr(config, "cross_attention_layers", None) or ())


def prefill(model: PreTrainedModel, entries: Sequence[Entry]) -> Prefilled:
    """Run the prompts of `entries`, all of one length, without padding and without a mask.

    Positions are explicit: a model with M-RoPE otherwise keeps them on the module, where the next
    stream's prompt overwrites them.
    """
    parameters = forward_parameters(model)
    kwargs = _on_device(_stacked(entries), model)
    ids = kwargs.pop("input_ids")
    mask = kwargs.pop("attention_mask", None)
    if "position_ids" in parameters and "position_ids" not in kwargs:
        ones = torch.ones_like(ids) if mask is None else mask
        kwargs["position_ids"] = model._prepare_position_ids_for_generation(
            ids, {**kwargs, "attention_mask": ones}
        )
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    kwargs |= {CACHE: cache, "use_cache": True}
    if "logits_to_keep" in parameters:
        kwargs["logits_to_keep"] = 1
    inputs = model.prepare_inputs_for_generation(ids, is_first_iteration=True, **kwargs)
    try:
        outputs = model(**inputs, return_dict=True)
    except ValueError as error:  # how models say that images and placeholders differ in number
        requests = ", ".join(str(entry.request) for entry in entries)
        raise InferKitError(
            f"Request {requests}: {type(model).__name__} could not read the prompt: {error}"
        ) from error
    logits, outputs.logits = outputs.logits[:, -1:], None
    position = inputs.get("position_ids")
    return Prefilled(
        entries=list(entries),
        logits=logits,
        cache=cache_of(outputs),
        position=None if position is None else position[..., -1:].expand(*_batched(position, ids)),
        kwargs=kwargs,
        outputs=outputs,
    )


def equal_length_batches(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Split prompts into batches that may be prefilled together.

    Only text prompts of equal length share a batch; a prompt with images is run alone, since
    families lay out the pixels of several prompts differently.
    """
    batches: list[list[Entry]] = []
    open_batch: dict[int, list[Entry]] = {}
    for entry in entries:
        if set(entry.inputs) <= _TEXT_KEYS:
            batch = open_batch.get(entry.length)
            if batch is not None and (len(batch) + 1) * entry.length <= _BATCH_TOKENS:
                batch.append(entry)
                continue
            open_batch[entry.length] = [entry]
            batches.append(open_batch[entry.length])
        else:
            batches.append([entry])
    return batches


def _stacked(entries: Sequence[Entry]) -> dict[str, Any]:
    if len(entries) == 1:
        return dict(entries[0].inputs)
    return {"input_ids": torch.cat([entry.inputs["input_ids"] for entry in entries])}


def _on_device(inputs: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Tensors on the model's device; floating ones are cast by the model itself, as in generate."""
    return {
        key: value.to(model.device) if isinstance(value, Tensor) else value
        for key, value in inputs.items()
    }


def _batched(position: Tensor, ids: Tensor) -> tuple[int, ...]:
    """Shape of the last position with a full batch axis (positions may be `[1, S]` for a batch)."""
    return (*position.shape[:-2], ids.shape[0], 1)
