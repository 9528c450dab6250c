r"""Why wide networks average well: layerwise exponentially weighted connectivity and its causes.

Ito et al., "Do We Really Need Permutations? Impact of Width Expansion on Linear Mode
Connectivity", ICLR 2026, arXiv 2510.08023. With $f_k$ the pre-activations of layer k, two networks
a and b have the property (LEWC) if

$$f_k(x; \lambda a + (1-\lambda) b) = \lambda^k f_k(x; a) + (1-\lambda)^k f_k(x; b),$$

that is, if the merged network computes both side by side, each shrunk. A first layer that reads x
itself, and whose weight is a parameter as it is, has it in any two networks, biases included.
Deeper it follows, without biases, from two properties of each layer:

    weak additivity             relu(l z_a + (1-l) z_b) = l relu(z_a) + (1-l) relu(z_b)
    reciprocal orthogonality    W_b z_a = 0 = W_a z_b

**Here l weighs a.** In an interpolation (1-l) a + l b, such as that of a barrier, it weighs b.

A layer is a call of an `nn.Linear`, transformers' `Conv1D` or a convolution, and k counts the calls
in the order in which they are made: a module that is called twice is two layers of one name, as its
weights multiply the signal twice. In a network with branches k is more than the depth. Weights
that multiply the signal elsewhere are not counted: those of embeddings, those that are used without
calling their module (`nn.MultiheadAttention`), and the scales of norms. A warning names the
matrices among them, and what else has two dimensions and is in no layer that ran. Networks run in
evaluation mode without gradients, and examples are along the first dimension of what a layer takes
and gives. Numbers are means over the examples, of float64 norms and products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from infer_kit.errors import InferKitError
from infer_kit.training.conv1d import is_conv1d
from infer_kit.training.symmetry.calling import evaluating, ran
from infer_kit.training.symmetry.merging import check_same, interpolate
from infer_kit.training.symmetry.placed import Placed, check_is_state, whole
from infer_kit.training.symmetry.spec import State

_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


@dataclass(frozen=True)
class LEWC:
    """How well one layer of a merged network is the weighted sum of the two.

    Attributes:
        layer: name of the module. k: of the call, from 1.
        cosine: of merged and predicted pre-activations; 1 if both are 0, 0 if one is.
        norm_ratio: norm of the merged ones / norm of the predicted; 1 if both are 0.
    """

    layer: str
    k: int
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Additivity:
    """How far the activation after one layer is from additive.

    Attributes:
        layer: name of the module. k: of the call, from 1.
        error: norm of the difference / norm of the weighted sum; 0 if both are 0.
    """

    layer: str
    k: int
    error: float


@dataclass(frozen=True)
class Orthogonality:
    """What one layer of a network makes of the other network's signal, beside its own's.

    Attributes:
        layer: name of the module. k: of the call, from 1.
        b_on_a: norm(W_b z_a) / norm(W_a z_a), z_a the layer's input in network a; 0 if both are 0.
        a_on_b: norm(W_a z_b) / norm(W_b z_b).
    """

    layer: str
    k: int
    b_on_a: float
    a_on_b: float


@dataclass(frozen=True)
class _Call:
    layer: str
    k: int
    module: nn.Module
    weight: Tensor
    input: Tensor
    output: Tensor


def lewc(
    model: nn.Module,
    a: State,
    b: State,
    x: Any,
    l: float = 0.5,  # noqa: E741
    layers: Collection[str] | None = None,
) -> list[LEWC]:
    """LEWC of each layer: the merged network's pre-activations against the weighted sum.

    Args:
        model: the network; its own weights are not used.
        a, b: states of it, as of `model.state_dict()`.
        x: N examples: a tensor `[N, ...]`, a tuple of arguments, or a mapping of named ones.
        l: weight of a, from 0 to 1; the merged network is interpolate(a, b, 1 - l), whose running
            statistics are averaged like weights.
        layers: names of the modules to report; None for all. k counts all.

    Returns:
        One row a call, in the order of the calls.

    Raises:
        InferKitError: states that do not fit each other or the model; an l outside of [0, 1]; a
            name that is no layer or does not run; no examples; pre-activations that are not
            finite; networks that do not run the same layers.

    Warns:
        UserWarning: weights that are not counted in k.
    """
    _check_weight(l)
    ours, theirs = _both(model, a, b, x, layers)
    merged = _calls(
        model, interpolate(whole(model, a), whole(model, b), 1 - l), x, layers, "the merged network"
    )
    _check_same_calls(ours, merged, "a and the merged one")
    rows = []
    for of_a, of_b, of_both in zip(ours, theirs, merged, strict=True):
        k = of_a.k
        predicted = l**k * _rows(of_a.output) + (1 - l) ** k * _rows(of_b.output)
        got = _rows(of_both.output)
        ratio = _ratio(got.norm(dim=1), predicted.norm(dim=1), 1.0)
        rows.append(LEWC(of_a.layer, k, _cosine(got, predicted), ratio))
    return rows


def weak_additivity(
    model: nn.Module,
    a: State,
    b: State,
    x: Any,
    l: float = 0.5,  # noqa: E741
    layers: Collection[str] | None = None,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> list[Additivity]:
    """Weak additivity after each layer: the activation of the sum against the sum of activations.

    It is taken of what the layer gives, whatever the network does with it: the last layer, which no
    activation follows, is listed too.

    Args:
        activation: elementwise, of float64. Others: as of `lewc`.

    Returns:
        One row a call, in the order of the calls.

    Raises:
        InferKitError: as `lewc`.
    """
    _check_weight(l)
    rows = []
    for of_a, of_b in zip(*_both(model, a, b, x, layers), strict=True):
        z_a, z_b = _rows(of_a.output), _rows(of_b.output)
        apart = l * activation(z_a) + (1 - l) * activation(z_b)
        off = activation(l * z_a + (1 - l) * z_b) - apart
        error = _ratio(off.norm(dim=1), apart.norm(dim=1), 0.0)
        rows.append(Additivity(of_a.layer, of_a.k, error))
    return rows


def reciprocal_orthogonality(
    model: nn.Module,
    a: State,
    b: State,
    x: Any,
    layers: Collection[str] | None = None,
) -> list[Orthogonality]:
    """What each layer makes of the other network's signal; 0 is reciprocal orthogonality.

    The layer's bias is left out. At k = 1 both signals are x, so that the numbers are then about 1.

    Args:
        model, a, b, x, layers: as of `lewc`.

    Returns:
        One row a call, in the order of the calls.

    Raises:
        InferKitError: as `lewc`.
    """
    rows = []
    for of_a, of_b in zip(*_both(model, a, b, x, layers), strict=True):
        norms = {
            (weights, signal): _rows(_linear(of_a.module, w, z)).norm(dim=1)
            for weights, w in (("a", of_a.weight), ("b", of_b.weight))
            for signal, z in (("a", of_a.input), ("b", of_b.input))
        }
        b_on_a = _ratio(norms["b", "a"], norms["a", "a"], 0.0)
        a_on_b = _ratio(norms["a", "b"], norms["b", "b"], 0.0)
        rows.append(Orthogonality(of_a.layer, of_a.k, b_on_a, a_on_b))
    return rows


def effective_rank(W: Tensor) -> float:
    r"""$\|W\|_*^2 / \|W\|_F^2$: between 1 and the rank, which it is if all singular values agree.

    Args:
        W: `[out, ...]`, taken as a matrix with a row for each output.

    Returns:
        The number, of a float64 SVD; 0 for a matrix of zeros.

    Raises:
        InferKitError: fewer than two dimensions, or numbers that are not finite or real.
    """
    if W.dim() < 2:
        raise InferKitError(f"W is {list(W.shape)}, and a rank is that of a matrix [out, ...].")
    if W.is_complex() or not W.isfinite().all():
        raise InferKitError(f"W {list(W.shape)} has numbers that are not finite or not real.")
    if W.numel() == 0:
        return 0.0
    singular = torch.linalg.svdvals(W.detach().double().flatten(1))
    largest = singular.max()
    if largest == 0:
        return 0.0
    # Squares of small weights would underflow.
    singular = singular / largest
    return float(singular.sum() ** 2 / (singular**2).sum())


def effective_ranks(state: State) -> dict[str, float]:
    """`effective_rank` of each real tensor with two dimensions or more, by name."""
    check_is_state(state)
    return {
        name: effective_rank(value)
        for name, value in state.items()
        if value.dim() >= 2 and value.is_floating_point()
    }


def _both(
    model: nn.Module, a: State, b: State, x: Any, layers: Collection[str] | None
) -> tuple[list[_Call], list[_Call]]:
    a, b = whole(model, a), whole(model, b)
    check_same(a, b)
    ours = _calls(model, a, x, layers, "network a")
    theirs = _calls(model, b, x, layers, "network b")
    _check_same_calls(ours, theirs, "a and b")
    every = _calls(model, a, x, None, "network a") if layers is not None else ours
    seen = {id(p) for call in every for p in call.module.parameters()}
    looked_up = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    passed = [
        name
        for name, p in model.named_parameters()
        if p.dim() > 1 and (id(p) not in seen or id(p) in looked_up)
    ]
    if passed:
        more = f" and {len(passed) - 3} more" if len(passed) > 3 else ""
        warnings.warn(
            f"No Linear, Conv1D or convolution that ran has {', '.join(map(repr, passed[:3]))}"
            f"{more}: where they are used they are not counted in k, and have no row.",
            stacklevel=3,
        )
    return ours, theirs


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module)
    }


def _calls(
    model: nn.Module, state: State, x: Any, layers: Collection[str] | None, who: str
) -> list[_Call]:
    """The calls of the layers that are named, when the model runs with this state."""
    found = _layers(model)
    if isinstance(layers, str):
        layers = [layers]
    for name in layers or ():
        if name not in found:
            raise InferKitError(
                f"layers names {name!r}, which is no Linear or convolution of the model.",
                f"It has {', '.join(map(repr, found)) or 'none'}.",
            )
    placed = Placed(model, state)
    calls: list[_Call] = []
    k = 0

    def hook(name: str) -> Callable[..., None]:
        def look(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> None:
            nonlocal k
            k += 1
            if layers is not None and name not in layers:
                return
            if not output.numel():
                raise InferKitError(f"{name!r} put out {list(output.shape)}: x has no example.")
            if not output.isfinite().all():
                raise InferKitError(f"The output of {name!r} (layer {k}) of {who} is not finite.")
            given = args[0] if args else kwargs["input"]
            weight: Any = module.weight
            # Activations that work in place would change them.
            calls.append(_Call(name, k, module, weight, given.clone(), output.clone()))

        return look

    handles = []
    try:
        for name, module in found.items():
            handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
        with evaluating(model):
            placed(ran, x)
    finally:
        for handle in handles:
            handle.remove()
    done = {call.layer for call in calls}
    absent = [name for name in (found if layers is None else layers) if name not in done]
    if not calls or (absent and layers is not None):
        raise InferKitError(
            f"Of the model's Linear layers and convolutions {absent} did not run."
            if absent
            else "No Linear or convolution is asked for, or the model has none.",
            "Weights that are used without calling their module are not seen here.",
        )
    return calls


def _linear(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What the layer does with these weights and no bias."""
    with torch.no_grad():
        if isinstance(module, _ConvTransposeNd):
            transposed = _TRANSPOSED[weight.dim() - 3]
            return transposed(
                x,
                weight,
                None,
                module.stride,
                module.padding,
                module.output_padding,
                module.groups,
                module.dilation,
            )
        if isinstance(module, _ConvNd):
            convolve: Any = module._conv_forward  # which knows the padding modes
            out: Tensor = convolve(x, weight, None)
            return out
        return x @ weight if is_conv1d(module) else nn.functional.linear(x, weight)


