"""Matching by activations, against correlations computed unit by unit."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from evals.benchmarks.symmetry_models import Attention, mlp, shake
from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import activation_match, discover, match, next_token
from tests.training.symmetry.models import made


def _data(model: nn.Module, *shape: int, batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    dtype = next(model.parameters()).dtype
    return [
        (torch.randn(*shape, dtype=dtype), torch.zeros(shape[0]).long()) for _ in range(batches)
    ]


@pytest.mark.filterwarnings("ignore:No module puts out")
@pytest.mark.parametrize("family", ["mlp", "grouped cnn", "resnet", "attention", "convnext"])
def test_planted_orders_are_found(family: str) -> None:
    for seed in range(5):
        model, x = made(family, seed)
        spec = discover(model, x)
        a = model.state_dict()
        planted = spec.random(seed)
        b = spec.apply(planted, a)
        if family == "attention":  # what the values put out is read by no module of its own
            groups = [g for g in spec.groups if not g.startswith(("q.", "k."))]
        else:
            groups = list(spec.groups)
        data = _data(model, *x.shape)
        found = activation_match(model, spec, a, b, data)
        undone = spec.inverse(planted)
        assert all(torch.equal(found.perms[g], undone[g]) for g in groups)


@pytest.mark.parametrize("correlation", [True, False])
def test_the_objective_is_the_sum_over_units(correlation: bool) -> None:
    torch.manual_seed(0)
    model, x = mlp()
    spec = discover(model, x)
    other, _ = mlp()
    data = _data(model, 20, 6)
    found = activation_match(
        model, spec, model.state_dict(), other.state_dict(), data, correlation=correlation
    )
    inputs = torch.cat([batch[0] for batch in data])
    total, best = 0.0, 0.0
    for cut, group in ((1, "0.weight[0]"), (3, "2.weight[0]")):
        gains: dict[tuple[int, int], float] = {}
        for end in (cut, cut + 1):  # before and after the activation
            with torch.no_grad():
                za, zb = model[:end](inputs).double(), other[:end](inputs).double()
            for i, j in itertools.product(range(za.shape[1]), repeat=2):
                u, v = za[:, i] - za[:, i].mean(), zb[:, j] - zb[:, j].mean()
                scale = float(u.norm() * v.norm()) if correlation else 1.0
                gains[i, j] = gains.get((i, j), 0.0) + (float(u @ v) / scale if scale else 0.0)
        order = found.perms[group].tolist()
        total += sum(gains[i, j] for i, j in enumerate(order))
        size = len(order)
        for swap in itertools.combinations(range(size), 2):  # no two units are better swapped
            changed = list(order)
            changed[swap[0]], changed[swap[1]] = order[swap[1]], order[swap[0]]
            best = max(best, sum(gains[i, j] for i, j in enumerate(changed)) - sum(
                gains[i, j] for i, j in enumerate(order)
            ))  # fmt: skip
    assert found.objective == pytest.approx(total, rel=1e-5)
    assert best <= 1e-4


def test_a_language_model_and_modules_called_twice() -> None:
    model, _ = made("tied lm", 0, torch.float32)
    ids = torch.randint(0, 30, (4, 9))
    spec = discover(model, ids)
    a = model.state_dict(keep_vars=True)
    planted = spec.random(1)
    b = spec.apply(planted, a)
    found = activation_match(model, spec, a, b, [ids], predict=next_token)
    undone = spec.inverse(planted)
    assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)

    relu = nn.ReLU()
    twice = nn.Sequential(nn.Linear(6, 9), relu, nn.Linear(9, 8), relu, nn.Linear(8, 5))
    spec = discover(twice, torch.randn(2, 6))
    a = twice.state_dict()
    planted = spec.random(2)
    found = activation_match(twice, spec, a, spec.apply(planted, a), _data(twice, 30, 6))
    undone = spec.inverse(planted)
    assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)


class _Leaf(nn.Module):
    """Returns what it computed before something else, alone or in a tuple."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(7, 9))
        self.several = several

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = x @ self.w.T
        beside = hidden.tanh() @ self.u.T
        return (hidden, beside) if self.several else hidden + beside.sum(-1, keepdim=True)


