"""Units found from the graph: every order of them leaves the function as it is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

from evals.benchmarks.symmetry_models import TiedLM, gpt2, resnet, shake
from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import discover, match, rule
from infer_kit.training.symmetry.calling import outputs_of
from tests.training.symmetry.models import FAMILIES, made

_ALL = list(FAMILIES)


def _error(before: list[Tensor], after: list[Tensor]) -> float:
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("family", _ALL)
def test_every_group_may_take_any_order(family: str) -> None:
    for seed, (dtype, tol) in enumerate([(torch.float64, 1e-12), (torch.float32, 1e-5)]):
        model, x = made(family, seed, dtype)
        if "llama" in family:
            tol = 1e-5  # its norms and rotations are computed in float32
        spec = discover(model, x)
        assert len(spec.groups) == FAMILIES[family][1], spec
        state = model.state_dict(keep_vars=True)
        before = outputs_of(model, x)
        for attempt in range(3):
            perms = spec.random(attempt)
            moved = spec.apply(perms, state)
            assert _error(before, outputs_of(model, x, moved)) <= tol
        for group in spec.groups:  # each on its own, and each matters
            alone = spec.identity() | {group: perms[group]}
            assert _error(before, outputs_of(model, x, spec.apply(alone, state))) <= tol
        back = spec.apply(spec.inverse(perms), moved)
        assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("family", _ALL)
def test_reordering_a_part_only_is_seen(family: str) -> None:
    """The outputs do depend on the order: what is tested above is not empty."""
    model, x = made(family, 3)
    spec = discover(model, x)
    state = model.state_dict(keep_vars=True)
    before = outputs_of(model, x)
    moved = spec.apply(spec.random(1), state)
    for group in spec.groups:
        holders = [
            name for name, axes in spec.axes.items()
            if name not in spec.same and any(g == group for axis in axes for g, _ in axis)
        ]  # fmt: skip
        errors = []
        for name in holders:
            half = dict(moved)
            for other, owner in {name: name, **spec.same}.items():
                if owner == name:
                    half[other] = state[name]
            errors.append(_error(before, outputs_of(model, x, half)))
        assert max(errors) > 1e-4, group


def test_composition_and_inverse() -> None:
    model, x = made("grouped cnn", 0)
    spec = discover(model, x)
    state = model.state_dict()
    p, q = spec.random(1), spec.random(2)
    both = spec.apply(spec.compose(q, p), state)
    after = spec.apply(q, spec.apply(p, state))
    assert all(torch.equal(both[name], after[name]) for name in state)
    undone = spec.compose(spec.inverse(p), p)
    assert all(torch.equal(undone[g], torch.arange(n)) for g, n in spec.groups.items())


def test_gather_convention_on_composite_axes() -> None:
    """new[i] = old[p[i]], an index of an axis by its factors, the slowest first."""
    model, x = made("attention", 0)
    spec = discover(model, x)
    perms = spec.random(5)
    state = model.state_dict()
    heads, features = (group for group, _ in spec.axes["v.weight"][0])
    (stream,) = (group for group, _ in spec.axes["v.weight"][1])
    new = spec.apply(perms, state)["v.weight"]
    for h, d, c in itertools.product(range(4), range(6), range(24)):
        old = state["v.weight"][perms[heads][h] * 6 + perms[features][d], perms[stream][c]]
        assert new[h * 6 + d, c] == old


def test_inputs_outputs_and_running_statistics() -> None:
    torch.manual_seed(0)
    model = resnet()
    shake(model)
    spec = discover(model, torch.randn(2, 3, 8, 8))
    assert all(group is None for group, _ in spec.axes["0.weight"][1])
    assert all(group is None for group, _ in spec.axes["8.weight"][0])
    ((group, _),) = spec.axes["1.running_var"][0]
    assert ((group, 8),) == spec.axes["0.weight"][0] == spec.axes["1.weight"][0]
    assert "1.running_var" not in spec.weights and "1.weight" in spec.weights
    assert {f.why for f in spec.frozen if f.tensor == "8.bias"} == {"the model's output"}


def test_parts_of_what_is_fixed_are_fixed() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(x.unflatten(1, (2, 3)))).flatten(1))

    torch.manual_seed(0)
    model, x = Parts().double(), torch.randn(4, 6).double()
    spec = discover(model, x)
    assert spec.groups == {"one.weight[0]": 4}
    assert spec.axes["two.weight"][1] == ((None, 2), ("one.weight[0]", 4))
    assert spec.check(model, x) < 1e-12


def test_tied_and_unused_tensors() -> None:
    torch.manual_seed(0)
    model = TiedLM()
    spec = discover(model, torch.randint(0, 30, (2, 7)))
    assert spec.same == {"head.weight": "tokens.weight"}
    assert {f.why for f in spec.frozen if f.tensor == "unused"} == {"no operator reads it"}
    moved = spec.apply(spec.random(0), model.state_dict(keep_vars=True))
    assert moved["head.weight"] is moved["tokens.weight"]
    assert not torch.equal(moved["head.weight"], model.head.weight)
    # state_dict() gives a tensor of its own to each name: both are reordered alike.
    apart = spec.apply(spec.random(0), model.state_dict())
    assert torch.equal(apart["head.weight"], apart["tokens.weight"])


class _Odd(nn.Module):
    """Something with an operator of no rule between two layers."""

    def __init__(self, odd: object) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(9, 5)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.relu(self.two(self.odd(self.one(x)))))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("odd", "operator"),
    [
        (lambda x: x.sort(-1)[0], None),
        (lambda x: x.topk(8, -1)[0], None),
        (lambda x: x.median(-1, keepdim=True)[1] + x, None),
        (lambda x: torch.searchsorted(x.sort(-1)[0], x).double(), "aten.searchsorted"),
        (lambda x: torch.fft.rfft(x, dim=-1).abs().repeat(1, 2)[:, :8], "aten.fft_rfft"),
        (lambda x: F.local_response_norm(x[:, :, None], 3)[:, :, 0], None),
        (lambda x: x.cumsum(-1), None),
        (lambda x: torch.cat([-x[:, 4:], x[:, :4]], -1), None),
        (lambda x: x.roll(1, -1), None),
        (lambda x: x.flip(-1), None),
        (lambda x: x * torch.arange(8), None),
        (lambda x: x[:, torch.tensor([3, 1, 2, 0, 4, 5, 7, 6])], None),
        (lambda x: x.gather(1, torch.randint(0, 8, (2, 8)) * 0 + 1), None),
        (lambda x: x.masked_fill(torch.eye(2, 8).bool(), 0.0), None),
        (lambda x: x.unfold(-1, 3, 1).sum(-1).repeat(1, 2)[:, :8], None),
        (lambda x: x.tril(), None),
        (lambda x: x.max(-1, keepdim=True)[1] * x, None),
        (lambda x: x.argmax(-1, keepdim=True) + x, None),
    ],
)  # fmt: skip
def test_what_depends_on_the_order_is_fixed(odd: object, operator: str | None) -> None:
    torch.manual_seed(0)
    model = _Odd(odd).double()
    x = torch.randn(2, 6).double()
    spec = discover(model, x)
    assert list(spec.groups) == ["two.weight[0]"]
    assert spec.check(model, x) < 1e-12
    assert any(f.tensor == "one.weight" and f.axis == 0 for f in spec.frozen)
    if operator is None:
        assert not any("sort" in name for name in spec.unknown)
    else:
        assert spec.unknown[0].startswith(operator)
        assert operator in str(spec)
        with pytest.raises(InferKitError, match=f"There is no rule for {operator}"):
            discover(model, x, strict=True)


class _Table(nn.Module):
    """A tensor of 8 units under something, and a table of 8 rows beside it."""

    def __init__(self, what: object) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(6, 8), nn.Linear(8, 5)
        self.mixed = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("mask", torch.arange(8.0), persistent=False)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.what(self, self.one(x)))  # type: ignore[operator]


def _filled(model: _Table, h: Tensor) -> Tensor:
    seen = h.view(2, 4, 2)
    h.fill_(1.0)
    h.add_(model.mask)
    return seen.reshape(2, 8)


def _filled_part(model: _Table, h: Tensor) -> Tensor:
    table = torch.empty(8, dtype=h.dtype)
    seen = table[:]
    table.fill_(2.0)
    seen[3:].mul_(2)
    return h * table


def _complex(model: _Table, h: Tensor) -> Tensor:
    turned = torch.exp(1j * torch.arange(4, dtype=torch.float64))
    return (h.view(torch.complex128) * turned).view(torch.float64)


@pytest.mark.parametrize(
    "what",
    [
        _filled,
        _filled_part,
        _complex,
        lambda m, h: torch.frexp(h + m.mask)[0],
        lambda m, h: torch.matmul(h, m.mixed, out=torch.empty(2, 8, dtype=h.dtype)) + m.mask,
        lambda m, h: h.repeat_interleave(torch.tensor([2, 1, 1, 1, 1, 1, 1, 0]), 1),
        lambda m, h: h.repeat_interleave(1).view(2, 8) + m.mask,
        lambda m, h: torch.einsum("bi,ij->bj", h, m.mixed) + m.mask,
        lambda m, h: torch.einsum("ii,bi->bi", m.mixed, h),
        lambda m, h: nn.functional.pixel_shuffle(h.view(2, 4, 2, 1), 2).reshape(2, 8),
        lambda m, h: h.index_put((torch.tensor([0, 1]), torch.tensor([3, 2])), h[:, 0]),
    ],
)
def test_no_symmetry_is_made_up(what: object) -> None:
    torch.manual_seed(0)
    model = _Table(what).double()
    x = torch.randn(2, 6).double()
    spec = discover(model, x)
    for seed in range(6):
        assert spec.check(model, x, seed=seed) < 1e-12


def test_an_ellipsis_passes() -> None:
    torch.manual_seed(0)
    model = _Table(lambda m, h: torch.einsum("...i,ij->...j", h, m.mixed).relu()).double()
    x = torch.randn(2, 3, 6).double()
    spec = discover(model, x, strict=True)
    assert set(spec.groups) == {"one.weight[0]", "mixed[1]"} or len(spec.groups) == 2
    assert spec.check(model, x) < 1e-12


def test_tensors_of_one_memory() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 5)
            self.two.weight = nn.Parameter(self.one.weight.detach().t())

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.two(self.one(x).relu()).relu())

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(2, 6)
    spec = discover(model, x)
    assert not spec.groups
    assert any("memory that it shares with two.weight" in f.why for f in spec.frozen)
    before = outputs_of(model, x)
    model.load_state_dict(spec.apply(spec.random(0), model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(before, outputs_of(model, x), strict=True))


def test_three_tensors_of_one_memory() -> None:
    """The first reaches over the second to the third, which the second does not touch."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            memory = torch.randn(48)
            self.one = nn.Linear(6, 8, bias=False)
            self.one.weight = nn.Parameter(memory.view(8, 6))
            self.two, self.three = (nn.Parameter(memory[start : start + 8]) for start in (8, 32))
            self.next, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.next(self.one(x) + self.two) + self.three)

    model, x = Views(), torch.randn(2, 6)
    spec = discover(model, x)
    assert spec.groups == {}
    shared = {f.tensor for f in spec.frozen if f.why.startswith("memory that it shares with")}
    assert shared >= {"one.weight", "two", "three"}


