"""Which units of a model may be reordered, found from its graph of operators."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import rules_of_layers, rules_of_shapes  # noqa: F401
from infer_kit.training.symmetry.atoms import (
    Atom,
    Axes,
    TensorAxes,
    find,
    fix_all,
    fixed,
    free,
    leaves,
)
from infer_kit.training.symmetry.calling import state_of
from infer_kit.training.symmetry.exporting import exported
from infer_kit.training.symmetry.rules import Call, called
from infer_kit.training.symmetry.spec import Factor, Frozen, PermSpec

_OUTPUT = "the model's output"
_INPUT = "the model's input"
_UNUSED = "no operator reads it"


def discover(
    model: nn.Module,
    x: Any,
    strict: bool = False,
    outputs: Callable[[Any], Any] | None = None,
) -> PermSpec:
    """Find the orders of hidden units that leave a model's function as it is.

    The model is exported (`torch.export`) and its operators are walked: each says which axes of its
    tensors belong together. Nothing is written by hand; an operator without a rule fixes all that
    it touches and is reported, so that a symmetry may be missed but none is made up.

    Source: the symmetries are those of Git Re-Basin (Ainsworth et al., ICLR 2023, section 2), which
    gives them by hand for each architecture.

    The spec holds for inputs of the example's sizes, and for others where the graph would be the
    same: give a batch and a length of at least 2, as axes of size 1 tell nothing.

    Args:
        model: any module that `torch.export` takes. It is traced in eval mode; its mode, and the
            cache of a model of transformers, are as before afterwards.
        x: an example: a tensor, a tuple of positional arguments or a mapping of named ones.
        strict: refuse a model with an operator that has no rule.
        outputs: what of the model's outputs has to stay as it is, such as `lambda out: out.logits`;
            None for all. An output that nobody needs, such as the states of T5's encoder, fixes
            the stream that it is taken from.

    Returns:
        The spec, with a report of what is fixed and why (`print(spec)`, `spec.frozen`).

    Raises:
        InferKitError: the model cannot be exported (says where), or `strict` and an operator has
            no rule.
    """
    program = exported(model, x)
    walk = _Walk()
    axes = _state_axes(model)
    placeholders = _placeholders(program, axes)
    given = walk.graph(program.graph_module, placeholders)
    kept = _kept(program, given, outputs)
    for place, value in enumerate(given):
        if kept is None or place in kept:
            for axes_out in _tensors(value):
                fix_all(axes_out, _OUTPUT)
    if strict and walk.unknown:
        raise InferKitError(
            f"There is no rule for {', '.join(walk.unknown)}.",
            "Add one with infer_kit.training.symmetry.rule, or leave strict=False: what such an "
            "operator touches is then fixed.",
        )
    return replace(_spec(model, axes, walk), chosen=outputs)


def _kept(
    program: ExportedProgram, given: list[Any], outputs: Callable[[Any], Any] | None
) -> set[int] | None:
    """Which of what comes out of the graph is the model's output that is asked for."""
    if outputs is None:
        return None
    # Marks in the structure that the model returns: what is computed with them fails.
    marks = [_Mark() for _ in program.graph_signature.output_specs]
    returned = tree_unflatten(marks, program.call_spec.out_spec)
    try:
        leaves_of = tree_leaves(outputs(returned))
    except Exception as error:
        raise InferKitError(
            f"outputs fails on what the model returns: {type(error).__name__}: {error}",
            "It is to choose parts, and not to compute: lambda out: out.logits.",
        ) from error
    chosen = {id(leaf) for leaf in leaves_of}
    kept = {
        place
        for place, (mark, value) in enumerate(zip(marks, given, strict=True))
        if id(mark) in chosen and _tensors(value)
    }
    if not kept:
        raise InferKitError(
            "outputs chooses no tensor of what the model returns.",
            "Return a part of it, such as lambda out: out.logits.",
        )
    return kept


class _Mark:
    """Stands for an output."""


def _state_axes(model: nn.Module) -> dict[str, Axes]:
    """Fresh atoms for each tensor of the state dict; a tensor under two names has one record."""
    records: dict[int, Axes] = {}
    axes: dict[str, Axes] = {}
    for name, tensor in state_of(model).items():
        if id(tensor) not in records:
            records[id(tensor)] = TensorAxes(free(size) for size in tensor.shape)
        axes[name] = records[id(tensor)]
    _fix_shared(model, axes)
    return axes