@pytest.mark.filterwarnings("ignore:No module puts out")
def test_modules_that_return_something_else_than_their_last_operator() -> None:
    class Whole(nn.Module):
        def __init__(self, several: bool) -> None:
            super().__init__()
            self.leaf, self.out = _Leaf(several), nn.Linear(9, 5)

        def forward(self, x: Tensor) -> Tensor:
            found = self.leaf(x)
            if isinstance(found, tuple):
                return self.out(found[0].relu()) + found[1].sum(-1, keepdim=True)
            return self.out(found.relu())

    torch.manual_seed(0)
    for several in (False, True):
        model = Whole(several)
        spec = discover(model, torch.randn(2, 6))
        assert set(spec.groups) == {"leaf.w[0]", "leaf.u[0]"}
        a = model.state_dict()
        planted = spec.random(1)
        if several:  # neither of what it returns is seen
            with pytest.raises(InferKitError, match="No module that is called once"):
                activation_match(model, spec, a, a, _data(model, 30, 6))
            continue
        found = activation_match(model, spec, a, spec.apply(planted, a), _data(model, 30, 6))
        assert torch.equal(found.perms["leaf.w[0]"], spec.inverse(planted)["leaf.w[0]"])


def test_texts_of_another_length_and_pictures_of_another_size() -> None:
    model, x = made("attention", 0)
    spec = discover(model, x)
    a = model.state_dict()
    planted = spec.random(1)
    found = activation_match(model, spec, a, spec.apply(planted, a), _data(model, 3, 9, 6))
    assert torch.equal(found.perms["first.weight[0]"], spec.inverse(planted)["first.weight[0]"])


def test_the_model_is_left_as_it_is() -> None:
    model, _ = mlp()
    model.train()
    before = copy.deepcopy(model.state_dict())
    spec = discover(model, torch.randn(2, 6))
    activation_match(model, spec, before, before, _data(model, 5, 6))
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_matched_is_refused() -> None:
    model, x = mlp()
    spec = discover(model, x)
    state = model.state_dict()
    with pytest.raises(InferKitError, match="no batch to match activations"):
        activation_match(model, spec, state, state, [])
    with pytest.raises(InferKitError, match="has no '0.bias'"):
        activation_match(
            model, spec, {k: v for k, v in state.items() if k != "0.bias"}, state, [(x, x)]
        )
    bad = state | {"0.bias": state["0.bias"] / 0}
    with pytest.raises(InferKitError, match="What '0' puts out is not finite"):
        activation_match(model, spec, state, bad, _data(model, 5, 6))
    one = nn.Sequential(nn.Linear(6, 5))
    alone = discover(one, x)
    with pytest.raises(InferKitError, match="No module that is called once puts out units"):
        activation_match(one, alone, one.state_dict(), one.state_dict(), _data(one, 5, 6))


def test_weights_and_activations_agree_on_copies_with_noise() -> None:
    torch.manual_seed(3)
    model = Attention()
    shake(model)
    spec = discover(model, torch.randn(2, 5, 6))
    a = model.state_dict()
    b = {k: v + 0.02 * torch.randn_like(v) for k, v in spec.apply(spec.random(5), a).items()}
    data = _data(model, 8, 5, 6)
    found = activation_match(model, spec, a, b, data, start="identity")
    plain = match(spec, a, b)
    groups = [g for g in spec.groups if not g.startswith(("q.", "k."))]
    assert all(torch.equal(found.perms[g], plain.perms[g]) for g in groups)


def test_batches_of_several_lengths_and_groups_that_are_not_seen() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    model = nn.Sequential(conv, nn.Linear(8, 5))
    spec = discover(model, torch.randn(2, 3, 5))
    a = model.state_dict()
    planted = spec.random(0)
    labels = torch.zeros(2).long()
    data = [(torch.randn(2, 3, n), labels) for n in (20, 10, 7)]
    found = activation_match(model, spec, a, spec.apply(planted, a), data)
    undone = spec.inverse(planted)
    assert all(torch.equal(found.perms[g], undone[g]) for g in spec.groups)

    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    spec = discover(layer, torch.randn(2, 5, 16))
    a = layer.state_dict()
    b = spec.apply(spec.random(0), a)
    data = [(torch.randn(2, 5, 16), labels)]
    with pytest.warns(UserWarning, match=r"No module puts out the units of 'self_attn.in_proj"):
        activation_match(layer, spec, a, b, data)
    begun = match(spec, a, b).perms
    with pytest.warns(UserWarning, match="their order is that of the start"):
        found = activation_match(layer, spec, a, b, data, start=begun)
    assert all(torch.equal(found.perms[g], begun[g]) for g in spec.groups)
