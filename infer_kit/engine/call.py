"""The keywords of one `generate` call: resolved as `generate` itself will, and checked."""

import copy
import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
import transformers
from packaging import version
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StopStringCriteria,
    TextStreamer,
)

from infer_kit.engine.cache_name import CACHE, CACHE_NAMES
from infer_kit.errors import UnsupportedArgument

# Why each cannot work with several streams, and what to do instead.
_REFUSED_ARGUMENTS = {
    "negative_prompt_ids": "make the negative prompt a stream with a negative weight",
    "negative_prompt_attention_mask": "make the negative prompt a stream with a negative weight",
    "custom_generate": "it would decode one stream alone; leave it out",
    "inputs_embeds": "rows hold token ids",
    "inputs": "prompts go in rows[b][k]",
    "input_ids": "prompts go in rows[b][k]",
    "attention_mask": "prompts go in rows[b][k], one by one and unpadded",
    "position_ids": "positions are computed for each stream",
    **dict.fromkeys(
        CACHE_NAMES, f"rows start a new state; to continue one, call generate(None, {CACHE}=...)"
    ),
}
_REFUSED_SETTINGS = {
    "use_cache": "the cache is the state of the streams; leave it out",
    "cache_implementation": "every stream has a dynamic cache; leave it out",
    "prefill_chunk_size": "each stream's prompt is prefilled whole; leave it out",
    "guidance_scale": "it runs a second context behind the pool's back; make that context a "
    "stream of weight 1 - guidance_scale instead",
    "token_healing": "it rewrites one stream's prompt; leave it out",
    "assistant_early_exit": "drafting with some layers of one stream is not supported; pass an "
    "assistant_model",
    "use_mtp": "drafting heads see one stream; pass an assistant_model",
    "penalty_alpha": "transformers has no contrastive search any more; leave it out",
    "dola_layers": "it contrasts the layers of one stream; make the amateur a stream with a "
    "negative weight instead",
    "num_beam_groups": "transformers has no group beam search any more; leave it out",
    "force_words_ids": "transformers has no constrained beam search any more; leave it out",
}
_HARMLESS: dict[str, tuple] = {
    "use_cache": (True,),
    "guidance_scale": (None, 1),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "num_beam_groups": (None, 1),
}
_COUNTS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length", "num_beams",
           "num_return_sequences", "top_k")  # fmt: skip
_OWN_PARAMETERS = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
_OWN_PARAMETERS |= {"tokenizer", "assistant_tokenizer"}


def resolve_call(
    lm: PreTrainedModel,
    kwargs: Mapping[str, Any],
    requests: int = 1,
    trace: bool = False,
    allowed: Sequence[str] = (),
) -> GenerationConfig:
    """The generation config in force: keywords over the caller's config over the model's own.

    Args:
        lm: the `CoupledLM`. kwargs: of its `generate`. requests: how many come together.
        trace: whether a trace is asked for.
        allowed: names that are refused otherwise.

    Raises:
        UnsupportedArgument: a keyword is unknown, has a value that transformers refuses, or cannot
            work with several streams.
    """
    given = kwargs.get("generation_config")
    known = set(vars(GenerationConfig())) | _OWN_PARAMETERS | set(_REFUSED_ARGUMENTS)
    known |= set(vars(given)) if given is not None else set()
    for name in kwargs:
        if name not in known or name.startswith("_"):
            close = difflib.get_close_matches(name, known, n=1)
            raise UnsupportedArgument(
                f"Unknown keyword {name!r}.", hint=f"Did you mean {close[0]!r}?" if close else None
            )
    for name, reason in _REFUSED_ARGUMENTS.items():
        if kwargs.get(name) is not None and name not in allowed:
            raise UnsupportedArgument(f"{name}={_short(kwargs[name])} cannot work here: {reason}.")
    _check_settings(kwargs)
    settings = {k: v for k, v in kwargs.items() if k not in _OWN_PARAMETERS | set(allowed)}
    for name in _COUNTS:
        if isinstance(settings.get(name), str | float | bool):
            raise UnsupportedArgument(f"{name} is a whole number, got {settings[name]!r}.")
    try:
        config, _ = lm._prepare_generation_config(given, **settings)
        config.validate()
    except (ValueError, TypeError) as error:
        raise UnsupportedArgument(str(error)) from error
    _check_objects(kwargs)
    _check_settings({name: getattr(config, name, None) for name in _REFUSED_SETTINGS})
    if getattr(config, "speculation_type", None) == "dflash":
        raise UnsupportedArgument("speculation_type='dflash' cannot work here: it drafts from one "
                                  "stream's hidden states; pass an assistant_model.")  # fmt: skip
    _check_ranges(config)
    _check_decoding(lm, kwargs, config, requests)
    _check_processors(lm, config)
    if trace and not config.return_dict_in_generate:
        raise UnsupportedArgument("trace=True needs return_dict_in_generate=True.")
    return config


