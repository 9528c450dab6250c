"""Layerwise connectivity against forward passes written out, and networks that have it exactly."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry.connectivity import (
    LEWC,
    effective_rank,
    effective_ranks,
    lewc,
    reciprocal_orthogonality,
    weak_additivity,
)

State = dict[str, Tensor]


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def states(model: nn.Module, seed: int = 0) -> tuple[State, State]:
    g = torch.Generator().manual_seed(seed)

    def one() -> State:
        return {
            name: torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype) / 2
            for name, v in model.state_dict().items()
        }

    return one(), one()


def examples(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forward(state: State, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input, pre-activation) of each layer of an `mlp`, for one example."""
    out = []
    for name in sorted({name.split(".")[0] for name in state}, key=int):
        z = state[f"{name}.weight"].numpy() @ x
        if f"{name}.bias" in state:
            z = z + state[f"{name}.bias"].numpy()
        out.append((x, z))
        x = np.maximum(z, 0)
    return out


def mean_over(x: Tensor, number: Callable[[np.ndarray], float]) -> float:
    return float(np.mean([number(row) for row in x.numpy()]))


def norm(v: np.ndarray) -> float:
    return float(np.sqrt(sum(float(e) ** 2 for e in v)))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_loops_over_examples_and_layers_give(seed: int) -> None:
    model = mlp(6, 16, 12, 5, bias=bool(seed % 2))
    a, b = states(model, seed)
    x, share = examples(4, 6, seed=seed), (seed + 1) / 7
    merged = {name: share * a[name] + (1 - share) * b[name] for name in a}

    def pair(row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        z_a, z_b, z = (forward(s, row)[k - 1][1] for s in (a, b, merged))
        return z, share**k * z_a + (1 - share) ** k * z_b

    def cosine(row: np.ndarray, k: int) -> float:
        u, v = pair(row, k)
        return float(u @ v) / (norm(u) * norm(v))

    def ratio(row: np.ndarray, k: int) -> float:
        u, v = pair(row, k)
        return norm(u) / norm(v)

    def additivity(row: np.ndarray, k: int) -> float:
        z_a, z_b = (forward(s, row)[k - 1][1] for s in (a, b))
        apart = share * np.maximum(z_a, 0) + (1 - share) * np.maximum(z_b, 0)
        return norm(np.maximum(share * z_a + (1 - share) * z_b, 0) - apart) / norm(apart)

    def crossed(row: np.ndarray, k: int, own: State, other: State) -> float:
        z, name = forward(own, row)[k - 1][0], f"{2 * (k - 1)}.weight"
        return norm(other[name].numpy() @ z) / norm(own[name].numpy() @ z)

    connectivity = lewc(model, a, b, x, share)
    additive = weak_additivity(model, a, b, x, share)
    orthogonal = reciprocal_orthogonality(model, a, b, x)
    for k in (1, 2, 3):
        row, layer = connectivity[k - 1], str(2 * (k - 1))
        assert (row.layer, row.k) == (layer, k)
        assert row.cosine == pytest.approx(mean_over(x, lambda r: cosine(r, k)), abs=1e-12)  # noqa: B023
        assert row.norm_ratio == pytest.approx(mean_over(x, lambda r: ratio(r, k)), rel=1e-12)  # noqa: B023
        assert (additive[k - 1].layer, additive[k - 1].k) == (layer, k)
        assert additive[k - 1].error == pytest.approx(
            mean_over(x, lambda r: additivity(r, k)),  # noqa: B023
            rel=1e-10,
        )
        crossing = orthogonal[k - 1]
        assert (crossing.layer, crossing.k) == (layer, k)
        assert crossing.b_on_a == pytest.approx(mean_over(x, lambda r: crossed(r, k, a, b)))  # noqa: B023
        assert crossing.a_on_b == pytest.approx(mean_over(x, lambda r: crossed(r, k, b, a)))  # noqa: B023
    assert connectivity[1].cosine < 0.999 and additive[1].error > 0.01  # there is something to tell


class Mixed(nn.Module):
    """Convolutions of all kinds, activations in place, padding that is not zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 5, 4)  # declared first, runs last
        self.one = nn.Conv1d(2, 6, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.two = nn.Conv1d(4, 3, 2, stride=2, dilation=2)
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        x = self.act(self.up(x))
        return self.head(input=self.act(self.two(x)).flatten(1))


@pytest.mark.filterwarnings("ignore:.*that ran has 'unused.weight'")
def test_the_first_layer_is_exact_and_layers_come_in_the_order_of_their_calls() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = Mixed().to(dtype)
        a, b = states(model)
        rows = lewc(model, a, b, examples(5, 2, 6).to(dtype), 0.3)
        assert [(row.layer, row.k) for row in rows] == [
            ("one", 1), ("up", 2), ("two", 3), ("head", 4),
        ]  # fmt: skip
        assert abs(rows[0].cosine - 1) < tolerance and abs(rows[0].norm_ratio - 1) < tolerance
        assert rows[1].cosine < 0.999
        for rows in (lewc(model, a, a, examples(5, 2, 6).to(dtype), share) for share in (0.0, 1.0)):
            assert all(abs(row.cosine - 1) < tolerance for row in rows)
            assert all(abs(row.norm_ratio - 1) < tolerance for row in rows)


@pytest.mark.filterwarnings("ignore:.*that ran has 'unused.weight'")
def test_what_a_layer_makes_of_the_other_signal_is_its_weights_times_it() -> None:
    model = Mixed().double()
    a, b = states(model)
    x = examples(3, 2, 6)

    def inputs(s: State) -> dict[str, Tensor]:
        z = F.pad(x, (1, 1), mode="circular")
        one = F.conv1d(z, s["one.weight"], s["one.bias"]).relu()
        up = F.conv_transpose1d(one, s["up.weight"], s["up.bias"], 2, 1, 1, 2).relu()
        two = F.conv1d(up, s["two.weight"], s["two.bias"], 2, 0, 2).relu()
        return {"one": z, "up": one, "two": up, "head": two.flatten(1)}

    linear: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "one": F.conv1d,
        "up": lambda z, w: F.conv_transpose1d(z, w, None, 2, 1, 1, 2),
        "two": lambda z, w: F.conv1d(z, w, None, 2, 0, 2),
        "head": F.linear,
    }
    of_a, of_b = inputs(a), inputs(b)
    rows = reciprocal_orthogonality(model, a, b, x)
    assert [row.layer for row in rows] == list(linear)
    for row in rows:
        name = row.layer
        w_a, w_b, f = a[f"{name}.weight"], b[f"{name}.weight"], linear[name]

        def norms(w: Tensor, z: Tensor) -> Tensor:
            return f(z, w).flatten(1).norm(dim=1)  # noqa: B023

        z_a, z_b = of_a[name], of_b[name]
        assert row.b_on_a == pytest.approx(float((norms(w_b, z_a) / norms(w_a, z_a)).mean()))
        assert row.a_on_b == pytest.approx(float((norms(w_a, z_b) / norms(w_b, z_b)).mean()))


def side_by_side() -> tuple[nn.Sequential, State, State]:
    """Two networks without biases that use different halves of the hidden units."""
    model = mlp(6, 8, 10, 8, 3, bias=False)
    a, b = states(model)
    for (name, w), other in zip(a.items(), b.values(), strict=True):
        rows, columns = (n // 2 for n in w.shape)
        if name != "6.weight":
            w[rows:], other[:rows] = 0, 0
        if name != "0.weight":
            w[:, columns:], other[:, :columns] = 0, 0
    return model, a, b


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_networks_on_different_units_have_it_exactly(share: float) -> None:
    model, a, b = side_by_side()
    x = examples(20, 6)
    rows = lewc(model, a, b, x, share)
    assert [row.k for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert abs(row.cosine - 1) < 1e-12 and abs(row.norm_ratio - 1) < 1e-12
    # What no activation follows is not additive.
    additive = weak_additivity(model, a, b, x, share)
    assert all(row.error < 1e-14 for row in additive[:-1])
    assert additive[-1].error > 0.01 or share in (0, 1)
    for crossing in reciprocal_orthogonality(model, a, b, x)[1:]:
        assert crossing.b_on_a == 0 == crossing.a_on_b


def test_l_weighs_a() -> None:
    model = mlp(4, 5, 3, bias=False)
    a, b = states(model)
    nothing = {name: torch.zeros_like(v) for name, v in b.items()}
    x = examples(6, 4)
    # Of a alone the k-th layer is l^k times its own, so that this can be seen without b.
    assert all(abs(row.norm_ratio - 1) < 1e-12 for row in lewc(model, a, nothing, x, 0.25))
    swapped = lewc(model, b, a, x, 0.75)
    for row, other in zip(lewc(model, a, b, x, 0.25), swapped, strict=True):
        assert row.cosine == pytest.approx(other.cosine, abs=1e-12)
        assert row.norm_ratio == pytest.approx(other.norm_ratio, rel=1e-12)
    assert lewc(model, a, b, x, 0.75)[1].norm_ratio != pytest.approx(
        lewc(model, a, b, x, 0.25)[1].norm_ratio, rel=1e-3
    )


def test_examples_without_a_signal_do_not_break_the_means() -> None:
    model = mlp(4, 5, 3, bias=False)
    a, b = states(model)
    x = torch.cat([examples(1, 4), torch.zeros(3, 4, dtype=torch.float64)])
    alone, rows = lewc(model, a, b, x[:1]), lewc(model, a, b, x)
    for one, row in zip(alone, rows, strict=True):
        assert row.cosine == pytest.approx((one.cosine + 3) / 4)
        assert row.norm_ratio == pytest.approx((one.norm_ratio + 3) / 4)
    error = weak_additivity(model, a, b, x[:1])[0].error
    assert weak_additivity(model, a, b, x)[0].error == pytest.approx(error / 4)
    nothing = {name: torch.zeros_like(v) for name, v in a.items()}
    assert [row.cosine for row in lewc(model, nothing, nothing, x)] == [1, 1]
    # Of opposite networks the average is 0, and f_2(-a) = -W_2 relu(-W_1 x) is not -f_2(a).
    opposite = lewc(model, a, {name: -v for name, v in a.items()}, x[:1])
    assert [(row.cosine, row.norm_ratio) for row in opposite] == [(1, 1), (0, 0)]
    rows = reciprocal_orthogonality(model, a, nothing, x[:1])
    assert [row.b_on_a for row in rows] == [0, 0]
    assert rows[0].a_on_b == torch.inf


class Twice(nn.Module):
    """One module called twice, an input that is a mapping, weights shared by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.inner.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.out(self.inner(self.inner(x + y).relu()).relu())


def test_a_module_called_twice_is_two_layers_and_tied_weights_are_one() -> None:
    model = Twice()
    W = examples(4, 4)
    a = {"inner.weight": W, "out.weight": W.clone(), "calls": torch.tensor(3)}
    b = {name: 2 * v if v.is_floating_point() else v for name, v in a.items()}
    before = {name: v.clone() for name, v in a.items()}
    for x in ((examples(3, 4), torch.ones(3, 4)), {"x": examples(3, 4), "y": torch.ones(3, 4)}):
        rows = lewc(model, a, b, x)
        assert [(row.layer, row.k) for row in rows] == [("inner", 1), ("inner", 2), ("out", 3)]
        # Weights of W, 2 W and 1.5 W: the k-th layer has 1.5^k, and .5^k (1 + 2^k) is predicted.
        for row in rows:
            assert row.norm_ratio == pytest.approx(1.5**row.k / (0.5**row.k * (1 + 2**row.k)))
    assert lewc(model, a, b, x, layers=["out"]) == [rows[2]]
    assert lewc(model, a, b, x, layers=["inner"]) == rows[:2]
    one_name = [{k: v for k, v in s.items() if k != "out.weight"} for s in (a, b)]
    assert lewc(model, *one_name, x) == rows
    assert model.calls == 0 and all(torch.equal(a[name], before[name]) for name in a)
    other = {**b, "out.weight": W}
    with pytest.raises(InferKitError, match="'out.weight'"):
        lewc(model, a, other, x)


def test_another_activation_can_be_asked_for() -> None:
    model = mlp(4, 5, 3)
    a, b = states(model)
    x = examples(6, 4)
    linear = weak_additivity(model, a, b, x, activation=lambda z: 3 * z)
    assert all(row.error < 1e-14 for row in linear)
    gelu = weak_additivity(model, a, b, x, 0.3, ["0"], nn.functional.gelu)
    z_a, z_b = (F.linear(x, s["0.weight"], s["0.bias"]) for s in (a, b))
    apart = 0.3 * F.gelu(z_a) + 0.7 * F.gelu(z_b)
    off = (F.gelu(0.3 * z_a + 0.7 * z_b) - apart).norm(dim=1) / apart.norm(dim=1)
    assert [row.layer for row in gelu] == ["0"]
    assert gelu[0].error == pytest.approx(float(off.mean()))


class Fragile(nn.Module):
    """Batch normalisation and dropout, and an exception on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        x = self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))
        if fail:
            raise ArithmeticError("on demand")
        return self.head(x)


def test_the_model_and_the_states_are_afterwards_as_before() -> None:
    model = Fragile()
    model.norm.eval()
    model.head.register_forward_hook(lambda *_: None)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.head.weight.requires_grad_(False)
    a = model.state_dict()
    b = {name: v + 1 if v.is_floating_point() else v for name, v in a.items()}
    x = torch.randn(4, 1, 5, 5)

    def picture() -> list[object]:
        tensors = [*model.state_dict(keep_vars=True).values(), *a.values(), *b.values()]
        out: list[object] = [(id(t), t.requires_grad, t.sum().item()) for t in tensors]
        for module in model.modules():
            out += [module.training, list(module._forward_hooks), list(module._forward_pre_hooks)]
        return [*out, float(model.conv.weight.grad.sum()), torch.get_rng_state().sum().item()]

    before = picture()
    # state_dict makes new objects, so that those of the model are compared by what they hold.
    ids = [id(p) for p in model.parameters()]
    for call in (lewc, weak_additivity, reciprocal_orthogonality):
        rows = call(model, a, b, x)
        assert call(model, a, b, x) == rows  # no dropout
        with pytest.raises(InferKitError, match="does not run on this example: ArithmeticError"):
            call(model, a, b, (x, True))
    assert [id(p) for p in model.parameters()] == ids
    assert picture()[1:] == before[1:]


def test_what_does_not_fit_is_refused() -> None:
    model = mlp(4, 5, 3)
    a, b = states(model)
    x = examples(6, 4)
    for call in (lewc, weak_additivity, reciprocal_orthogonality):
        with pytest.raises(InferKitError, match="'2.weight' is in the first only"):
            call(model, a, {k: v for k, v in b.items() if k != "2.weight"}, x)
        with pytest.raises(InferKitError, match=r"'0.weight' .*\[5, 4\].*\[5, 5\]"):
            call(model, a, {**b, "0.weight": torch.ones(5, 5)}, x)
        with pytest.raises(InferKitError, match="it has 'other', which this Sequential has not"):
            call(model, {**a, "other": x}, {**b, "other": x}, x)
        with pytest.raises(InferKitError, match="it lacks '2.bias' of this Sequential"):
            call(model, *({k: v for k, v in s.items() if k != "2.bias"} for s in (a, b)), x)
        wide = {name: torch.ones([2 * n for n in v.shape]) for name, v in a.items()}
        with pytest.raises(InferKitError, match=r"'0.weight' has shape \[10, 8\] in it"):
            call(model, wide, wide, x)
        with pytest.raises(InferKitError, match="names '1', which is no Linear or convolution"):
            call(model, a, b, x, layers=["0", "1"])
        with pytest.raises(InferKitError, match="No Linear or convolution is asked for"):
            call(model, a, b, x, layers=[])
        with pytest.raises(InferKitError, match="x has no example"):
            call(model, a, b, x[:0])
        with pytest.raises(InferKitError, match=r"output of '0' \(layer 1\) of network a is not"):
            call(model, a, b, x / 0)
        bad = {**b, "2.bias": b["2.bias"] / 0}
        with pytest.raises(InferKitError, match=r"output of '2' \(layer 2\) of network b is not"):
            call(model, a, bad, x)
    for share in (-0.1, 1.1, torch.nan):
        for weighted in (lewc, weak_additivity):
            with pytest.raises(InferKitError, match="a weight of network a from 0 to 1"):
                weighted(model, a, b, x, share)
    mixed = Mixed().double()
    a, b = states(mixed)
    with pytest.raises(InferKitError, match=r"\['unused'\] did not run"):
        lewc(mixed, a, b, examples(5, 2, 6), layers=["one", "unused"])


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Parameter(torch.ones(()))
        self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) if self.way > 0 else self.right(x)


def test_networks_that_run_other_layers_are_refused() -> None:
    model = Forked().double()
    a, b = states(model)
    a["way"], b["way"] = torch.tensor(1.0), torch.tensor(-1.0)
    with pytest.raises(InferKitError, match="networks a and b do not run the same layers"):
        lewc(model, a, b, examples(2, 2))
    b["way"] = torch.tensor(1.0)
    with pytest.warns(UserWarning, match="that ran has 'right.weight': "):
        assert [row.layer for row in lewc(model, a, b, examples(2, 2))] == ["left"]


def test_the_effective_rank_is_that_of_matrices_of_which_it_is_known() -> None:
    for n in (1, 2, 17):
        assert effective_rank(3e-30 * torch.eye(n)) == pytest.approx(n, rel=1e-12)
    u, v = examples(5), examples(7, seed=1)
    assert effective_rank(torch.outer(u, v)) == pytest.approx(1, rel=1e-7)
    assert effective_rank(torch.diag(torch.tensor([3.0, 4.0, 0.0]))) == pytest.approx(49 / 25)
    assert effective_rank(torch.zeros(3, 4)) == 0 == effective_rank(torch.zeros(0, 4))
    W = examples(6, 3, 2, 2)
    eigenvalues = np.linalg.eigvalsh(W.flatten(1).numpy() @ W.flatten(1).numpy().T)
    slow = np.sqrt(eigenvalues).sum() ** 2 / float((W**2).sum())
    assert effective_rank(W) == pytest.approx(slow, rel=1e-9)
    assert effective_rank(1e-200 * W) == pytest.approx(slow, rel=1e-9)  # whose squares are 0
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Embedding(4, 3))
    state = model.state_dict()
    assert effective_ranks(state) == {
        name: effective_rank(state[name]) for name in ("0.weight", "2.weight")
    }
    with pytest.raises(InferKitError, match=r"W is \[3\], and a rank is that of a matrix"):
        effective_rank(torch.ones(3))
    for wrong in (torch.tensor([[1.0, torch.nan]]), torch.ones(2, 2) * 1j):
        with pytest.raises(InferKitError, match="not finite or not real"):
            effective_rank(wrong)


def test_rows_read_well() -> None:
    assert repr(LEWC("0", 1, 1.0, 1.0)) == "LEWC(layer='0', k=1, cosine=1.0, norm_ratio=1.0)"


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


def test_linear_layers_with_their_weight_the_other_way_round() -> None:
    """GPT-2's: c_attn, c_proj, c_fc, c_proj of each block, and the head."""
    model = gpt2()
    a, b = states(model)
    a["lm_head.weight"] = a["transformer.wte.weight"]
    b["lm_head.weight"] = b["transformer.wte.weight"]
    x = {"input_ids": torch.randint(0, 32, (3, 7))}
    with pytest.warns(UserWarning, match="that ran has 'transformer.wte.weight', 'transformer.wpe"):
        rows = lewc(model, a, b, x)
    assert [row.layer.rpartition("h.")[2] for row in rows] == [
        *(
            f"{i}.{name}"
            for i in range(2)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
        "lm_head",
    ]
    assert [row.k for row in rows] == list(range(1, 10))
    with pytest.warns(UserWarning, match="that ran has"):
        row = reciprocal_orthogonality(model, a, b, x)[2]
    seen: list[Tensor] = []
    layer = model.transformer.h[0].mlp.c_fc
    handle = layer.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        for state in (a, b):
            torch.func.functional_call(model, state, (), x)
    handle.remove()
    z, w = seen[0].flatten(1), [s["transformer.h.0.mlp.c_fc.weight"] for s in (a, b)]
    own, other = ((seen[0] @ weight).flatten(1).norm(dim=1) for weight in w)
    assert z.shape[0] == 3
    assert row.b_on_a == pytest.approx(float((other / own).mean()))


def test_weights_that_are_not_counted_are_named() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 8)
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.heads(x, x, x)[0]

    model = Attends().double()
    a, b = states(model)
    with pytest.warns(UserWarning, match="has 'heads.in_proj_weight', 'heads.out_proj.weight': "):
        lewc(model, a, b, examples(2, 3, 6))
    plain = mlp(6, 8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lewc(plain, *states(plain), examples(2, 6))
