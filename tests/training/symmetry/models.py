"""The families of networks that the tests go through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from evals.benchmarks.symmetry_models import (
    Attention,
    ConvNeXt,
    Gated,
    GroupedCNN,
    GroupedQueries,
    Made,
    Mixer,
    Residual,
    Summed,
    TiedLM,
    bert,
    gpt2,
    ids,
    images,
    llama,
    mlp,
    resnet,
    shake,
    vit,
)

# Number of groups that each has: a rule that fixes too much is seen.
FAMILIES: dict[str, tuple[Callable[[], Made], int]] = {
    "mlp": (mlp, 2),
    "residual": (lambda: (Residual(2, 10, 12), torch.randn(4, 6)), 3),
    "unanchored": (lambda: (Residual(2, 10, 12, anchored=False), torch.randn(4, 6)), 3),
    "grouped cnn": (lambda: (GroupedCNN(), images()), 4),
    "attention": (lambda: (Attention(), torch.randn(2, 5, 6)), 4),
    "grouped queries": (lambda: (GroupedQueries(True), torch.randn(2, 5, 6)), 5),
    "repeated keys": (lambda: (GroupedQueries(False), torch.randn(2, 5, 6)), 5),
    "tied lm": (lambda: (TiedLM(), ids()), 2),
    "resnet": (lambda: (resnet(), images()), 4),
    "convnext": (lambda: (ConvNeXt(), images()), 2),
    "mixer": (lambda: (Mixer(), images()), 3),
    "gated": (lambda: (Gated(), torch.randn(2, 3, 8)), 3),
    "summed": (lambda: (Summed(), torch.randn(4, 6)), 2),
    "encoder layer": (
        lambda: (nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), torch.randn(2, 5, 16)),
        3,
    ),
    "gpt2": (gpt2, 7),
    "gpt2 eager": (lambda: gpt2("eager"), 7),
    "bert": (bert, 9),
    "bert eager": (lambda: bert("eager"), 9),
    "llama": (llama, 9),
    "llama eager": (lambda: llama("eager"), 9),
    "vit": (vit, 9),
}


def made(family: str, seed: int, dtype: torch.dtype = torch.float64) -> Made:
    """A network of a family with parameters and running statistics that are all its own."""
    torch.manual_seed(seed)
    model, x = FAMILIES[family][0]()
    shake(model)
    model.to(dtype)
    if isinstance(x, Tensor):
        return model, x.to(dtype) if x.is_floating_point() else x
    return model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in x.items()}