def test_sizes_that_depend_on_values() -> None:
    model = _Table(lambda m, h: h[h > 0].sum() + h)
    with pytest.raises(InferKitError, match=r"How much aten.\S+ in the model puts out depends on"):
        discover(model, torch.randn(2, 6))


def test_check_sees_what_is_not_finite_and_leaves_buffers_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)
            self.register_buffer("count", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count.mul_(1.5)
            out = self.two(self.one(x).relu()) * self.count
            return out.index_fill(1, torch.tensor([0]), float("-inf"))

    torch.manual_seed(0)
    model, x = Counting(), torch.randn(2, 6)
    spec = discover(model, x)
    assert spec.check(model, x) < 1e-5
    assert float(model.count) == 1.0
    axes = dict(spec.axes) | {"two.weight": (((None, 5),), ((None, 8),))}
    with pytest.raises(InferKitError, match="outputs differ by"):
        replace(spec, axes=axes).check(model, x)
    shift = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 5))
    found = discover(shift, x)
    wrong = dict(found.axes) | {"2.weight": (((None, 5),), ((None, 2),))}
    for seed in range(6):  # of two units, one order in two is the identity
        with pytest.raises(InferKitError, match="outputs differ by"):
            replace(found, axes=wrong).check(shift, x, seed=seed)


