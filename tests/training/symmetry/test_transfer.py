"""Transfer, trajectories and training, against loops that follow the formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evals.benchmarks.symmetry_models import mlp, resnet, shake
from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import (
    LinearTrajectory,
    SavedTrajectory,
    Transfer,
    discover,
    fit,
    reestimate_bn,
)
from infer_kit.training.symmetry.calling import outputs_of
from infer_kit.training.symmetry.sgd import gradient

State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


def _net(seed: int, hidden: int = 12) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 5)).double()


def _data(count: int, seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (6,)
    inputs = torch.randn(count, 16, *shape, generator=generator, dtype=dtype)
    teacher = torch.randn(inputs[0, 0].numel(), 5, generator=generator, dtype=dtype)
    return [(x, (x.flatten(1) @ teacher).argmax(1)) for x in inputs]


def _trained(seed: int) -> tuple[State, State]:
    model = _net(seed)
    start = copy.deepcopy(model.state_dict())
    return start, fit(model, start, _data(8, 0), 20, 0.2).state


def _gradient(model: nn.Module, state: State, batch: Batch) -> State:
    leaves = {n: t.clone().requires_grad_() for n, t in state.items()}
    loss = cross_entropy(torch.func.functional_call(model, leaves, (batch[0],)), batch[1])
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def _moved(state: State, p: Tensor) -> State:
    return {
        "0.weight": state["0.weight"][p], "0.bias": state["0.bias"][p],
        "2.weight": state["2.weight"][:, p], "2.bias": state["2.bias"],
    }  # fmt: skip


def _reference(
    model: nn.Module, source: LinearTrajectory, target: State, data: list[Batch], fast: bool
) -> tuple[Tensor, list[State], int]:
    """One hidden layer: its best order is one assignment."""
    steps = len(source)
    p = torch.arange(12)
    batches = iter(data * 100)

    def theta(t: int) -> State:
        step = _moved({n: source[t][n] - source[0][n] for n in target}, p)
        return {n: target[n] + step[n] for n in target}

    pairs: list[tuple[State, State]] = []
    count = 0
    for s in range(1, steps + 1):
        if not fast:
            pairs = []
        for t in [s] if fast else range(1, s + 1):
            batch = next(batches)
            g1 = _gradient(model, source[t - 1], batch)
            g2 = _gradient(model, theta(t - 1), batch)
            pairs.append((g1, g2))
            count += 2
        cost = torch.zeros(12, 12, dtype=torch.float64)
        for i in range(12):
            for j in range(12):
                for g1, g2 in pairs:
                    cost[i, j] += (g1["0.weight"][j] - g2["0.weight"][i]).square().sum()
                    cost[i, j] += (g1["0.bias"][j] - g2["0.bias"][i]).square()
                    cost[i, j] += (g1["2.weight"][:, j] - g2["2.weight"][:, i]).square().sum()
        p = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
    return p, [theta(t) for t in range(steps + 1)], count


@pytest.mark.parametrize("fast", [False, True])
def test_gradient_matching_follows_the_algorithm(fast: bool) -> None:
    for seed in range(3):
        start, end = _trained(seed)
        model, target = _net(50 + seed), _net(50 + seed).state_dict()
        source = LinearTrajectory(start, end, 6, schedule="cosine" if seed else "uniform")
        spec = discover(model, torch.randn(2, 6).double())
        data, judge = _data(8, 0), _data(4, 0)
        transfer = Transfer(model, spec, source, target, judge=judge, progress=False)
        found = transfer.fgmt(data) if fast else transfer.gmt(data)
        p, thetas, count = _reference(model, source, target, data, fast)
        assert torch.equal(found.perms["0.weight[0]"], p)
        assert found.gradients == count == (2 * 6 if fast else 6 * 7)
        for ours, theirs in zip(found.thetas, thetas, strict=True):
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-12)
        for t, theta in enumerate(thetas):
            logits = [torch.func.functional_call(model, theta, (x,)) for x, _ in judge]
            right = sum(
                int((z.argmax(1) == y).sum()) for z, (_, y) in zip(logits, judge, strict=True)
            )
            assert found.curve[t] == pytest.approx(right / 64)
        best = max(found.curve)
        assert found.curve[found.best_step] == best
        assert found.best is found.thetas[found.best_step]


def test_several_batches_make_one_gradient() -> None:
    start, end = _trained(0)
    model, target = _net(9), _net(9).state_dict()
    spec = discover(model, torch.randn(2, 6).double())
    transfer = Transfer(model, spec, LinearTrajectory(start, end, 3), target, progress=False)
    data = _data(4, 0)
    whole = [tuple(torch.cat(part) for part in zip(*data, strict=True))]
    one, many = transfer.gmt(whole), transfer.gmt(data, batches=4)
    assert all(torch.equal(one.perms[g], many.perms[g]) for g in spec.groups)
    assert one.curve == () and one.best_step == 3


def test_from_the_source_to_itself_and_to_a_shuffled_copy() -> None:
    start, end = _trained(1)
    model = _net(1)
    spec = discover(model, torch.randn(2, 6).double())
    source = LinearTrajectory(start, end, 5)
    data = _data(8, 0)
    same = Transfer(model, spec, source, start, progress=False)
    for found in (same.gmt(data), same.fgmt(data), same.naive(), same.oracle(end)):
        assert all(torch.equal(found.perms[g], torch.arange(n)) for g, n in spec.groups.items())
        for name in end:
            torch.testing.assert_close(found.thetas[5][name], end[name], rtol=0, atol=1e-12)
            assert torch.equal(found.thetas[0][name], start[name])
    shuffled = spec.apply(spec.random(3), start)
    other = Transfer(model, spec, source, shuffled, progress=False)
    x = torch.randn(50, 6).double()
    wanted = outputs_of(model, x, end)[0]
    for found in (other.gmt(data), other.fgmt(data)):
        given = outputs_of(model, x, found.thetas[5])[0]
        assert float((given - wanted).abs().max() / wanted.abs().max()) < 1e-5
    naive = outputs_of(model, x, other.naive().thetas[5])[0]
    assert float((naive - wanted).abs().max() / wanted.abs().max()) > 0.1


def test_batch_norms() -> None:
    torch.manual_seed(0)
    model = resnet()
    shake(model)
    start = copy.deepcopy(model.state_dict())
    data = _data(3, 0, 3, 8, 8, dtype=torch.float32)
    end = fit(model, start, data, 2, 0.05).state
    torch.manual_seed(1)
    other = resnet()
    shake(other)
    target = other.state_dict()
    spec = discover(model, torch.randn(2, 3, 8, 8))
    source = LinearTrajectory(start, end, 2)
    with pytest.raises(InferKitError, match="has batch norms, the first '1'"):
        Transfer(model, spec, source, target)
    transfer = Transfer(model, spec, source, target, bn_data=data, judge=data, progress=False)
    found = transfer.fgmt(data)
    theta = found.thetas[2]
    moved = spec.apply(found.perms, {n: source[2][n] - source[0][n] for n in target})
    for name in spec.weights:  # affine parameters too are permuted and added
        torch.testing.assert_close(theta[name], target[name] + moved[name])
    # Running statistics are the state's own, so that it may be used as it is.
    model.load_state_dict(theta)
    for name, tensor in reestimate_bn(model, theta, data).items():
        assert torch.equal(theta[name], tensor)
    assert not torch.equal(theta["1.running_mean"], target["1.running_mean"])
    with torch.no_grad():
        logits = torch.cat([model.eval()(inputs) for inputs, _ in data])
    targets = torch.cat([targets for _, targets in data])
    right = float((logits.argmax(1) == targets).double().mean())
    judged = float(cross_entropy(logits, targets)), right
    assert (found.losses[2], found.curve[2]) == pytest.approx(judged)
    assert found.best is found.thetas[found.best_step]


def test_gradients() -> None:
    model, _ = mlp()
    data = _data(3, 0)
    data = [(inputs.float(), targets) for inputs, targets in data]
    data[2] = (data[2][0][:5], data[2][1][:5])
    state = model.state_dict()
    found = gradient(model, state, data)
    inputs, targets = (torch.cat(part) for part in zip(*data, strict=True))
    cross_entropy(model(inputs), targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    with pytest.raises(InferKitError, match="no batch to take a gradient"):
        gradient(model, state, [])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_training_is_that_of_a_plain_loop(schedule: str) -> None:
    torch.manual_seed(0)
    model = resnet()
    shake(model)
    own = copy.deepcopy(model)
    start = copy.deepcopy(model.state_dict())
    data = _data(3, 0, 3, 8, 8, dtype=torch.float32)
    found = fit(model, start, data, 3, 0.1, weight_decay=1e-3, schedule=schedule, keep_every=2)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    kept = [copy.deepcopy(own.state_dict())]
    own.train()
    for epoch in range(3):
        for x, y in data:
            optimizer.zero_grad()
            cross_entropy(own(x), y).backward()
            optimizer.step()
        if schedule == "cosine":
            plan.step()
        if epoch in (1, 2):
            kept.append(copy.deepcopy(own.state_dict()))
    assert len(found.kept) == 3 and len(found.losses) == 3
    for ours, theirs in zip([*found.kept, found.state], [*kept, kept[-1]], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(start[name], t) for name, t in model.state_dict().items())
    with pytest.raises(InferKitError, match="no schedule 'linear'"):
        fit(model, start, data, 1, 0.1, schedule="linear")
    with pytest.raises(InferKitError, match="no batch"):
        fit(model, start, [], 1, 0.1)
    with pytest.raises(InferKitError, match="The loss became (nan|inf) in epoch 1"):
        fit(model, start, [(data[0][0] / 0, data[0][1])], 1, 0.1)
    with pytest.raises(InferKitError, match="read once only, not 2 times"):
        fit(model, start, iter(data), 2, 0.1)


def test_frozen_parameters_stay() -> None:
    model = _net(0)
    model[0].weight.requires_grad_(False)
    start = copy.deepcopy(model.state_dict())
    found = fit(model, start, _data(2, 0), 2, 0.1, progress=False).state
    assert torch.equal(found["0.weight"], start["0.weight"])
    assert not torch.equal(found["2.weight"], start["2.weight"])
    model.requires_grad_(False)
    with pytest.raises(InferKitError, match="No parameter of the model requires a gradient"):
        fit(model, start, _data(2, 0), 2, 0.1)
    assert all(g.any() for g in gradient(model, start, _data(2, 0)).values())


def test_trajectories() -> None:
    start, end = _trained(0)
    even, falling = LinearTrajectory(start, end, 4), LinearTrajectory(start, end, 4, "cosine")
    assert even.lambdas == (0.0, 0.25, 0.5, 0.75, 1.0)
    steps = [b - a for a, b in zip(falling.lambdas[:-1], falling.lambdas[1:], strict=True)]
    assert steps == sorted(steps, reverse=True) and falling.lambdas[-1] == 1.0
    assert steps[1] / steps[0] == pytest.approx((1 + 2**-0.5) / 2)  # 1 + cos(pi t / T)
    for t, at in enumerate(falling.lambdas):
        for name in start:
            wanted = start[name] + at * (end[name] - start[name])
            torch.testing.assert_close(falling[t][name], wanted, rtol=0, atol=1e-12)
    saved = SavedTrajectory([start, lambda: end, end])
    assert len(saved) == 2 and torch.equal(saved[1]["0.weight"], end["0.weight"])
    with pytest.raises(InferKitError, match="steps=0"):
        LinearTrajectory(start, end, 0)
    with pytest.raises(InferKitError, match="no schedule 'fast'"):
        LinearTrajectory(start, end, 3, "fast")
    with pytest.raises(InferKitError, match="'0.weight' has shape"):
        LinearTrajectory(start, end | {"0.weight": torch.zeros(2, 2)}, 3)
    with pytest.raises(InferKitError, match="1 states make no trajectory"):
        SavedTrajectory([start])
    with pytest.raises(InferKitError, match="'2.bias' is in the first only"):
        SavedTrajectory([start, {k: v for k, v in end.items() if k != "2.bias"}])
    with pytest.raises(IndexError, match="step 3 of a trajectory with steps 0 to 2"):
        saved[3]


def test_what_cannot_be_transferred_is_refused() -> None:
    start, end = _trained(0)
    model = _net(0)
    spec = discover(model, torch.randn(2, 6).double())
    source = LinearTrajectory(start, end, 2)
    with pytest.raises(InferKitError, match=r"'0.bias' has shape \[11\]"):
        Transfer(model, spec, source, start | {"0.bias": torch.zeros(11)})
    with pytest.raises(InferKitError, match=r"'0.weight' has shape \[9, 6\]"):
        Transfer(_net(0, 9), spec, source, start)
    transfer = Transfer(model, spec, source, start, progress=False)
    with pytest.raises(InferKitError, match=r"'0.weight' has shape \[9, 6\]"):
        transfer.oracle(_net(0, 9).state_dict())
    with pytest.raises(InferKitError, match="The data have no batch"):
        transfer.gmt([])
    with pytest.raises(InferKitError, match="generator, which can be read once only"):
        transfer.fgmt(b for b in _data(2, 0))
    with pytest.raises(InferKitError, match="judge is a list_iterator"):
        Transfer(model, spec, source, start, judge=iter(_data(2, 0)))
    with pytest.raises(InferKitError, match="no start 'best'"):
        transfer.gmt(_data(2, 0), start="best")
    with pytest.raises(InferKitError, match="loss is nan where a gradient"):
        transfer.gmt([(torch.full((2, 6), float("nan")).double(), torch.zeros(2).long())])
