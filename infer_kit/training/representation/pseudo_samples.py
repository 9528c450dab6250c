r"""Pseudo samples: what a source generator makes of target examples, and whether that is of use.

With a source classifier C, a conditional generator G of the same classes with class embeddings E,
and target examples x,

$$p = C(x) \;[B, K_s], \quad z \sim N(0, I), \qquad
  x_p = G(z, p^T E) \text{ soft, or } G(z, y),\; y \sim Categorical(p) \text{ hard}$$

Source: Yamaguchi et al., "Transfer Learning with Pre-trained Conditional Generative Models", 2022,
arXiv 2204.12833: pseudo conditional sampling. Whether
samples tell anything of the target: `relatedness`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.representation.classifiers import logits_of
from infer_kit.training.representation.finite import check_finite
from infer_kit.training.representation.generators import (
    Generator,
    check_generator,
    mixture_of,
    samples_of,
)
from infer_kit.training.symmetry.calling import evaluating
from infer_kit.training.symmetry.placed import moved

Mode = Literal["soft", "hard"]
Normalise = Callable[[Tensor], Tensor] | tuple[Sequence[float], Sequence[float]]
"""Of target examples the source classifier's inputs, or its mean and std by channel."""

_MODES = ("soft", "hard")


class PseudoSamples(NamedTuple):
    """Attributes: x: `[B, ...]` samples. probabilities: `[B, K_s]` C(x_target), float32 at
    least."""

    x: Tensor
    probabilities: Tensor


def pseudo_conditional_samples(
    classifier: nn.Module,
    x_target: Tensor,
    generator: Generator,
    mode: Mode = "soft",
    *,
    normalise: Normalise | None = None,
    rng: torch.Generator | None = None,
) -> PseudoSamples:
    """A sample of the source generator for each target example.

    The examples are one batch; `PseudoSampler` draws from a whole target set, through which the
    classifier goes once. Neither model gets a gradient, and the classifier runs in evaluation mode.

    Args:
        classifier: C, of inputs to `[B, K_s]` logits, or to an output with `logits`.
        x_target: `[B, C, H, W]` target examples, not augmented.
        generator: G, of C's classes in C's order.
        mode: "soft": G gets p, and mixes its class embeddings. "hard": a class is drawn of p.
        normalise: brings target examples to what C was trained on, which is rarely what the target
            network gets: a function of a batch, or (mean, std) by channel of examples in [0, 1].
            Resizing is the caller's too, in that function. None if the examples are C's inputs.
        rng: of z and classes, on any device; None for PyTorch's own of the CPU.

    Returns:
        Samples on G's scale and size, and p.

    Raises:
        InferKitError: an unknown mode, no generator, logits of other classes than G's or that are
            not finite.
    """
    p = source_probabilities(classifier, x_target, generator, normalise=normalise)
    return PseudoSamples(_sampled(generator, p, mode, rng), p)


@torch.no_grad()
def source_probabilities(
    classifier: nn.Module,
    x_target: Tensor,
    generator: Generator,
    *,
    normalise: Normalise | None = None,
    batch: int = 256,
) -> Tensor:
    """C(x_target), the first half of `pseudo_conditional_samples`, which has the arguments.

    Args:
        batch: examples at a time.

    Returns:
        `[N, K_s]` on the classifier's device, float32 at least.
    """
    check_generator(generator)
    if not isinstance(x_target, Tensor):
        raise InferKitError(
            f"x_target is a {type(x_target).__name__}; a tensor [N, C, H, W] is expected.",
            "torch.stack the examples of a dataset; torch.as_tensor makes one of an array.",
        )
    if not x_target.is_floating_point() or x_target.dim() < 2 or not len(x_target):
        raise InferKitError(
            f"x_target are {list(x_target.shape)} of {x_target.dtype}; floating [N, C, H, W] are "
            "expected."
        )
    to_source = _normaliser(normalise)
    rows = []
    with evaluating(classifier):
        for part in x_target.split(batch):
            output = classifier(to_source(moved(part, classifier)))
            logits = logits_of(output, len(part), generator.n_classes, "the source classifier")
            check_finite(
                "Logits of the source classifier", logits, hint="Is the input normalised for it?"
            )
            rows.append(logits.softmax(1))
    return torch.cat(rows)


