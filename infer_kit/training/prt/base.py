"""The frozen base of a training run: a model of its own, or a PEFT model without its adapter."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.base_cache import base_sha256
from infer_kit.training.prt.facts import adapter_parts, takes_positions
from infer_kit.training.prt.heads import Autocast, LanguageHead
from infer_kit.training.prt.scores import same


@dataclass(frozen=True)
class Outputs:
    """Of a whole batch: scores `[..., columns]`, or hidden states and the head they need."""

    values: Tensor
    head: Callable[[Tensor], Tensor]


def with_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a text model, where padding to the left is not counted as positions.

    Models with absolute positions (GPT-2) would otherwise read a text differently in every batch.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or "position_ids" in inputs:
        return inputs
    if bool(mask[:, 0].all()):
        return inputs
    return inputs | {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}


def forward(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The logits of any model: of an output of transformers, a tuple, or the tensor itself."""
    given = model(**inputs)
    if isinstance(given, Tensor):
        return given
    if isinstance(given, (tuple, list)):
        given = given[0]
        return given if isinstance(given, Tensor) else _no_logits(model)
    found = given.get("logits") if hasattr(given, "get") else getattr(given, "logits", None)
    return found if isinstance(found, Tensor) else _no_logits(model)


def restore_precision(model: Any) -> None:
    """Takes off a model the mixed precision that an earlier trainer has left in its forward."""
    # Accelerate's own unwrapping takes the forward's decorators off with it.
    forward = getattr(model, "__dict__", {}).pop("_original_forward", None)
    if forward is not None:
        model.forward = forward


def _no_logits(model: Any) -> Tensor:
    raise InferKitError(
        f"{type(model).__name__} gave no logits.",
        hint="Its forward has to return them: a tensor, a tuple that begins with it, or an object "
        "with logits.",
    )


class FrozenBase:
    """A base with weights of its own."""

    def __init__(
        self, prepared: Any, model: Any, heads_apart: bool, autocast: Autocast = nullcontext
    ) -> None:
        """Args:
        prepared: what to call. model: the same, not wrapped.
        autocast: gives the context of mixed precision.
        """
        self._prepared, self._model, self._autocast = prepared, model, autocast
        model.eval()
        self._head = LanguageHead(model, "base", autocast) if heads_apart else None
        self._positions = takes_positions(model)
        parameters = inspect.signature(model.forward).parameters
        # As the trainer has it for the reward: with a cache the model would also not see where the
        # texts of a packed row begin.
        self._fixed = {"use_cache": False} if "use_cache" in parameters else {}
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = None if takes_all else set(parameters)

    def source(self) -> Any:
        """The base as a model."""
        return self._model

    def sha256(self) -> str:
        """Hash of the base's weights and settings."""
        return base_sha256(self._model)

    def dtype(self) -> torch.dtype:
        return next(self._model.parameters()).dtype

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        if self._model.training:  # somebody called train() on it: dropout would be on
            self._model.eval()
        with torch.no_grad():
            yield self._prepared

    def outputs(self, inputs: dict[str, Any], hidden: bool) -> Outputs:
        """Args: hidden: the last hidden states, and the head that makes scores of them."""
        if self._takes is not None:
            inputs = {name: value for name, value in inputs.items() if name in self._takes}
        inputs = (with_positions(inputs) if self._positions else inputs) | self._fixed
        # An adapter's model is wrapped for mixed precision only once training has begun.
        with self._frozen() as model, self._autocast():
            if not hidden or self._head is None:
                return Outputs(forward(model, inputs), same)
            with self._head.taps() as tapped:
                logits = forward(model, inputs)
            return Outputs(self._head.check(tapped, logits), self.head)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores of hidden states `[..., d]`."""
        assert self._head is not None
        with self._frozen():
            return self._head(hidden)


class AdapterBase(FrozenBase):
    """The weights that an adapter is on: the reward's model itself, with the adapter disabled."""

    def __init__(
        self, model: Callable[[], Any], heads_apart: bool, autocast: Autocast = nullcontext
    ) -> None:
        """Args:
        model: gives the PEFT model, whatever the trainer has wrapped it in.
        autocast: gives the context of mixed precision.
        """
        self._peft, self._autocast = model, autocast
        self._takes = None
        self._fixed: dict[str, Any] = {}  # the trainer has set what the reward's config says
        self._positions = takes_positions(model())
        self._head = LanguageHead(model(), "base", autocast) if heads_apart else None

    def source(self) -> Any:
        return self._peft().get_base_model()

    def sha256(self) -> str:
        """Without the adapter, so that a cache outlives a training run, and fits other adapters."""
        parts = adapter_parts(self._peft())
        return base_sha256(self.source(), lambda name: any(part in name for part in parts))

    def dtype(self) -> torch.dtype:
        return next(self.source().parameters()).dtype

    @contextmanager
    def _frozen(self) -> Iterator[Any]:
        model = self._peft()
        modes = [(module, module.training) for module in model.modules()]
        model.eval()  # the base's own dropout is off, also while the reward's is on
        try:
            with torch.no_grad(), model.disable_adapter():
                yield model
        finally:
            for module, training in modes:
                module.training = training