def test_states_with_one_name_of_a_tied_tensor() -> None:
    torch.manual_seed(0)
    model = TiedLM()
    spec = discover(model, torch.randint(0, 30, (2, 7)))
    whole = model.state_dict()
    perms = spec.random(0)
    for left_out in ("tokens.weight", "head.weight"):
        part = {name: t for name, t in whole.items() if name != left_out}
        moved = spec.apply(perms, part)
        assert set(moved) == set(part)
        assert all(torch.equal(t, spec.apply(perms, whole)[n]) for n, t in moved.items())
        found = match(spec, whole, moved, start="signature")
        assert all(torch.equal(found.perms[g], spec.inverse(perms)[g]) for g in spec.groups)


@pytest.mark.parametrize(
    "even",
    [
        lambda x: x * x.softmax(-1) + x.logsumexp(-1, keepdim=True),
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda x: F.normalize(x, dim=-1) + x.std(-1, keepdim=True),
        lambda x: x - x.mean(-1, keepdim=True) + x.amax(-1, keepdim=True),
        lambda x: torch.where(x > 0, x, x.var(-1, keepdim=True)),
        lambda x: torch.stack([x, -x], 1).select(1, 0),
        lambda x: torch.cat([x[None], -x[None]]).max(0)[0],
        lambda x: x.max(-1, keepdim=True)[0] + x,
        lambda x: x.repeat(3, 1)[:2] + x[:, :],
        lambda x: x.unsqueeze(1).expand(-1, 5, -1).flatten(0, 1).unflatten(0, (2, 5)).sum(1),
        lambda x: x.add_(torch.zeros(8)).mul_(2),
        lambda x: (x.T @ x).softmax(0) @ x.T.contiguous() @ x.new_ones(2, 2) @ x.new_ones(2, 8)
        + x.sum(),
        lambda x: F.prelu(x, torch.full((8,), 0.2, dtype=x.dtype)),
        lambda x: x.split([8], -1)[0].chunk(1, -1)[0],
        lambda x: x + x.sort(0)[0].topk(2, 0)[0],
        lambda x: torch._weight_norm(x.T.contiguous(), torch.ones(8, 1, dtype=x.dtype), 0).T,
    ],
)  # fmt: skip
def test_what_is_alike_to_all_units_passes(even: object) -> None:
    class Model(_Odd):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.odd(self.one(x))  # type: ignore[operator]
            if hidden.shape != (2, 8):  # the product above, which sums the units
                hidden = self.one(x) + hidden.mean()
            return self.three(torch.relu(self.two(hidden)))

    torch.manual_seed(0)
    model = Model(even).double()
    x = torch.randn(2, 6).double()
    spec = discover(model, x)
    assert not spec.unknown
    assert set(spec.groups) == {"one.weight[0]", "two.weight[0]"}
    assert spec.check(model, x) < 1e-12


