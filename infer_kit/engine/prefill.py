"""Prefill: one forward over each stream's prompt, unpadded, by the model's own preparation.

Prompts that go on from a prefix are read in one batch: padding is in their caches alone, and every
token that is read sees at least itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from infer_kit.engine.cache_merge import merge_caches
from infer_kit.engine.cache_name import CACHE, cache_of
from infer_kit.engine.context_prefix import (
    PREFIX,
    TOKEN_INPUTS,
    ContextPrefix,
    prompt_length,
    whole_token_inputs,
)
from infer_kit.engine.image_features import can_be_joined, joined_outputs
from infer_kit.engine.model_facts import forward_parameters
from infer_kit.errors import InferKitError

# Prompts of equal length share one prefill while it stays below this many tokens: beyond that
# the matrix products are large enough alone, and the activations need the memory.
_BATCH_TOKENS = 4096
_TEXT_KEYS = {"input_ids", "attention_mask"}
_CONTINUED_KEYS = {*TOKEN_INPUTS, PREFIX, "mm_encoder_outputs"}


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
        """Tokens of the prompt, its prefix and image placeholders included."""
        return prompt_length(self.inputs)


@dataclass
class Prefilled:
    """The state of one or more prompts after their prefill.

    Attributes:
        entries: the prompts, in batch order: of equal length, or each going on from a prefix, and
            then the cache is left-padded to the longest.
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

    @property
    def length(self) -> int:
        """Tokens that the cache holds of every prompt, padding included."""
        return max(entry.length for entry in self.entries)


def make_prefix(model: PreTrainedModel, row: Mapping[str, Any], read: bool = True) -> ContextPrefix:
    """A row as the beginning of prompts.

    Args:
        row: with encoded images in place of pixels where it is not read. Whether a prompt can be
            read in two passes at all is for `model_facts.why_not_continued` to say.
        read: False keeps no state: the whole prompt is read each time.
    """
    kept = {name: row[name] for name in TOKEN_INPUTS if row.get(name) is not None}
    if read:
        with torch.no_grad():
            return ContextPrefix(model, kept, cache=prefill(model, [Entry(0, 0, row)]).cache)
    encoded = row.get("mm_encoder_outputs")
    return ContextPrefix(model, kept, images=None if encoded is None else encoded["image"])


def prefill(model: PreTrainedModel, entries: Sequence[Entry]) -> Prefilled:
    """Run the prompts of `entries`, all of one length, without padding and without a mask.

    Positions are explicit: a model with M-RoPE otherwise keeps them on the module, where the next
    stream's prompt overwrites them. Prompts with prefixes go on from there, see `_continued`.
    """
    if PREFIX in entries[0].inputs:
        return _continued(model, entries)
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
    outputs = _run(model, inputs, entries)
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


def _continued(model: PreTrainedModel, entries: Sequence[Entry]) -> Prefilled:
    """Go on from the prefixes of `entries`, all by the same number of tokens.

    The prefixes' caches are merged first, left-padded, as those of decoding streams are.
    """
    parameters = forward_parameters(model)
    ids = torch.cat([entry.inputs["input_ids"] for entry in entries]).to(model.device)
    caches = [entry.inputs[PREFIX].fork() for entry in entries]
    cache = caches[0]
    if len(caches) > 1:  # alone, a cache need not be of a kind that can be merged
        cache = merge_caches(caches, [entry.inputs[PREFIX].length for entry in entries])
    wholes = [_on_device(whole_token_inputs(entry.inputs), model) for entry in entries]
    kwargs: dict[str, Any] = {CACHE: cache, "use_cache": True}
    if "logits_to_keep" in parameters:
        kwargs["logits_to_keep"] = 1
    inputs = {**kwargs, **_on_device(_images_of(entries), model), "input_ids": ids}
    longest = max(entry.length for entry in entries)
    mask = torch.stack(
        [F.pad(torch.ones_like(w["input_ids"][0]), (longest - w["input_ids"].shape[1], 0))
         for w in wholes]
    )  # fmt: skip
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    position = None
    if "position_ids" in parameters:
        every = [
            model._prepare_position_ids_for_generation(
                whole["input_ids"],
                {"attention_mask": torch.ones_like(whole["input_ids"])} | whole,
            )
            for whole in wholes
        ]
        inputs["position_ids"] = torch.cat([p[..., -ids.shape[1] :] for p in every], dim=-2)
        position = inputs["position_ids"][..., -1:]
    if len(entries) == 1:  # a serial group goes on from the whole prompt
        kwargs |= {k: v for k, v in wholes[0].items() if k != "input_ids"}
        kwargs["attention_mask"] = torch.ones_like(wholes[0]["input_ids"])
        if position is not None:
            kwargs["position_ids"] = every[0]
    outputs = _run(model, inputs, entries)
    logits, outputs.logits = outputs.logits[:, -1:], None
    return Prefilled(list(entries), logits, cache_of(outputs), position, kwargs, outputs)


def _run(model: PreTrainedModel, inputs: dict[str, Any], entries: Sequence[Entry]) -> Any:
    try:
        return model(**inputs, return_dict=True)
    except ValueError as error:  # how models say that images and placeholders differ in number
        requests = ", ".join(str(entry.request) for entry in entries)
        raise InferKitError(
            f"Request {requests}: {type(model).__name__} could not read the prompt: {error}"
        ) from error


def prefill_batches(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Split prompts into batches that may be prefilled together.

    Text prompts of equal length share a batch; a prompt with pixels is run alone, since families
    lay out the pixels of several prompts differently. Prompts with prefixes share one where equally
    many tokens follow.
    """
    batches: list[list[Entry]] = []
    open_batch: dict[tuple, list[Entry]] = {}
    for entry in entries:
        new = entry.inputs["input_ids"].shape[1]
        key: tuple | None = None
        if PREFIX in entry.inputs:
            encoded = entry.inputs.get("mm_encoder_outputs")
            joins = encoded is None or can_be_joined(encoded["image"])
            if joins and set(entry.inputs) <= _CONTINUED_KEYS:
                key = (PREFIX, encoded is not None, new)
        elif set(entry.inputs) <= _TEXT_KEYS:
            key = (None, False, new)
        batch = open_batch.get(key) if key is not None else None
        if batch is not None and (len(batch) + 1) * new <= _BATCH_TOKENS:
            batch.append(entry)
            continue
        batches.append([entry])
        if key is not None:
            open_batch[key] = batches[-1]
    return batches


def _images_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """The image inputs of prompts: as they are for one, joined features for several."""
    if len(entries) == 1:
        inputs = entries[0].inputs
        return {k: v for k, v in inputs.items() if k not in TOKEN_INPUTS and k != PREFIX} | {
            k: inputs[k] for k in ("image_grid_thw",) if inputs.get(k) is not None
        }
    if entries[0].inputs.get("mm_encoder_outputs") is None:
        return {}
    outputs = [entry.inputs["mm_encoder_outputs"]["image"] for entry in entries]
    return {"mm_encoder_outputs": {"image": joined_outputs(outputs)}}


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
