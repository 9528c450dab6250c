"""Checks of what users pass to `CoupledLM`, made before any forward pass."""

import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from packaging import version
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from infer_kit.engine.cache_name import CACHE, CACHE_NAMES
from infer_kit.engine.prefill import forward_parameters
from infer_kit.errors import InferKitError, PromptTooLong, UnsupportedArgument, VocabularyMismatch

# Why each cannot work with several streams, and what to do instead.
_REFUSED = {
    "use_cache": "the cache is the state of the streams; leave it out",
    "prefill_chunk_size": "each stream's prompt is prefilled whole; leave it out",
    "guidance_scale": "it runs a second context behind the pool's back; make that context a "
    "stream of weight 1 - guidance_scale instead",
    "negative_prompt_ids": "make the negative prompt a stream with a negative weight",
    "negative_prompt_attention_mask": "make the negative prompt a stream with a negative weight",
    "cache_implementation": "every stream has a dynamic cache; leave it out",
    "custom_generate": "it would decode one stream alone; leave it out",
    "token_healing": "it rewrites one stream's prompt; leave it out",
    "inputs_embeds": "rows hold token ids",
    "inputs": "prompts go in rows[b][k]",
    "input_ids": "prompts go in rows[b][k]",
    "attention_mask": "prompts go in rows[b][k], one by one and unpadded",
    "position_ids": "positions are computed for each stream",
    **dict.fromkeys(
        CACHE_NAMES, f"rows start a new state; to continue one, call generate(None, {CACHE}=...)"
    ),
    "assistant_early_exit": "drafting with some layers of one stream is not supported; pass an "
    "assistant_model",
    "use_mtp": "drafting heads see one stream; pass an assistant_model",
    "penalty_alpha": "transformers has no contrastive search any more; leave it out",
    "dola_layers": "it contrasts the layers of one stream; make the amateur a stream with a "
    "negative weight instead",
    "num_beam_groups": "transformers has no group beam search any more; leave it out",
    "force_words_ids": "transformers has no constrained beam search any more; leave it out",
}
_HARMLESS = {
    "use_cache": True,
    "guidance_scale": 1,
    "token_healing": False,
    "use_mtp": False,
    "num_beam_groups": 1,
}
_NOT_IN_ONE = ("output_attentions", "output_hidden_states")


