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
    factor,
    fix,
    fix_all,
    fixed,
    free,
    leaves,
    regroup,
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


def unknown(call: Call, tensors: list[Axes]) -> list[Axes]:
    """Fix all that goes in and comes out."""
    for tensor in tensors:
        fix_all(tensor, call.why)
    return [call.fixed(shape) for shape in call.shapes]


def _place(dim: int, axes: Sequence[Any]) -> int:
    return dim % max(1, len(axes))


@rule(
    "aten.dropout", "aten.alpha_dropout", "aten.feature_dropout", "aten.native_dropout",
    "aten.contiguous", "aten.detach", "aten.alias", "aten.lift_fresh_copy", "aten.to",
    "aten._to_copy", "aten.type_as", "aten.softmax", "aten._softmax", "aten.log_softmax",
    "aten._log_softmax", "aten.log_sigmoid", "aten.log_sigmoid_forward", "aten.float",
    "aten.resolve_conj", "aten.resolve_neg", "aten.hardswish", "aten.clone",
    "aten._conj", "aten.lift_fresh", "aten.safe_softmax", "aten._safe_softmax",
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


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(call: Call, x: Axes, weight: Axes) -> Axes:
    if len(x) > 1 and weight and len(weight) == 1 and weight[0]:
        unify(x[1], weight[0], call.why)
    return x


@rule("aten.linear")
def linear(call: Call, x: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
    unify(x[-1], weight[-1], call.why)
    out = weight[0] if len(weight) == 2 else None
    if bias and out is not None:
        unify(out, bias[-1], call.why)
    return [*x[:-1], out] if out is not None else x[:-1]


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def matmul(call: Call, a: Axes, b: Axes) -> Axes:
    unify(a[-1], b[-2] if len(b) > 1 else b[-1], call.why)
    batch = elementwise(call.of_shape(*[1] * max(len(a) - 2, len(b) - 2, 0)), a[:-2], b[:-2])
    return [*batch, *(a[-2:-1]), *(b[-1:] if len(b) > 1 else [])]


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv")
def addmm(call: Call, bias: Axes, a: Axes, b: Axes, *rest: object) -> Axes:
    if call.operator == "aten.addbmm":
        unify(a[0], b[0], call.why)
        a, b = a[1:], b[1:]
    return elementwise(call, matmul(call, a, b), bias)


@rule("aten.einsum")
def einsum(call: Call, equation: str, tensors: list[Axes], *rest: object) -> Axes:
    terms, _, out = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    if not out or "." in equation or any(len(set(t)) < len(t) for t in [*inputs, out]):
        return unknown(call, tensors)[0]  # sums over diagonals are positions
    seen: dict[str, Axis] = {}
    for term, tensor in zip(inputs, tensors, strict=True):
        for letter, axis in zip(term, tensor, strict=True):
            if seen.get(letter) and axis:
                unify(seen[letter], axis, call.why)
            seen[letter] = seen.get(letter) or axis
    return [seen[letter] for letter in out]


@rule(
    "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d",
    "aten.conv_transpose3d", "aten.convolution", "aten._convolution",
)  # fmt: skip
def conv(call: Call, x: Axes, weight: Axes, bias: Axes | None, *rest: object) -> Axes:
    batched = len(x) == len(weight)
    channels, spatial = (x[1], x[2:]) if batched else (x[0], x[1:])
    fix_all([*spatial, *weight[2:]], call.why)
    if "transpose" in call.operator:
        # stride, padding, output_padding, groups, dilation
        transposed, groups = True, rest[3]
    elif call.operator.endswith("convolution"):
        transposed, groups = bool(rest[3]), rest[5]
    else:
        transposed, groups = False, rest[-1]
    assert isinstance(groups, int)
    size = size_of(channels)
    # Groups are the slow factor of the channels that go in and of those that come out.
    slow, within = factor(channels, (groups, size // groups), call.why)
    axis, other = weight[0], weight[1]
    slow_of_weight, fast_of_weight = factor(axis, (groups, size_of(axis) // groups), call.why)
    unify(slow, slow_of_weight, call.why)
    if transposed:
        unify(within, fast_of_weight, call.why)
        out = [*slow_of_weight, *other]
    else:
        unify(within, other, call.why)
        out = axis
    if bias:
        unify(out, bias[0], call.why)
    around = call.fixed(call.shape[2:] if batched else call.shape[1:])
    return [*(x[:1] if batched else []), out, *around]


@rule(
    "aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training",
    "aten.native_batch_norm", "aten.cudnn_batch_norm",
)  # fmt: skip
def channel_norm(
    call: Call, x: Axes, weight: Axes | None, bias: Axes | None, mean: Axes | None,
    variance: Axes | None, *rest: object,
) -> Any:  # fmt: skip
    for vector in (weight, bias, mean, variance):
        if vector:
            unify(x[1], vector[0], call.why)
    if len(call.shapes) == 1:
        return x
    return [x, *(call.fixed(shape) for shape in call.shapes[1:])]


@rule("aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def last_norm(
    call: Call, x: Axes, shape: Sequence[int], weight: Axes | None = None,
    bias: Axes | None = None, *rest: object,
) -> Any:  # fmt: skip
    for vector in (weight, bias):
        if vector and isinstance(vector, TensorAxes):
            for axis, other in zip(x[-len(shape) :], vector, strict=True):
                unify(axis, other, call.why)
    if len(call.shapes) == 1:
        return x
    return [x, *([*x[: -len(shape)], *([] for _ in shape)] for _ in call.shapes[1:])]


@rule("aten.native_layer_norm")
def native_layer_norm(call: Call, *args: Any) -> Any:
    return last_norm(call, *args)


@rule("aten.group_norm")
def group_norm(
    call: Call, x: Axes, groups: int, weight: Axes | None = None, bias: Axes | None = None,
    *rest: object,
) -> Axes:  # fmt: skip
    factor(x[1], (groups, size_of(x[1]) // groups), call.why)
    for vector in (weight, bias):
        if vector:
            unify(x[1], vector[0], call.why)
    return x


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
    return {_place(dim, x) for dim in ([dims] if isinstance(dims, int) else dims)}


def _without(x: Axes, places: set[int], keep: bool) -> Axes:
    if keep:
        return [[] if i in places else axis for i, axis in enumerate(x)]
    return [axis for i, axis in enumerate(x) if i not in places]


@rule("aten.argmax", "aten.argmin")
def position(call: Call, x: Axes, dim: int | None = None, keepdim: bool = False) -> Axes:
    """What comes out are positions along an axis: it is fixed, the others pass."""
    places = set(range(len(x))) if dim is None else {_place(dim, x)}
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


@rule("aten.scaled_dot_product_attention")
def attention(
    call: Call, q: Axes, k: Axes, v: Axes, mask: Axes | None = None, dropout: float = 0.0,
    causal: bool = False, scale: float | None = None, grouped: bool = False,
) -> Axes:  # fmt: skip
    unify(q[-1], k[-1], call.why)
    unify(k[-2], v[-2], call.why)
    if causal:
        fix_all([q[-2], k[-2]], call.why)
    heads = list(q[:-2])
    for pair in (k, v):
        for place, (axis, other) in enumerate(zip(heads, pair[:-2], strict=True)):
            if grouped and place == len(heads) - 1 and size_of(other) < size_of(axis):
                # Head h of the queries reads head h // repeats of the keys.
                slow, _ = factor(
                    axis, (size_of(other), size_of(axis) // size_of(other)), call.why
                )
                unify(slow, other, call.why)
            elif axis and other:
                unify(axis, other, call.why)
            else:
                heads[place] = axis or other
    if mask:
        elementwise(call.of_shape(*[1] * len(q)), [*heads, q[-2], k[-2]], mask)
    return [*heads, q[-2], v[-1]]


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
    moved = {_place(b, x): _place(a, x) for a, b in zip(come, go, strict=True)}
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
    gone = {_place(dim, x) for dim in given if not x[dim]}
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
def repeat_interleave(call: Call, x: Axes, times: object, dim: int | None = None, *_: object) -> Any:
    if not isinstance(times, int) or dim is None:
        return unknown(call, [x, *([times] if isinstance(times, TensorAxes) else [])])
    axes = list(x)
    axes[dim] = [*x[dim], *free(times)]
    return axes


@rule(
    "aten.zeros", "aten.ones", "aten.full", "aten.zeros_like", "aten.ones_like", "aten.full_like",
    "aten.empty", "aten.empty_like", "aten.new_zeros", "aten.new_ones", "aten.new_full",
    "aten.scalar_tensor", "aten.empty_permuted", "aten.fill", "aten.new_empty",
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
    place, n = _place(dim, x), len(call.shapes)
    parts = {shape[place] for shape in call.shapes}
    if n == 1:
        return [x]
    if len(parts) == 1 and (part := parts.pop()):
        slow, within = factor(x[place], (n, part), call.why)
        fix(slow, call.why)
        return [[*x[:place], within, *x[place + 1 :]] for _ in range(n)]
    fix(x[place], call.why)
    return [
        [*x[:place], fixed(shape[place], call.why), *x[place + 1 :]] for shape in call.shapes
    ]


@rule("aten.glu")
def glu(call: Call, x: Axes, dim: int = -1) -> Axes:
    place = _place(dim, x)
    slow, within = factor(x[place], (2, call.shape[place]), call.why)
    fix(slow, call.why)
    return [*x[:place], within, *x[place + 1 :]]


@rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call, x: Axes, dim: int = 0) -> list[Axes]:
    place = _place(dim, x)
    fix(x[place], call.why)
    return [[*x[:place], *x[place + 1 :]] for _ in call.shapes]


@rule("aten.select", "aten.select_copy")
def select(call: Call, x: Axes, dim: int, index: object) -> Axes:
    place = _place(dim, x)
    fix(x[place], call.why)
    return [*x[:place], *x[place + 1 :]]


@rule("aten.slice", "aten.narrow", "aten.index_select", "aten.unfold", "aten.slice_copy")
def part_of_axis(call: Call, x: Axes, dim: int = 0, *rest: object) -> Axes:
    """Some places of one axis; all of them pass."""
    place = _place(dim, x)
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
    place = _place(dim, x)
    fix(x[place], call.why)
    for i, (axis, other) in enumerate(zip(x, ids, strict=True)):
        if i != place:
            unify(axis, other, call.why)  # fixes both if only a part is read
    return ids


@rule("aten.diff")
def diff(call: Call, x: Axes, n: int = 1, dim: int = -1, *rest: object) -> Axes:
    place = _place(dim, x)
    for tensor in [x, *(t for t in rest if isinstance(t, TensorAxes))]:
        fix_all(tensor, call.why)
    return [fixed(call.shape[place], call.why) if i == place else a for i, a in enumerate(x)]


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call, tensors: list[Axes], dim: int = 0) -> Axes:
    tensors = [tensor for tensor in tensors if len(tensor) == len(call.shape)]
    place = _place(dim, call.shape)
    if len(tensors) == 1:
        return tensors[0]
    for tensor in tensors:
        fix(tensor[place], call.why)
    rest = [[*tensor[:place], [], *tensor[place + 1 :]] for tensor in tensors]
    out = elementwise(call, *rest)
    return [*out[:place], fixed(call.shape[place], call.why), *out[place + 1 :]]


@rule("aten.stack")
def stack(call: Call, tensors: list[Axes], dim: int = 0) -> Axes:
    place = _place(dim, call.shape)
    out = elementwise(call.of_shape(*call.shape[:place], *call.shape[place + 1 :]), *tensors)
    return [*out[:place], fixed(call.shape[place], call.why), *out[place:]]


@rule("aten.embedding")
def embedding(call: Call, weight: Axes, ids: Axes, *rest: object) -> Axes:
    fix(weight[0], f"{call.why}: which row is which word is given")
    return [*ids, weight[1]]


@rule("aten.one_hot")
def one_hot(call: Call, ids: Axes, *rest: object) -> Axes:
    return [*ids, fixed(call.shape[-1], call.why)]


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call, x: Axes, sizes: Sequence[int], *rest: object) -> Axes:
    out = list(x)
    for back in range(1, len(sizes) // 2 + 1):
        if any(sizes[2 * back - 2 : 2 * back]):
            fix(x[-back], call.why)
            out[-back] = fixed(call.shape[-back], call.why)
    return out


@rule(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.avg_pool1d", "aten.avg_pool2d",
    "aten.avg_pool3d", "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d",
    "aten.adaptive_avg_pool3d", "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d",
    "aten.max_pool2d_with_indices", "aten._adaptive_avg_pool2d", "aten.upsample_nearest1d",
    "aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d",
    "aten.upsample_linear1d", "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa",
    "aten.lp_pool2d", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.replication_pad1d",
    "aten.replication_pad2d",
)  # fmt: skip
def spatial(call: Call, x: Axes, *rest: object) -> Any:
    """Windows over the last axes; how many is seen from the operator's name."""
    wide = next(n for n in (1, 2, 3) if f"{n}d" in call.operator)
    fix_all(x[-wide:], call.why)
    out = [[*x[:-wide], *call.fixed(shape[len(shape) - wide :])] for shape in call.shapes]
    return out[0] if len(out) == 1 else out


@rule(
    "aten._assert_async", "aten._assert_tensor_metadata", "aten.sym_size", "aten.sym_numel",
    "aten.sym_constrain_range", "aten.sym_constrain_range_for_size", "aten._assert_scalar",
)  # fmt: skip
def nothing(call: Call, *rest: object) -> None:
    """No tensor comes out, and nothing depends on the order."""


def called(call: Call, tagged_pointwise: bool, args: Sequence[Any]) -> list[Axes] | None:
    """Axes of all tensors that come out of a call; None if there is no rule for its operator."""
    tensors: list[Axes] = []
    for arg in args:
        if isinstance(arg, TensorAxes):
            tensors.append(arg)
        elif isinstance(arg, (list, tuple)):
            tensors.extend(item for item in arg if isinstance(item, TensorAxes))
    known = RULES.get(call.operator)
    if known is None and not tagged_pointwise:
        unknown(call, tensors)
        return None
    out = elementwise(call, *tensors) if known is None else known(call, *args)
    if not call.shapes:
        return []
    many = len(call.shapes) > 1 or call.operator in (
        "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unbind"
    )  # fmt: skip
    return [list(map(leaves, axes)) for axes in (out if many else [out])]
