"""Groups of streams inside vLLM: `CoupledLLM`, and what an engine is started with for groups."""

from typing import TYPE_CHECKING, Any

from infer_kit.streams import Group, Stream

if TYPE_CHECKING:
    from infer_kit.vllm.client import group_body, method_body
    from infer_kit.vllm.offline import CoupledLLM
    from infer_kit.vllm.prompt_groups import stream_group
    from infer_kit.vllm.settings import engine_arguments

__all__ = [
    "CoupledLLM",
    "Group",
    "Stream",
    "engine_arguments",
    "group_body",
    "method_body",
    "stream_group",
]

_HOMES = {
    "CoupledLLM": "offline",
    "engine_arguments": "settings",
    "group_body": "client",
    "method_body": "client",
    "stream_group": "prompt_groups",
}


def __getattr__(name: str) -> Any:
    """vLLM's parts when they are asked for: workers import this package for others."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from infer_kit.vllm.names import check_version

    if _HOMES[name] != "client":  # which talks to a server elsewhere
        check_version()
    return getattr(importlib.import_module(f"infer_kit.vllm.{_HOMES[name]}"), name)
