"""Groups of streams inside vLLM: `CoupledLLM`, and what an engine is started with for groups."""

from typing import TYPE_CHECKING, Any

from infer_kit.streams import Group, Stream

if TYPE_CHECKING:
    from infer_kit.vllm.client import group_body, method_body
    from infer_kit.vllm.composite import composite_overrides, implicit_overrides, reward_overrides
    from infer_kit.vllm.nexttoken import next_token_overrides, next_token_rows
    from infer_kit.vllm.offline import CoupledLLM
    from infer_kit.vllm.prompt_groups import stream_group
    from infer_kit.vllm.settings import engine_arguments

__all__ = [
    "CoupledLLM",
    "Group",
    "Stream",
    "composite_overrides",
    "engine_arguments",
    "group_body",
    "implicit_overrides",
    "method_body",
    "next_token_overrides",
    "next_token_rows",
    "reward_overrides",
    "stream_group",
]

_HOMES = {
    "CoupledLLM": "offline",
    "composite_overrides": "composite",
    "engine_arguments": "settings",
    "group_body": "client",
    "implicit_overrides": "composite",
    "method_body": "client",
    "next_token_overrides": "nexttoken",
    "next_token_rows": "nexttoken",
    "reward_overrides": "composite",
    "stream_group": "prompt_groups",
}


def __getattr__(name: str) -> Any:
    """vLLM's parts when they are asked for: workers import this package for others."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from infer_kit.vllm.names import check_version

    if _HOMES[name] not in ("client", "composite"):  # these describe what runs elsewhere
        check_version()
    return getattr(importlib.import_module(f"infer_kit.vllm.{_HOMES[name]}"), name)
