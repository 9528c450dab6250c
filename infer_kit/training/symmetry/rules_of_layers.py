"""Rules of operators that layers are made of: sums of products, norms, attention, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infer_kit.training.symmetry.atoms import (
    Axes,
    Axis,
    TensorAxes,
    factor,
    fix,
    fix_all,
    fixed,
    size_of,
    unify,
)
from infer_kit.training.symmetry.rules import Call, NoRule, elementwise, place_of, rule


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
    terms, arrow, out = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    # Axes under an ellipsis broadcast, counted from the right.
    wide = [
        len(tensor) - len(term.replace("...", "")) if "..." in term else 0
        for term, tensor in zip(inputs, tensors, strict=True)
    ]
    dots = [chr(0x100 + i) for i in range(max(wide))]
    inputs = [
        term.replace("...", "".join(dots[len(dots) - n :]))
        for term, n in zip(inputs, wide, strict=True)
    ]
    out = out.replace("...", "".join(dots))
    if not arrow or any(len(set(t)) < len(t) for t in [*inputs, out]):
        raise NoRule  # sums over diagonals are positions
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


@rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
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
                slow, _ = factor(axis, (size_of(other), size_of(axis) // size_of(other)), call.why)
                unify(slow, other, call.why)
            elif axis and other:
                unify(axis, other, call.why)
            else:
                heads[place] = axis or other
    if mask:
        elementwise(call.of_shape(*[1] * len(q)), [*heads, q[-2], k[-2]], mask)
    return [*heads, q[-2], v[-1]]


@rule("aten.glu")
def glu(call: Call, x: Axes, dim: int = -1) -> Axes:
    place = place_of(dim, x)
    slow, within = factor(x[place], (2, call.shape[place]), call.why)
    fix(slow, call.why)
    return [*x[:place], within, *x[place + 1 :]]


@rule("aten.embedding")
def embedding(call: Call, weight: Axes, ids: Axes, *rest: object) -> Axes:
    fix(weight[0], f"{call.why}: which row is which word is given")
    return [*ids, weight[1]]


@rule("aten.one_hot")
def one_hot(call: Call, ids: Axes, *rest: object) -> Axes:
    return [*ids, fixed(call.shape[-1], call.why)]


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


@rule("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(call: Call, v: Axes, g: Axes, dim: int = 0) -> Any:
    out = elementwise(call, v, g)
    return out if len(call.shapes) == 1 else [out, g]


@rule("aten.vdot", "aten.inner")
def inner(call: Call, a: Axes, b: Axes) -> Axes:
    if len(a) != 1 or len(b) != 1:
        raise NoRule
    unify(a[0], b[0], call.why)
    return []


@rule("aten.bilinear")
def bilinear(call: Call, a: Axes, b: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
    unify(a[-1], weight[1], call.why)
    unify(b[-1], weight[2], call.why)
    if bias:
        unify(weight[0], bias[0], call.why)
    batch = elementwise(call.of_shape(*[1] * (len(a) - 1)), a[:-1], b[:-1])
    return [*batch, weight[0]]
