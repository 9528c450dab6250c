"""Masks against sorted lists, gradients against a layer written out."""

import pytest
import torch
from torch import nn

from infer_kit.training.tickets import Freeze, Threshold, TopK, make_ticket
from infer_kit.training.tickets.masks import kth_smallest
from tests.training.tickets import reference, tasks


def _tied(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-6, 7, shape, generator=generator).float() / 4


def test_layer_masks_equal_sorted_lists() -> None:
    g = torch.Generator().manual_seed(0)
    for trial in range(1000):
        scores = _tied(g, 3, 4 + trial % 9)
        p = float(torch.rand(1, generator=g))
        signed = bool(trial % 2)
        found = TopK(p, signed=signed).mask(scores)
        assert torch.equal(found, reference.layer_mask(scores, p, signed))


def test_global_masks_equal_sorted_lists() -> None:
    g = torch.Generator().manual_seed(1)
    for trial in range(1000):
        scores = {"a": _tied(g, 3, 5), "b": _tied(g, 2, 2 + trial % 7)}
        frozen = {
            k: torch.randint(-1, 2, s.shape, generator=g).to(torch.int8) for k, s in scores.items()
        }
        p = float(torch.rand(1, generator=g)) * (trial % 20 > 0)
        found = TopK(p, scope="global").masks(scores, frozen)
        expected = reference.global_masks(list(scores.values()), list(frozen.values()), p)
        for name, mask in zip(scores, expected, strict=True):
            assert torch.equal(found[name], mask)
            assert (
                found[name][frozen[name] == 1].all() and not found[name][frozen[name] == -1].any()
            )


@pytest.mark.parametrize("scale", [None, "static", "dynamic"])
def test_five_steps_equal_a_plain_layer(scale: str | None) -> None:
    layer = nn.Linear(12, 9, bias=False)
    ticket = make_ticket(layer, 3, mask_rule=TopK(0.4), scale=scale)
    scores = ticket.layers()["weight"].scores
    kept = ticket.masks()["weight"]
    c = {None: 1.0, "static": (1 / 0.6) ** 0.5}.get(scale, (kept.numel() / int(kept.sum())) ** 0.5)
    plain = reference.PlainLayer(ticket.weights()["weight"], scores.detach(), 0.4, c)
    ours = torch.optim.SGD([scores], lr=0.3, momentum=0.9, weight_decay=1e-3)
    theirs = torch.optim.SGD([plain.scores], lr=0.3, momentum=0.9, weight_decay=1e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(6, 12, generator=g)
        for model, optimizer in ((layer, ours), (plain, theirs)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert torch.equal(scores.grad, plain.scores.grad)
        assert torch.equal(scores, plain.scores)
    assert ticket.weights()["weight"].grad is None


def test_the_gradient_of_an_absolute_score_has_its_sign() -> None:
    signed, absolute = (nn.Linear(8, 8, bias=False) for _ in range(2))
    x = torch.ones(1, 8)
    tickets = [
        make_ticket(model, mask_rule=TopK(0.3, signed=s))
        for model, s in ((signed, True), (absolute, False))
    ]
    for model in (signed, absolute):
        model(x).sum().backward()
    a, b = (t.layers()["weight"].scores for t in tickets)
    assert torch.equal(b.grad, a.grad * b.detach().sign())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_the_global_threshold_follows_every_optimizer(make: type, how: dict) -> None:
    model = tasks.mlp(8, 8, 4)
    rule = TopK(0.5, scope="global")
    ticket = make_ticket(model, mask_rule=rule, frozen=Freeze(0.1, 0.1), scores="kaiming_normal")
    layers = ticket.layers()
    optimizer = make([layer.scores for layer in layers.values()], lr=0.5, **how)
    for _ in range(3):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        found = {name: layer.mask() for name, layer in layers.items()}
        scores = {name: layer.scores.detach() for name, layer in layers.items()}
        expected = rule.masks(scores, {name: layer.frozen for name, layer in layers.items()})
        assert all(torch.equal(found[name], expected[name]) for name in layers)


def test_a_threshold_stays() -> None:
    model = tasks.mlp(8, 8, 4)
    ticket = make_ticket(model, mask_rule=Threshold(0.25))
    assert ticket.sparsity == pytest.approx(0.25, abs=0.03)
    layer = next(iter(ticket.layers().values()))
    before = float(layer.level)
    with torch.no_grad():
        layer.scores -= 10
    assert float(layer.level) == before and not layer.mask().any()
    dense = make_ticket(tasks.mlp(8, 8, 4), mask_rule=Threshold(0.0))
    assert dense.sparsity == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_kth_smallest_of_every_dtype(dtype: torch.dtype) -> None:
    values = torch.randn(900, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = values.to(dtype)
    for k in (1, 450, 900):
        found = kth_smallest(values, k)
        assert found.dtype == dtype and found == values.sort().values[k - 1]


def test_scores_written_through_data_are_looked_at() -> None:
    model = tasks.mlp(16, 16, 4)
    ticket = make_ticket(model, mask_rule=TopK(0.5, scope="global"))
    model(torch.ones(1, 16))
    for layer in ticket.layers().values():
        layer.scores.data.mul_(0.5)
    assert ticket.sparsity == pytest.approx(0.5, abs=0.01)
    model(torch.ones(1, 16))
    for layer in ticket.layers().values():
        layer.scores.data.mul_(0.5)
    model.eval()
    kept = sum(int(layer.mask().sum()) for layer in ticket.layers().values())
    assert kept == 320 - 160