def _fix_shared(model: nn.Module, axes: dict[str, Axes]) -> None:
    """Tensors that are views of one memory: reordering one would have to reorder the other."""
    spans: list[tuple[str, int, int, str]] = []
    for name, tensor in state_of(model).items():
        if tensor.numel() and not tensor.is_meta:
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            begin = tensor.data_ptr()
            spans.append((str(tensor.device), begin, begin + last * tensor.element_size(), name))
    widest: tuple[str, int, str] | None = None  # of those before, the one that reaches furthest
    for device, begin, end, name in sorted(spans):
        if widest is not None and widest[0] == device and begin <= widest[1]:
            other = widest[2]
            if axes[name] is not axes[other]:
                fix_all(axes[name], f"memory that it shares with {other}")
                fix_all(axes[other], f"memory that it shares with {name}")
        if widest is None or widest[0] != device or end > widest[1]:
            widest = (device, end, name)


def _placeholders(program: ExportedProgram, axes: dict[str, Axes]) -> list[Axes | None]:
    """Axes of what goes into the graph: parameters and buffers, constants, inputs."""
    nodes = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    found: list[Axes | None] = []
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        value = node.meta.get("val")
        state = spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
        if state and spec.target in axes:
            found.append(axes[spec.target])
        elif isinstance(value, Tensor):
            why = _INPUT if spec.kind == InputKind.USER_INPUT else f"the constant {spec.target}"
            found.append(TensorAxes(fixed(int(size), why) for size in value.shape))
        else:
            found.append(None)
    return found


class _Walk:
    """Goes through a graph, and through the graphs that it calls.

    Attributes:
        unknown: operators without a rule and where they were met. outputs: axes of what each leaf
            module puts out. read: atoms of the tensors that some operator reads.
    """

    def __init__(self) -> None:
        self.unknown: dict[str, None] = {}
        self.outputs: dict[str, Axes] = {}
        self.read: set[int] = set()

    def graph(self, module: fx.GraphModule, inputs: list[Any]) -> list[Any]:
        """What comes out of a graph, tensors as axes."""
        values: dict[fx.Node, Any] = {}
        leaving: dict[str, list[Axes]] = {}
        given = iter(inputs)
        out: list[Any] = []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = self._attribute(module, str(node.target))
            elif node.op == "output":
                returned: Any = node.args[0]
                out = [
                    values[item] if isinstance(item, fx.Node) else None
                    for item in (returned if isinstance(returned, (tuple, list)) else [returned])
                ]
            else:
                values[node] = self._call(node, values)
                where = _where(node)
                if where and any(_where(user) != where for user in node.users):
                    leaving.setdefault(where, []).extend(_tensors(values[node]) or [[]])
        # A module of which several tensors are read elsewhere does not return one of them.
        self.outputs |= {name: axes[0] for name, axes in leaving.items() if len(axes) == 1}
        return out

    def _attribute(self, module: fx.GraphModule, name: str) -> Any:
        value: Any = module
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor):
            return TensorAxes(fixed(size, f"the constant {name}") for size in value.shape)
        return value

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        target: Any = node.target
        args: Any = fx.map_arg(node.args, lambda n: values[n])
        kwargs: Any = fx.map_arg(node.kwargs, lambda n: values[n])
        for value in [*args, *kwargs.values()]:
            for axes in _tensors(value):
                self.read.add(id(axes))
        if target is operator.getitem:
            return args[0][args[1]]
        where = _where(node)
        shapes = _shapes(node, where)
        graphs = [a for a in args if isinstance(a, fx.GraphModule)]
        if graphs and len(graphs) == 1 and "wrap_with" in str(target):
            # A part of the model under no_grad or autocast: it is as if it were here.
            inputs = list(args[args.index(graphs[0]) + 1 :])
            out = self.graph(graphs[0], inputs)
            return out if isinstance(node.meta.get("val"), (tuple, list)) else out[0]
        if isinstance(target, torch._ops.OpOverload):
            arguments = target._schema.arguments
            named = dict(zip((a.name for a in arguments), args, strict=False)) | dict(kwargs)
            full = [
                named.get(a.name, a.default_value if a.has_default_value() else None)
                for a in arguments
            ]
            name = f"{target.namespace}.{_functional(target._schema.name.split('::')[-1])}"
            call = Call(name, where, shapes, tuple(a.name for a in arguments), _used(node))
            found = called(call, torch.Tag.pointwise in target.tags, full)
        else:
            call = Call(str(target), where, shapes)
            found = called(call, False, [*args, *kwargs.values()])
        if found is None:
            self.unknown[call.why] = None
            found = [call.fixed(shape) for shape in shapes]
        made = [TensorAxes(axes) for axes in found]
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            return made
        return made[0] if made else None


