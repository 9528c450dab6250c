"""The permutations of a model's tensors that leave its function as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.calling import outputs_of, state_of
from infer_kit.training.symmetry.placed import check_is_state

Perms = dict[str, Tensor]
State = Mapping[str, Tensor]
Factor = tuple[str | None, int]


@dataclass(frozen=True)
class Frozen:
    """An axis, or a factor of one, that may not be reordered.

    Attributes:
        tensor: name in the state dict. axis: its number. factor: number of the factor, the slowest
            is 0. size: its places. why: the reason.
    """

    tensor: str
    axis: int
    factor: int
    size: int
    why: str


@dataclass(frozen=True)
class PermSpec:
    """Which orders of hidden units leave a model's function as it is.

    An axis of a tensor is an ordered product of factors (group, size), the slowest first; all
    factors of one group take one permutation, a factor whose group is None stays as it is. A
    permutation `p` is an int64 vector, used as `new[i] = old[p[i]]`.

    Attributes:
        groups: size of each group, by name: the first tensor and axis that it is met in.
        axes: factors of each axis of each tensor of the state dict.
        shapes: of each tensor.
        weights: names that are parameters; matching compares them, not the buffers.
        same: names of tensors that are another one under a second name, and that one's.
        outputs: axes of what leaf modules put out, the traced sizes; without those of which
            several tensors are read, or that are called more than once.
        frozen: the axes that may not be reordered, and why.
        unknown: operators without a rule, and where they were met.
        chosen: what of the model's outputs has to stay as it is, a function as it was given, which
            may stand in the way of pickling; None for all.
    """

    groups: dict[str, int]
    axes: dict[str, tuple[tuple[Factor, ...], ...]]
    shapes: dict[str, tuple[int, ...]]
    weights: frozenset[str]
    same: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, tuple[tuple[Factor, ...], ...]] = field(default_factory=dict)
    frozen: tuple[Frozen, ...] = ()
    unknown: tuple[str, ...] = ()
    chosen: Callable[[Any], Any] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        moving = sum(prod(self.shapes[name]) for name in self._moving())
        total = sum(prod(shape) for name, shape in self.shapes.items() if name not in self.same)
        lines = [
            f"{len(self.groups)} groups of {sum(self.groups.values())} units; they reorder "
            f"tensors with {moving / max(1, total):.0%} of {total:,} entries."
        ]
        reasons: dict[str, dict[tuple[str, int], int]] = {}
        for item in self.frozen:
            fixed = reasons.setdefault(item.why, {})
            place = item.tensor, item.axis
            fixed[place] = fixed.get(place, 1) * item.size
        for why, fixed in reasons.items():
            places = []
            for (name, axis), size in fixed.items():
                whole = self.shapes[name][axis]
                part = "" if size == whole else f" (a factor of {size} in {whole})"
                places.append(f"{name}[{axis}]{part}")
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            no_rule = ", which has no rule" if why in self.unknown else ""
            lines.append(f"fixed by {why}{no_rule}: {', '.join(places[:3])}{more}")
        return "\n".join(lines)

    def _moving(self) -> list[str]:
        return [
            name for name, axes in self.axes.items()
            if name not in self.same and any(group for axis in axes for group, _ in axis)
        ]  # fmt: skip

    def identity(self) -> Perms:
        """The permutations that change nothing."""
        return {group: torch.arange(size) for group, size in self.groups.items()}

    def random(self, seed: int = 0) -> Perms:
        """A permutation of each group, drawn from a generator of its own."""
        generator = torch.Generator().manual_seed(seed)
        return {g: torch.randperm(size, generator=generator) for g, size in self.groups.items()}

    def _moving_all(self, seed: int) -> Perms:
        """Random orders, none of which is the identity."""
        perms = self.random(seed)
        return {
            g: p.roll(1) if torch.equal(p, torch.arange(len(p))) else p for g, p in perms.items()
        }

    def inverse(self, perms: Mapping[str, Tensor]) -> Perms:
        """The permutations that undo these: `apply(inverse(p), apply(p, w))` is `w`."""
        self.check_perms(perms)
        return {group: torch.argsort(p) for group, p in perms.items()}

    def compose(self, second: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> Perms:
        """One after the other: `apply(compose(q, p), w)` is `apply(q, apply(p, w))`."""
        self.check_perms(first)
        self.check_perms(second)
        return {group: first[group][second[group]] for group in self.groups}

    def apply(self, perms: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
        """The state with its units in the new order: `new[i] = old[p[i]]` along each axis.

        Args:
            perms: one permutation for each group, int64 [size].
            state: tensors of the traced architecture; any float or integer type, any device.

        Returns:
            New tensors where something moves, the same ones where not. A tensor under two names
            stays one tensor.

        Raises:
            InferKitError: no permutation of the groups; a tensor that is missing, unknown or of
                another shape (the first one is named).
        """
        self.check_perms(perms)
        self.check_state(state)
        moved: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name in self.same and state.get(self.same[name]) is tensor:
                continue
            moved[name] = permuted(tensor, self.axes[name], perms)
        return {name: moved[name] if name in moved else moved[self.same[name]] for name in state}

    def check(self, model: nn.Module, x: Any, tol: float | None = None, seed: int = 0) -> float:
        """Reorder all groups at random and compare what the model puts out, in eval mode.

        Args:
            model: the traced one, or another with its architecture.
            x: as for `discover`.
            tol: bound of the error; None for 1e-12 of float64 and 1e-5 of anything else.

        Returns:
            The largest difference of an output, relative to the largest output.

        Raises:
            InferKitError: the error is above `tol`, or nothing that comes out can be compared.
        """
        state = state_of(model)
        # Both from states, of which buffers are copies: a forward may write to them.
        before = outputs_of(model, x, state, self.chosen)
        after = outputs_of(model, x, self.apply(self._moving_all(seed), state), self.chosen)
        if not any(a.numel() for a in before):
            raise InferKitError("The model puts out no number that could be compared.")
        error = max(_difference(a, b) for a, b in zip(before, after, strict=True))
        if tol is None:
            tol = 1e-12 if any(a.dtype == torch.float64 for a in before) else 1e-5
        if not error <= tol:
            again = outputs_of(model, x, state, self.chosen)
            own = max(_difference(a, b) for a, b in zip(before, again, strict=True))
            if own > tol:
                raise InferKitError(
                    f"With the same units and the same input the model's outputs differ by "
                    f"{own:.2g} of the largest: it draws numbers in eval mode.",
                    "Seed it in its forward, or trace the part without them.",
                )
            raise InferKitError(
                f"With its units in another order the model's outputs differ by {error:.2g} of the "
                f"largest; at most {tol:.2g} were expected.",
                "Reorder one group at a time to find the rule that is wrong; half precision, or "
                "numbers that cancel, need a larger tol.",
            )
        return error

    def check_state(self, state: State) -> None:
        """Whether these are the tensors of the traced architecture.

        Raises:
            InferKitError: names the first tensor that is missing, unknown or of another shape.
        """
        check_is_state(state)
        hint = "Trace the model whose state this is: discover(model, x)."
        for name, shape in self.shapes.items():
            if name not in state:
                if self.tensor(state, name) is not None:
                    continue  # it is there under another of its names
                raise InferKitError(f"The state has no {name!r}, the traced model has.", hint)
            if tuple(state[name].shape) != shape:
                raise InferKitError(
                    f"{name!r} has shape {list(state[name].shape)} in the state and {list(shape)} "
                    "in the traced model.",
                    hint,
                )
        for name in state:
            if name not in self.shapes:
                raise InferKitError(f"The traced model has no {name!r}, the state has.", hint)

    def tensor(self, state: State, name: str) -> Tensor | None:
        """A tensor by its name or, as files leave out all names of a tied one but one, another."""
        owner = self.same.get(name, name)
        aliases = [name, owner, *(other for other, first in self.same.items() if first == owner)]
        return next((state[alias] for alias in aliases if alias in state), None)

    def check_perms(self, perms: Mapping[str, Tensor]) -> None:
        """Whether there is one permutation for each group.

        Raises:
            InferKitError: names the first group for which there is none.
        """
        if not isinstance(perms, Mapping):
            raise InferKitError(
                f"A {type(perms).__name__} is given where permutations by group are expected.",
                "They are the .perms of what match, ste_match or a transfer returns.",
            )
        for group, size in self.groups.items():
            if group not in perms:
                raise InferKitError(
                    f"There is no permutation of the group {group!r}.",
                    "Start from spec.identity(), which has them all.",
                )
            p = perms[group]
            if not isinstance(p, Tensor) or p.dtype != torch.int64:
                kind = p.dtype if isinstance(p, Tensor) else type(p).__name__
                raise InferKitError(
                    f"What is given for the group {group!r} is {kind}, where an int64 vector is "
                    "expected.",
                    "Start from spec.identity().",
                )
            p = p.cpu()
            if p.shape != (size,) or not torch.equal(torch.sort(p)[0], torch.arange(size)):
                raise InferKitError(
                    f"What is given for the group {group!r} is no permutation of {size} units.",
                    f"Give an int64 vector with each of 0 to {size - 1} once.",
                )
        for group in perms:
            if group not in self.groups:
                raise InferKitError(
                    f"The model has no group {group!r}.",
                    "Its groups are in spec.groups.",
                )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest number; inf if what is not finite differs."""
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not torch.equal(
        torch.nan_to_num(a[~finite].real), torch.nan_to_num(b[~finite].real)
    ):
        return float("inf")
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    scale = a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)
    return float((a - b).abs().max() / scale)


def index_of(axis: Sequence[Factor], perms: Mapping[str, Tensor]) -> Tensor | None:
    """Where each place of an axis comes from, int64 [size]; None if nothing of it moves."""
    if not any(group for group, _ in axis):
        return None
    index = torch.zeros(1, dtype=torch.int64)
    for group, size in axis:
        p = torch.arange(size) if group is None else perms[group].cpu()
        index = (index[:, None] * size + p[None, :]).reshape(-1)
    return index


def permuted(
    tensor: Tensor, axes: Sequence[Sequence[Factor]], perms: Mapping[str, Tensor]
) -> Tensor:
    """A tensor with each axis in its new order."""
    for dim, axis in enumerate(axes):
        index = index_of(axis, perms)
        if index is not None:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor
