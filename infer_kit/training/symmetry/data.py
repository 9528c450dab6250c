r"""Little data to merge with: coresets and condensed sets.

To merge models of different datasets takes data, but not much of it: a few examples of each class,
chosen or made, replace the datasets (Yamada et al., "Toward Data Efficient Model Merging between
Different Datasets without Performance Degradation", ACML 2024, PMLR 260, arXiv 2306.05641).

    coreset_random     drawn
    coreset_herding    whose mean feature is nearest that of the class: Welling, "Herding Dynamical
                       Weights to Learn", ICML 2009; greedily, Rebuffi et al., "iCaRL", CVPR 2017
    condense           made, so that networks get the same gradients from them as from the data:
                       Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR
                       2021, arXiv 2006.05929

What is chosen or made is sorted by class, with as many of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.symmetry.calling import called_with, evaluating, inputs_of
from infer_kit.training.symmetry.placed import Placed, moved

STARTS = ("real", "noise")
"""What the synthetic examples of `condense` are before the first step."""


def coreset_random(labels: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """Examples of each class, drawn without replacement.

    Args:
        labels: `[N]` integers. per_class: examples of each.
        seed: of a generator of its own.

    Returns:
        `[classes * per_class]` indices, int64, by class and then as drawn; on the CPU.

    Raises:
        InferKitError: labels that are no integers `[N]`, or a class with too few.
    """
    generator = torch.Generator().manual_seed(seed)
    members = _members(labels, per_class)
    drawn = [own[torch.randperm(len(own), generator=generator)] for own in members.values()]
    return torch.cat([own[:per_class] for own in drawn])


def coreset_herding(features: Tensor, labels: Tensor, per_class: int) -> Tensor:
    r"""Examples of each class whose mean approximates the mean of the class, greedily.

    With $\mu$ the mean of the class and s the sum of what was chosen before, the k-th is the x that
    minimises $\|\mu - (s + x)/k\|$ and was not chosen; of equals the one of least index. Arithmetic
    is float64, and the first n of a larger choice are the choice of n.

    Args:
        features: `[N, d]`, such as those of `features_of`.
        labels: `[N]` integers. per_class: examples of each.

    Returns:
        `[classes * per_class]` indices, int64, by class and then as chosen; on the CPU.

    Raises:
        InferKitError: as `coreset_random`; features that are not `[N, d]` or not finite.
    """
    if features.dim() != 2 or len(features) != len(labels):
        raise InferKitError(
            f"features are {list(features.shape)} with {len(labels)} labels; [N, d] with N labels "
            "are expected.",
            "Flatten the features of each example.",
        )
    if not features.isfinite().all():
        raise InferKitError("features have numbers that are not finite.")
    chosen = []
    for own in _members(labels, per_class).values():
        x = features.detach()[own.to(features.device)].double()
        mean, total = x.mean(0), torch.zeros_like(x[0])
        taken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for k in range(1, per_class + 1):
            distance = (mean - (total + x) / k).norm(dim=1)
            best = int(distance.masked_fill(taken, torch.inf).argmin())
            taken[best] = True
            total = total + x[best]
            chosen.append(own[best])
    return torch.stack(chosen)


def features_of(
    model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], layer: str | None = None
) -> Tensor:
    """What a network makes of examples, to herd by; in evaluation mode, without gradients.

    Args:
        model: maps `[n, ...]` examples to outputs.
        batches: of examples; of a batch with several parts the first. A mapping is given by name.
        layer: name of the module whose output is taken; None for the input of the last `nn.Linear`.

    Returns:
        `[N, d]` in the order of the batches, flattened for each example.

    Raises:
        InferKitError: no such module, or one that does not run once a batch; no batch.
    """
    seen: list[Tensor] = []
    with FeatureTap(model, layer) as tap, torch.no_grad(), evaluating(model):
        for batch in batches:
            called_with(model, moved(inputs_of(batch), model))
            seen.append(tap.take())
    if not seen:
        raise InferKitError("There is no batch to take features of.")
    return torch.cat(seen)


def condense(
    make_model: Callable[[], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    per_class: int,
    *,
    outer: int = 1000,
    inner: int = 10,
    net_steps: int = 50,
    lr: float = 0.1,
    momentum: float = 0.5,
    net_lr: float = 0.01,
    batch: int = 256,
    start: str = "real",
    seed: int = 0,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """A small synthetic set that gives networks the gradients of a large one.

    Algorithm 1 of Zhao, Mopuri and Bilen, with its numbers as defaults:

        outer times: a new network;  inner times:
            for each class: d(gradient on a real minibatch of the class, on its synthetic examples)
            a step of SGD down the sum of d, on the synthetic examples
            net_steps steps of SGD of the network on the synthetic set

    with d of `gradient_distance` and gradients of the cross-entropy. inner and net_steps are the
    paper's for 10 a class; it takes 1 and 1 for one a class, 50 and 10 for 50.

    Everything that is random follows from the seed, and PyTorch's own generators are afterwards as
    before. A network of make_model is copied, not trained in place, and runs in the mode it is in.

    Args:
        make_model: gives a network with new random weights, `[n, ...]` to `[n, classes]` logits;
            without batch normalisation.
        inputs: `[N, ...]` real examples, floating; best standardised. labels: `[N]` integers.
        per_class: synthetic examples of each class.
        outer: networks. inner: steps of the synthetic examples for each. net_steps: steps of the
            network after each of these.
        lr, momentum: of the synthetic examples; if they grow, lower lr: a distance of directions
            does not hold them back. net_lr: of the network.
        batch: most real examples of a class at a time, and most synthetic ones in a network's step.
        start: "real": those of `coreset_random` with this seed; "noise": standard normal.
        seed: of draws and networks.
        progress: show a bar.

    Returns:
        Synthetic examples `[classes * per_class, ...]` by class, with the dtype and on the device
        of the inputs, and their labels, int64.

    Raises:
        InferKitError: data or a number that cannot be; a network with batch normalisation, without
            a weight, or with too few logits; a distance or examples that are not finite.
    """
    counts = {"outer": outer, "inner": inner, "net_steps": net_steps, "batch": batch}
    for name, count in counts.items():
        if count < (name == "batch"):
            raise InferKitError(f"{name}={count}: at least {int(name == 'batch')} is expected.")
    for name, rate in {"lr": lr, "momentum": momentum, "net_lr": net_lr}.items():
        if not 0 <= rate < inf:
            raise InferKitError(f"{name}={rate}: a number from 0 on is expected.")
    if isinstance(make_model, nn.Module):
        raise InferKitError(
            "make_model is a module, where a function is expected that gives a new network at "
            "each call.",
            "Give one such as lambda: Net().",
        )
    if start not in STARTS:
        raise InferKitError(f"start={start!r}: one of {', '.join(STARTS)} is expected.")
    if not inputs.is_floating_point() or len(inputs) != len(labels):
        raise InferKitError(
            f"inputs are {list(inputs.shape)} of {inputs.dtype} with {len(labels)} labels; "
            "floating ones with a label each are expected.",
            "Synthetic examples are found by gradient steps, so that they cannot be integers.",
        )
    inputs, labels = inputs.detach(), torch.as_tensor(labels, device=inputs.device)
    members = _members(labels, per_class)
    if min(members) < 0:
        raise InferKitError(f"labels have a label of {min(members)}; logits count from 0.")
    if not inputs.isfinite().all():
        raise InferKitError("inputs have numbers that are not finite.")
    labels = labels.long()
    generator = torch.Generator().manual_seed(seed)
    classes = torch.tensor(list(members)).repeat_interleave(per_class).to(inputs.device)
    index = coreset_random(labels, per_class, seed).to(inputs.device)
    images = inputs[index]
    if start == "noise":
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        images.copy_(noise)
    images.requires_grad_()
    optimizer = torch.optim.SGD([images], lr=lr, momentum=momentum)

    def minibatch(own: Tensor) -> Tensor:
        return own[torch.randperm(len(own), generator=generator)[:batch]].to(inputs.device)

    bar = tqdm(total=outer, desc="condense", disable=not progress)
    with bar, _seeded(seed, inputs.device), torch.enable_grad():
        for _ in range(outer):
            network = _Network(make_model(), inputs.device)
            for _ in range(inner):
                optimizer.zero_grad()
                total = 0.0
                for c, own in enumerate(members.values()):
                    part = slice(c * per_class, (c + 1) * per_class)
                    which = minibatch(own)
                    real = network.gradient(inputs[which], labels[which])
                    made = network.gradient(images[part], classes[part], create_graph=True)
                    distance = gradient_distance(made, real)
                    if distance.requires_grad:
                        distance.backward(inputs=[images])
                    total += float(distance.detach())
                if not isfinite(total):
                    raise InferKitError(
                        f"The distance of the gradients became {total}.",
                        "Lower lr or net_lr, and standardise the inputs.",
                    )
                optimizer.step()
                if not images.isfinite().all():
                    raise InferKitError(
                        "Synthetic examples are no longer finite.", "Lower lr, or standardise."
                    )
                bar.set_postfix(distance=f"{total:.3f}", refresh=False)
                for _ in range(net_steps):
                    which = minibatch(torch.arange(len(images)))
                    network.step(images.detach()[which], classes[which], net_lr)
            bar.update()
    return images.detach(), classes


def gradient_distance(made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    r"""The distance of two gradients that `condense` makes small.

    Zhao, Mopuri and Bilen, section 3.2: $\sum_{layers} \sum_i (1 - \cos(A_i, B_i))$ over the output
    units i of a layer, with $A_i$ the gradient of all weights into i. Vectors (biases, weights of
    normalisation) are left out: a cosine of two numbers is ±1. Rows of zeros in both are at
    distance 0, in one at distance 1.

    Args:
        made, real: gradients of the same parameters, in one order.

    Returns:
        The distance, a tensor with one number, differentiable.
    """
    total = torch.zeros((), dtype=made[0].dtype, device=made[0].device)
    for one, other in zip(made, real, strict=True):
        if one.dim() < 2:
            continue
        a, b = one.flatten(1), other.flatten(1)
        norms = a.norm(dim=1), b.norm(dim=1)
        alive = (norms[0] != 0) & (norms[1] != 0)
        # Scaled before the product, which could underflow: gradients are small.
        u, v = (t[alive] / n[alive, None] for t, n in zip((a, b), norms, strict=True))
        total = total + (1 - (u * v).sum(1)).sum() + ((norms[0] == 0) != (norms[1] == 0)).sum()
    return total


class _Network:
    """A copy of a model's weights, its gradients and its training; the model stays as it is."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) or getattr(module, "running_mean", None) is not None:
                raise InferKitError(
                    f"{name!r} ({type(module).__name__}) normalises over a batch, and the batches "
                    "that are compared have one class and different sizes.",
                    "Condense with GroupNorm or InstanceNorm in its place.",
                )
        own = [*model.named_parameters(), *model.named_buffers()]
        state = {name: tensor.detach().to(device, copy=True) for name, tensor in own}
        self.placed = Placed(model, state)
        self.weights = self.placed.require_grad()
        if not any(w.dim() >= 2 for w in self.weights):
            raise InferKitError("The network of make_model has no weight of a layer.")

    def gradient(self, x: Tensor, y: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Of the cross-entropy by the weights, in their order."""
        logits = self.placed.run(called_with, (x,))
        if logits.dim() != 2 or logits.shape[1] <= int(y.max()):
            raise InferKitError(
                f"The network of make_model gives {list(logits.shape)} for {len(x)} examples, one "
                f"with label {int(y.max())}; [n, classes] are expected.",
            )
        loss = nn.functional.cross_entropy(logits, y)
        return torch.autograd.grad(
            loss, self.weights, create_graph=create_graph, materialize_grads=True
        )

    def step(self, x: Tensor, y: Tensor, lr: float) -> None:
        """One of SGD."""
        slopes = self.gradient(x, y)
        with torch.no_grad():
            for weight, slope in zip(self.weights, slopes, strict=True):
                weight -= lr * slope


def _members(labels: Tensor, per_class: int) -> dict[int, Tensor]:
    """Indices of each class on the CPU, ascending, by class; refused if one has too few."""
    if not len(labels):
        raise InferKitError("labels are empty; integers [N] are expected.")
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise InferKitError(
            f"labels are not numbers: {error}; integers [N] are expected.", "Number the classes."
        ) from error
    if per_class < 1:
        raise InferKitError(f"per_class={per_class}: at least one example is expected.")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or len(labels) == 0 or not whole:
        raise InferKitError(
            f"labels are {list(labels.shape)} of {labels.dtype}; integers [N] are expected.",
            "Give the class of each example, not one-hot vectors.",
        )
    labels = labels.cpu()
    members = {c: (labels == c).nonzero().squeeze(1) for c in labels.unique().tolist()}
    for c, own in members.items():
        if len(own) < per_class:
            raise InferKitError(
                f"Class {c} has {len(own)} examples, and per_class={per_class} are asked for.",
                f"Take {min(map(len, members.values()))} or fewer, or leave the class out.",
            )
    return members


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators of the CPU and this device from the seed on, and then as before."""
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=others, device_type=device.type if others else "cuda"):
        # torch.manual_seed would seed all devices.
        torch.random.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
