"""Noise on processed pictures, as a diffusion model adds it."""

from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError

STEPS = 1000


def add_noise(pixels: Tensor, step: int, seed: int) -> Tensor:
    r"""$\sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \varepsilon$ with unit normal ε.

    The variances rise from 1e-5 to 5e-3 along a sigmoid over 1000 steps (Leng et al., "Visual
    Contrastive Decoding", CVPR 2024, appendix). The noise depends on the seed and the shape alone,
    so a prompt gets the same noise alone and in a batch.

    Args:
        pixels: what the image processor returned, any shape.
        step: t from 0 to 999; the signal's factor is 0.86 at 500 and 0.29 at 999.

    Raises:
        InferKitError: see `check_noise`.
    """
    check_noise(step, seed)
    variances = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    kept = (1 - variances).cumprod(0)[step]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    noised = kept.sqrt() * pixels.double() + (1 - kept).sqrt() * noise.to(pixels.device).double()
    return noised.to(pixels.dtype)


def check_noise(step: Any, seed: Any) -> None:
    """Raise `InferKitError` for a step that there is not, or a seed that is no whole number."""
    whole = isinstance(step, int) and not isinstance(step, bool)
    if not whole or not 0 <= step < STEPS:
        raise InferKitError(
            f"The noise step is a whole number from 0 to {STEPS - 1}, got {step!r}."
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise InferKitError(f"The seed of the noise is a whole number, got {seed!r}.")
