"""Calling a model with an example, for tracing it and for comparing what it puts out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def arguments_of(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as positional and named arguments: a tensor, a tuple of arguments, or a mapping."""
    if isinstance(x, Mapping):
        return (), dict(x)
    if isinstance(x, (tuple, list)):
        return tuple(x), {}
    return (x,), {}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and, if it is of transformers, without a cache among its outputs."""
    modes = {module: module.training for module in model.modules()}
    config = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    model.eval()
    if cached:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if cached:
            config.use_cache = cached  # type: ignore[union-attr]


def outputs_of(
    model: nn.Module, x: Any, state: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """All tensors that the model puts out for an example, with another state if one is given."""
    args, kwargs = arguments_of(x)
    with torch.no_grad(), evaluating(model):
        if state is None:
            out = model(*args, **kwargs)
        else:
            out = torch.func.functional_call(model, dict(state), args, kwargs, tie_weights=True)
    return [leaf for leaf in tree_leaves(_plain(out)) if isinstance(leaf, Tensor)]


def _plain(out: Any) -> Any:
    """Outputs of transformers are dataclasses that are mappings, known to pytree or not."""
    return list(out.values()) if isinstance(out, Mapping) else out
