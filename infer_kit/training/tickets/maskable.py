"""Which weight tensors of a model a ticket masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from infer_kit.errors import InferKitError
from infer_kit.training.conv1d import is_conv1d
from infer_kit.training.tickets.rng import fan_in_of

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@dataclass(frozen=True)
class Maskable:
    """A weight tensor that can be masked.

    Attributes:
        name: of the parameter in the model. module: that has it. attribute: its name there.
        fan_in: how many inputs an output of the layer reads.
    """

    name: str
    module: nn.Module
    attribute: str
    fan_in: int

    @property
    def weight(self) -> Tensor:
        found = getattr(self.module, self.attribute)
        assert isinstance(found, Tensor)
        return found


def find(
    model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, Maskable]:
    """The tensors to mask, by parameter name, in the order of the model.

    Weights of linear layers, convolutions, `nn.MultiheadAttention` and transformers' `Conv1D`
    (GPT-2's, whose weight is transposed); embeddings if `include` names them.

    Args:
        include: names of modules or parameters, * stands for any text; None for every layer that is
            not an embedding. exclude: the same, left as they are.

    Raises:
        InferKitError: a pattern that nothing matches; nothing to mask; a tensor that is shared by
            two layers, that has a parametrization, or that has no storage yet.
    """
    known = {
        found.name: found for name, module in model.named_modules() for found in _of(name, module)
    }
    kind = "layer that can be masked"
    if include is None:
        wanted = [n for n, found in known.items() if not isinstance(found.module, nn.Embedding)]
    else:
        wanted = matching(known, include, kind)
    left_out = matching(known, exclude, kind)
    chosen = {name: known[name] for name in wanted if name not in left_out}
    if not chosen:
        raise InferKitError(
            f"{type(model).__name__} has no weights to mask.",
            "A ticket masks linear and convolution layers"
            + (f"; the model has {', '.join(known)}." if known else "."),
        )
    _check_tensors(model, chosen)
    return chosen


def matching(names: Iterable[str], patterns: Sequence[str], kind: str = "parameter") -> list[str]:
    """The names of parameters that a pattern names.

    Args:
        names: of all. patterns: names of modules or parameters, * stands for any text.
        kind: what the names are of, for the message.

    Raises:
        InferKitError: a pattern that matches none.
    """
    if isinstance(patterns, str):
        raise InferKitError(
            f"{patterns!r} is one name, and a list of names is expected.", f"Give [{patterns!r}]."
        )
    listed = list(names)
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in listed):
            raise InferKitError(
                f"No {kind} matches {pattern!r}.", f"There are {', '.join(listed[:12])}."
            )
    return [name for name in listed if _matches(name, patterns)]


def _of(name: str, module: nn.Module) -> list[Maskable]:
    def named(attribute: str, fan_in: int) -> Maskable:
        return Maskable(f"{name}.{attribute}" if name else attribute, module, attribute, fan_in)

    if isinstance(module, nn.MultiheadAttention):
        separate = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        attributes = separate if module.in_proj_weight is None else ("in_proj_weight",)
        return [named(a, getattr(module, a).shape[1]) for a in attributes]
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return []
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InferKitError(
            f"{name or type(module).__name__!r} has no shape yet.",
            "Run the model on a batch first.",
        )
    if isinstance(module, (nn.Linear, nn.Embedding, *_CONVOLUTIONS)):
        return [named("weight", fan_in_of(weight.shape))]
    if is_conv1d(module):
        return [named("weight", weight.shape[0])]
    return []


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names the parameter, its module, or a module around it."""
    parts = name.split(".")
    names = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    return any(fnmatchcase(n, pattern) for pattern in patterns for n in names)


def _check_tensors(model: nn.Module, chosen: dict[str, Maskable]) -> None:
    for name, found in chosen.items():
        if parametrize.is_parametrized(found.module, found.attribute):
            raise InferKitError(
                f"{name!r} has a parametrization already.",
                "One ticket a model: start from a fresh model, or materialize() the ticket first.",
            )
        weight = found.weight
        if not isinstance(weight, nn.Parameter):
            raise InferKitError(
                f"{name!r} is computed from other tensors (weight_norm, pruning), no parameter.",
                "Remove that first, or exclude the layer.",
            )
        if weight.numel() == 0:
            raise InferKitError(f"{name!r} has no numbers: shape {list(weight.shape)}; exclude it.")
        if weight.device.type == "meta":
            raise InferKitError(
                f"{name!r} has no storage yet (it is on the meta device).",
                "Build the model on a real device, or call model.to_empty(device=...) first.",
            )
        if not weight.is_floating_point():
            raise InferKitError(f"{name!r} has no real numbers ({weight.dtype}); exclude it.")
    check_unshared(model, list(chosen))


def check_unshared(model: nn.Module, names: Iterable[str]) -> None:
    """Whether each of these tensors has its storage for itself.

    Raises:
        InferKitError: one does not, because it is tied or a view.
    """
    owners: dict[int, list[str]] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    for name in names:
        others = [o for o in owners[tensors[name].untyped_storage().data_ptr()] if o != name]
        if others:
            raise InferKitError(
                f"{name!r} is the same tensor as {', '.join(map(repr, others))}: one mask cannot "
                "serve two layers.",
                f"Leave it as it is with exclude=[{name!r}], or build the model without tied "
                "weights (tie_word_embeddings=False in transformers).",
            )