def _rows(values: Tensor) -> Tensor:
    """`[N, numbers of an example]`, float64."""
    values = values.double()
    return values.reshape(len(values), -1) if values.dim() > 1 else values.reshape(1, -1)


def _cosine(u: Tensor, v: Tensor) -> float:
    """Mean over the rows."""
    norms = u.norm(dim=1), v.norm(dim=1)
    cosine = (u * v).sum(1) / (norms[0] * norms[1])
    zeros = norms[0] == 0, norms[1] == 0
    cosine = torch.where(zeros[0] & zeros[1], 1.0, torch.where(zeros[0] | zeros[1], 0.0, cosine))
    return float(cosine.mean())


def _ratio(top: Tensor, bottom: Tensor, both_zero: float) -> float:
    """Mean of the quotients."""
    return float(torch.where((top == 0) & (bottom == 0), both_zero, top / bottom).mean())


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise InferKitError(f"l={weight}: a weight of network a from 0 to 1 is expected.")


def _check_same_calls(ours: list[_Call], theirs: list[_Call], who: str) -> None:
    if [call.layer for call in ours] != [call.layer for call in theirs]:
        raise InferKitError(
            f"The networks {who} do not run the same layers in the same order.",
            "Layers can be compared if the path through the model does not depend on the weights.",
        )
