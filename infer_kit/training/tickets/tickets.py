"""A ticket: a network as a seed and a bit for each weight."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import ticket_file
from infer_kit.training.tickets.contents import Constant, Contents, checksum, tensors_of
from infer_kit.training.tickets.masks import SupermaskParam
from infer_kit.training.tickets.size import TicketSize
from infer_kit.training.tickets.spec import Spec


class Ticket:
    """A network as a seed and a bit for each weight.

    Either in a model that is being searched, as `make_ticket` returns it, or read from a file.

    Attributes:
        spec: seed, distributions, rule and shapes.
        model: that is being searched; None of a ticket from a file.
    """

    def __init__(
        self,
        spec: Spec,
        model: nn.Module | None,
        contents: Contents | None = None,
        trainable: frozenset[str] = frozenset(),
    ) -> None:
        self.spec, self.model = spec, model
        self._contents, self._trainable = contents, trainable

    def layers(self) -> dict[str, SupermaskParam]:
        """The masks of the model that is being searched, by the names of its weights.

        Raises:
            InferKitError: the ticket is from a file, which has no scores.
        """
        if self.model is None:
            raise InferKitError(
                "This ticket was read from a file: it has masks and no scores to search with.",
                "Resume a search from its checkpoint.",
            )
        masks = (module for module in self.model.modules() if isinstance(module, SupermaskParam))
        return {mask.name: mask for mask in masks}

    def masks(self) -> dict[str, Tensor]:
        """bool masks of the weights' shapes, on the CPU, frozen weights included."""
        if self._contents is not None:
            return self._contents.kept
        layers = self._looked_at()
        return {name: layer.mask().cpu() for name, layer in layers.items()}

    def _looked_at(self) -> dict[str, SupermaskParam]:
        """The layers, with scores that are finite and thresholds that are theirs."""
        layers = self.layers()
        if set(layers) != set(self.spec.tensors):
            gone = sorted(set(self.spec.tensors) ^ set(layers))
            raise InferKitError(
                f"The model is no longer the one of the ticket: {gone[0]!r} has changed.",
                "Resize embeddings and replace layers before make_ticket.",
            )
        check_finite(layers)
        for layer in layers.values():
            if layer.together is not None:
                layer.together.forget()
        return layers

    @property
    def sparsity(self) -> float:
        """The share of all masked weights that is pruned."""
        masks = self.masks().values()
        return 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)

    def contents(self) -> Contents:
        """The ticket as data, as it is now.

        Raises:
            InferKitError: scores that are not finite.
        """
        if self._contents is not None:
            return self._contents
        kept, layers, model = self.masks(), self.layers(), self.model
        assert model is not None
        gens = None
        if any(layer.gens is not None for layer in layers.values()):
            gens = {
                name: torch.where(kept[name], layer.gens.cpu(), 0)
                for name, layer in layers.items()
                if layer.gens is not None
            }
        raw: dict[str, Tensor] = {}
        constants: dict[str, Constant] = {}
        for name, tensor in tensors_of(model, layers).items():
            value = tensor.detach().cpu()
            if (constant := _constant(value)) is None:
                raw[name] = value.clone().contiguous()
            else:
                constants[name] = (constant, tuple(value.shape))
        return Contents(
            self.spec,
            next(iter(self.weights().values())).dtype,
            kept,
            gens,
            raw,
            constants,
            type(model).__name__,
            ticket_file.config_of(model),
        )

    def save(self, path: str | Path) -> None:
        """Write the ticket as a safetensors file, all of it or nothing.

        A packed bit for each weight that is searched, in flat order; of IteRand also which event
        drew each kept weight; tensors that are not masked as they are; the rest in the metadata.

        Args:
            path: of the file, by custom with the ending .safetensors.

        Raises:
            InferKitError: scores that are not finite; random weights that are not those of the seed
                any more, because they were trained or rounded; no such folder.
        """
        contents = self.contents()
        if self.model is not None:
            fresh = {name: contents.effective(name) for name in self.spec.tensors}
            self._check_drawn(fresh)
            contents = replace(contents, checksum=checksum(fresh, contents.raw))
        ticket_file.write(path, contents)

    @torch.no_grad()
    def _check_drawn(self, fresh: dict[str, Tensor]) -> None:
        """Whether the model multiplies with the weights that the file will give."""
        assert self.model is not None
        for name, (module, attribute) in parametrized(self.model).items():
            off = (getattr(module, attribute).cpu() - fresh[name]).abs().max()
            if off != 0:
                raise InferKitError(
                    f"{name!r} is not what seed {self.spec.seed} gives any more: up to "
                    f"{float(off):.2g} off.",
                    "Random weights were trained or rounded after make_ticket. Convert the model "
                    "to its dtype before, and save what was trained by materialize().",
                )

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read what `save` wrote.

        Raises:
            InferKitError: no such file, a truncated one, one that is no ticket, or one whose format
                or random numbers have another version.
        """
        contents = ticket_file.read(path)
        return cls(contents.spec, None, contents)

    def apply(self, model: nn.Module) -> nn.Module:
        """Make an ordinary model the network of this ticket, in place, bit for bit.

        Args:
            model: of the architecture and dtype with which the ticket was made; its weights do not
                matter.

        Returns:
            The model.

        Raises:
            InferKitError: another architecture or dtype, a model that is being searched, or weights
                that are not those with which the ticket was saved.
        """
        self.contents().put_into(model)
        return model

    def materialize(self) -> nn.Module:
        """A new ordinary model with the weights w m c, bit for bit.

        Of a ticket from a file this needs one of transformers' classes, whose config the file has;
        otherwise `apply` puts the ticket into a model of yours.

        Raises:
            InferKitError: the class of the model is not known; or as `apply`.
        """
        if self.model is None:
            return self.apply(ticket_file.build(self.contents()))
        self._looked_at()
        model = copy.deepcopy(self.model)
        for module, attribute in parametrized(model).values():
            _own_class(module)
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        return model

    def bits(self) -> TicketSize:
        """What the ticket takes on disk, to the bit."""
        return ticket_file.size(self.contents())

    def __repr__(self) -> str:
        weights = sum(tensor.size for tensor in self.spec.tensors.values())
        where = "from a file" if self.model is None else f"in a {type(self.model).__name__}"
        return (
            f"Ticket({weights:,} weights in {len(self.spec.tensors)} tensors {where}, "
            f"seed={self.spec.seed}, init={self.spec.init!r}, {self.spec.rule})"
        )

    def weights(self) -> dict[str, Tensor]:
        """The random weights in the model that is being searched, pruned or not, by name."""
        assert self.model is not None
        return {
            name: module.parametrizations[attribute].original
            for name, (module, attribute) in parametrized(self.model).items()
        }


def check_finite(layers: dict[str, SupermaskParam]) -> None:
    """Whether all scores are finite.

    Raises:
        InferKitError: naming the first tensor with others.
    """
    for name, layer in layers.items():
        bad = int((~torch.isfinite(layer.scores.detach())).sum())
        if bad:
            raise InferKitError(
                f"{bad} of the {layer.scores.numel()} scores of {name!r} are not finite.",
                "The search diverged: lower its learning rate, or clip gradients.",
            )


def _own_class(module: nn.Module) -> None:
    """A deep copy shares the class that has its parametrized weight as a property, which removal
    would take from the original too."""
    cls = type(module)
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, own)


def parametrized(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """The module and attribute of each masked weight, by its name."""
    found: dict[str, tuple[Any, str]] = {}
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        chains: Any = module.parametrizations
        for attribute, chain in chains.items():
            for layer in chain:
                if isinstance(layer, SupermaskParam):
                    found[layer.name] = (module, attribute)
    return found


def _constant(tensor: Tensor) -> float | None:
    """The number of a tensor that holds one throughout; None of others, and of small ones."""
    if tensor.numel() < 2 or not tensor.is_floating_point():
        return None
    first = tensor.flatten()[0]
    same = bool((tensor == first).all()) and bool((tensor.signbit() == first.signbit()).all())
    return float(first) if same else None
