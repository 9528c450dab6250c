"""PCR against a loop, where its gradients go, and the augmentation image by image."""

from __future__ import annotations

import random
from math import cos, pi, sin

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.representation import (
    ConditionalVAE,
    FeatureConsistency,
    StrongAugment,
    pcr_loss,
)

STILL = {"rotate": 0, "shear": 0, "scale": 0, "translate": 0, "brightness": 0, "contrast": 0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """With a batch norm, and a head on its features."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("seed", range(10))
def test_pcr_is_a_loop(seed: int) -> None:
    b, d = random.Random(seed).randint(1, 6), random.Random(seed + 50).randint(1, 7)
    one, other = normal(b, d, seed=seed), normal(b, d, seed=seed + 99)
    total = sum(float(one[i, k] - other[i, k]) ** 2 for i in range(b) for k in range(d))
    assert float(pcr_loss(one, other, "sum")) == pytest.approx(total / b, rel=1e-12)
    assert float(pcr_loss(one, other)) == pytest.approx(total / (b * d), rel=1e-12)
    assert float(pcr_loss(one, one)) == 0
    near = pcr_loss(one.bfloat16(), other.bfloat16(), "sum")
    assert near.dtype == torch.float32
    rounded = (one.bfloat16().double() - other.bfloat16().double()).square().sum() / b
    torch.testing.assert_close(near.double(), rounded, rtol=1e-6, atol=0)


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_it_goes_through_a_model_and_not_to_head_or_generator(stop_gradient: bool) -> None:
    model = Net().double()
    model.body[1].running_mean.normal_()
    source = ConditionalVAE((1, 6, 6), 3, z_dim=4, width=4).double()
    x = source.sample(normal(8, 4), torch.arange(8) % 3)
    pcr = FeatureConsistency(reduction="sum", stop_gradient=stop_gradient)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = pcr(model, x, rng())
    loss.backward()
    assert model.head.weight.grad is None and model.head.bias.grad is None
    assert all(p.grad is None for p in source.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The same by hand, of one batch for the norm.
    augmented = StrongAugment()(x, rng())
    got = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    g = model.body(torch.cat([augmented, x]))
    target = g[8:].detach() if stop_gradient else g[8:]
    slow = sum((g[i] - target[i]).square().sum() for i in range(8)) / 8
    slow.backward()
    torch.testing.assert_close(loss, slow, rtol=1e-12, atol=0)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-9, atol=1e-12)
    assert bool((got["body.0.weight"] != 0).any())


def test_a_layer_can_be_named_and_frozen_parameters_stay() -> None:
    model, x = Net(), torch.randn(4, 1, 6, 6)
    model.body[0].requires_grad_(False)
    model.eval()
    named = FeatureConsistency(StrongAugment(**STILL | {"rotate": 20}), layer="body.2")
    loss = named(model, x, rng())
    loss.backward()
    assert model.body[0].weight.grad is None and model.body[4].weight.grad is None
    features = model.body[:3](torch.cat([named.augment(x, rng()), x])).flatten(1)
    torch.testing.assert_close(loss, pcr_loss(*features.chunk(2)))
    with pytest.raises(InferKitError, match="layer='tail' is no module"):
        FeatureConsistency(layer="tail")(model, x)


def test_nothing_is_what_all_zeros_do() -> None:
    x = normal(5, 2, 6, 8)
    still = StrongAugment(**STILL, erase=0)(x, rng())
    torch.testing.assert_close(still, x, rtol=0, atol=1e-12)


def test_each_image_is_drawn_on_its_own_and_a_seed_repeats_it() -> None:
    augment = StrongAugment()
    x = normal(1, 1, 12, 12).expand(16, 1, 12, 12).float()
    first, again, other = augment(x, rng(1)), augment(x, rng(1)), augment(x, rng(2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    distances = torch.cdist(first.flatten(1), first.flatten(1)) + torch.eye(16)
    assert float(distances.min()) > 0.1
    state = torch.get_rng_state()
    augment(x, rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    own = augment(x)
    torch.manual_seed(5)
    assert torch.equal(augment(x), own)


def place(image: Tensor, row: float, column: float) -> float:
    """Bilinear, where the edge goes on outside."""
    h, w = image.shape
    row, column = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
    r, c = min(int(row), h - 1), min(int(column), w - 1)
    r2, c2 = min(r + 1, h - 1), min(c + 1, w - 1)
    dr, dc = row - r, column - c
    top = (1 - dc) * float(image[r, c]) + dc * float(image[r, c2])
    bottom = (1 - dc) * float(image[r2, c]) + dc * float(image[r2, c2])
    return (1 - dr) * top + dr * bottom


@pytest.mark.parametrize("seed", range(5))
def test_images_are_moved_dimmed_and_erased_as_in_a_loop(seed: int) -> None:
    b, c, h, w = 3, 2, 6, 9
    x = normal(b, c, h, w, seed=seed)
    a = StrongAugment(40, 0.3, 0.25, 0.15, 0.5, 0.4, 0.8)
    out = a(x, rng(seed))
    drawn = torch.rand(b, 11, generator=rng(seed)).double()
    for i in range(b):
        u = [2 * float(v) - 1 for v in drawn[i, :7]]
        angle, zoom, shear = u[0] * a.rotate * pi / 180, 1 + a.scale * u[1], a.shear * u[2]
        moved = torch.zeros(c, h, w, dtype=torch.float64)
        for r in range(h):
            for k in range(w):
                # Pixels right and down of the middle; sheared, then turned and scaled.
                right, down = k + 0.5 - w / 2, r + 0.5 - h / 2
                right = right + shear * down
                to_right = zoom * (cos(angle) * right - sin(angle) * down)
                to_down = zoom * (sin(angle) * right + cos(angle) * down)
                column = to_right + a.translate * u[3] * w + w / 2 - 0.5
                row = to_down + a.translate * u[4] * h + h / 2 - 0.5
                for ch in range(c):
                    moved[ch, r, k] = place(x[i, ch], row, column)
        mean, spread = moved.mean(), moved.std(correction=0)
        moved = mean + (1 + a.contrast * u[6]) * (moved - mean) + a.brightness * u[5] * spread
        erased = moved.clone()
        top, height, left, width = drawn[i, 7:].tolist()
        for r in range(h):
            for k in range(w):
                near = abs((r + 0.5) / h - top) < a.erase * height / 2
                if near and abs((k + 0.5) / w - left) < a.erase * width / 2:
                    erased[:, r, k] = moved.mean((1, 2))
        torch.testing.assert_close(out[i], erased, rtol=0, atol=1e-5)  # drawn in float32


def test_half_precision_keeps_its_dtype_and_one_colour_has_gradients() -> None:
    x = torch.randn(4, 1, 8, 8)
    near = StrongAugment()(x.bfloat16(), rng())
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), StrongAugment()(x, rng()), rtol=0.02, atol=0.03)
    flat = torch.ones(2, 1, 4, 4, requires_grad=True)
    StrongAugment()(flat, rng()).square().sum().backward()
    assert bool(flat.grad.isfinite().all())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InferKitError, match=r"Features are \[2, 3\] of augmented and \[2, 4\]"):
        pcr_loss(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(InferKitError, match=r"\[B, d\] of both"):
        pcr_loss(torch.ones(2), torch.ones(2))
    with pytest.raises(InferKitError, match="reduction='max'"):
        pcr_loss(torch.ones(2, 3), torch.ones(2, 3), "max")
    for options in ({"rotate": -1}, {"erase": 1.5}, {"scale": 1.0}, {"shear": float("nan")}):
        with pytest.raises(InferKitError, match=f"{next(iter(options))}="):
            StrongAugment(**options)
    with pytest.raises(InferKitError, match=r"Images are \[4, 8\]"):
        StrongAugment()(torch.ones(4, 8))
    with pytest.raises(InferKitError, match="of torch.uint8"):
        StrongAugment()(torch.ones(4, 1, 8, 8, dtype=torch.uint8))
