"""Calling a model with an example, for tracing it and for comparing what it puts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.placed import Placed, modes


def arguments_of(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of an example: a tensor, a tuple or a mapping."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x if isinstance(x, tuple) else (x,)), {}


def called_with(model: nn.Module, x: Any) -> Any:
    """What the model returns for an example."""
    args, kwargs = arguments_of(x)
    return model(*args, **kwargs)


def ran(model: nn.Module, x: Any) -> Any:
    """As `called_with`, for what a user gave.

    Raises:
        InferKitError: the model does not run on it.
    """
    try:
        return called_with(model, x)
    except InferKitError:
        raise
    except Exception as error:
        raise InferKitError(
            f"{type(model).__name__} does not run on this example: {type(error).__name__}: {error}",
            "x is a tensor, a tuple of positional arguments or a mapping of named ones.",
        ) from error


def inputs_of(batch: Any) -> Any:
    """What of a batch a model takes: the first of a tuple or list, or all of it."""
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and, if it is of transformers, without a cache among its outputs."""
    # A decoder beside an encoder has a configuration of its own.
    configs = [getattr(module, "config", None) for module in model.modules()]
    cached: list[Any] = []
    with modes(model):
        try:
            for config in configs:
                if getattr(config, "use_cache", None) is True:
                    config.use_cache = False  # type: ignore[union-attr]
                    cached.append(config)
            yield
        finally:
            for config in cached:
                config.use_cache = True


def outputs_of(
    model: nn.Module,
    x: Any,
    state: Mapping[str, Tensor] | None = None,
    outputs: Callable[[Any], Any] | None = None,
) -> list[Tensor]:
    """The tensors that the model puts out for an example, with another state if one is given.

    Args:
        outputs: what of that the model returns; None for all.
    """
    placed = None if state is None else Placed(model, state)
    with torch.no_grad(), evaluating(model):
        out = ran(model, x) if placed is None else placed(ran, x)
    out = out if outputs is None else outputs(out)
    # Outputs of transformers are mappings, which pytree knows or not.
    plain = list(out.values()) if isinstance(out, Mapping) else out
    return [leaf for leaf in tree_leaves(plain) if isinstance(leaf, Tensor)]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors by name, the very objects, without what get_extra_state() adds."""
    named = model.state_dict(keep_vars=True).items()
    return {name: value for name, value in named if isinstance(value, Tensor)}
