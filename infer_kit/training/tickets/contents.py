"""What a ticket holds: masks, generations and what was not masked; and putting it into a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.indexed_data import tensor_bytes
from infer_kit.training.tickets import rng
from infer_kit.training.tickets.maskable import check_unshared
from infer_kit.training.tickets.masks import SupermaskParam
from infer_kit.training.tickets.spec import Spec

Constant = tuple[float, tuple[int, ...]]

CHECKSUM_LENGTH = 16
"""Hexadecimal digits."""


@dataclass(frozen=True)
class Contents:
    """A ticket as data; all tensors are on the CPU.

    Attributes:
        spec: what the weights are drawn from.
        dtype: of the masked weights in the model.
        kept: bool masks of the masked tensors' shapes.
        gens: int32, the event of IteRand that drew each kept weight last; None without IteRand.
        raw: parameters and persistent buffers that are not masked, by name.
        constants: those of them that hold one number throughout: it and the shape.
        checksum: of the weights w m c and of `raw`, or "" in a model that is searched.
        architecture: class of the model. config: of a transformers model, as its config says it.
    """

    spec: Spec
    dtype: torch.dtype
    kept: dict[str, Tensor]
    gens: dict[str, Tensor] | None
    raw: dict[str, Tensor]
    constants: dict[str, Constant]
    architecture: str
    config: dict[str, Any] | None = None
    checksum: str = ""

    def effective(self, name: str) -> Tensor:
        """w m c of a masked tensor, drawn again."""
        gens = None if self.gens is None else self.gens[name]
        return self.spec.effective(name, self.kept[name], gens, self.dtype)

    def put_into(self, model: nn.Module) -> None:
        """Write every tensor into a model of the same architecture, in place.

        Raises:
            InferKitError: another architecture or dtype; or weights that are not those with which
                the ticket was saved.
        """
        targets = tensors_of(model)
        self._check(model, targets)
        fresh = {name: self.effective(name) for name in self.spec.tensors}
        if self.checksum and checksum(fresh, self.raw) != self.checksum:
            why = f", or this machine rounds {self.spec.init} in another way"
            raise InferKitError(
                f"The weights that seed {self.spec.seed} and the masks give here, or the other "
                "tensors, are not those with which the ticket was saved.",
                f"The file was changed{why * (not rng.INITS[self.spec.init].portable)}.",
            )
        with torch.no_grad():
            for name, weight in (fresh | self.raw).items():
                targets[name].copy_(weight)
            for name, (value, _) in self.constants.items():
                targets[name].fill_(value)

    def _check(self, model: nn.Module, targets: Mapping[str, Tensor]) -> None:
        expected = set(self.spec.tensors) | set(self.raw) | set(self.constants)
        missing, more = sorted(expected - set(targets)), sorted(set(targets) - expected)
        if missing or more:
            parts = [
                f"{what} {', '.join(map(repr, names[:3]))}" + (" and others" if names[3:] else "")
                for what, names in (("it lacks", missing), ("the ticket lacks", more))
                if names
            ]
            raise InferKitError(
                f"The ticket is for another architecture ({self.architecture}) than this "
                f"{type(model).__name__}: {'; '.join(parts)}.",
                "Build the model as it was built for make_ticket.",
            )
        for name, shape in [
            *((name, tensor.shape) for name, tensor in self.spec.tensors.items()),
            *((name, tuple(tensor.shape)) for name, tensor in self.raw.items()),
            *((name, tuple(shape)) for name, (_, shape) in self.constants.items()),
        ]:
            if tuple(targets[name].shape) != tuple(shape):
                raise InferKitError(
                    f"The ticket is for another architecture: {name!r} has shape "
                    f"{list(shape)} in the ticket and {list(targets[name].shape)} in the model.",
                    "Build the model as it was built for make_ticket.",
                )
        for name in self.spec.tensors:
            if targets[name].dtype != self.dtype:
                raise InferKitError(
                    f"{name!r} is {targets[name].dtype} in the model and was {self.dtype} when the "
                    "ticket was found.",
                    f"Convert the model first, model.to({self.dtype}); round it afterwards if you "
                    "want.",
                )
        check_unshared(model, list(self.spec.tensors))


def checksum(weights: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> str:
    """Short hash of the weights w m c of all masked tensors, and of the others."""
    sha = hashlib.blake2b(digest_size=CHECKSUM_LENGTH // 2)
    for name, weight in (*weights.items(), *sorted(raw.items())):
        sha.update(name.encode())
        sha.update(tensor_bytes(weight))
    return sha.hexdigest()


def tensors_of(model: nn.Module, masked: Iterable[str] = ()) -> dict[str, Tensor]:
    """Parameters and persistent buffers, shared ones once, by name.

    Args:
        masked: names of weights under a search in this model, which are left out.

    Raises:
        InferKitError: other weights are under a search; or a state is not a tensor.
    """
    hidden = tuple(inside(name) for name in masked)
    if not hidden and any(isinstance(module, SupermaskParam) for module in model.modules()):
        raise InferKitError(
            f"This {type(model).__name__} is under a ticket search.",
            "Give a fresh model, or what materialize() of its ticket returns.",
        )
    out: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if name.startswith(hidden):
            continue
        if not isinstance(value, Tensor):
            raise InferKitError(f"{name!r} of the model is not a tensor: a ticket cannot hold it.")
        where = (value.data_ptr(), value.shape)
        if value.numel() == 0 or where not in seen:
            out[name] = value
        seen.add(where)
    return out


def inside(name: str) -> str:
    """How the names of a parametrized weight's own tensors begin."""
    module, _, attribute = name.rpartition(".")
    return f"{module}.parametrizations.{attribute}.".removeprefix(".")
