"""What conditional generators are to the methods here: three names."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from infer_kit.errors import InferKitError


@runtime_checkable
class Generator(Protocol):
    """A frozen conditional generator: anything that has these three.

    `ConditionalVAE` and `DiffusersGenerator` are two; a GAN needs a class of ten lines.

    Attributes:
        z_dim: numbers in a latent. n_classes: classes that it was trained on.
    """

    z_dim: int
    n_classes: int

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        """Examples of latents and classes.

        Args:
            z: `[B, z_dim]`, standard normal.
            y: `[B]` int64 classes, or `[B, n_classes]` probabilities: a mixture of the classes'
                embeddings, p^T E.

        Returns:
            `[B, ...]` examples. Their gradient by z and probabilities is there, or they have none.
        """
        ...


def check_generator(generator: object) -> None:
    """Whether something has the three.

    Raises:
        InferKitError: names what it lacks.
    """
    missing = [name for name in ("z_dim", "n_classes", "sample") if not hasattr(generator, name)]
    if missing:
        raise InferKitError(
            f"A {type(generator).__name__} is given as generator, which has no "
            f"{' and no '.join(missing)}.",
            "Give one with z_dim, n_classes and sample(z, y): ConditionalVAE, DiffusersGenerator, "
            "or a class of your own.",
        )


def mixture_of(y: Tensor, n_classes: int) -> Tensor:
    """`[B, n_classes]` floating probabilities of classes or of probabilities, checked.

    Raises:
        InferKitError: classes out of range; probabilities of other classes, or that are none.
    """
    if y.is_floating_point():
        if y.dim() != 2 or y.shape[1] != n_classes:
            raise InferKitError(
                f"Probabilities are {list(y.shape)}, and the generator has {n_classes} classes.",
                f"Give [B, {n_classes}]: those of a classifier of the generator's classes.",
            )
        total = y.detach().to(torch.promote_types(y.dtype, torch.float32)).sum(1)
        off = max(1e-3, 2 * torch.finfo(y.dtype).eps)
        if not bool((y.detach() >= 0).all()) or not bool(((total - 1).abs() < off).all()):
            raise InferKitError(
                "A row of y has numbers below 0, or does not sum to 1.", "Give a softmax."
            )
        return y
    if y.dim() != 1 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < n_classes):
        told = f"from {int(y.min())} to {int(y.max())}" if y.numel() else "none"
        raise InferKitError(
            f"Classes are {list(y.shape)}, {told}; [B] below {n_classes} are expected, which the "
            "generator has.",
        )
    return one_hot(y.long(), n_classes).to(torch.get_default_dtype())


def samples_of(generator: Generator, z: Tensor, y: Tensor) -> Tensor:
    """What a generator gives, one floating example for each latent.

    Raises:
        InferKitError: something else.
    """
    x = generator.sample(z, y)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or len(x) != len(z):
        told = f"{list(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InferKitError(
            f"{type(generator).__name__}.sample gave {told} for {len(z)} latents; a floating "
            f"tensor [{len(z)}, ...] is expected.",
            "Of images in bytes return x.float() / 255.",
        )
    return x
