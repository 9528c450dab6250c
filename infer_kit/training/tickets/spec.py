"""What a ticket is made of besides its bits: everything that the seed cannot tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import rng
from infer_kit.training.tickets.freeze import Freeze
from infer_kit.training.tickets.masks import MaskRule, Scale, Threshold, TopK, scaled


@dataclass(frozen=True)
class Gain:
    """A factor on a slice of a tensor's initial weights: `start` to `stop` along `dim`."""

    dim: int
    start: int
    stop: int
    factor: float


@dataclass(frozen=True)
class TensorSpec:
    """One masked tensor.

    Attributes:
        shape: of the weights. fan_in: inputs of one output. gains: factors on slices.
    """

    shape: tuple[int, ...]
    fan_in: int
    gains: tuple[Gain, ...] = ()

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Spec:
    """From which the weights of a ticket are drawn, and how masks are formed.

    Attributes:
        seed, init: of the random weights. rule, scale, freeze: of the masks.
        tensors: the masked tensors, by name.
    """

    seed: int
    init: str
    rule: MaskRule
    scale: Scale = None
    freeze: Freeze | None = None
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """How many weights each tensor has, and how many are frozen out and in."""
        if self.freeze is None:
            return {name: (tensor.size, 0, 0) for name, tensor in self.tensors.items()}
        counts = self.freeze.counts(self.shapes())
        return {name: (self.tensors[name].size, m.pruned, m.locked) for name, m in counts.items()}

    def draw(self, name: str, device: torch.device | str | None = None) -> Tensor:
        """float32 initial weights of a tensor, event 0."""
        tensor = self.tensors[name]
        draw = rng.INITS[self.init]
        weight = draw(self.seed, name, tensor.shape, fan_in=tensor.fan_in, device=device)
        for gain in tensor.gains:
            weight.narrow(gain.dim, gain.start, gain.stop - gain.start).mul_(
                rng.float32(gain.factor)
            )
        return weight

    def redraw(self, name: str, index: Tensor, gen: Tensor | int) -> Tensor:
        """float32 weights at flat positions, as event `gen` (one, or one each) drew them."""
        tensor = self.tensors[name]
        draw = rng.INITS[self.init]
        weight = draw(self.seed, name, tensor.shape, gen, index=index, fan_in=tensor.fan_in)
        if not tensor.gains:
            return weight
        factors = torch.ones(tensor.shape, device=index.device)
        for gain in tensor.gains:
            factors.narrow(gain.dim, gain.start, gain.stop - gain.start).mul_(
                rng.float32(gain.factor)
            )
        return weight * factors.flatten()[index]

    def frozen(self) -> dict[str, Tensor | None]:
        """int8 tensors of the frozen weights (-1 pruned, 0 searched, 1 locked), or None each."""
        if self.freeze is None:
            return dict.fromkeys(self.tensors)
        counts = self.freeze.counts(self.shapes())
        return {name: counts[name].draw(self.seed) for name in self.tensors}

    def effective(self, name: str, kept: Tensor, gens: Tensor | None, dtype: torch.dtype) -> Tensor:
        """w m c of a tensor in a dtype, bit for bit what the masked layer multiplies with.

        Args:
            kept: bool mask of its shape. gens: the event that drew each weight last, or None.
        """
        weight = self.draw(name, kept.device)
        if gens is not None:
            index = gens.flatten().nonzero().squeeze(1)
            weight.view(-1)[index] = self.redraw(name, index, gens.flatten()[index])
        # where and not times: a product with 0 has the sign of a weight that is not stored.
        weight = torch.where(kept, weight.to(dtype), 0)
        return scaled(weight, kept, self.rule, self.scale)

    def identity(self, name: str) -> int:
        """One number for all that fixes a tensor's random weights and frozen part."""
        facts = [self.seed, self.init, rng.RNG_VERSION, asdict(self.tensors[name])]
        freeze = None if self.freeze is None else asdict(self.freeze)
        return rng.key(self.seed, json.dumps([name, facts, freeze]))

    def to_json(self) -> str:
        """Short enough for the header of a small file."""
        tensors = {}
        for name, tensor in self.tensors.items():
            entry: list[Any] = [list(tensor.shape)]
            if tensor.gains or tensor.fan_in != rng.fan_in_of(tensor.shape):
                gains = [[g.dim, g.start, g.stop, g.factor] for g in tensor.gains]
                entry += [tensor.fan_in, gains]
            tensors[name] = entry
        said = {
            "seed": self.seed,
            "init": self.init,
            "rule": [type(self.rule).__name__, *asdict(self.rule).values()],
            "scale": self.scale,
            "freeze": None if self.freeze is None else list(asdict(self.freeze).values()),
            "tensors": tensors,
        }
        said = {key: value for key, value in said.items() if value is not None}
        return json.dumps(said, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """What `to_json` wrote.

        Raises:
            InferKitError: a distribution or rule that this version does not know.
        """
        said = json.loads(text)
        kind, *settings = said["rule"]
        rules = {"TopK": TopK, "Threshold": Threshold}
        if kind not in rules or said["init"] not in rng.INITS:
            raise InferKitError(
                f"The ticket has a mask rule {kind!r} and weights {said['init']!r}; known are "
                f"{', '.join(rules)} and {', '.join(rng.INITS)}.",
                "It was written by a newer infer_kit: update.",
            )
        tensors = {}
        for name, (shape, *more) in said["tensors"].items():
            fan_in = more[0] if more else rng.fan_in_of(shape)
            gains = tuple(Gain(*gain) for gain in (more[1] if more else ()))
            tensors[name] = TensorSpec(tuple(shape), fan_in, gains)
        freeze = said.get("freeze")
        return cls(
            seed=said["seed"],
            init=said["init"],
            rule=rules[kind](*settings),
            scale=said.get("scale"),
            freeze=None if freeze is None else Freeze(*freeze),
            tensors=tensors,
        )
