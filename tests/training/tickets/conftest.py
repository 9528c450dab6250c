"""Digits, small networks, and one CPU thread: the figures are of seeded runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.training.tickets import tasks


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return tasks.digits()


@pytest.fixture
def mlp() -> nn.Module:
    return tasks.mlp(64, 32, 10)
