"""Straight-through matching, against a loop that follows the formula word by word."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evals.benchmarks.symmetry_models import mlp, resnet, shake
from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import PermSpec, discover, match, ste_match

Batch = tuple[Tensor, Tensor]


def _reference(
    model: nn.Module, spec: PermSpec, a: dict, b: dict, data: list[Batch], epochs: int, lr: float
) -> tuple[dict, list[float]]:
    """Whole states and PyTorch's own autograd; the permutations by `match`."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in a.items()}
    optimizer = torch.optim.SGD(theta.values(), lr=lr, momentum=0.9, weight_decay=1e-4)
    perms = match(spec, a, b).perms

    def loss_at(state: dict, batch: Batch) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, state, (batch[0],)), batch[1])

    def judged(perms: dict) -> float:
        moved = spec.apply(perms, b)
        return float(loss_at({n: 0.5 * a[n] + 0.5 * moved[n] for n in a}, data[0]))

    losses, best = [judged(perms)], (judged(perms), perms)
    for _ in range(epochs):
        for batch in data:
            moved = spec.apply(perms, b)
            middle = {n: 0.5 * a[n] + 0.5 * (moved[n] + theta[n] - theta[n].detach()) for n in a}
            optimizer.zero_grad()
            loss_at(middle, batch).backward()
            optimizer.step()
            new = match(spec, {n: t.detach() for n, t in theta.items()}, b, start=perms).perms
            if any(not torch.equal(new[g], perms[g]) for g in perms):
                perms = new
                losses.append(judged(perms))
                if losses[-1] < best[0]:
                    best = (losses[-1], perms)
    return best[1], losses


def _data(count: int, *shape: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(16, *shape, generator=generator),
            torch.randint(0, 5, (16,), generator=generator),
        )
        for _ in range(count)
    ]


def test_it_follows_the_formula() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = mlp()
        other, _ = mlp()
        spec = discover(model, x)
        a, b = (copy.deepcopy(m.double().state_dict()) for m in (model, other))
        data = [(inputs.double(), targets) for inputs, targets in _data(4, 6)]
        perms, losses = _reference(model, spec, a, b, data, 8, 1.0)
        found = ste_match(model, spec, a, b, data, 8, 1.0, progress=False)
        assert len(losses) > 3
        assert found.losses == pytest.approx(losses, rel=1e-9)
        assert found.loss == min(found.losses)
        assert all(torch.equal(found.perms[g], perms[g]) for g in perms)
        assert (found.step == 0) == (found.loss == found.losses[0])


def test_batch_norms_are_estimated_anew() -> None:
    torch.manual_seed(0)
    model = resnet()
    shake(model)
    a = copy.deepcopy(model.state_dict())
    for tensor in model.parameters():
        tensor.data += 0.1 * torch.randn_like(tensor)
    b = copy.deepcopy(model.state_dict())
    spec = discover(model, torch.randn(2, 3, 8, 8))
    data = _data(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    found = ste_match(model, spec, a, b, data, 2, progress=False)
    # Whatever the statistics in the states are: they are not used.
    for state in (a, b):
        for name in state:
            if "running_mean" in name:
                state[name] += 7.0
    again = ste_match(model, spec, a, b, data, 2, progress=False)
    assert again.losses == found.losses
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_what_cannot_be_done_is_refused() -> None:
    model, x = mlp()
    spec = discover(model, x)
    state = model.state_dict()
    with pytest.raises(InferKitError, match="generator, which cannot be read again"):
        ste_match(model, spec, state, state, (b for b in _data(2, 6)))
    with pytest.raises(InferKitError, match="no batch to judge"):
        ste_match(model, spec, state, state, [])
    with pytest.raises(InferKitError, match=r"'0.weight' has shape \[9, 5\]"):
        ste_match(model, spec, state, state | {"0.weight": torch.zeros(9, 5)}, _data(1, 6))
    broken = [(batch[0] / 0, batch[1]) for batch in _data(1, 6)]
    with pytest.raises(InferKitError, match="The loss of the state is nan"):
        ste_match(model, spec, state, state, broken, progress=False)
