"""Matching: planted orders are found, the objective is the sum that it says and never falls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import factorial

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from evals.benchmarks.symmetry_models import (
    Attention,
    GroupedCNN,
    Made,
    Residual,
    TiedLM,
    resnet,
    shake,
)
from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import PermSpec, discover, match
from infer_kit.training.symmetry.descent import Descent, Pair, assignment, reordered, rows
from tests.training.symmetry.models import made


def _flat(state: dict[str, Tensor], spec: PermSpec) -> Tensor:
    names = [name for name in state if name in spec.weights and name not in spec.same]
    return torch.cat([state[name].double().flatten() for name in names])


def _objective(spec: PermSpec, perms: dict, a: dict, b: dict) -> float:
    """<a, P b>, the long way: the whole state reordered, flattened, multiplied."""
    return float(_flat(a, spec) @ _flat(spec.apply(perms, b), spec))


_PLANTED: dict[str, tuple[Callable[[], Made], int, float]] = {
    "residual, 4 blocks": (lambda: (Residual(4, 32, 48), torch.randn(2, 6)), 20, 0.0),
    "residual, 4 blocks, noise": (lambda: (Residual(4, 32, 48), torch.randn(2, 6)), 20, 0.1),
    "unanchored 30/50": (lambda: (Residual(3, 30, 50, False), torch.randn(2, 6)), 30, 0.0),
    "attention": (lambda: (Attention(), torch.randn(2, 5, 6)), 20, 0.0),
    "tied lm": (lambda: (TiedLM(), torch.randint(0, 30, (2, 7))), 20, 0.0),
    "encoder layer": (
        lambda: (nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), torch.randn(2, 5, 16)),
        20,
        0.0,
    ),
    "grouped cnn": (lambda: (GroupedCNN(), torch.randn(2, 3, 8, 8)), 20, 0.0),
    "resnet": (lambda: (resnet(), torch.randn(2, 3, 8, 8)), 20, 0.0),
}


@pytest.mark.parametrize("family", list(_PLANTED))
def test_planted_orders_are_found(family: str) -> None:
    make, seeds, noise = _PLANTED[family]
    torch.manual_seed(0)
    spec = discover(*make())
    for seed in range(seeds):
        torch.manual_seed(seed)
        model, _ = make()
        shake(model)
        a = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        planted = spec.random(100 + seed)
        b = spec.apply(planted, a)
        if noise:
            b = {name: t + noise * t.std() * torch.randn_like(t) for name, t in b.items()}
        for start in ("signature", ("identity", "signature")):
            found = match(spec, a, b, start=start, seed=seed)
            undone = spec.inverse(planted)
            assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)
            if not noise:
                assert found.distance <= 1e-6 * float(_flat(a, spec) @ _flat(a, spec))


@pytest.mark.parametrize("family", ["mlp", "attention", "grouped cnn", "tied lm", "resnet", "gpt2"])
def test_the_objective_is_the_sum_and_never_falls(family: str) -> None:
    for seed, dtype in enumerate([torch.float64, torch.float32]):
        a, x = made(family, 2 * seed, dtype)
        b, _ = made(family, 2 * seed + 1, dtype)
        spec = discover(a, x)
        first, second = a.state_dict(), b.state_dict()
        found = match(spec, first, second, restarts=2, seed=seed)
        tol = 1e-10 if dtype == torch.float64 else 1e-5
        assert found.objective == pytest.approx(
            _objective(spec, found.perms, first, second), rel=tol
        )
        apart = _flat(first, spec) - _flat(spec.apply(found.perms, second), spec)
        assert found.distance == pytest.approx(float(apart @ apart), rel=1e-4)
        assert all(after >= before for before, after in itertools.pairwise(found.history))
        assert found.history[-1] == pytest.approx(found.objective, rel=tol)
        assert found.objective > _objective(spec, spec.identity(), first, second)
        again = match(spec, first, second, start=found.perms, seed=9)
        assert again.start == "given" and again.objective >= found.objective


def test_no_group_alone_can_be_bettered() -> None:
    """Where descent stops: against every order of one group, the weights reordered the long way."""
    torch.manual_seed(1)
    layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)]
    model, other = nn.Sequential(*layers), nn.Sequential(*map(type_like, layers))
    spec = discover(model, torch.randn(2, 3))
    a, b = model.state_dict(), other.state_dict()
    found = match(spec, a, b)
    best = max(
        _objective(spec, {"0.weight[0]": torch.tensor(p), "2.weight[0]": torch.tensor(q)}, a, b)
        for p in itertools.permutations(range(5))
        for q in itertools.permutations(range(4))
    )
    assert factorial(5) * factorial(4) == 2880
    for group, size in spec.groups.items():
        for order in itertools.permutations(range(size)):
            perms = found.perms | {group: torch.tensor(order)}
            assert _objective(spec, perms, a, b) <= found.objective + 1e-6
    restarted = match(spec, a, b, restarts=30)
    assert restarted.objective == pytest.approx(best, rel=1e-6)  # of all 2,880 orders


def type_like(layer: nn.Module) -> nn.Module:
    return (
        nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else layer
    )


def test_identical_states_give_the_identity() -> None:
    for family in ("mlp", "attention", "grouped cnn", "tied lm", "resnet", "llama"):
        model, x = made(family, 0)
        spec = discover(model, x)
        found = match(spec, model.state_dict(), model.state_dict())
        assert all(torch.equal(found.perms[g], torch.arange(n)) for g, n in spec.groups.items())
        assert found.start == "identity"
        assert found.distance <= 1e-9 * found.objective


def test_pairs_add_up() -> None:
    model, x = made("attention", 0)
    spec = discover(model, x)
    firsts = [made("attention", s)[0].state_dict() for s in (1, 2, 3)]
    seconds = [made("attention", s)[0].state_dict() for s in (4, 5, 6)]
    found = match(spec, firsts, seconds)
    by_hand = sum(_objective(spec, found.perms, a, b) for a, b in zip(firsts, seconds, strict=True))
    assert found.objective == pytest.approx(by_hand, rel=1e-10)
    # The same pair many times is one pair, as is a pair of any scale.
    one = match(spec, firsts[0], seconds[0], start="identity")
    tiny = [{k: 1e-9 * v for k, v in s.items()} for s in (firsts[0], seconds[0])]
    for a, b in ((firsts[:1] * 3, seconds[:1] * 3), tuple(tiny)):
        other = match(spec, a, b, start="identity")
        assert all(torch.equal(one.perms[g], other.perms[g]) for g in spec.groups)


def test_running_statistics_are_not_compared() -> None:
    model, x = made("resnet", 0)
    spec = discover(model, x)
    a = model.state_dict()
    planted = spec.random(3)
    b = spec.apply(planted, a)
    for name in b:
        if "running" in name:
            b[name] = torch.rand_like(b[name])
    found = match(spec, a, b)
    undone = spec.inverse(planted)
    assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)


def test_assignments() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(300):
        n = 1 + trial % 9 if trial < 200 else 96 + trial % 40
        gain = torch.randn(n, n, generator=generator).double()
        if trial % 3 == 0:
            gain = gain.round()  # ties
        if trial % 4 == 0:
            gain += 3 * torch.eye(n)  # nearly what it is
        potential = torch.randn(n, generator=generator).double() if trial % 2 else None
        order, _ = assignment(gain, potential)
        order = torch.arange(n) if order is None else order
        first, second = linear_sum_assignment(gain.numpy(), maximize=True)
        best = float(gain[first, second].sum())
        assert float(gain[torch.arange(n), order].sum()) == pytest.approx(best, abs=1e-9)
        assert sorted(order.tolist()) == list(range(n))
    assert assignment(torch.eye(4))[0] is None
    assert assignment(200 * torch.eye(120) + torch.randn(120, 120))[0] is None


def test_gains_that_are_kept_are_those_made_anew() -> None:
    """After every step of a descent, over pairs with two, three and twice the same group."""
    torch.manual_seed(0)
    sizes = {"p": 100, "q": 90, "r": 40}  # of 96 and more units the solver is helped
    planted = {group: torch.randperm(size) for group, size in sizes.items()}
    shapes = [("p", None), ("p", "q"), ("q", None, "r"), ("r", "p", "q"), ("r",), ("q", "r", "q")]
    pairs = []
    for dims in shapes:
        shape = [sizes.get(d, 7) if d else 7 for d in dims]
        a = torch.randn(shape).double()
        b = reordered(a, dims, planted) + 1.5 * torch.randn(shape).double()
        pairs.append(Pair(dims, a, b))
    for kept in (pairs, pairs[:5]):
        descent = Descent([Pair(p.dims, p.a, p.b.clone()) for p in kept])
        rises = 0
        for turn in range(30):
            group = "pqr"[turn % 3]
            before = descent.objective()
            if descent.improve(group) is not None:
                rises += 1
                assert descent.objective() > before
            true = sum(float((p.a * p.b).sum()) for p in descent.pairs)
            assert descent.objective() == pytest.approx(true, rel=1e-12)
            for name, gain in descent._gains.items():
                anew = sum(
                    rows(p.a, dim) @ rows(p.b, dim).T
                    for p in descent.having[name]
                    for dim, other in enumerate(p.dims)
                    if other == name
                )
                torch.testing.assert_close(gain, anew, rtol=0, atol=1e-9)
        assert rises >= 5


def test_complex_weights() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.randn(8, 6, dtype=torch.complex64))
            self.two = nn.Parameter(torch.randn(5, 8, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x.to(torch.complex64) @ self.one.T) @ self.two.T

    torch.manual_seed(0)
    model, x = Complex(), torch.randn(2, 6)
    spec = discover(model, x)
    assert spec.check(model, x) < 1e-5
    a = {name: t.detach() for name, t in model.state_dict().items()}
    norm = sum(float(t.abs().square().sum()) for t in a.values())
    assert match(spec, a, a).objective == pytest.approx(norm, rel=1e-5)
    planted = spec.random(1)
    found = match(spec, a, spec.apply(planted, a))
    assert torch.equal(found.perms["one[0]"], spec.inverse(planted)["one[0]"])


def test_half_precision_and_order_of_names() -> None:
    model, x = made("mlp", 0, torch.float32)
    spec = discover(model, x)
    a = model.state_dict()
    planted = spec.random(0)
    b = {name: t.bfloat16() for name, t in reversed(spec.apply(planted, a).items())}
    found = match(spec, a, b)
    undone = spec.inverse(planted)
    assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)


def test_what_cannot_be_matched_is_refused() -> None:
    model, x = made("mlp", 0)
    spec = discover(model, x)
    state = model.state_dict()
    with pytest.raises(InferKitError, match=r"'0.weight' has shape \[9, 7\]"):
        match(spec, state, state | {"0.weight": torch.zeros(9, 7)})
    with pytest.raises(InferKitError, match="no tensor '4.bias'"):
        match(spec, {k: v for k, v in state.items() if k != "4.bias"}, state)
    with pytest.raises(InferKitError, match="2 states on one side and 1 on the other"):
        match(spec, [state, state], [state])
    with pytest.raises(InferKitError, match="'2.bias' has numbers that are not finite"):
        match(spec, state, state | {"2.bias": state["2.bias"] / 0})
    with pytest.raises(InferKitError, match="A Sequential is given where a state is expected"):
        match(spec, model, model)
    with pytest.raises(InferKitError, match="A NoneType is given where a state is expected"):
        match(spec, state, None)
    with pytest.raises(InferKitError, match="no start 'best'"):
        match(spec, state, state, start="best")
    with pytest.raises(InferKitError, match="There is no start"):
        match(spec, state, state, start=())
