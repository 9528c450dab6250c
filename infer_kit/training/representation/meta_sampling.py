r"""Meta pseudo-sampling: a finder network that picks the latents whose samples help validation.

For a finder F_psi and a frozen generator G, z ~ N(0, I), y uniform and x = G(F_psi(z), y),

$$\theta' = \theta - \eta \nabla_\theta [CE(train; \theta) + \lambda PCR(x; \theta)], \qquad
  \psi \leftarrow \psi - \xi \nabla_\psi CE(validation; \theta')$$

and then comes one ordinary step of theta with samples of the updated psi. With v the gradient of
the validation loss at theta', the chain rule through the step of theta is exactly

$$\nabla_\psi CE = -\eta \lambda \, \nabla_\psi [v^T \nabla_\theta PCR(x(\psi); \theta)]$$

which needs one gradient of a gradient, and no approximation.

Source: Yamaguchi et al., "Regularizing Neural Networks with Meta-Learning Generative Models" (MGR),
NeurIPS 2023, arXiv 2307.13899. Not told there, and so ours: the finder does not see y and adds to
its input, the validation batch is held out, and all forwards are in the mode of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from infer_kit.errors import InferKitError
from infer_kit.training.representation.classifiers import logits_of, mean_cross_entropy
from infer_kit.training.representation.consistency import FeatureConsistency
from infer_kit.training.representation.generators import Generator, check_generator, samples_of
from infer_kit.training.representation.optimizers import check_optimizer
from infer_kit.training.symmetry.merging import classification
from infer_kit.training.symmetry.placed import Placed

Loss = Callable[[nn.Module, Any], Tensor]
"""Of a model and a batch the loss, a tensor with one number."""


def classification_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of a batch (inputs, labels), or the loss of transformers' own for a
    mapping with labels."""
    if isinstance(batch, Mapping):
        output = model(**batch)
        loss: Tensor = output["loss"] if isinstance(output, Mapping) else output[0]
        return loss
    logits, labels = classification(model, batch)
    return mean_cross_entropy(logits_of(logits, len(labels)), labels)


class Finder(nn.Module):
    """A small LeakyReLU network from latents to latents.

    Args:
        z_dim: of the generator. width: of each hidden layer; None for z_dim.
        hidden: hidden layers.
        residual: the output is added to the input, and is 0 at the start: sampling begins as it is
            without a finder. Otherwise the output itself is the latent.
        seed: of the weights.

    Raises:
        InferKitError: a number below 1.
    """

    def __init__(
        self,
        z_dim: int,
        width: int | None = None,
        hidden: int = 2,
        residual: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = z_dim if width is None else width
        if min(z_dim, width, hidden) < 1:
            raise InferKitError(
                f"z_dim={z_dim}, width={width}, hidden={hidden}: numbers from 1 on are expected."
            )
        self.z_dim, self.residual = z_dim, residual
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            widths = [z_dim] + [width] * hidden
            layers: list[nn.Module] = []
            for i, o in pairwise(widths):
                layers += [nn.Linear(i, o), nn.LeakyReLU(0.2)]
            last = nn.Linear(width, z_dim)
        if residual:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, z: Tensor) -> Tensor:
        """`[B, z_dim]` latents of `[B, z_dim]` standard normal numbers."""
        found: Tensor = self.layers(z)
        return z + found if self.residual else found


def check_finder(finder: nn.Module, generator: Generator) -> None:
    """Whether a finder, which may be any module, has the generator's latents.

    Raises:
        InferKitError: it has a z_dim, and it is another.
    """
    own = getattr(finder, "z_dim", generator.z_dim)
    if own != generator.z_dim:
        raise InferKitError(
            f"The finder has z_dim={own}, and the generator {generator.z_dim}.",
            "Make it by Finder(generator.z_dim).",
        )


