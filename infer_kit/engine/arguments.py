"""Checks of what users pass to `CoupledLM`, made before any forward pass."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.context_prefix import PREFIX, ContextPrefix, prompt_length
from infer_kit.engine.model_facts import forward_parameters
from infer_kit.errors import InferKitError, PromptTooLong, VocabularyMismatch


def check_model(model: Any, index: int, what: str = "Stream") -> None:
    """Raise `InferKitError`, naming `what` and `index`, unless `model` can be a stream."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        hint = None
        if hasattr(model, "get_base_model"):
            hint = "For a PEFT model pass model.get_base_model(): the adapters are inside it."
        raise InferKitError(
            f"{what} {index}: expected a transformers model, got {name}.", hint=hint
        )
    if model.config.is_encoder_decoder:
        raise InferKitError(f"{what} {index}: {name} is an encoder-decoder, not a causal model.")
    if not model.can_generate():
        raise InferKitError(
            f"{what} {index}: {name} has no language-model head.",
            hint="Load it with AutoModelForCausalLM or AutoModelForImageTextToText.",
        )
    if CACHE not in forward_parameters(model) or not (model._supports_default_dynamic_cache()):
        raise InferKitError(
            f"{what} {index}: {name} keeps its state in a cache of its own (its forward takes no "
            f"{CACHE}, or not a DynamicCache), which the engine cannot hold."
        )
    check_evaluating(model, index, what)


def check_evaluating(model: PreTrainedModel, index: int, what: str = "Stream") -> None:
    """Raise `InferKitError` for a model in training mode."""
    if model.training:
        raise InferKitError(
            f"{what} {index}: {type(model).__name__} is in training mode, so dropout would change "
            "every step.",
            hint="Call model.eval() first.",
        )


def common_vocabulary_size(
    models: Sequence[PreTrainedModel], tokenizers: Sequence[Any] | None
) -> int:
    """The number of leading ids that all heads have, checked to mean the same tokens.

    Raises:
        VocabularyMismatch: heads differ in size and no tokenizers were given to compare, or the
            tokenizers name an id differently, or name an id that another model has not.
    """
    sizes = [model.config.get_text_config(decoder=True).vocab_size for model in models]
    common = min(sizes)
    if tokenizers is None:
        if len(set(sizes)) > 1:
            raise VocabularyMismatch(
                f"Models disagree on vocabulary: {' vs '.join(map(str, sizes))} tokens.",
                hint="Pass tokenizers=[...] to CoupledLM, one for each model, to check that the "
                "shared ids name the same tokens (heads are often padded).",
            )
        return common
    if len(tokenizers) != len(models):
        raise InferKitError(f"Got {len(tokenizers)} tokenizers for {len(models)} models.")
    vocabularies = [
        {i: token for token, i in _tokenizer(t).get_vocab().items()} for t in tokenizers
    ]
    first = vocabularies[0]
    for index, other in enumerate(vocabularies[1:], start=1):
        ids = first.keys() | other.keys()
        alike = sum(first.get(i) == other.get(i) for i in ids)
        if alike < len(ids) or max(ids, default=0) >= common:
            raise VocabularyMismatch(
                f"Models disagree on vocabulary: the tokenizers of streams 0 and {index} have "
                f"{len(first)} and {len(other)} tokens, {100 * alike / max(len(ids), 1):.0f}% of "
                f"the ids mean the same, and the heads share {common} rows.",
                hint="Streams of one group need one tokenizer.",
            )
    return common


def present_streams(rows: Sequence[Sequence[Any]], streams: int) -> Tensor:
    """`[B, K]` bool: which streams each request has."""
    present = torch.zeros(len(rows), streams, dtype=torch.bool)
    for b, row in enumerate(rows):
        for k, inputs in enumerate(row):
            present[b, k] = inputs is not None
    return present


def check_rows(
    rows: Sequence[Sequence[Mapping[str, Any] | None]],
    models: Sequence[PreTrainedModel],
    primary: int,
    new_tokens: Sequence[int] | None,
) -> None:
    """Raise `InferKitError`, naming request and stream, for prompts that cannot be streams.

    Args:
        rows: `rows[b][k]`. models: one a stream. primary: the stream that every request needs.
        new_tokens: how many tokens may follow each request's prompts, or None if not known.
    """
    if not len(rows):
        raise InferKitError("No requests: rows is empty.")
    for b, row in enumerate(rows):
        if isinstance(row, Mapping | Tensor) or not isinstance(row, Sequence):
            raise InferKitError(
                f"rows[{b}] is a {type(row).__name__}; expected a list with one processor output "
                "for each stream: rows[request][stream]."
            )
        if len(row) > len(models):
            raise InferKitError(
                f"Request {b} has {len(row)} streams, but there are {len(models)} models."
            )
        if primary >= len(row) or row[primary] is None:
            raise InferKitError(
                f"Request {b} lacks its primary stream {primary}, whose prompt the output starts "
                "with."
            )
        for k, inputs in enumerate(row):
            if inputs is not None:
                check_inputs(inputs, models[k], f"Request {b}, stream {k}")
    if new_tokens is not None:
        _check_lengths(rows, models, new_tokens)


