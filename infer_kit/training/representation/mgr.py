r"""Training a classifier with samples of a generator that regularise its extractor alone (MGR).

$$L = CE(train) + \lambda\, PCR(x), \quad x = G(F_\psi(z), y), \quad z \sim N(0, I), \; y \sim U$$

and, where a finder and validation data are given, a step of psi before that of theta (MPS).

Source: Yamaguchi et al., "Regularizing Neural Networks with Meta-Learning Generative Models",
NeurIPS 2023, arXiv 2307.13899; lambda = 1. See `consistency` and `meta_sampling` for what differs.
On digits most of the gain is that of the augmentation, and MPS has none: compare with PCR on real
images and with cross-entropy on augmented real images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.representation.consistency import FeatureConsistency
from infer_kit.training.representation.generators import Generator, samples_of
from infer_kit.training.representation.meta_sampling import (
    Loss,
    classification_loss,
    draw,
    mps_step,
)


@dataclass(frozen=True)
class MGRTerms:
    """The loss of a step, and its parts.

    Attributes:
        loss: cross_entropy + lam pcr, to be differentiated.
        cross_entropy, pcr: without gradient.
        validation: loss at theta' of the finder's step; None without a finder.
    """

    loss: Tensor
    cross_entropy: Tensor
    pcr: Tensor
    validation: Tensor | None = None


def mgr_step(
    model: nn.Module,
    batch: Any,
    generator: Generator,
    *,
    samples: int,
    lam: float = 1.0,
    consistency: FeatureConsistency | None = None,
    loss: Loss = classification_loss,
    prepare: Callable[[Tensor], Tensor] | None = None,
    finder: nn.Module | None = None,
    finder_optimizer: torch.optim.Optimizer | None = None,
    validation: Any = None,
    eta: float | None = None,
    rng: torch.Generator | None = None,
) -> MGRTerms:
    """A step of MGR in one's own loop: the finder's is made here, the model's by the caller.

    >>> terms = mgr_step(model, batch, generator, samples=64)
    >>> terms.loss.backward()
    >>> optimizer.step()

    Args:
        model: a classifier, or its DistributedDataParallel.
        batch: of training, as `loss` takes it.
        samples: n of the generator.
        lam: weight of PCR. consistency: PCR; None for `FeatureConsistency()`.
        loss: of model and batch; default the mean cross-entropy.
        prepare: samples to inputs of the model; None for as they are.
        finder, finder_optimizer, validation, eta: for MPS, all four; see `hypergradient`.
        rng: of latents, classes and augmentation; None for PyTorch's own.

    Raises:
        InferKitError: some of the four, but not all; see `hypergradient`.
    """
    given = {
        "finder": finder,
        "finder_optimizer": finder_optimizer,
        "validation": validation,
        "eta": eta,
    }
    lacking = [name for name, value in given.items() if value is None]
    if 0 < len(lacking) < len(given):
        raise InferKitError(
            f"Meta pseudo-sampling needs finder, finder_optimizer, validation and eta; "
            f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not given.",
            "Give all four, with a validation batch that is held out, or none.",
        )
    consistency = FeatureConsistency() if consistency is None else consistency
    first = next(model.parameters())
    z, y = draw(generator, samples, first.device, rng)
    value = None
    if finder is not None and finder_optimizer is not None and eta is not None:
        value = mps_step(
            model, finder, finder_optimizer, generator, batch, validation, z, y, eta=eta, lam=lam,
            consistency=consistency, loss=loss, prepare=prepare, rng=rng,
        )  # fmt: skip
    cross_entropy = loss(model, batch)
    with torch.no_grad():
        x = samples_of(generator, z if finder is None else finder(z), y)
        x = (x if prepare is None else prepare(x)).to(first.device, first.dtype)
    pcr = consistency(model, x, rng)
    return MGRTerms(cross_entropy + lam * pcr, cross_entropy.detach(), pcr.detach(), value)