def draw(
    generator: Generator,
    n: int,
    device: torch.device | str | None = None,
    rng: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What samples are made of: z ~ N(0, I) and uniform classes.

    Args:
        generator: whose z_dim and n_classes count.
        n: of them. device: where they are put; the draws are on rng's.
        rng: None for PyTorch's own of the CPU.

    Returns:
        `[n, z_dim]` float32 latents and `[n]` int64 classes.

    Raises:
        InferKitError: n below 1; see `check_generator`.
    """
    check_generator(generator)
    if n < 1:
        raise InferKitError(f"{n} samples are asked for; at least 1 is expected.")
    at = "cpu" if rng is None else rng.device
    z = torch.randn(n, generator.z_dim, generator=rng, device=at)
    y = torch.randint(generator.n_classes, (n,), generator=rng, device=at)
    return z.to(device), y.to(device)


def hypergradient(
    model: nn.Module,
    finder: nn.Module,
    generator: Generator,
    train: Any,
    validation: Any,
    z: Tensor,
    y: Tensor,
    *,
    eta: float,
    lam: float = 1.0,
    consistency: FeatureConsistency | None = None,
    loss: Loss = classification_loss,
    prepare: Callable[[Tensor], Tensor] | None = None,
    rng: torch.Generator | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The gradient of the validation loss after one step of SGD, by the finder's parameters.

    Exact, see above. The model, its buffers (running statistics of batch norms) and all `.grad`
    stay as they are. Parameters that require no gradient are not stepped. The step has no momentum
    and no weight decay. Parameters, buffers and inputs of half precision are float32 here: a step
    of size eta would be lost in it.

    Where torch.distributed runs, theta', v and the gradient are those of the mean loss over all
    processes, for which each gives batches and samples of its own, of one size.

    Args:
        model: a classifier, or its DistributedDataParallel; it runs in the mode it is in.
        finder: of latents `[n, z_dim]`.
        generator: with samples that have a gradient by z.
        train, validation: batches, as `loss` takes them.
        z, y: `[n, z_dim]` and `[n]`, see `draw`.
        eta: learning rate of the step. lam: weight of PCR.
        consistency: PCR; None for `FeatureConsistency()`.
        loss: of model and batch; default the mean cross-entropy.
        prepare: samples to inputs of the model (size, normalisation), differentiable; None for as
            they are.
        rng: of the augmentation.

    Returns:
        A gradient for each parameter of the finder that requires one, and the validation loss at
        theta', of this process, a tensor with one number.

    Raises:
        InferKitError: no validation batch; a model or a finder with nothing to train; gradient
            checkpointing; a generator whose samples have no gradient; a loss that is not finite.
    """
    if validation is None:
        raise InferKitError(
            "There is no validation batch, and the finder is trained by its loss.",
            "Hold a part of the labelled data out, or train without a finder.",
        )
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    consistency = FeatureConsistency() if consistency is None else consistency
    if not eta >= 0:
        raise InferKitError(f"eta={eta}: a learning rate from 0 on is expected.")
    check_finder(finder, generator)
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    psi = [p for p in finder.parameters() if p.requires_grad]
    for what, found in (("model", theta), ("finder", psi)):
        if not found:
            raise InferKitError(f"No parameter of the {what} requires a gradient.")
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise InferKitError(
            "The model has gradient checkpointing, which would run its layers again without the "
            "step of the finder.",
            "model.gradient_checkpointing_disable(), or train without a finder.",
        )
    fixed = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    fixed = _wide(fixed | dict(model.named_buffers()))
    train, validation = _wide(train), _wide(validation)
    # The fused kernels of attention have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        x = samples_of(generator, finder(z), y)
        if not x.requires_grad:
            raise InferKitError(
                f"Samples of the {type(generator).__name__} have no gradient by z.",
                "Its sample must not be under no_grad; of a DiffusersGenerator give gradient=True.",
            )
        x = _wide(x if prepare is None else prepare(x))
        here = {name: p.detach().to(_wider(p.dtype)).requires_grad_() for name, p in theta.items()}
        placed = Placed(model, here | fixed)
        ce = _loss_in(placed, loss, train)
        # PCR has copies of the buffers of its own, as in FeatureConsistency.
        seen = consistency.features_in(
            Placed(model, here | fixed), model, x, consistency.augment(x, rng)
        )
        total = ce + lam * consistency.of(*seen)
        _check_loss("training", total)
        slopes = torch.autograd.grad(
            total, list(here.values()), create_graph=True, materialize_grads=True
        )
        steps = _mean_over_processes([slope.detach() for slope in slopes])
        there = {
            name: (p.detach() - eta * step).requires_grad_()
            for (name, p), step in zip(here.items(), steps, strict=True)
        }
        # Running statistics as they are after the training batch.
        after = {name: placed.values[placed.names[name]] for name in fixed}
        value = _loss_in(Placed(model, there | after), loss, validation)
        v = _mean_over_processes(
            torch.autograd.grad(value, list(there.values()), materialize_grads=True)
        )
        live = [(s, -eta * u) for s, u in zip(slopes, v, strict=True) if s.requires_grad]
        grads = torch.autograd.grad(
            [s for s, _ in live], psi, [u for _, u in live], materialize_grads=True
        )
    _check_loss("validation", value)
    return _mean_over_processes(grads), value.detach()


def mps_step(
    model: nn.Module,
    finder: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: Generator,
    train: Any,
    validation: Any,
    z: Tensor,
    y: Tensor,
    **how: Any,
) -> Tensor:
    """One step of the finder; the model is not changed. Its own ordinary step is the caller's.

    >>> z, y = draw(generator, 64)
    >>> mps_step(model, finder, finder_optimizer, generator, train, validation, z, y, eta=0.01)
    >>> x = generator.sample(finder(z), y).detach()  # for the step of the model

    Args:
        optimizer: of the finder's parameters, such as Adam.
        model, finder, generator, train, validation, z, y, how: see `hypergradient`.

    Returns:
        The validation loss at theta', a tensor with one number. Where torch.distributed runs, it is
        of this process, and the finder is the same on all if it was before.

    Raises:
        InferKitError: see `hypergradient`.
    """
    check_optimizer(optimizer, finder.parameters(), "finder")
    grads, value = hypergradient(model, finder, generator, train, validation, z, y, **how)
    optimizer.zero_grad()
    for p, grad in zip((p for p in finder.parameters() if p.requires_grad), grads, strict=True):
        p.grad = grad.to(p.dtype)
    optimizer.step()
    optimizer.zero_grad()
    return value


def _loss_in(placed: Placed, loss: Loss, batch: Any) -> Tensor:
    """The loss of a batch with the tensors of `placed` in the model's place, checked.

    Raises:
        InferKitError: it is no tensor with one number.
    """
    value = placed.run(loss, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InferKitError(
            f"The loss is {list(value.shape) if isinstance(value, Tensor) else type(value)}; a "
            "tensor with one number is expected."
        )
    return value


def _check_loss(name: str, value: Tensor) -> None:
    if not bool(value.detach().isfinite()):
        raise InferKitError(
            f"The {name} loss in the step of the finder is {float(value.detach())}.",
            "Lower eta, or look for the batch that does it.",
        )


def _mean_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor's mean over all processes; themselves where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _wide(given: Any) -> Any:
    """Tensors of half precision as float32, also those in a mapping, tuple or list."""
    if isinstance(given, Tensor):
        return given.to(_wider(given.dtype))
    if isinstance(given, Mapping):
        return {name: _wide(value) for name, value in given.items()}
    return tuple(map(_wide, given)) if isinstance(given, (tuple, list)) else given


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