class PseudoSampler:
    """As many pseudo samples of a target set as are asked for.

    What C says of the target set does not change, so that it is computed once.

    Args:
        generator: G.
        probabilities: `[N, K_s]` C(x_target) of the target set, of `source_probabilities`.
        mode: see `pseudo_conditional_samples`.
        prepare: brings samples to the target network's inputs: size and normalisation. None if
            they are.

    Raises:
        InferKitError: as `pseudo_conditional_samples`; rows that are no probabilities of G's
            classes.
    """

    def __init__(
        self,
        generator: Generator,
        probabilities: Tensor,
        mode: Mode = "soft",
        *,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_generator(generator)
        _check_mode(mode)
        if not probabilities.is_floating_point() or not len(probabilities):
            raise InferKitError(
                f"probabilities are {list(probabilities.shape)} of {probabilities.dtype}; floating "
                "[N, K_s] are expected.",
                "Give source_probabilities(classifier, x_target, generator).",
            )
        self.generator, self.mode, self.prepare = generator, mode, prepare
        self.probabilities = mixture_of(probabilities.detach(), generator.n_classes)

    def draw(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Samples of target examples that are drawn with equal odds.

        Args:
            n: how many. rng: of examples, z and classes; None for PyTorch's own of the CPU.

        Returns:
            `[n, ...]`, after the prepare.
        """
        device = "cpu" if rng is None else rng.device
        index = torch.randint(len(self.probabilities), (n,), generator=rng, device=device)
        return self.of(index, rng)

    def of(self, index: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Samples of the target examples with these numbers `[n]`, as `draw` returns them."""
        p = self.probabilities[index.to(self.probabilities.device)]
        x = _sampled(self.generator, p, self.mode, rng)
        return x if self.prepare is None else self.prepare(x)


@torch.no_grad()
def _sampled(generator: Generator, p: Tensor, mode: Mode, rng: torch.Generator | None) -> Tensor:
    """One sample for each row of p, on p's device."""
    _check_mode(mode)
    # Drawn where rng is, by default on the CPU, so that the numbers are the same on every device.
    device = torch.device("cpu") if rng is None else rng.device
    z = torch.randn(len(p), generator.z_dim, generator=rng, device=device).to(p.device)
    if mode == "soft":
        return samples_of(generator, z, p)
    y = torch.multinomial(p.to(device), 1, generator=rng)[:, 0]
    return samples_of(generator, z, y.to(p.device))


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise InferKitError(f"mode={mode!r}: one of {', '.join(_MODES)} is expected.")


def _normaliser(normalise: Normalise | None) -> Callable[[Tensor], Tensor]:
    if normalise is None:
        return lambda x: x
    if callable(normalise):
        return normalise
    if not isinstance(normalise, tuple | list) or len(normalise) != 2:
        raise InferKitError(
            f"normalise is a {type(normalise).__name__}; a function or (mean, std) is expected.",
            "Such as ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).",
        )
    mean, std = (torch.tensor(numbers, dtype=torch.float32) for numbers in normalise)
    if mean.dim() != 1 or mean.shape != std.shape or not bool((std > 0).all()):
        raise InferKitError(
            f"normalise has a mean {list(mean.shape)} and a std {list(std.shape)}; a number of "
            "each for each channel is expected, std above 0."
        )

    def standardised(x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != len(mean):
            raise InferKitError(
                f"x_target are {list(x.shape)}, and normalise has {len(mean)} channels; "
                f"[N, {len(mean)}, H, W] are expected."
            )
        return (x - mean.to(x)[:, None, None]) / std.to(x)[:, None, None]

    return standardised
