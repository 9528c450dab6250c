"""Two processes of DistributedDataParallel find the ticket that one process finds."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from infer_kit.training.tickets import Freeze, IteRand, TopK, fit, make_ticket
from tests.training.tickets import tasks

_RULES = {
    "layer": {"mask_rule": TopK(0.5)},
    "global": {"mask_rule": TopK(0.5, scope="global"), "frozen": Freeze(0.2, 0.2)},
}


def _search(model: nn.Module, rule: str) -> IteRand:
    return IteRand(make_ticket(model, 3, **_RULES[rule]), k_per=2, r=0.5)


def _data() -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(96, 64, generator=g), torch.randint(0, 10, (96,), generator=g))


def _rank(rank: int, folder: str, rule: str, stop: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", f"file://{folder}/store-{stop}", rank=rank, world_size=2)
    model = tasks.mlp(64, 32, 10)
    search = _search(model, rule)
    ddp = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    sampler = DistributedSampler(_data(), shuffle=True, seed=1)
    loader = DataLoader(_data(), batch_size=8, sampler=sampler)
    seen = 0

    def loss(model: nn.Module, batch: tuple) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if stop and seen == 9:
            raise KeyboardInterrupt
        return tasks.cross_entropy(model, batch)

    try:
        fit(
            ddp, loader, loss, 2, search.optimizer(), search=search, progress=False,
            checkpoint=f"{folder}/c", checkpoint_every=4,
        )  # fmt: skip
        torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    except KeyboardInterrupt:
        pass
    # Freeing the group joins its threads with the interpreter's lock held, which they may wait for.
    os._exit(0)


def _run(folder: Path, rule: str, stops: list[bool]) -> list[dict[str, torch.Tensor]]:
    folder.mkdir()
    for stop in stops:
        mp.spawn(_rank, (str(folder), rule, stop), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _alone(rule: str) -> dict[str, torch.Tensor]:
    """One process; each batch is what both ranks have, in the order of the samplers."""
    model = tasks.mlp(64, 32, 10)
    search = _search(model, rule)
    optimizer = search.optimizer()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    x, y = _data().tensors
    samplers = [DistributedSampler(_data(), 2, r, shuffle=True, seed=1) for r in range(2)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        halves = [torch.tensor(list(sampler)).split(8) for sampler in samplers]
        for parts in zip(*halves, strict=True):
            index = torch.cat(parts)
            optimizer.zero_grad()
            tasks.cross_entropy(model, (x[index], y[index])).backward()
            optimizer.step()
        schedule.step()
    return model.state_dict()


def test_two_ranks_are_one_search(tmp_path: Path) -> None:
    for rule in _RULES:
        first, second = _run(tmp_path / rule, rule, [False])
        for name, value in _alone(rule).items():
            assert torch.equal(first[name], second[name]), name
            if name.endswith(("gens", "original")):
                assert torch.equal(first[name], value), name
            else:
                torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


def test_two_ranks_resume_exactly(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", "layer", [False])
    again = _run(tmp_path / "again", "layer", [True, False])
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