def _used(node: fx.Node) -> frozenset[int]:
    """Which of the tensors that come out of a call something reads."""
    several = isinstance(node.meta.get("val"), (tuple, list))
    return frozenset(
        int(str(user.args[1])) if several and user.target is operator.getitem else 0
        for user in node.users
        if user.users or user.op == "output"
    )


def _functional(name: str) -> str:
    """The name of the operator that does the same without changing its argument."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _tensors(value: Any) -> list[Axes]:
    if isinstance(value, TensorAxes):
        return [value]
    if isinstance(value, (tuple, list)):
        return [axes for item in value for axes in _tensors(item)]
    return []


def _shapes(node: fx.Node, where: str) -> tuple[tuple[int, ...], ...]:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    tensors = [v for v in values if isinstance(v, Tensor)]
    shapes: list[tuple[int, ...]] = []
    for tensor in tensors:
        sizes = [n if isinstance(n, int) else n.node.maybe_as_int() for n in tensor.shape]
        if None in sizes:
            raise InferKitError(
                f"How much {node.target} in {where or 'the model'} puts out depends on values: "
                f"{list(tensor.shape)}. So all of the model stays frozen.",
                "Trace a part of the model without it, or write it with torch.where.",
            )
        shapes.append(tuple(sizes))
    return tuple(shapes)


def _where(node: fx.Node) -> str:
    """Path of the innermost module that the node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self'].").removeprefix("L__self___") if paths else ""


def _spec(model: nn.Module, axes: dict[str, Axes], walk: _Walk) -> PermSpec:
    state = state_of(model)
    first: dict[int, str] = {}
    same: dict[str, str] = {}
    for name in axes:
        owner = first.setdefault(id(axes[name]), name)
        if owner != name:
            same[name] = owner
        elif id(axes[name]) not in walk.read:
            fix_all(axes[name], _UNUSED)
    groups: dict[Atom, str] = {}
    sizes: dict[str, int] = {}
    frozen: list[Frozen] = []

    def factors(name: str, number: int, axis: list[Atom]) -> tuple[Factor, ...]:
        found: list[Factor] = []
        parts = leaves(axis)
        for place, atom in enumerate(parts):
            root = find(atom)
            if root.why is not None:
                frozen.append(Frozen(name, number, place, root.size, root.why))
                found.append((None, root.size))
                continue
            if root not in groups:
                label = f"{name}[{number}]" + (f".{place}" if len(parts) > 1 else "")
                groups[root] = label
                sizes[label] = root.size
            found.append((groups[root], root.size))
        return tuple(found)

    spec_axes = {
        name: tuple(factors(name, i, axis) for i, axis in enumerate(tensor))
        for name, tensor in axes.items()
        if name not in same
    }
    for name, owner in same.items():
        spec_axes[name] = spec_axes[owner]

    def of_output(axis: list[Atom]) -> tuple[Factor, ...]:
        return tuple((groups.get(find(atom)), atom.size) for atom in leaves(axis))

    leaf = {name for name, module in model.named_modules() if not any(module.children())}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return PermSpec(
        groups=sizes,
        axes={name: spec_axes[name] for name in axes},
        shapes={name: tuple(state[name].shape) for name in axes},
        weights=frozenset(parameters & set(axes)),
        same=same,
        outputs={
            name: tuple(of_output(axis) for axis in out)
            for name, out in walk.outputs.items()
            if name in leaf
        },
        frozen=tuple(frozen),
        unknown=tuple(walk.unknown),
    )
