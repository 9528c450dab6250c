"""Running statistics of batch norms, estimated anew, against a loop by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.batch_norm import check_bn_data, has_bn, reestimate_bn
from infer_kit.training.symmetry.placed import Placed
from tests.training.symmetry.small_nets import (
    by_hand,
    copied,
    mlp,
    pairs,
    residual,
    same,
    snapshot,
)


def test_statistics_are_those_of_a_loop_by_hand() -> None:
    net, batches = residual(0), pairs(1, 1, 6, 6)
    net.train()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    state = net.state_dict()
    before, given = snapshot(net), copied(state)
    found = reestimate_bn(net, state, iter(batches))
    for name, expected in by_hand(net, batches).items():
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found[name], state[name], rtol=0.1)
    assert found["norm.num_batches_tracked"] == 3 and found["conv.weight"] is state["conv.weight"]
    assert torch.equal(found["idle.running_var"], state["idle.running_var"])
    assert found.keys() == state.keys()
    assert same(snapshot(net), before) and same([*state.values()], [*given.values()])


def test_the_state_is_what_counts_and_inputs_can_be_chosen() -> None:
    net, other, batches = residual(0), residual(1), pairs(1, 1, 6, 6)
    expected = by_hand(other, batches)["norm.running_mean"].float()
    rows: list[tuple[list, Callable | None]] = [
        (batches, None),
        ([x for x, _ in batches], None),
        ([{"image": x} for x, _ in batches], lambda batch: batch["image"]),
        ([[y, x] for x, y in batches], lambda batch: (batch[1],)),
        (batches, lambda batch: {"x": batch[0]}),
    ]
    for data, inputs in rows:
        found = reestimate_bn(net, other.state_dict(), data, inputs)
        torch.testing.assert_close(found["norm.running_mean"], expected)


def test_a_norm_under_two_names_and_old_statistics_of_nan() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5)
    net = nn.Sequential(norm, nn.Linear(5, 5), norm)
    state = copied(net.state_dict())
    state["0.running_mean"] = state["2.running_mean"] = torch.full((5,), float("nan"))
    x = torch.randn(9, 5)
    before = snapshot(net)
    found = reestimate_bn(net, state, [x])
    assert same(snapshot(net), before)
    first = nn.functional.batch_norm(x, None, None, training=True)
    second = net[1](first).detach()
    expected = (x.mean(0) + second.mean(0)) / 2
    for name in ("0.running_mean", "2.running_mean"):
        torch.testing.assert_close(found[name], expected)
    assert has_bn(net) and not has_bn(mlp(0))
    assert not has_bn(nn.BatchNorm1d(5, track_running_stats=False))
    state = mlp(0).state_dict()
    assert same([*reestimate_bn(mlp(0), state, None).values()], [*state.values()])


def test_no_graph_is_built() -> None:
    seen = []

    class Watching(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.requires_grad)
            return super().forward(x)

    net = nn.Sequential(nn.Linear(5, 3), Watching(3))
    found = reestimate_bn(net, net.state_dict(keep_vars=True), [torch.randn(4, 5)])
    assert seen == [False] and not found["1.running_mean"].requires_grad
    assert found["0.weight"] is net[0].weight


def test_a_state_in_a_model_can_be_trained() -> None:
    torch.manual_seed(0)
    tied = nn.Linear(5, 5)
    net = nn.Sequential(tied, nn.BatchNorm1d(5), tied).eval()
    own, state = copy.deepcopy(net), copied(net.state_dict())
    before, x = snapshot(net), torch.randn(8, 5)
    placed = Placed(net, copied(state))
    leaves = placed.require_grad()
    assert [leaf.shape for leaf in leaves] == [p.shape for p in own.parameters()]
    for _ in range(2):
        for loss, weights in (
            (placed.run(lambda model, x: model(x).square().mean(), x), leaves),
            (own(x).square().mean(), [*own.parameters()]),
        ):
            optimizer = torch.optim.SGD(weights, lr=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    found = placed.snapshot(state)
    torch.testing.assert_close(found, dict(own.state_dict()), rtol=0, atol=0)
    assert list(found) == list(state) and found["0.weight"] is found["2.weight"]
    assert not torch.equal(found["0.weight"], state["0.weight"])
    assert found["0.weight"].data_ptr() != leaves[0].data_ptr()
    assert same(snapshot(net), before)


def test_batch_norms_need_data() -> None:
    check_bn_data(mlp(0), None)
    check_bn_data(residual(0), [])
    with pytest.raises(InferKitError, match="the first 'norm', and there is no batch"):
        check_bn_data(residual(0), None)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "Residual has batch norms, the first 'norm', and there is no batch"),
        ([], "the first 'norm', and there is no batch"),
        ([torch.zeros(1, 1, 3, 3)], "A batch has one value per channel"),
        ([torch.full((4, 1, 6, 6), inf)], "'norm.running_mean' is not finite after 1"),
    ],
)
def test_batches_without_statistics_are_refused(batches: list | None, message: str) -> None:
    net = residual(0).train()
    before = snapshot(net)
    with pytest.raises(InferKitError, match=message):
        reestimate_bn(net, net.state_dict(), batches)
    assert same(snapshot(net), before)


def test_a_state_of_another_model_is_refused() -> None:
    net, state = residual(0), residual(0).state_dict()
    x = [torch.randn(4, 1, 6, 6)]
    for wrong, message in (
        ({k: v for k, v in state.items() if k != "out.bias"}, "it lacks 'out.bias' of this Res"),
        (state | {"more": torch.zeros(1)}, "it has 'more', which this Residual has not"),
        (state | {"out.bias": torch.zeros(5)}, r"'out.bias' has shape \[5\] in it and \[4\]"),
    ):
        with pytest.raises(InferKitError, match=message):
            reestimate_bn(net, wrong, x)
