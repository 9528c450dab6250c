"""What an operator does to the axes of its tensors: one rule for each.

A rule is a function of a `Call` and of the operator's arguments in the order of its schema, tensors
as `Axes`, all else as it is. It unifies and fixes atoms, and returns the axes of what comes out. An
operator without a rule fixes every atom that it touches: a symmetry may be missed, none is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infer_kit.training.symmetry.atoms import (
    Axes,
    Axis,
    TensorAxes,
    fix_all,
    fixed,
    leaves,
    size_of,
    unify,
)

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        operator: its name without overload, such as "aten.linear".
        where: the module that calls it, such as "layer1.0.conv1"; "" for the model itself.
        shapes: of the tensors that come out.
        names: of the arguments, as the operator's schema calls them.
        used: which of the tensors that come out something reads.
    """

    operator: str
    where: str
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] = ()
    used: frozenset[int] = frozenset({0})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first tensor that comes out."""
        return self.shapes[0]

    @property
    def why(self) -> str:
        """What is written to the axes that this call fixes."""
        return f"{self.operator} in {self.where}" if self.where else self.operator

    def of_shape(self, *shape: int) -> Call:
        """A part of this call, with an output of this shape."""
        return replace(self, shapes=(shape,))

    def named(self, name: str, args: Sequence[object]) -> Any:
        """The argument of this name, None if the operator has none."""
        return args[self.names.index(name)] if name in self.names else None

    def fixed(self, shape: Sequence[int]) -> Axes:
        """Axes of a tensor of which nothing may move."""
        return [fixed(size, self.why) for size in shape]


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operators, such as "aten.linear".

    With it users add operators of their own, "mylib.op" for `torch.ops.mylib.op`, and replace rules
    that are there. The function takes a `Call` and the operator's arguments, tensors as axes.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def elementwise(call: Call, *tensors: Axes) -> Axes:
    """Each place of the output depends on the same places of the tensors; they broadcast."""
    out: Axes = []
    for back in range(len(call.shape), 0, -1):
        axis: Axis = []
        for tensor in tensors:
            other = tensor[-back] if back <= len(tensor) else []
            if axis and other:
                unify(axis, other, call.why)
            axis = axis or other
        out.append(axis)
    return out


class NoRule(Exception):
    """A rule does not know this call: all that it touches is to be fixed."""


def place_of(dim: int, axes: Sequence[Any]) -> int:
    """The number of a dimension, counted from the start."""
    return dim % max(1, len(axes))


@rule(
    "aten.dropout", "aten.alpha_dropout", "aten.feature_dropout", "aten.native_dropout",
    "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh_copy", "aten.to",
    "aten._to_copy", "aten.type_as", "aten.softmax", "aten._softmax", "aten.log_softmax",
    "aten._log_softmax", "aten.log_sigmoid", "aten.log_sigmoid_forward", "aten.float",
    "aten.resolve_conj", "aten.resolve_neg", "aten.hardswish", "aten.clone",
    "aten._conj", "aten.lift_fresh", "aten.fill", "aten.safe_softmax", "aten._safe_softmax",
)  # fmt: skip
def same(call: Call, x: Axes, *rest: object) -> Any:
    """The axes pass as they are: nothing happens, or something alike to all places of an axis."""
    return x if len(call.shapes) == 1 else [x, *(x for _ in call.shapes[1:])]


@rule(
    "aten.rsub", "aten.copy", "aten.expand_as", "aten.masked_fill", "aten.where", "aten.__and__",
    "aten.__or__", "aten.__xor__",
)  # fmt: skip
def pointwise(call: Call, x: Axes, other: object = None, *rest: object) -> Axes:
    """Of pointwise operators that carry no such tag."""
    return elementwise(call, x, *(v for v in (other, *rest) if isinstance(v, TensorAxes)))


@rule(
    "aten._assert_async", "aten._assert_tensor_metadata", "aten.sym_size", "aten.sym_numel",
    "aten.sym_constrain_range", "aten.sym_constrain_range_for_size", "aten._assert_scalar",
)  # fmt: skip
def nothing(call: Call, *rest: object) -> None:
    """No tensor comes out, and nothing depends on the order."""


def called(call: Call, tagged_pointwise: bool, args: Sequence[Any]) -> list[Axes] | None:
    """Axes of all tensors that come out of a call; None, and all is fixed, without a rule for it.

    A rule's answer is taken only if its axes have the sizes that the operator gives.
    """
    tensors: list[Axes] = []
    for arg in args:
        if isinstance(arg, TensorAxes):
            tensors.append(arg)
        elif isinstance(arg, (list, tuple)):
            tensors.extend(item for item in arg if isinstance(item, TensorAxes))
    known = RULES.get(call.operator)
    try:
        if known is not None:
            out = known(call, *args)
        elif tagged_pointwise:
            out = [elementwise(call.of_shape(*shape), *tensors) for shape in call.shapes]
            out = out if len(call.shapes) > 1 else out[0]
        else:
            raise NoRule
        found = _checked(call, out)
    except Exception:  # a call that the rule was not written for
        for tensor in tensors:
            fix_all(tensor, call.why)
        return None
    return found


def _checked(call: Call, out: Any) -> list[Axes]:
    """One list of axes for each tensor that comes out, of its sizes."""
    if not call.shapes:
        return []
    many = len(call.shapes) > 1 or call.operator in (
        "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind"
    )  # fmt: skip
    found = [list(map(leaves, axes)) for axes in (out if many else [out])]
    sizes = [tuple(map(size_of, axes)) for axes in found]
    if sizes != list(call.shapes):
        raise NoRule(f"{call.operator} gives {call.shapes}, its rule {sizes}")
    return found
