"""Small networks, batches, and what tells whether a call left a model as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Batch norms in and beside a residual branch, dropout in it, and a norm never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.inner_norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.idle = nn.BatchNorm1d(3)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = (x + self.inner_norm(self.inner(self.dropout(x)))).relu()
        return self.out(x.mean((2, 3)))


def residual(seed: int) -> Residual:
    torch.manual_seed(seed)
    net = Residual()
    with torch.no_grad():
        for norm in (net.norm, net.inner_norm, net.idle):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
    return net


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4))


def pairs(seed: int, *shape: int, sizes: tuple[int, ...] = (16, 16, 7)) -> list[tuple]:
    """Batches of noise with labels that no network fits."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            2 * torch.randn(n, *shape, generator=generator) + 0.5,
            torch.randint(0, 4, (n,), generator=generator),
        )
        for n in sizes
    ]


def snapshot(model: nn.Module) -> list[Any]:
    """All that a call must leave as it is."""
    return [
        *((name, id(p), p.detach().clone()) for name, p in model.named_parameters()),
        *((name, id(b), b.clone()) for name, b in model.named_buffers()),
        *((name, id(p.grad)) for name, p in model.named_parameters()),
        *((name, m.training, getattr(m, "momentum", 0)) for name, m in model.named_modules()),
        *((name, list(m._forward_hooks)) for name, m in model.named_modules()),
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def sampled(nets: list[nn.Module], batches: list[tuple], seed: int = 0) -> list[tuple]:
    """Batches with labels drawn from what the networks say in turn, with a temperature of 1 / 2."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for x, _ in batches:
        with torch.no_grad():
            said = torch.stack([copy.deepcopy(net).eval()(x) for net in nets])
        rows = said[torch.arange(len(x)) % len(nets), torch.arange(len(x))]
        out.append((x, torch.multinomial((2 * rows).softmax(1), 1, generator=generator)[:, 0]))
    return out


def by_hand(net: Residual, batches: list[tuple]) -> dict[str, Tensor]:
    """Means over the batches of mean and unbiased variance, in float64."""
    net = copy.deepcopy(net).double()
    sums: dict[str, Any] = {}

    def normed(name: str, x: Tensor) -> Tensor:
        norm = getattr(net, name)
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        n = x.numel() / x.shape[1]
        for key, value in ((".running_mean", mean), (".running_var", var * n / (n - 1))):
            sums[name + key] = sums.get(name + key, 0) + value / len(batches)
        scaled = (x - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    with torch.no_grad():
        for x, _ in batches:
            x = normed("norm", net.conv(x.double())).relu()
            normed("inner_norm", net.inner(x))
    return sums
