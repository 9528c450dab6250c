"""What merging, width and transfer gain on scikit-learn's digits, with the benchmark's settings."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from torch import nn

from evals.benchmarks.symmetry_digits import Carrying, Merging, Width, trained
from evals.benchmarks.symmetry_peers import coordinate_descent
from evals.benchmarks.tickets_digits import digits, mlp
from infer_kit.training.symmetry import discover, match


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_merging_networks_of_turned_digits() -> None:
    found = Merging("0 / 90 degrees", 1).run()
    assert found["STE full"] >= found["matching"] + 25
    for few in ("random 20/class", "herding 20/class"):
        assert found[f"STE {few}"] >= found["STE full"] - 8


def test_wider_networks_meet_without_an_order() -> None:
    narrow, middle, wide = (Width(1e-4, w, 1, 60).run() for w in (32, 128, 512))
    assert narrow["naive"] < middle["naive"] < wide["naive"]
    assert wide["calibrated barrier"] < 0.2
    assert all(abs(found["lewc 1"] - 1) < 1e-6 for found in (narrow, middle, wide))


def test_transfer_to_another_start() -> None:
    """Means over seeds: the naive transfer alone is anywhere from 60 to 81."""
    found = [Carrying(512, seed).run() for seed in range(4)]
    last = {way: mean(curves[way][10] for curves in found) for way in found[0]}
    assert last["FGMT"] >= last["naive"] + 20
    for way in ("GMT", "FGMT"):
        assert last[way] >= last["oracle"] - 4


def test_the_objective_is_at_least_that_of_the_published_descent() -> None:
    train = digits()[0]
    nets: list[tuple[nn.Module, torch.Tensor]] = [
        (mlp(64, 48, 48, 48, 10, bias=True), train[0][:2]),
        (mlp(64, 128, 128, 10, bias=True), train[0][:2]),
    ]
    for net, x in nets:
        spec = discover(net, x)
        for seed in range(4):
            a, b = (trained(net, train, s, 3, 0.1)[1] for s in (seed, 50 + seed))
            perms = coordinate_descent(spec, a, b, seed)
            theirs = match(spec, a, b, start=perms, sweeps=0).objective
            ours = match(spec, a, b, start="identity", seed=seed)
            assert ours.objective >= theirs * (1 - 1e-6)
