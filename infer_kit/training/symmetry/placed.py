"""A state run in a model: neither the model nor the state is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError

State = dict[str, Tensor]
Call = Callable[[nn.Module, Any], Any]


def check_is_state(state: object) -> None:
    """Whether something is tensors by name.

    Raises:
        InferKitError: it is a model, a checkpoint with other things in it, or no mapping.
    """
    if not isinstance(state, Mapping):
        raise InferKitError(
            f"A {type(state).__name__} is given where a state is expected.",
            "Give tensors by name, such as model.state_dict().",
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InferKitError(
                f"{name!r} of a state is a {type(value).__name__}, where tensors are expected.",
                "Of a checkpoint give the part that holds the model's tensors.",
            )


def whole(model: nn.Module, state: Mapping[str, Tensor]) -> State:
    """A state with all names of its tied tensors, of which files keep but one."""
    check_is_state(state)
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    found = dict(state)
    for same in names.values():
        given = [name for name in same if name in found]
        if given:
            found |= {name: found[given[0]] for name in same if name not in found}
    return found


class Placed:
    """A state in the place of a model's own, for calls; neither is changed.

    Attributes:
        values: what the model's tensors are, one name for all that share a tensor; the buffers
            are copies, which the calls may write to.
        names: of each of the model's tensors the name in `values`.

    Raises:
        InferKitError: the state lacks a tensor of the model, has one more or one of another shape,
            or has two values for tensors that the model shares.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        check_is_state(state)
        self.values: State = {}
        self.names: dict[str, str] = {}
        self._model = model
        # One name for each tensor of each module. functional_call's own tie_weights also takes the
        # second name of a shared module, and then leaves the replacement in it for good.
        self._slots = [
            slot
            for name, module in model.named_modules()
            for named in (module.named_parameters, module.named_buffers)
            for slot, _ in named(name, recurse=False, remove_duplicate=False)
        ]
        buffers = dict(model.named_buffers(remove_duplicate=False))
        own = dict(model.named_parameters(remove_duplicate=False)) | buffers
        for name in state:
            if name not in own:
                raise _other(f"it has {name!r}, which this {type(model).__name__} has not.")
        kept = model.state_dict().keys()
        shared: dict[int, list[str]] = {}
        for name, tensor in own.items():
            shared.setdefault(id(tensor), []).append(name)
        for names in shared.values():
            given = [name for name in names if name in state]
            if not given and any(name in kept for name in names):
                raise _other(f"it lacks {names[0]!r} of this {type(model).__name__}.")
            first = given[0] if given else names[0]
            value = state[first] if given else own[first]
            if value.shape != own[first].shape:
                raise _other(
                    f"{first!r} has shape {list(value.shape)} in it and "
                    f"{list(own[first].shape)} in the model."
                )
            for name in given[1:]:
                if state[name] is not value and not torch.equal(state[name], value):
                    raise InferKitError(
                        f"{first!r} and {name!r} are one tensor in this {type(model).__name__}, "
                        "and the state has two different values for them.",
                        "Give one of them only, or untie them in the model.",
                    )
            self.values[first] = value.clone() if first in buffers else value
            self.names |= dict.fromkeys(names, first)

    def __call__(self, call: Call, batch: Any) -> Any:
        """`call(model, batch)` on the state, without gradients."""
        with torch.no_grad():
            return self.run(call, batch)

    def run(self, call: Call, batch: Any) -> Any:
        """`call(model, batch)` on the state; with gradients to what `require_grad` returned."""
        inside = {f"model.{name}": self.values[self.names[name]] for name in self._slots}
        called = _Called(self._model, call)
        return torch.func.functional_call(called, inside, (batch,), tie_weights=False)

    def require_grad(self, all_of_them: bool = True) -> list[Tensor]:
        """The state's parameters, in the model's order, as leaves that gather gradients.

        Args:
            all_of_them: those too that do not require a gradient in the model.

        They have the memory of the state that was given: an optimizer's step changes both.
        """
        leaves = []
        for name, parameter in self._model.named_parameters():
            if not (all_of_them or parameter.requires_grad):
                continue
            name = self.names[name]
            value = self.values[name].detach()
            if value.is_floating_point() or value.is_complex():
                self.values[name] = value.requires_grad_()
                leaves.append(value)
        return leaves

    def snapshot(self, like: Iterable[str]) -> State:
        """Copies of the tensors of these names as they are now; shared ones are one copy."""
        copies: State = {}
        for name in like:
            first = self.names[name]
            if first not in copies:
                copies[first] = self.values[first].detach().clone()
        return {name: copies[self.names[name]] for name in like}


class _Called(nn.Module):
    """`call` as a forward, since only modules can be called on a state."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, batch: Any) -> Any:
        return self._call(self.model, batch)


@contextmanager
def modes(model: nn.Module, training: Iterable[nn.Module] = ()) -> Iterator[None]:
    """All modules in eval mode but some; as they were afterwards.

    `train()` and `eval()` are not called, since some models do more in them.
    """
    before = [(module, module.training) for module in model.modules()]
    chosen = {id(module) for module in training}
    try:
        for module, _ in before:
            module.training = id(module) in chosen
        yield
    finally:
        for module, mode in before:
            module.training = mode


def moved(batch: Any, model: nn.Module) -> Any:
    """Tensors, also in mappings, tuples and lists, on the device of the model's first parameter."""
    first = next(model.parameters(), None)
    if first is None:
        return batch
    if isinstance(batch, Tensor):
        return batch.to(first.device)
    if isinstance(batch, Mapping):
        return {name: moved(value, model) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [moved(value, model) for value in batch]
        return tuple(values) if isinstance(batch, tuple) else values
    return batch


def _other(what: str) -> InferKitError:
    return InferKitError(
        f"The state is not of this model: {what}",
        "Give a state of the same architecture, such as state_dict() of such a model.",
    )