def check_inputs(inputs: Any, model: PreTrainedModel, where: str) -> None:
    """Raise `InferKitError`, starting with `where`, for a prompt that cannot be a stream."""
    _check_tokens(inputs, model, where)
    prefix = inputs.get(PREFIX)
    if prefix is not None and (not isinstance(prefix, ContextPrefix) or prefix.model is not model):
        raise InferKitError(
            f"{where}: its prefix was not read by this {type(model).__name__}.",
            hint="A prefix holds the states of one model, and serves no other.",
        )
    taken = forward_parameters(model)
    taken |= set(inspect.signature(model.prepare_inputs_for_generation).parameters)
    for key, value in inputs.items():
        if value is not None and key not in taken and key != PREFIX:
            raise InferKitError(
                f"{where}: {type(model).__name__} does not take {key!r}. Was the prompt made by "
                "another model's processor?"
            )
    _check_images(inputs, model, where)


def context_length(model: PreTrainedModel) -> int | None:
    """Positions that the model takes, or None where its config does not say."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _check_tokens(inputs: Any, model: PreTrainedModel, where: str) -> None:
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        raise InferKitError(
            f"{where}: expected what the processor returns (a mapping with an input_ids tensor; "
            f"return_tensors='pt'), got {type(inputs).__name__}."
        )
    ids = inputs["input_ids"]
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise InferKitError(
            f"{where}: input_ids has shape {list(ids.shape)}; expected [1, S], one prompt a "
            "stream. Split a batch into rows."
        )
    if not ids.shape[1]:
        raise InferKitError(f"{where}: the prompt is empty.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InferKitError(f"{where}: input_ids are of {ids.dtype}; expected integers.")
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape != ids.shape:
        raise InferKitError(
            f"{where}: attention_mask has shape {list(mask.shape)} and input_ids {list(ids.shape)}."
        )
    if mask is not None and not bool((mask == 1).all()):
        raise InferKitError(
            f"{where}: the prompt is padded ({int((mask == 0).sum())} of {mask.numel()} positions "
            "are masked). Pass each prompt unpadded; the engine pads inside."
        )
    vocab_size = model.get_input_embeddings().weight.shape[0]
    for token in (int(ids.min()), int(ids.max())):
        if not 0 <= token < vocab_size:
            raise InferKitError(
                f"{where}: token id {token} is outside the model's vocabulary of {vocab_size}. Was "
                "the prompt made by another model's processor?"
            )
    limit = context_length(model)
    if limit is not None and prompt_length(inputs) > limit:
        raise PromptTooLong(
            f"{where}: the prompt is {prompt_length(inputs):,} tokens, the model takes {limit:,}."
        )


def _check_images(inputs: Mapping[str, Any], model: PreTrainedModel, where: str) -> None:
    token = getattr(model.config, "image_token_id", None)
    if token is None:
        return
    placeholders = int((inputs["input_ids"] == token).sum())
    has_image = any(inputs.get(key) is not None for key in ("pixel_values", "mm_encoder_outputs"))
    if placeholders and not has_image:
        raise InferKitError(
            f"{where}: the prompt contains {placeholders} image placeholder tokens but no image "
            "was given (no pixel_values)."
        )
    if has_image and not placeholders:
        raise InferKitError(
            f"{where}: an image was given but the prompt has no placeholder for it."
        )
    grid = inputs.get("image_grid_thw")
    merge = getattr(getattr(model.config, "vision_config", None), "spatial_merge_size", None)
    if isinstance(grid, Tensor) and merge:
        expected = int(grid.prod(-1).sum()) // merge**2
        if placeholders != expected:
            raise InferKitError(
                f"{where}: the prompt contains {placeholders} image placeholder tokens, but its "
                f"{len(grid)} image(s) take {expected}."
            )


def _check_lengths(
    rows: Sequence[Sequence[Mapping[str, Any] | None]],
    models: Sequence[PreTrainedModel],
    new_tokens: Sequence[int],
) -> None:
    """Prompt and new tokens beyond the model's positions: an error where those are a table."""
    warned = False
    for b, (row, new) in enumerate(zip(rows, new_tokens, strict=True)):
        for k, inputs in enumerate(row):
            limit = context_length(models[k])
            if inputs is None or limit is None:
                continue
            length = prompt_length(inputs)
            if length + new <= limit:
                continue
            message = (
                f"Request {b}, stream {k}: {length:,} prompt tokens and {new:,} new ones exceed "
                f"the {limit:,} positions that the model was made for."
            )
            if _has_position_table(models[k]):
                raise PromptTooLong(message, hint=f"At most {max(limit - length, 0)} fit.")
            if not warned:
                warnings.warn(message, stacklevel=4)
                warned = True


def _has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are looked up in a learned table, which ends."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    names = ("wpe", "embed_positions", "position_embeddings")
    return any(
        isinstance(module, torch.nn.Embedding) and name.rsplit(".", 1)[-1] in names
        for name, module in decoder.named_modules()
    )


def _tokenizer(tokenizer_or_processor: Any) -> Any:
    return getattr(tokenizer_or_processor, "tokenizer", tokenizer_or_processor)
