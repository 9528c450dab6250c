"""Rules of operators that reduce axes, rearrange them, or take parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infer_kit.training.symmetry.atoms import (
    Axes,
    TensorAxes,
    factor,
    fix,
    fix_all,
    fixed,
    free,
    regroup,
    size_of,
    unify,
)
from infer_kit.training.symmetry.rules import Call, NoRule, elementwise, place_of, rule


@rule(
    "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.var", "aten.std", "aten.logsumexp",
    "aten.prod", "aten.any", "aten.all", "aten.linalg_vector_norm", "aten.norm", "aten.nansum",
    "aten.max", "aten.min", "aten.var_mean", "aten.std_mean",
)  # fmt: skip
def reduction(call: Call, x: Axes, *rest: object) -> Any:
    """Symmetric in what it reduces; the other axes pass."""
    if rest and isinstance(rest[0], TensorAxes):  # the larger of two tensors
        return elementwise(call, x, rest[0])
    given = call.named("dim", (x, *rest))
    places = set(range(len(x))) if given is None or given == [] else _places(given, x)
    if call.operator in ("aten.max", "aten.min") and 1 in call.used:  # positions
        for place in places:
            fix(x[place], call.why)
    out = _without(x, places, keep=bool(call.named("keepdim", (x, *rest))))
    return out if len(call.shapes) == 1 else [out for _ in call.shapes]


def _places(dims: Any, x: Axes) -> set[int]:
    return {place_of(dim, x) for dim in ([dims] if isinstance(dims, int) else dims)}


def _without(x: Axes, places: set[int], keep: bool) -> Axes:
    if keep:
        return [[] if i in places else axis for i, axis in enumerate(x)]
    return [axis for i, axis in enumerate(x) if i not in places]


@rule("aten.argmax", "aten.argmin")
def position(call: Call, x: Axes, dim: int | None = None, keepdim: bool = False) -> Axes:
    """What comes out are positions along an axis: it is fixed, the others pass."""
    places = set(range(len(x))) if dim is None else {place_of(dim, x)}
    for place in places:
        fix(x[place], call.why)
    return _without(x, places, keepdim)


@rule("aten.cumsum", "aten.cumprod", "aten.flip", "aten.roll")
def along(call: Call, x: Axes, *rest: object) -> Axes:
    """The order along some axes matters; the others pass."""
    name = "dim" if "dim" in call.names else "dims"
    dims = call.named(name, (x, *rest))
    for place in _places(dims, x) if dims != [] else range(len(x)):
        fix(x[place], call.why)
    return x


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten",
      "aten._reshape_alias", "aten.view_copy", "aten.reshape_as", "aten.view_as")  # fmt: skip
def reshape(call: Call, x: Axes, *rest: object) -> Axes:
    return regroup(x, call.shape, call.why)


@rule("aten.permute", "aten.permute_copy")
def permute(call: Call, x: Axes, dims: Sequence[int]) -> Axes:
    return [x[dim] for dim in dims]


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(call: Call, x: Axes, a: int, b: int) -> Axes:
    axes = list(x)
    axes[a], axes[b] = axes[b], axes[a]
    return axes


@rule("aten.numpy_T")
def reverse(call: Call, x: Axes) -> Axes:
    return x[::-1]


@rule("aten.t", "aten.mT", "aten.adjoint", "aten.mH")
def last_two(call: Call, x: Axes) -> Axes:
    return x if len(x) < 2 else [*x[:-2], x[-1], x[-2]]


@rule("aten.movedim", "aten.moveaxis")
def movedim(call: Call, x: Axes, source: Any, target: Any) -> Axes:
    come = [source] if isinstance(source, int) else source
    go = [target] if isinstance(target, int) else target
    moved = {place_of(b, x): place_of(a, x) for a, b in zip(come, go, strict=True)}
    rest = iter([i for i in range(len(x)) if i not in moved.values()])
    return [x[moved[i]] if i in moved else x[next(rest)] for i in range(len(x))]


@rule("aten.unsqueeze")
def unsqueeze(call: Call, x: Axes, dim: int) -> Axes:
    axes = list(x)
    axes.insert(dim % (len(x) + 1), [])
    return axes


@rule("aten.squeeze")
def squeeze(call: Call, x: Axes, dims: Any = None) -> Axes:
    given = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {place_of(dim, x) for dim in given if not x[dim]}
    return [axis for i, axis in enumerate(x) if i not in gone]


@rule("aten.expand", "aten.broadcast_to")
def expand(call: Call, x: Axes, *rest: object) -> Axes:
    """New places hold the same: their order is free."""
    out: Axes = []
    for back in range(len(call.shape), 0, -1):
        axis = x[-back] if back <= len(x) else []
        out.append(axis or free(call.shape[-back]))
    return out


@rule("aten.repeat", "aten.tile")
def repeat(call: Call, x: Axes, times: Sequence[int]) -> Axes:
    sizes = [1] * max(0, len(times) - len(x)) + [size_of(axis) for axis in x]
    counts = [1] * max(0, len(sizes) - len(times)) + list(times)
    axes: Axes = [[] for _ in range(len(sizes) - len(x))]
    return [[*free(n), *axis] for n, axis in zip(counts, [*axes, *x], strict=True)]


@rule("aten.repeat_interleave")
def repeat_interleave(
    call: Call, x: Axes, times: object, dim: int | None = None, *_: object
) -> Any:
    if not isinstance(times, int) or dim is None:
        raise NoRule
    axes = list(x)
    axes[dim] = [*x[dim], *free(times)]
    return axes


@rule(
    "aten.zeros", "aten.ones", "aten.full", "aten.zeros_like", "aten.ones_like", "aten.full_like",
    "aten.empty", "aten.empty_like", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.scalar_tensor", "aten.empty_permuted", "aten.new_empty",
)  # fmt: skip
def filled(call: Call, *rest: object) -> Axes:
    """All places hold the same number."""
    return [free(size) for size in call.shape]


@rule("aten.arange", "aten.linspace", "aten.eye", "aten.tril_indices", "aten.triu_indices")
def counted(call: Call, *rest: object) -> Axes:
    return call.fixed(call.shape)


@rule("aten.tril", "aten.triu")
def triangle(call: Call, x: Axes, *rest: object) -> Axes:
    fix_all(x[-2:], call.why)
    return x


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unsafe_split",
      "aten.unsafe_chunk")  # fmt: skip
def split(call: Call, x: Axes, sizes: object, dim: int = 0) -> list[Axes]:
    """Equal parts: which part is fixed, the order within is one for all parts."""
    place, n = place_of(dim, x), len(call.shapes)
    parts = {shape[place] for shape in call.shapes}
    if n == 1:
        return [x]
    if len(parts) == 1 and (part := parts.pop()):
        slow, within = factor(x[place], (n, part), call.why)
        fix(slow, call.why)
        return [[*x[:place], within, *x[place + 1 :]] for _ in range(n)]
    fix(x[place], call.why)
    return [[*x[:place], fixed(shape[place], call.why), *x[place + 1 :]] for shape in call.shapes]


@rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call, x: Axes, dim: int = 0) -> list[Axes]:
    place = place_of(dim, x)
    fix(x[place], call.why)
    return [[*x[:place], *x[place + 1 :]] for _ in call.shapes]


@rule("aten.select", "aten.select_copy")
def select(call: Call, x: Axes, dim: int, index: object) -> Axes:
    place = place_of(dim, x)
    fix(x[place], call.why)
    return [*x[:place], *x[place + 1 :]]


@rule("aten.slice", "aten.narrow", "aten.index_select", "aten.unfold", "aten.slice_copy")
def part_of_axis(call: Call, x: Axes, dim: int = 0, *rest: object) -> Axes:
    """Some places of one axis; all of them pass."""
    place = place_of(dim, x)
    if call.operator in ("aten.slice", "aten.narrow") and call.shape[place] == size_of(x[place]):
        return x
    fix(x[place], call.why)
    for chosen in rest:
        if isinstance(chosen, TensorAxes):
            fix_all(chosen, call.why)
    axes = [*x[:place], fixed(call.shape[place], call.why), *x[place + 1 :]]
    return axes + call.fixed(call.shape[len(x) :])


@rule("aten.index")
def index(call: Call, x: Axes, indices: Sequence[Axes | None]) -> Any:
    """The axes that are indexed are fixed; the others pass."""
    given = [i for i, value in enumerate(indices) if value is not None]
    for place in given:
        fix(x[place], call.why)
        fix_all(indices[place] or [], call.why)
    others = [i for i in range(len(x)) if i not in given]
    wide = len(call.shape) - len(others)  # of the indices, broadcast
    before = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
    out: Axes = [x[i] for i in others]
    middle = call.fixed(call.shape[before : before + wide])
    return [*out[:before], *middle, *out[before:]]


@rule("aten.gather")
def gather(call: Call, x: Axes, dim: int, ids: Axes, *rest: object) -> Axes:
    """Row by row along one axis, which is fixed; the others belong together."""
    place = place_of(dim, x)
    fix(x[place], call.why)
    for i, (axis, other) in enumerate(zip(x, ids, strict=True)):
        if i != place:
            unify(axis, other, call.why)  # fixes both if only a part is read
    return ids


@rule("aten.diff")
def diff(call: Call, x: Axes, n: int = 1, dim: int = -1, *rest: object) -> Axes:
    place = place_of(dim, x)
    for tensor in [x, *(t for t in rest if isinstance(t, TensorAxes))]:
        fix_all(tensor, call.why)
    return [fixed(call.shape[place], call.why) if i == place else a for i, a in enumerate(x)]


@rule("aten.sort", "aten.topk", "aten.kthvalue", "aten.median")
def ranked(call: Call, x: Axes, *rest: object) -> Any:
    """Values and places of an axis in an order of theirs; the other axes pass."""
    dim = call.named("dim", (x, *rest))
    if dim is None:
        raise NoRule
    place = place_of(dim, x)
    fix(x[place], call.why)
    if call.shape and len(call.shape) == len(x):
        out = [*x[:place], fixed(call.shape[place], call.why), *x[place + 1 :]]
    else:
        out = [*x[:place], *x[place + 1 :]]
    return [out for _ in call.shapes]


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call, tensors: list[Axes], dim: int = 0) -> Axes:
    tensors = [tensor for tensor in tensors if len(tensor) == len(call.shape)]
    place = place_of(dim, call.shape)
    if len(tensors) == 1:
        return tensors[0]
    for tensor in tensors:
        fix(tensor[place], call.why)
    rest = [[*tensor[:place], [], *tensor[place + 1 :]] for tensor in tensors]
    out = elementwise(call, *rest)
    return [*out[:place], fixed(call.shape[place], call.why), *out[place + 1 :]]


@rule("aten.stack")
def stack(call: Call, tensors: list[Axes], dim: int = 0) -> Axes:
    place = place_of(dim, call.shape)
    out = elementwise(call.of_shape(*call.shape[:place], *call.shape[place + 1 :]), *tensors)
    return [*out[:place], fixed(call.shape[place], call.why), *out[place:]]


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call, x: Axes, sizes: Sequence[int], *rest: object) -> Axes:
    out = list(x)
    for back in range(1, len(sizes) // 2 + 1):
        if any(sizes[2 * back - 2 : 2 * back]):
            fix(x[-back], call.why)
            out[-back] = fixed(call.shape[-back], call.why)
    return out
