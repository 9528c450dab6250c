"""Making a ticket: a model gets random weights, and a score for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import maskable, rng
from infer_kit.training.tickets.freeze import Freeze
from infer_kit.training.tickets.masks import (
    GlobalLevel,
    MaskRule,
    Scale,
    SupermaskParam,
    Threshold,
    TopK,
)
from infer_kit.training.tickets.qk_scale import qk_init_scale
from infer_kit.training.tickets.spec import Spec, TensorSpec
from infer_kit.training.tickets.tickets import Ticket

_EDGE_POPUP = "edge_popup"
SCORES = (*rng.INITS, _EDGE_POPUP)


def make_ticket(
    model: nn.Module,
    seed: int = 0,
    init: str = "kaiming_uniform",
    mask_rule: MaskRule | None = None,
    frozen: Freeze | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    *,
    scale: Scale = None,
    scores: str = "kaiming_uniform",
    qk_scale: str | float | None = None,
    train: Sequence[str] = (),
) -> Ticket:
    """Give a model random weights that are never trained, and scores that decide which are kept.

    In place: each masked weight gets a `torch.nn.utils.parametrize` parametrization, so that the
    model stays what it is for a trainer, for transformers and for DDP. Its old weights are
    replaced. Biases of masked layers become 0. Everything but the scores stops learning, except
    what `train` names. Search with `EdgePopup` or `IteRand`.

    Args:
        model: any module with linear or convolution layers, `nn.MultiheadAttention` or
            transformers' `Conv1D`.
        seed: of the weights and the scores; the same bits on every machine and device.
        init: of the weights: "kaiming_uniform", U(-b, b) with b = sqrt(6 / fan_in);
            "signed_constant", ±sqrt(2 / fan_in); "kaiming_normal", which is not portable.
        mask_rule: `TopK` or `Threshold`; None is TopK(0.5), half of each layer.
        frozen: weights that are left out of the search.
        include: names of modules or parameters to mask, * stands for any text; None for all layers
            that are not embeddings.
        exclude: the same, not masked.
        scale: c of the kept weights: None, "static" or "dynamic"; see `masks`.
        scores: how scores start: "kaiming_uniform" (IteRand), "kaiming_normal" (frozen networks),
            "edge_popup", U(-1, 1) / sqrt(fan_in) (the original edge-popup), "signed_constant".
        qk_scale: a factor on the initial queries and keys, or "n**0.25"; see `qk_init_scale`.
        train: names of parameters that are not masked and learn beside the scores.

    Raises:
        InferKitError: nothing to mask or to search, a tied or shared weight, an unknown name, a
            model that has a ticket already.
    """
    rule = TopK() if mask_rule is None else mask_rule
    _check_names(init, scores, rule, scale)
    if not isinstance(seed, int) or not (frozen is None or isinstance(frozen, Freeze)):
        raise InferKitError(
            f"seed={seed!r}, frozen={frozen!r}: an int and a Freeze, or None, are expected.",
            "frozen=Freeze(p=0.35, r=0.35) prunes and locks 35 % of the weights each.",
        )
    if isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise InferKitError(
            f"The model is wrapped in a {type(model).__name__}.",
            "Make the ticket of the model itself, and wrap or compile it afterwards.",
        )
    chosen = maskable.find(model, include, exclude)
    gains = {} if qk_scale is None else qk_init_scale(model, chosen, qk_scale)
    tensors = {
        name: TensorSpec(tuple(found.weight.shape), found.fan_in, gains.get(name, ()))
        for name, found in chosen.items()
    }
    spec = Spec(seed, init, rule, scale, frozen, tensors)
    sizes = spec.sizes()
    if isinstance(rule, TopK):
        rule.check(sizes)
    dtypes = {found.weight.dtype for found in chosen.values()}
    if len(dtypes) > 1:
        raise InferKitError(
            f"The masked weights have several dtypes ({', '.join(sorted(map(str, dtypes)))}).",
            "Convert the model to one dtype, or exclude some layers.",
        )
    trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    learning = _others(model, chosen, train)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    masks = spec.frozen()
    for name, found in chosen.items():
        _mask(spec, found, _initial_scores(spec, name, scores), masks[name])
    ticket = Ticket(spec, model, trainable=trainable)
    if isinstance(rule, TopK) and rule.scope == "global":
        layers = ticket.layers()
        together = GlobalLevel(rule, layers.values())
        for layer in layers.values():
            layer.together = together
    return ticket


def _check_names(init: str, scores: str, rule: Any, scale: Any) -> None:
    for what, given, known in (("init", init, rng.INITS), ("scores", scores, SCORES)):
        if given not in known:
            raise InferKitError(f"{what}={given!r}: use one of {', '.join(known)}.")
    if not isinstance(rule, (TopK, Threshold)):
        raise InferKitError(f"mask_rule={rule!r}: a TopK or a Threshold is expected.")
    if scale not in (None, "static", "dynamic"):
        raise InferKitError(f'scale={scale!r}: use None, "static" or "dynamic".')
    if scale == "static" and (isinstance(rule, Threshold) or rule.p == 1):
        raise InferKitError(
            f"{rule} has no fixed sparsity below 1, so that there is no static scale.",
            'Use scale="dynamic".',
        )


def _others(
    model: nn.Module, chosen: dict[str, maskable.Maskable], train: Sequence[str]
) -> set[str]:
    """Names of parameters beside the scores that are to learn; zeroes the masked layers' biases."""
    names = [name for name, _ in model.named_parameters() if name not in chosen]
    learning = set(maskable.matching(names, train))
    for found in chosen.values():
        for attribute in ("bias", "in_proj_bias"):
            bias = getattr(found.module, attribute, None)
            if isinstance(bias, Tensor):
                with torch.no_grad():
                    bias.zero_()
    return learning


def _initial_scores(spec: Spec, name: str, scores: str) -> Tensor:
    tensor = spec.tensors[name]
    # U(-1, 1) / sqrt(fan_in) is the Kaiming bound of six times the fan-in.
    draw = rng.INITS["kaiming_uniform" if scores == _EDGE_POPUP else scores]
    fan_in = tensor.fan_in * (6 if scores == _EDGE_POPUP else 1)
    return draw(spec.seed, f"{name}#score", tensor.shape, fan_in=fan_in)


def _mask(spec: Spec, found: maskable.Maskable, scores: Tensor, frozen: Tensor | None) -> None:
    weight, name = found.weight, found.name
    with torch.no_grad():
        weight.copy_(spec.draw(name, weight.device))
    layer = SupermaskParam(name, scores, spec.rule, spec.scale, frozen, spec.identity(name))
    layer = layer.to(weight.device)
    parametrize.register_parametrization(found.module, found.attribute, layer, unsafe=True)
