"""Small pictures of digits and of letters, and the networks that `representation` trains on them.

Digits are scikit-learn's 1,797 of 8 x 8, letters are A to J in the fonts that matplotlib carries,
each turned, sheared, scaled, moved and noised at random. Both are 16 x 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate

SIDE = 16
LETTERS = "ABCDEFGHIJ"
_FONTS = ("DejaVu*[!y].ttf", "STIXGeneral*.ttf", "cm[brt][0-9it]*.ttf", "cms[s]10.ttf")

Split = tuple[Tensor, Tensor]


@cache
def digits() -> Split:
    """`[1797, 1, 16, 16]` standardised, in an order that is drawn once, and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    x = interpolate(x, size=(SIDE, SIDE), mode="bilinear")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order] - 0.3) / 0.35, torch.tensor(data.target)[order]


@cache
def letters(n: int = 3000, seed: int = 0) -> Split:
    """`[n, 1, 16, 16]` with about the digits' mean and spread, and labels 0 to 9 for A to J."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    fonts = sorted(path for pattern in _FONTS for path in folder.glob(pattern))
    glyphs = []
    for path in fonts:
        font = ImageFont.truetype(path, 3 * SIDE // 2)
        for letter in LETTERS:
            image = Image.new("L", (2 * SIDE, 2 * SIDE))
            ImageDraw.Draw(image).text((SIDE, SIDE), letter, 255, font, anchor="mm")
            glyphs.append(np.asarray(image))
    drawn = torch.tensor(np.stack(glyphs), dtype=torch.float32)[:, None] / 255
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(drawn), (n,), generator=generator)
    u = 2 * torch.rand(n, 6, generator=generator) - 1
    angle, shear, zoom = 0.25 * u[:, 0], 0.2 * u[:, 1], 1 + 0.15 * u[:, 2]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = torch.stack([cos, shear - sin, 0.1 * u[:, 3], sin, cos, 0.1 * u[:, 4]], 1).view(n, 2, 3)
    grid = affine_grid(rows, [n, 1, SIDE, SIDE], align_corners=False)
    x = grid_sample(drawn[which], grid, align_corners=False)
    x = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return (x - 0.3) / 0.35, which % len(LETTERS)


def few(split: Split, per_class: int, seed: int) -> tuple[Split, Split]:
    """So many of each class, sorted by class, and the rest."""
    x, y = split
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[y[order] == c][:per_class] for c in y.unique().tolist()])
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[chosen] = False
    return (x[chosen], y[chosen]), (x[rest], y[rest])


class CNN(nn.Module):
    """Three convolutions to features `[B, d]`, and a linear head on them."""

    def __init__(self, classes: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.extractor = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, features, 3, 1, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * features, features), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.extractor(x))
        return out


def made(classes: int, seed: int, **sizes: int) -> CNN:
    """A network with weights of a seed."""
    torch.manual_seed(seed)
    return CNN(classes, **sizes)


def train(
    model: CNN,
    data: Split,
    steps: int,
    seed: int,
    lr: float = 1e-3,
    batch: int = 64,
    loss: Callable[[CNN, Tensor, Tensor], Tensor] | None = None,
    after: Callable[[], Any] | None = None,
) -> CNN:
    """AdamW with a cosine, on batches drawn without replacement in each epoch.

    Args:
        loss: of model, inputs and labels; None for the cross-entropy. after: called after a step.
    """
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    order: list[int] = []
    for _ in range(steps):
        if len(order) < min(batch, len(y)):
            order = torch.randperm(len(y), generator=generator).tolist()
        index, order = order[:batch], order[batch:]
        out = loss(model, x[index], y[index]) if loss else cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        out.backward()
        optimizer.step()
        schedule.step()
        if after is not None:
            after()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """In percent."""
    return 100 * float((model(data[0]).argmax(1) == data[1]).float().mean())
