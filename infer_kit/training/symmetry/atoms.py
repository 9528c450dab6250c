"""Axes as products of atoms, and which atoms must be reordered alike.

An atom is a factor of a tensor's axis: a set of places that may be put into any order. An axis is
an ordered product of atoms, the slowest first, as `reshape` counts: (heads, features of a head).
Operators tell which atoms are the same (`unify`), how they divide (`Atoms.regroup`) and which may
not move at all (`fix`). Atoms that were never tied to anything fixed are the symmetries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

Axis = list["Atom"]
Axes = list[Axis]


class TensorAxes(list[Axis]):
    """Axes of a tensor, told apart from lists of numbers by their type."""


class Atom:
    """A factor of an axis.

    Attributes:
        size: number of places, at least 2.
        why: None, or the reason why the order of the places is fixed.
        parent: the atom that this one was found to be the same as.
        kids: the factors that it was divided into, the slowest first.
    """

    __slots__ = ("kids", "parent", "size", "why")

    def __init__(self, size: int, why: str | None = None) -> None:
        self.size = size
        self.why = why
        self.parent: Atom | None = None
        self.kids: list[Atom] = []


def find(atom: Atom) -> Atom:
    """The atom that stands for all that are the same as this one."""
    root = atom
    while root.parent is not None:
        root = root.parent
    while atom.parent is not None:
        atom.parent, atom = root, atom.parent
    return root


def leaves(axis: Iterable[Atom]) -> Axis:
    """The axis as atoms that are not divided further."""
    found: Axis = []
    for atom in axis:
        root = find(atom)
        found.extend(leaves(root.kids) if root.kids else [root])
    return found


def size_of(axis: Axis) -> int:
    """Places of an axis; 1 if it has no atom."""
    return prod(atom.size for atom in axis)


def free(size: int) -> Axis:
    """An axis whose places may be in any order; an axis of one place has no atom."""
    return [Atom(size)] if size > 1 else []


def fixed(size: int, why: str) -> Axis:
    """An axis whose order is given."""
    return [Atom(size, why)] if size > 1 else []


def fix(axis: Iterable[Atom], why: str) -> None:
    """The places of this axis may not move."""
    for atom in leaves(axis):
        if atom.why is None:
            atom.why = why


def fix_all(axes: Axes, why: str) -> None:
    """No axis of this tensor may be reordered."""
    for axis in axes:
        fix(axis, why)


def divide(atom: Atom, slow: int) -> None:
    """Atom into (slow, size / slow), everywhere that it is met."""
    atom.kids = [Atom(slow, atom.why), Atom(atom.size // slow, atom.why)]


def unify(a: Axis, b: Axis, why: str) -> None:
    """Places of two axes of one size belong together: atoms become the same, or are divided.

    Args:
        why: what is written to both, should their factors not fit (4 * 3 and 6 * 2).
    """
    done = 0
    while True:
        left, right = leaves(a), leaves(b)
        if done == len(left) or done == len(right):
            break
        x, y = left[done], right[done]
        if x is y:
            done += 1
        elif x.size == y.size:
            x.parent = y
            y.why = y.why or x.why
            done += 1
        else:
            large, small = (x, y) if x.size > y.size else (y, x)
            if large.size % small.size:
                break
            divide(large, small.size)
            done = 0  # the atom may be one of those before, too
    if len(left) != len(right) or done != len(left):
        fix(left, why)
        fix(right, why)


def regroup(axes: Axes, shape: Sequence[int], why: str) -> Axes:
    """Axes of the tensor after a reshape; atoms are divided where a new axis needs it.

    Args:
        why: what is written to all atoms, should they not divide so.
    """
    filled: Axes = []
    at = 0
    for size in shape:
        axis: Axis = []
        while size > 1:
            rest = leaves(atom for old in axes for atom in old)
            if at == len(rest):
                break
            atom = rest[at]
            if size % atom.size == 0:
                axis.append(atom)
                size //= atom.size
                at += 1
            elif atom.size % size == 0:
                divide(atom, size)
                return regroup(axes, shape, why)  # the atom may be one of those before, too
            else:
                break
        if size > 1:
            break
        filled.append(axis)
    if len(filled) < len(shape) or at < len(leaves(atom for axis in axes for atom in axis)):
        fix_all(axes, why)
        return [fixed(n, why) for n in shape]
    return filled


def factor(axis: Axis, sizes: Sequence[int], why: str) -> Axes:
    """An axis as an ordered product of axes of these sizes."""
    return regroup([axis], sizes, why)