def check_model(model: Any, index: int) -> None:
    """Raise `InferKitError` unless `model` can be a stream."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        hint = None
        if hasattr(model, "get_base_model"):
            hint = "For a PEFT model pass model.get_base_model(): the adapters are inside it."
        raise InferKitError(
            f"Stream {index}: expected a transformers model, got {name}.", hint=hint
        )
    if model.config.is_encoder_decoder:
        raise InferKitError(f"Stream {index}: {name} is an encoder-decoder, not a causal model.")
    if not model.can_generate():
        raise InferKitError(
            f"Stream {index}: {name} has no language-model head.",
            hint="Load it with AutoModelForCausalLM or AutoModelForImageTextToText.",
        )
    if CACHE not in forward_parameters(model) or not (model._supports_default_dynamic_cache()):
        raise InferKitError(
            f"Stream {index}: {name} keeps its state in a cache of its own (its forward takes no "
            f"{CACHE}, or not a DynamicCache), which the engine cannot hold."
        )
    if model.training:
        raise InferKitError(
            f"Stream {index}: {name} is in training mode, so dropout would change every step.",
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
                hint="Pass tokenizers=[...], one for each model, to check that the shared ids "
                "name the same tokens (heads are often padded).",
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
    kwargs: Mapping[str, Any],
) -> None:
    """Raise `InferKitError`, naming request and stream, for prompts that cannot be streams."""
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
    _warn_of_lengths(rows, models, primary, kwargs)


def check_call(
    lm: PreTrainedModel, kwargs: Mapping[str, Any], requests: int = 1, trace: bool = False
) -> None:
    """Raise `UnsupportedArgument` for generate arguments that cannot work or are not known.

    Args:
        lm: the `CoupledLM`. kwargs: of its `generate`. requests: how many come together.
        trace: whether a trace is asked for.
    """
    config = kwargs.get("generation_config") or lm.generation_config
    for name, reason in _REFUSED.items():
        value = kwargs.get(name, getattr(config, name, None))
        if name not in kwargs and name in ("use_cache", "cache_implementation"):
            if config is lm.generation_config:
                continue  # the engine's own setting
        if value is not None and value != _HARMLESS.get(name):
            raise UnsupportedArgument(f"{name}={_short(value)} cannot work here: {reason}.")
    if getattr(config, "speculation_type", None) == "dflash":
        raise UnsupportedArgument("speculation_type='dflash' cannot work here: it drafts from one "
                                  "stream's hidden states; pass an assistant_model.")  # fmt: skip
    _check_decoding(lm, kwargs, config, requests)
    known = set(vars(GenerationConfig())) | set(vars(config))
    known |= set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    known |= {"tokenizer", "assistant_tokenizer"}
    for name in kwargs:
        if name not in known or name.startswith("_"):
            close = difflib.get_close_matches(name, known, n=1)
            raise UnsupportedArgument(
                f"Unknown keyword {name!r}.", hint=f"Did you mean {close[0]!r}?" if close else None
            )
    for name in _NOT_IN_ONE:
        if kwargs.get(name, getattr(config, name, None)):
            warnings.warn(
                f"{name}=True has no effect: K streams have K of them; None is returned.",
                stacklevel=3,
            )
    returns_dict = kwargs.get("return_dict_in_generate")
    if trace and not (config.return_dict_in_generate if returns_dict is None else returns_dict):
        raise UnsupportedArgument("trace=True needs return_dict_in_generate=True.")


def _check_decoding(
    lm: PreTrainedModel, kwargs: Mapping[str, Any], config: GenerationConfig, requests: int
) -> None:
    """What transformers itself refuses, said before anything is run."""
    beams = kwargs.get("num_beams") or config.num_beams or 1
    if beams > 1 and kwargs.get("streamer") is not None:
        raise UnsupportedArgument(
            f"A streamer cannot show beam search (num_beams={beams}): beams change their past.",
            hint="Leave out streamer, or set num_beams=1.",
        )
    drafts = [
        name
        for name in ("assistant_model", "prompt_lookup_num_tokens")
        if kwargs.get(name, getattr(config, name, None)) is not None
    ]
    if not drafts:
        return
    if requests > 1:
        raise UnsupportedArgument(
            f"{drafts[0]} works for one request at a time, got {requests}.",
            hint="Pass the requests one by one.",
        )
    if beams > 1:
        raise UnsupportedArgument(f"{drafts[0]} does not work with num_beams={beams}.")
    if lm._is_stateful:
        raise UnsupportedArgument(
            f"{drafts[0]} needs to take tokens back, which a model with recurrent state cannot."
        )


def check_inputs(inputs: Any, model: PreTrainedModel, where: str) -> None:
    """Raise `InferKitError`, starting with `where`, for a prompt that cannot be a stream."""
    _check_tokens(inputs, model, where)
    taken = forward_parameters(model)
    taken |= set(inspect.signature(model.prepare_inputs_for_generation).parameters)
    for key, value in inputs.items():
        if value is not None and key not in taken:
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
    mask = inputs.get("attention_mask")
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
    if limit is not None and ids.shape[1] > limit:
        raise PromptTooLong(
            f"{where}: the prompt is {ids.shape[1]:,} tokens, the model takes {limit:,}."
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


def _warn_of_lengths(
    rows: Sequence[Sequence[Mapping[str, Any] | None]],
    models: Sequence[PreTrainedModel],
    primary: int,
    kwargs: Mapping[str, Any],
) -> None:
    new = kwargs.get("max_new_tokens")
    for b, row in enumerate(rows):
        for k, inputs in enumerate(row):
            limit = context_length(models[k])
            if inputs is None or new is None or limit is None:
                continue
            length = inputs["input_ids"].shape[1]
            if length + new > limit:
                warnings.warn(
                    f"Request {b}, stream {k}: {length:,} prompt tokens and {new:,} new ones "
                    f"exceed the {limit:,} positions that the model was made for.",
                    stacklevel=4,
                )
                return


def check_padding_penalty(
    lengths: set[int], config: GenerationConfig, kwargs: Mapping[str, Any], pad_token: int
) -> None:
    """Warn where a repetition penalty would count padding as said.

    transformers fixed that in 5.23 for prompts with an attention mask.
    """
    if version.parse(transformers.__version__) >= version.parse("5.23"):
        return
    eos = kwargs.get("eos_token_id", config.eos_token_id)
    is_eos = pad_token in (eos if isinstance(eos, list) else [eos])
    penalty = kwargs.get("repetition_penalty", config.repetition_penalty) or 1.0
    if len(lengths) > 1 and is_eos and penalty != 1.0:
        warnings.warn(
            "repetition_penalty counts the padding of shorter prompts as said, and the pad token "
            "is the end token here: shorter requests may run on. Set a pad_token_id of its own, or "
            "pass the requests one by one.",
            stacklevel=4,
        )


def _tokenizer(tokenizer_or_processor: Any) -> Any:
    return getattr(tokenizer_or_processor, "tokenizer", tokenizer_or_processor)


def _short(value: Any) -> str:
    return f"<tensor {list(value.shape)}>" if isinstance(value, Tensor) else repr(value)
