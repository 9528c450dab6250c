"""The running statistics of batch norms that a merged state needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.calling import called_with, inputs_of
from infer_kit.training.symmetry.placed import Call, Placed, State, check_is_state, modes, moved

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def reestimate_bn(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: Iterable[Any] | None,
    inputs: Callable[[Any], Any] | None = None,
) -> State:
    """A state whose batch norms have the running statistics of its own activations.

    Averaged weights do not have the average of the statistics: without this a merged network with
    BatchNorm is far worse than it need be (Jordan et al., "REPAIR", ICLR 2023, arXiv 2211.08403).
    One pass is made with the batch norms in train mode and all else in eval mode, so that dropout
    is off. The statistics become the plain mean over the batches of what each batch has, its mean
    and its unbiased variance: PyTorch's `momentum=None`. A small last batch counts as much as the
    others, and the variance between the means of batches is not in it.

    Args:
        model: of the state's architecture; left as it is.
        state: of parameters and buffers, by name; left as it is.
        batches: as the networks were trained on; labels are not needed. Read once. None or empty
            only for a model without batch norms.
        inputs: what of a batch the model is called with: a tuple is its arguments, a mapping its
            keyword arguments, else it is the only one. None for the first element of a tuple or
            list, and for any other batch as it is.

    Returns:
        The state with other running_mean, running_var and num_batches_tracked in the norms that
        the pass went through; the other tensors are those given. A model without batch norms gets
        the state back unchanged.

    Raises:
        InferKitError: no batch; a batch of one sample, which has no variance; statistics that are
            not finite; a state of another architecture.
    """

    def call(model: nn.Module, batch: Any) -> Any:
        given = inputs_of(batch) if inputs is None else inputs(batch)
        return called_with(model, moved(given, model))

    return reestimate_by(call, model, state, batches)


def reestimate_by(
    call: Call, model: nn.Module, state: Mapping[str, Tensor], batches: Iterable[Any] | None
) -> State:
    """`reestimate_bn` where `call(model, batch)` runs the model; what it returns is not used."""
    check_is_state(state)
    norms = _norms(model)
    if not norms:
        return dict(state)
    first = next(iter(norms))
    if batches is None:
        raise _no_data(model, first)
    placed = Placed(model, state)
    own = {
        (name, kind): placed.values[placed.names[f"{name}.{kind}".removeprefix(".")]]
        for name in norms
        for kind in _STATISTICS
    }
    for (_, kind), tensor in own.items():
        # A running mean of NaN would stay NaN, although its weight is 0.
        tensor.fill_(1.0 if kind == "running_var" else 0.0)
    momenta = {norm: norm.momentum for norm in norms.values()}
    count = 0
    with modes(model, norms.values()):
        try:
            for norm in momenta:
                norm.momentum = None
            for batch in batches:
                _run(placed, call, batch)
                count += 1
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    if count == 0:
        raise _no_data(model, first)
    out = dict(state)
    for (name, kind), tensor in own.items():
        whole = f"{name}.{kind}".removeprefix(".")
        if not bool(torch.isfinite(tensor).all()):
            raise InferKitError(
                f"{whole!r} is not finite after {count} batches.",
                "Look for inputs or weights that are not finite, or activations that overflow.",
            )
        if whole in out and bool(own[name, "num_batches_tracked"]):
            out[whole] = tensor
    return out


def has_bn(model: nn.Module) -> bool:
    """Whether a model has a BatchNorm (1d, 2d, 3d, Sync) that keeps running statistics."""
    return bool(_norms(model))


def check_bn_data(model: nn.Module, batches: Iterable[Any] | None) -> None:
    """A model with batch norms needs batches, said before any work is done.

    Raises:
        InferKitError: it has one and there are none.
    """
    norms = _norms(model)
    if norms and batches is None:
        raise _no_data(model, next(iter(norms)))


def _run(placed: Placed, call: Call, batch: Any) -> None:
    try:
        placed(call, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InferKitError(
            f"A batch has one value per channel, which has no variance: {error}.",
            "Give larger batches for the batch norms; drop_last=True leaves out a rest.",
        ) from error


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms with running statistics, under every name that they have."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
    }


def _no_data(model: nn.Module, name: str) -> InferKitError:
    return InferKitError(
        f"{type(model).__name__} has batch norms, the first {name!r}, and there is no batch to "
        "estimate their running statistics on.",
        "Give batches of training inputs, a list or an unshuffled DataLoader (bn_data of a "
        "barrier).",
    )
