"""Requests to a server of `infer-kit serve`, for the stock `openai` client. Imports no vLLM.

Example:
    >>> client.chat.completions.create(
    ...     model=..., messages=messages, extra_body=method_body("red", weight=0.5)
    ... )
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from infer_kit.errors import InferKitError

SERVED = {
    "red": "RED",
    "parallel_icl": "ParallelICL",
    "vcd": "VCD",
    "icd": "ICD",
    "cfg": "CFG",
    "context_aware": "ContextAware",
}
"""The methods that a server runs, by the name in `vllm_xargs`, and their classes in `infer_kit`."""

INPUTS = {
    "red": ("rationale",),
    "parallel_icl": ("demonstrations",),
    "cfg": ("negative",),
    "context_aware": ("context",),
}
"""What a request gives beside settings. Chats and demonstrations are JSON text."""

# Of the constructors: those that a server sets, and those that are no plain values.
_NOT_SERVED = {
    "model", "processor", "trace", "chat_template", "mode", "prompts", "encoder",
    "rationale_generation", "banked",
}  # fmt: skip
_JSON = ("demonstrations", "negative")


def method_body(method: str, **settings: Any) -> dict[str, Any]:
    """`extra_body` of a chat completion that a method answers.

    Args:
        method: a key of `SERVED`.
        **settings: the arguments of its constructor that are numbers, texts or flat lists; for RED
            also `rationale` and `rationale_tokens`, for CFG `negative` (a chat), for ContextAware
            `context`, for ParallelICL `demonstrations` (a list of mappings; images as data URLs).

    Raises:
        InferKitError: there is no such method, or it has no such setting.
    """
    check_settings_of(method, settings)
    packed = {
        name: json.dumps(value) if name in _JSON and not isinstance(value, str) else value
        for name, value in settings.items()
        if value is not None
    }
    # JSON's true and false are no values of vllm_xargs
    plain = {n: int(v) if isinstance(v, bool) else v for n, v in packed.items()}
    return {"vllm_xargs": {"method": method, **plain}}


def group_body(
    members: Sequence[Mapping[str, Any]],
    weight: float = 1.0,
    mode: str = "product",
    plausibility: float = 0.0,
) -> dict[str, Any]:
    """`extra_body` of a chat completion that is pooled with other chats.

    Args:
        members: the other streams: `{"messages": a chat, "weight": its weight}`.
        weight: of the request's own messages.
        mode: "product" or "mixture". plausibility: β of the cut-off by the request's own.
    """
    group = {"weight": weight, "mode": mode, "members": [dict(m) for m in members]}
    if plausibility:
        group["plausibility"] = plausibility
    return {"vllm_xargs": {"group": json.dumps(group)}}


def settings_of(method: str) -> list[str]:
    """Names that a request may give for a method.

    Raises:
        InferKitError: there is no such method.
    """
    if method not in SERVED:
        raise InferKitError(f"Unknown method {method!r}; a server runs {sorted(SERVED)}.")
    import infer_kit

    parameters = inspect.signature(getattr(infer_kit, SERVED[method]).__init__).parameters
    names = [name for name in parameters if name not in _NOT_SERVED | {"self"}]
    more = ("rationale_tokens",) if method == "red" else ()
    return [*names, *more, *INPUTS.get(method, ())]


def check_settings_of(method: str, settings: Mapping[str, Any]) -> None:
    """Raise `InferKitError` for a method that is not served, or a setting that it does not have."""
    known = settings_of(method)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InferKitError(f"{method} has no {unknown}; it takes {known}.")


def unpacked(name: str, value: Any) -> Any:
    """A setting as `vllm_xargs` brought it, as its method takes it.

    Raises:
        InferKitError: it should be JSON and is not.
    """
    if name not in _JSON or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InferKitError(f"{name} is not JSON: {error}.") from error
