"""What a harness's task says about writing, as keywords of `generate`."""

from collections.abc import Mapping, Sequence
from typing import Any

from infer_kit.errors import InferKitError, UnsupportedArgument
from infer_kit.methods.named import did_you_mean

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OTHERS = (
    *("num_beams", "length_penalty", "early_stopping", "repetition_penalty"),
    *("no_repeat_ngram_size", "min_new_tokens", "max_time"),
)
AUTO_BATCH = 16


def read_generation(
    gen_kwargs: Mapping[str, Any], default_tokens: int
) -> tuple[dict[str, Any], list[str], int]:
    """Keywords of `generate`, the texts at which to stop, and the limit of new tokens.

    Greedy unless `do_sample` or a temperature above 0 is given; then what shapes sampling is left
    out, since tasks often give `temperature: 0` and `top_p: 1` beside `do_sample: false`.

    Raises:
        UnsupportedArgument: a keyword that is unknown, two limits, sampling at temperature 0.
    """
    known = ("do_sample", "until", *_LIMITS, *_SAMPLING, *_OTHERS)
    given = {name: value for name, value in gen_kwargs.items() if value is not None}
    for name in given:
        if name not in known:
            raise UnsupportedArgument(
                f"generation_kwargs has {name!r}, which is unknown here."
                f"{did_you_mean(name, sorted(known))}"
            )
    limits = {name: int(given.pop(name)) for name in _LIMITS if name in given}
    if len(set(limits.values())) > 1:
        raise UnsupportedArgument(f"generation_kwargs has several limits: {limits}.")
    until = given.pop("until", [])
    temperature = given.get("temperature")
    samples = given.pop("do_sample", bool(temperature))
    if samples and temperature is not None and float(temperature) <= 0:
        raise UnsupportedArgument("do_sample=True needs a temperature above 0.")
    for name in () if samples else _SAMPLING:
        given.pop(name, None)
    stops = [until] if isinstance(until, str) else list(until)
    return (
        {**given, "do_sample": bool(samples)},
        [s for s in stops if s],
        next(iter(limits.values()), default_tokens),
    )


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the stop text that comes first."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def read_batch_size(value: Any) -> int:
    """A number of requests that go together; "auto" is 16."""
    if str(value).startswith("auto"):
        return AUTO_BATCH
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise InferKitError(f"batch_size={value!r}: a number from 1 on, or auto.")
    return size


def device_for(device: Any) -> str | None:
    """None, "take what there is", also where a harness asks for a GPU that is absent."""
    import torch

    absent = str(device).startswith("cuda") and not torch.cuda.is_available()
    return None if device is None or absent else str(device)
