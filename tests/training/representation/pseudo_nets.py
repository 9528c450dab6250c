"""A small generator and network, and one of two processes that pre-train it.

Apart from the tests, so that the processes import little.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infer_kit.training.representation import pseudo_pretrain


class Blobs:
    """A generator of classes that are easy to tell: a mean each, and the latent as noise."""

    z_dim, n_classes = 6, 4

    def __init__(self) -> None:
        self.means = 2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
        self.asked: list[Tensor] = []

    def sample(self, z: Tensor, y: Tensor) -> Tensor:
        self.asked.append(y)
        return self.means.to(z)[y] + z


class Stop(Exception):
    """An interruption."""


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def rank_of_two(rank: int, folder: str) -> None:
    """Pre-trains in 8 steps, is stopped in the 6th and goes on anew; weights to a file."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for stop in (6, 0):
        model = nn.parallel.DistributedDataParallel(plain(), broadcast_buffers=False)
        seen = 0

        def loss(logits: Tensor, y: Tensor, stop: int = stop) -> Tensor:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise Stop
            return cross_entropy(logits, y)

        try:
            pseudo_pretrain(
                model, Blobs(), 8, 4, lr=1e-2, loss=loss, seed=5, progress=False,
                checkpoint=f"{folder}/c", checkpoint_every=2,
            )  # fmt: skip
        except Stop:
            continue
        assert seen == 4
        torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")
    # Freeing the group joins its threads with the interpreter's lock held, which they may wait for.
    os._exit(0)