def test_a_rule_of_ones_own() -> None:
    @library.custom_op("symmetry_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    model, x = _Odd(twice), torch.randn(2, 6)
    assert discover(model, x).unknown == ("symmetry_test.twice",)

    @rule("symmetry_test.twice")
    def passes(call: object, axes: list) -> list:
        return axes

    spec = discover(model, x)
    assert set(spec.groups) == {"one.weight[0]", "two.weight[0]"}
    assert spec.check(model, x) < 1e-5


def test_a_rule_that_gives_other_sizes_is_not_believed() -> None:
    @library.custom_op("symmetry_test::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return torch.cat([x * torch.arange(x.shape[-1]), x], -1)

    @doubled.register_fake
    def _(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], 2 * x.shape[-1])

    @rule("symmetry_test.doubled")
    def wrong(call: object, axes: list) -> list:
        return axes

    model = nn.Sequential(nn.Linear(6, 4), nn.Sequential())
    model[1].forward = lambda x: doubled(x)[:, 2:6].sum(-1, keepdim=True)
    x = torch.randn(2, 6)
    spec = discover(model, x)
    assert not spec.groups and spec.unknown == ("symmetry_test.doubled in 1",)


def test_a_wrong_rule_is_found_by_check() -> None:
    from infer_kit.training.symmetry.rules import RULES

    @rule("aten.cumsum")
    def wrong(call: object, axes: list, *rest: object) -> list:
        return axes

    before = RULES.pop("aten.cumsum")
    try:
        RULES["aten.cumsum"] = wrong
        model, x = _Odd(lambda x: x.cumsum(-1)), torch.randn(2, 6)
        with pytest.raises(InferKitError, match=r"outputs differ by .* at most 1e-05"):
            discover(model, x).check(model, x)
    finally:
        del before
        from infer_kit.training.symmetry.rules_of_shapes import along

        RULES["aten.cumsum"] = along


def test_the_model_is_left_as_it_is() -> None:
    model, x = gpt2()
    model.train()
    model.transformer.wte.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    discover(model, x).check(model, x)
    assert model.training and not model.transformer.wte.training
    assert model.config.use_cache
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