def check_limits(limits: Sequence[int], requests: int) -> None:
    """Raise `UnsupportedArgument` unless there is a positive number for each request."""
    if len(limits) != requests or min(limits) < 1:
        raise UnsupportedArgument(
            f"limits needs a positive number for each of {requests} requests, got {limits}."
        )


class LengthLimits(StoppingCriteria):
    """Ends each request's sequences at its own number of new tokens."""

    def __init__(self, prompts: Tensor, limits: Sequence[int]) -> None:
        """Args: prompts: `[B, P]` the padded prompts. limits: B numbers of new tokens."""
        self.prompt_length = prompts.shape[1]
        self.limits = torch.tensor(limits, device=prompts.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        limits = self.limits.repeat_interleave(len(input_ids) // len(self.limits))
        return input_ids.shape[1] - self.prompt_length >= limits


def without_inner_states(kwargs: dict[str, Any], config: GenerationConfig) -> dict[str, Any]:
    """The keywords with attentions and hidden states turned off: K streams have K of them."""
    out = dict(kwargs)
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            warnings.warn(
                f"{name}=True has no effect: K streams have K of them; None is returned.",
                stacklevel=3,
            )
            out[name] = False
    return out


def end_tokens(config: GenerationConfig) -> set[int]:
    """The ids that end a sequence."""
    eos = config.eos_token_id
    return set() if eos is None else {int(i) for i in (eos if isinstance(eos, list) else [eos])}


def pad_token(config: GenerationConfig) -> int:
    """The id that `generate` pads with."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    eos = config.eos_token_id
    return int(eos[0] if isinstance(eos, list) else eos) if eos is not None else 0


def warn_of_padding_penalty(lengths: set[int], config: GenerationConfig) -> None:
    """Warn where a repetition penalty would count padding as said.

    transformers fixed that in 5.23 for prompts with an attention mask.
    """
    if version.parse(transformers.__version__) >= version.parse("5.23"):
        return
    penalty = config.repetition_penalty or 1.0
    if len(lengths) > 1 and pad_token(config) in end_tokens(config) and penalty != 1.0:
        warnings.warn(
            "repetition_penalty counts the padding of shorter prompts as said, and the pad token "
            "is the end token here: shorter requests may run on. Set a pad_token_id of its own, or "
            "pass the requests one by one.",
            stacklevel=4,
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in _REFUSED_SETTINGS.keys() & settings.keys():
        if settings[name] not in _HARMLESS.get(name, (None,)):
            raise UnsupportedArgument(
                f"{name}={_short(settings[name])} cannot work here: {_REFUSED_SETTINGS[name]}."
            )


def _check_ranges(config: GenerationConfig) -> None:
    """Values that transformers refuses only once the prompt has been read, or takes in silence."""
    sampling = bool(config.do_sample)
    rules = (
        ("num_beams", True, lambda v: v >= 1, "at least 1"),
        ("num_return_sequences", True, lambda v: v >= 1, "at least 1"),
        ("repetition_penalty", True, lambda v: v > 0, "positive"),
        ("temperature", sampling, lambda v: v > 0, "positive"),
        ("top_k", sampling, lambda v: v >= 0, "at least 0"),
        ("top_p", sampling, lambda v: 0 < v <= 1, "above 0 and at most 1"),
        ("typical_p", sampling, lambda v: 0 < v <= 1, "above 0 and at most 1"),
        ("min_p", sampling, lambda v: 0 <= v <= 1, "between 0 and 1"),
    )
    for name, applies, holds, rule in rules:
        value = getattr(config, name, None)
        if applies and value is not None and not (isinstance(value, Real) and holds(value)):
            raise UnsupportedArgument(f"{name} must be {rule}, got {value!r}.")


def _check_objects(kwargs: Mapping[str, Any]) -> None:
    """Arguments that are objects have what `generate` will call."""
    streamer, assistant = kwargs.get("streamer"), kwargs.get("assistant_model")
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise UnsupportedArgument(
            f"streamer is a {type(streamer).__name__}; expected put() and end(), as TextStreamer."
        )
    if assistant is not None and not isinstance(assistant, PreTrainedModel):
        raise UnsupportedArgument(
            f"assistant_model is a {type(assistant).__name__}; expected a transformers model."
        )
    for name in ("stopping_criteria", "logits_processor"):
        value = kwargs.get(name)
        if value is not None and not (isinstance(value, list) and all(map(callable, value))):
            raise UnsupportedArgument(
                f"{name} is a {type(value).__name__}; expected a list of callables."
            )


def _check_processors(lm: PreTrainedModel, config: GenerationConfig) -> None:
    """Build once, and drop, the processors that `generate` will build after the prompts."""
    tried = copy.deepcopy(config)
    # a model without weights stands for one that another engine serves
    device = torch.device("cpu") if lm.device.type == "meta" else lm.device
    try:
        lm._prepare_special_tokens(tried, True, device=device)
        lm._get_logits_processor(tried, input_ids_seq_length=1, device=device)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UnsupportedArgument(str(error)) from error


def _check_stop_strings(config: GenerationConfig, tokenizer: Any) -> None:
    if tokenizer is None:
        raise UnsupportedArgument(
            "stop_strings needs the tokenizer.", hint="Pass tokenizer=... beside it."
        )
    try:
        StopStringCriteria(tokenizer=tokenizer, stop_strings=config.stop_strings)
    except Exception as error:  # a word-level tokenizer, say, which cannot spell what it looks for
        raise UnsupportedArgument(
            f"transformers cannot look for stop strings with {type(tokenizer).__name__} of "
            f"{len(tokenizer)} tokens: {error}.",
            hint="Use eos_token_id=[...] with the ids that should end the answer.",
        ) from error


def _check_decoding(
    lm: PreTrainedModel, kwargs: Mapping[str, Any], config: GenerationConfig, requests: int
) -> None:
    """What transformers itself refuses, some of it late, said before anything is run."""
    beams = config.num_beams or 1
    sequences = requests * (config.num_return_sequences or 1)
    streamer = kwargs.get("streamer")
    if beams > 1 and streamer is not None:
        raise UnsupportedArgument(
            f"A streamer cannot show beam search (num_beams={beams}): beams change their past.",
            hint="Leave out streamer, or set num_beams=1.",
        )
    if isinstance(streamer, TextStreamer) and sequences > 1:
        raise UnsupportedArgument(
            f"{type(streamer).__name__} shows one answer at a time, got {sequences}."
        )
    if config.stop_strings is not None:
        _check_stop_strings(config, kwargs.get("tokenizer"))
    drafts = [
        name
        for name, value in (
            ("assistant_model", kwargs.get("assistant_model")),
            ("prompt_lookup_num_tokens", config.prompt_lookup_num_tokens),
        )
        if value is not None
    ]
    if not drafts:
        return
    if sequences > 1:
        raise UnsupportedArgument(
            f"{drafts[0]} works for one request at a time, got {sequences}.",
            hint="Pass the requests one by one.",
        )
    if beams > 1:
        raise UnsupportedArgument(f"{drafts[0]} does not work with num_beams={beams}.")
    if lm._is_stateful:
        raise UnsupportedArgument(
            f"{drafts[0]} needs to take tokens back, which a model with recurrent state cannot."
        )


def _short(value: Any) -> str:
    return f"<tensor {list(value.shape)}>" if isinstance(value, Tensor) else repr(value)
