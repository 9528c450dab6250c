"""The keywords of `generate` as vLLM's `SamplingParams`; what vLLM cannot do is refused by name."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from infer_kit.engine.call import end_tokens, resolve_call
from infer_kit.errors import UnsupportedArgument

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

_REFUSED_OBJECTS = {
    "logits_processor": "vLLM takes logits processors when the engine is made",
    "stopping_criteria": "use stop_strings or eos_token_id",
    "prefix_allowed_tokens_fn": "use sampling_params=SamplingParams(structured_outputs=...)",
    "assistant_model": "speculative decoding drafts for one stream; leave it out",
    "negative_prompt_ids": "make the negative prompt a stream with a negative weight",
    "synced_gpus": "vLLM distributes the model itself; leave it out",
}
# What vLLM has no counterpart of: the value that does nothing, and what to do instead.
_REFUSED_SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), "beams run on the transformers backend"),
    "prompt_lookup_num_tokens": ((None,), "speculative decoding drafts for one stream"),
    "no_repeat_ngram_size": ((None, 0), "use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((None, 0), "use repetition_penalty"),
    "encoder_repetition_penalty": ((None, 1.0), "use repetition_penalty"),
    "typical_p": ((None, 1.0), "use top_p or min_p"),
    "epsilon_cutoff": ((None, 0.0), "use min_p"),
    "eta_cutoff": ((None, 0.0), "use min_p"),
    "top_h": ((None,), "use min_p"),
    "exponential_decay_length_penalty": ((None,), "leave it out"),
    "forced_bos_token_id": ((None,), "leave it out"),
    "forced_eos_token_id": ((None,), "leave it out"),
    "begin_suppress_tokens": ((None,), "use suppress_tokens"),
    "sequence_bias": ((None,), "use sampling_params=SamplingParams(logit_bias=...)"),
    "bad_words_ids": ((None,), "use sampling_params=SamplingParams(bad_words=[...])"),
    "watermarking_config": ((None,), "leave it out"),
    "max_time": ((None,), "use max_new_tokens"),
    "output_scores": ((None, False), "use sampling_params=SamplingParams(logprobs=...)"),
    "output_logits": ((None, False), "use sampling_params=SamplingParams(logprobs=...)"),
    "output_attentions": ((None, False), "leave it out"),
    "output_hidden_states": ((None, False), "leave it out"),
}
_MOST_SUPPRESSED = 1024  # of model runner V2
_DEFAULT_NEW_TOKENS = 20  # transformers' own, where neither max_new_tokens nor max_length is set


def check_call(kwargs: Mapping[str, Any], requests: int, lm: PreTrainedModel) -> None:
    """Raise `UnsupportedArgument` for keywords that cannot work; see `resolve`."""
    if "sampling_params" in kwargs:
        _own_params(kwargs)
    else:
        resolve(kwargs, requests, lm)


def resolve(kwargs: Mapping[str, Any], requests: int, lm: PreTrainedModel) -> GenerationConfig:
    """The generation config in force, as the transformers backend has it, checked for vLLM.

    Args:
        kwargs: of `generate`. requests: how many come together. lm: the model without its weights.

    Raises:
        UnsupportedArgument: as on transformers, and for what vLLM cannot do.
    """
    config = resolve_call(lm, kwargs, requests)
    for name, instead in _REFUSED_OBJECTS.items():
        if kwargs.get(name) not in (None, False, []):
            raise UnsupportedArgument(f"{name} does not work on vLLM.", hint=_sentence(instead))
    for name, (harmless, instead) in _REFUSED_SETTINGS.items():
        value = getattr(config, name, None)
        if value not in harmless:
            raise UnsupportedArgument(
                f"{name}={value!r} does not work on vLLM.", hint=_sentence(instead)
            )
    return config


def params_of(
    kwargs: Mapping[str, Any],
    prompt_lengths: Sequence[int],
    lm: PreTrainedModel,
    limits: Sequence[int] | None,
) -> list["SamplingParams"]:
    """Sampling parameters for each request.

    Args:
        kwargs: of `generate`: transformers' names, or `sampling_params=` alone.
        prompt_lengths: tokens of each primary prompt. lm: the model without its weights.
        limits: most new tokens of each request, in place of `max_new_tokens`.
    """
    if "sampling_params" in kwargs:
        given = _own_params(kwargs)
        params = [given.clone() for _ in prompt_lengths]
    else:
        config = resolve(kwargs, len(prompt_lengths), lm)
        longest = max(prompt_lengths)
        given = _max_length_is_given(kwargs, lm)
        params = [_params(config, longest, given) for _ in prompt_lengths]
    for place, limit in enumerate(limits or ()):
        params[place].max_tokens = limit
    return params


def _params(config: GenerationConfig, padded: int, length_is_given: bool) -> "SamplingParams":
    from vllm.sampling_params import SamplingParams

    sampled: dict[str, Any] = {"temperature": 0.0}
    if config.do_sample:
        sampled = {
            "temperature": 1.0 if config.temperature is None else config.temperature,
            "top_k": config.top_k or 0,
            "top_p": 1.0 if config.top_p is None else config.top_p,
            "min_p": config.min_p or 0.0,
            # so that torch.manual_seed decides, as on transformers, wherever the engine runs
            "seed": int(torch.randint(2**31, ())),
        }
    suppressed = [int(token) for token in config.suppress_tokens or ()]
    if len(suppressed) > _MOST_SUPPRESSED:
        raise UnsupportedArgument(
            f"suppress_tokens has {len(suppressed)} tokens; vLLM takes {_MOST_SUPPRESSED}."
        )
    return SamplingParams(
        **sampled,
        n=config.num_return_sequences or 1,
        repetition_penalty=config.repetition_penalty or 1.0,
        max_tokens=(most := _new_tokens(config, padded, length_is_given)),
        min_tokens=min(_least_tokens(config, padded), most),
        stop=config.stop_strings,
        stop_token_ids=sorted(end_tokens(config)),
        ignore_eos=True,  # the end tokens are those of the config, not of the tokenizer
        include_stop_str_in_output=True,  # as in transformers
        logit_bias=dict.fromkeys(suppressed, -math.inf) or None,
    )


def _max_length_is_given(kwargs: Mapping[str, Any], lm: PreTrainedModel) -> bool:
    """Whether somebody has said how long a sequence may be, as transformers finds out."""
    given = kwargs.get("generation_config")
    lengths = (kwargs.get("max_length"), getattr(given, "max_length", None))
    return any(v is not None for v in (*lengths, lm.generation_config.max_length))


def _new_tokens(config: GenerationConfig, padded: int, length_is_given: bool) -> int:
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if not length_is_given:
        return _DEFAULT_NEW_TOKENS
    if config.max_length <= padded:
        raise UnsupportedArgument(
            f"max_length={config.max_length} leaves no room: the longest prompt has {padded} "
            "tokens.",
            hint="Use max_new_tokens.",
        )
    return config.max_length - padded


def _least_tokens(config: GenerationConfig, padded: int) -> int:
    if config.min_new_tokens is not None:
        return config.min_new_tokens
    return max((config.min_length or 0) - padded, 0)


def _own_params(kwargs: Mapping[str, Any]) -> "SamplingParams":
    """vLLM's own parameters, which stand alone."""
    from vllm.sampling_params import SamplingParams

    params = kwargs["sampling_params"]
    if not isinstance(params, SamplingParams):
        raise UnsupportedArgument(
            f"sampling_params is a {type(params).__name__}; expected vllm.SamplingParams."
        )
    beside = sorted(set(kwargs) - {"sampling_params", "streamer"})
    if beside:
        raise UnsupportedArgument(
            f"{beside} beside sampling_params, which says it all.",
            hint="Give transformers' keywords, or vLLM's parameters.",
        )
    return params


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
