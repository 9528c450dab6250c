"""Averaged networks against slow references: weights, temperatures and curves."""

from __future__ import annotations

import copy
import warnings
from math import exp, inf, log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import fit
from infer_kit.training.symmetry.calibration import calibrate
from infer_kit.training.symmetry.merging import (
    Curve,
    barrier,
    check_same,
    classification,
    evaluate,
    interpolate,
    next_token,
)
from tests.training.symmetry.small_nets import (
    by_hand,
    copied,
    mlp,
    pairs,
    residual,
    same,
    sampled,
    snapshot,
)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


# Interpolation


def test_the_ends_are_the_networks_to_the_bit() -> None:
    a = {"x": torch.tensor([-0.0, 1e-45, inf, 3.0]), "y": torch.randn(3).half()}
    b = {"x": torch.tensor([inf, -0.0, -inf, float("nan")]), "y": torch.randn(3).half()}
    for l, expected in ((0, a), (1, b), (0.0, a), (1.0, b)):  # noqa: E741
        found = interpolate(a, b, l)
        assert all(bits(found[name]) == bits(expected[name]) for name in a)
        assert all(found[name].data_ptr() != expected[name].data_ptr() for name in a)


@pytest.mark.parametrize("seed", range(5))
def test_between_them_is_the_weighted_mean_in_the_dtype(seed: int) -> None:
    torch.manual_seed(seed)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64):
        a = {"w": torch.randn(40, 3).to(dtype)}
        b = {"w": torch.randn(40, 3).to(dtype)}
        l = float(torch.rand(()))  # noqa: E741
        found = interpolate(a, b, l)["w"]
        assert found.dtype == dtype and not found.requires_grad
        wide = torch.complex128 if dtype == torch.complex64 else torch.float64
        exact = (1 - l) * a["w"].to(wide) + l * b["w"].to(wide)
        single = dtype in (torch.float32, torch.complex64)
        # Rounded once: within half a unit in the last place of the largest.
        bound = torch.finfo(dtype).eps * (2 if single or dtype == torch.float64 else 0.51)
        assert ((found.to(wide) - exact).abs() <= bound * 4).all()
        assert ((found.to(wide) - exact).abs() <= bound * exact.abs() + 1e-6).all()


def test_what_is_equal_in_both_stays_to_the_bit() -> None:
    a = {"w": torch.randn(1000), "mask": torch.tensor([0.0, -inf])}
    assert same([*interpolate(a, copied(a), 0.3).values()], [*a.values()])


def test_counts_tables_and_ties() -> None:
    w = nn.Parameter(torch.randn(3))
    a = {"w": w, "n.num_batches_tracked": torch.tensor(3), "ids": torch.arange(4)}
    a |= {"alias": w.detach(), "mask": torch.tensor([True, False]), "empty": torch.zeros(0)}
    b = copied(a) | {"n.num_batches_tracked": torch.tensor(9)}
    b["w"] = b["alias"] = torch.randn(3)
    found = interpolate(a, b, 0.25)
    assert found["w"] is found["alias"] and found["n.num_batches_tracked"] == 3
    assert torch.equal(found["ids"], a["ids"]) and torch.equal(found["mask"], a["mask"])
    del a["empty"], b["empty"]
    assert all(found[name].data_ptr() != a[name].data_ptr() for name in a)
    torch.testing.assert_close(found["w"], 0.75 * w.detach() + 0.25 * b["w"])
    with pytest.raises(InferKitError, match="'w' and 'alias' are one tensor in the first"):
        interpolate(a, b | {"alias": torch.zeros(3)}, 0.5)


W = {"w": torch.zeros(2, 3), "n": torch.zeros(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("b", "l", "message"),
    [
        (W, -0.1, "l=-0.1: a number from 0 to 1"),
        (W, 1.1, "l=1.1"),
        (W, float("nan"), "l=nan"),
        ({"n": W["n"]}, 0.5, "'w' is in the first only"),
        (W | {"z": W["w"]}, 0.5, "'z' is in the second only"),
        (W | {"w": torch.zeros(2, 4)}, 0.5, r"'w' has shape \[2, 3\] .* \[2, 4\] in the second"),
        (W | {"w": torch.zeros(2, 3).double()}, 0.5, "'w' is torch.float32 .* torch.float64"),
        (W | {"n": torch.ones(2, dtype=torch.int64)}, 0.5, "'n' holds torch.int64 that differ"),
    ],
)
def test_states_without_an_average_are_refused(b: dict, l: float, message: str) -> None:  # noqa: E741
    with pytest.raises(InferKitError, match=message):
        interpolate(W, b, l)


def test_the_first_difference_is_named() -> None:
    check_same(W, copied(W))
    with pytest.raises(InferKitError, match="'w' has shape"):
        check_same(W, {"w": torch.zeros(3, 2)})


# Temperature


def mean_loss(beta: float, logits: Tensor, targets: Tensor) -> float:
    return float(cross_entropy(beta * logits.double(), targets))


@pytest.mark.parametrize("seed", range(12))
def test_the_temperature_is_that_of_a_grid(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, classes = 60 + 15 * seed, 2 + seed % 5
    targets = torch.randint(0, classes, (n,), generator=generator)
    noise = torch.randn(n, classes, generator=generator)
    logits = 10 ** (seed % 4 - 2) * (noise + nn.functional.one_hot(targets, classes))
    found = calibrate(logits, targets)
    low, high = -3.0, 5.0
    for _ in range(8):  # each grid is finer by 25 about the best point of the last
        grid = torch.linspace(low, high, 101, dtype=torch.float64).tolist()
        losses = [mean_loss(exp(u), logits, targets) for u in grid]
        best = min(range(101), key=losses.__getitem__)
        low, high = grid[max(best - 2, 0)], grid[min(best + 2, 100)]
        if high - low < 1e-6:
            break
    assert not found.bounded
    # The losses of a grid cannot tell points nearer than the root of float64's last digit.
    assert log(found.beta) == pytest.approx(grid[best], abs=2e-6)
    assert found.loss == pytest.approx(min(losses), rel=1e-12)
    assert found.loss == pytest.approx(mean_loss(found.beta, logits, targets), rel=1e-12)

    beta = torch.tensor(found.beta, dtype=torch.float64, requires_grad=True)
    cross_entropy(beta * logits.double(), targets).backward()
    assert abs(float(beta.grad)) * found.beta < 1e-8


@pytest.mark.filterwarnings("ignore:beta is at its bound")
@pytest.mark.parametrize("seed", range(40))
def test_a_fit_never_raises_the_loss(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 8, (), generator=generator))
    scale = 10 ** float(6 * torch.rand((), generator=generator) - 3)
    logits = scale * torch.randn(n, 3, generator=generator)
    targets = torch.randint(0, 3, (n,), generator=generator)
    found = calibrate(logits, targets)
    assert found.loss <= mean_loss(1.0, logits, targets) + 1e-15
    again = calibrate(found.beta * logits.double(), targets)
    assert again.loss <= found.loss + 1e-15
    assert found.bounded or again.beta == pytest.approx(1, abs=1e-6)


def test_bounds_are_told() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    with pytest.warns(UserWarning, match="the logits separate these targets: fit on held-out data"):
        found = calibrate(logits, torch.tensor([0, 1]))
    assert found.bounded and log(found.beta) == pytest.approx(5)
    with pytest.warns(UserWarning, match="no more of these targets than chance"):
        found = calibrate(logits, torch.tensor([1, 0]))
    assert found.bounded and log(found.beta) == pytest.approx(-3)
    with pytest.warns(UserWarning, match="separate"):  # where exp underflows too
        assert calibrate(1e4 * logits, torch.tensor([0, 1])).bounded
    flat = calibrate(torch.full((3, 4), 7.0), torch.tensor([0, 1, 2]))
    assert (flat.beta, flat.bounded) == (1.0, False) and flat.loss == pytest.approx(log(4))


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"float32 \[2, 3\] and .* \[3\]"),
        (torch.zeros(2, 3), torch.zeros(2), r"targets torch.float32 \[2\]"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), r"Logits are torch.float32 \[2\]"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "no target"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), "Targets go from -100 to 0"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "logits have 3 classes"),
        (torch.tensor([[inf, 0.0]]), torch.tensor([1]), "logits are not finite"),
    ],
)
def test_what_has_no_temperature_is_refused(logits: Any, targets: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        calibrate(logits, targets)


# Curves


def reference(
    net: nn.Module, state: dict[str, Tensor], data: list[tuple], beta: float = 1.0
) -> tuple[float, float, Tensor, Tensor]:
    """Loss and accuracy of one point, by a copy in float64."""
    net = copy.deepcopy(net)
    net.load_state_dict(state)
    net.double().eval()
    with torch.no_grad():
        logits = torch.cat([net(x.double()) for x, _ in data])
    targets = torch.cat([y for _, y in data])
    right = float((logits.argmax(1) == targets).double().mean())
    return mean_loss(beta, logits, targets), right, logits, targets


def test_a_curve_is_that_of_copies_in_float64() -> None:
    net, a, b = mlp(9), mlp(0).state_dict(), mlp(1).state_dict()
    data, held = pairs(2, 5), sampled([mlp(0), mlp(1)], pairs(3, 5, sizes=(200,)))
    net.train()
    before = snapshot(net)
    curve = barrier(net, a, b, data, steps=5, calibrate_on=held, progress=False)
    assert same(snapshot(net), before)
    assert curve.lambdas == (0, 0.25, 0.5, 0.75, 1) and curve.midpoint == 2
    assert curve.beta is not None and curve.calibrated_loss is not None
    for i, l in enumerate(curve.lambdas):  # noqa: E741
        state = {name: (1 - l) * a[name] + l * b[name] for name in a}
        loss, right, _, _ = reference(net, state, data)
        assert curve.loss[i] == pytest.approx(loss, rel=1e-5) and curve.accuracy[i] == right
        assert curve.perplexity[i] == pytest.approx(exp(loss), rel=1e-5)
        assert evaluate(net, interpolate(a, b, l), data) == (curve.loss[i], right)
        fit = calibrate(*reference(net, state, held)[2:])
        assert curve.beta[i] == pytest.approx(fit.beta, rel=1e-4)
        scaled = reference(net, state, data, fit.beta)[0]
        assert curve.calibrated_loss[i] == pytest.approx(scaled, rel=1e-5)
    line = [(1 - l) * curve.loss[0] + l * curve.loss[-1] for l in curve.lambdas]  # noqa: E741
    assert curve.barrier == pytest.approx(max(map(float.__sub__, curve.loss, line)), abs=1e-12)

    back = barrier(net, b, a, data, steps=5, calibrate_on=held, progress=False)
    assert back.loss == pytest.approx(curve.loss[::-1], rel=1e-6)
    assert back.barrier == pytest.approx(curve.barrier, abs=1e-6)
    assert back.calibrated_barrier == pytest.approx(curve.calibrated_barrier, abs=1e-5)
    assert back.accuracy_barrier == pytest.approx(curve.accuracy_barrier, abs=1e-12)


def test_a_curve_with_batch_norm_is_that_of_statistics_by_hand() -> None:
    net, a, b = residual(9), residual(0), residual(1)
    data, bn_data = pairs(2, 1, 6, 6), pairs(3, 1, 6, 6)
    net.train()
    before, given = snapshot(net), copied(a.state_dict())
    loader = DataLoader(TensorDataset(*map(torch.cat, zip(*data, strict=True))), 10)
    curve = barrier(
        net, a.state_dict(), b.state_dict(), loader, steps=3, bn_data=bn_data, progress=False
    )
    assert same(snapshot(net), before) and same([*a.state_dict().values()], [*given.values()])
    for i, l in enumerate(curve.lambdas):  # noqa: E741
        state = interpolate(a.state_dict(), b.state_dict(), l)
        point = copy.deepcopy(net)
        point.load_state_dict(state)
        loss, right, _, _ = reference(net, state | by_hand(point, bn_data), data)
        judged = evaluate(net, state, loader, bn_data=bn_data)
        assert judged == (curve.loss[i], curve.accuracy[i])
        assert curve.loss[i] == pytest.approx(loss, rel=1e-4) and curve.accuracy[i] == right


def test_between_a_network_and_itself_is_no_barrier() -> None:
    for net, shape in ((mlp(0), (5,)), (residual(0), (1, 6, 6))):
        state, data = net.state_dict(), sampled([net], pairs(2, *shape))
        curve = barrier(
            net, state, copied(state), data, steps=7, bn_data=data, progress=False,
            calibrate_on=sampled([net], pairs(4, *shape, sizes=(200,))),
        )  # fmt: skip
        assert set(curve.loss) == {curve.loss[0]} and set(curve.beta or ()) == {curve.beta[0]}
        assert curve.barrier == curve.calibrated_barrier == curve.accuracy_barrier == 0


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    net = mlp(0).bfloat16()
    state, data = net.state_dict(), [(x.bfloat16(), y) for x, y in pairs(2, 5)]
    held = sampled([net.float(), mlp(1)], pairs(3, 5, sizes=(400,)), seed=1)
    net.bfloat16()
    curve = barrier(
        net, state, mlp(1).bfloat16().state_dict(), data, steps=3, progress=False,
        calibrate_on=[(x.bfloat16(), y) for x, y in held],
    )  # fmt: skip
    with torch.no_grad():
        logits = torch.cat([net(x) for x, _ in data])
    targets = torch.cat([y for _, y in data])
    assert curve.beta is not None and curve.calibrated_loss is not None
    assert curve.loss[0] == pytest.approx(mean_loss(1, logits, targets), rel=1e-6)
    scaled = mean_loss(curve.beta[0], logits, targets)
    assert curve.calibrated_loss[0] == pytest.approx(scaled, rel=1e-6)


def test_figures_of_a_curve() -> None:
    curve = Curve((0, 0.25, 0.5, 0.75, 1), (1.0, 2.0, 2.0, 1.0, 3.0), (0.8, 0.6, 0.5, 0.7, 0.6))
    assert (curve.barrier, curve.midpoint) == (0.5, 2)
    assert curve.accuracy_barrier == pytest.approx(0.2)
    lower = Curve((0, 0.5, 1), (2.0, 1.0, 2.0), (0.1, 0.9, 0.1), (1.0,) * 3, (1.0, 4.0, 2.0))
    assert (lower.barrier, lower.accuracy_barrier, lower.calibrated_barrier) == (0, 0, 2.5)
    assert Curve((0, 0.5, 1), (0.0, 800.0, 1.0), (1.0,) * 3).perplexity == (1, inf, exp(1))
    assert Curve((0, 1 / 3, 2 / 3, 1), (0.0,) * 4, (0.0,) * 4).midpoint == 1
    with pytest.raises(InferKitError, match="no calibrated loss"):
        _ = curve.calibrated_barrier


def test_fits_on_the_wrong_data_are_told() -> None:
    net, state, data = mlp(0), mlp(0).state_dict(), sampled([mlp(0)], pairs(2, 5))
    with pytest.warns(UserWarning, match="beta is fitted on the data that it is judged by"):
        barrier(net, state, state, data, steps=3, calibrate_on=data, progress=False)
    easy = [(x, net(x).argmax(1)) for x, _ in data]
    other = mlp(1).state_dict()
    with pytest.warns(UserWarning, match="at its bound, -3 or 5, at l = 0") as told:
        curve = barrier(net, state, other, data, steps=3, calibrate_on=easy, progress=False)
    assert len(told) == 1 and curve.beta is not None and log(curve.beta[0]) == pytest.approx(5)
    middle = interpolate(state, other, 0.5)
    easy = [(x, torch.func.functional_call(net, middle, x).argmax(1)) for x, _ in data]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        barrier(net, state, other, data, steps=3, calibrate_on=easy, progress=False)
    said = [str(warning.message) for warning in told]
    assert any("log beta is at its bound, -3 or 5, at l = 0.5: " in text for text in said)


def no_targets(model: nn.Module, batch: Any) -> Any:
    return model(batch[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 2}, "steps=2: a whole number from 3"),
        ({"data": iter(pairs(2, 5))}, "data is a list_iterator, which can be read once only"),
        ({"calibrate_on": (p for p in pairs(2, 5))}, "calibrate_on is a generator, which"),
        ({"data": []}, "data has no target"),
        ({"calibrate_on": []}, "calibrate_on has no target"),
        ({"data": [torch.zeros(3, 5)]}, r"A batch is torch.float32 \[3, 5\], where \(inputs"),
        ({"predict": no_targets}, r"predict returned torch.float32 \[16, 4\], where"),
        ({"predict": lambda m, b: (m(b[0])[None], b[1])}, r"Logits are .* \[1, 16, 4\]"),
        ({"predict": lambda m, b: (m(b[0]), b[1] - 100)}, "Targets go from -100"),
        ({"data": [(torch.full((2, 5), inf), torch.tensor([0, 1]))]}, "loss at l = 0 is nan"),
        (
            {"calibrate_on": [(torch.full((2, 5), inf), torch.tensor([0, 1]))]},
            "logits of calibrate_on at l = 0 are not finite",
        ),
        ({"b": {"0.weight": torch.zeros(12, 5)}}, "'0.bias' is in the first only"),
        ({"model": residual(0)}, "it has '0.weight', which this Residual"),
        ({"model": residual(0), "bn_data": None}, "the first 'norm', and there is no batch"),
        ({"predict": next_token}, "input_ids of a batch are a tuple of 2, where token ids"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_refused(arguments: dict, message: str) -> None:
    net = mlp(0)
    base = {"model": net, "a": net.state_dict(), "b": mlp(1).state_dict(), "data": pairs(2, 5)}
    given = base | {"bn_data": pairs(3, 5), "progress": False} | arguments
    before = snapshot(given["model"])
    with pytest.raises(InferKitError, match=message):
        barrier(**given)
    assert same(snapshot(given["model"]), before)


def test_the_point_where_the_loss_is_not_finite_is_named() -> None:
    net = nn.Linear(1, 2, bias=False)
    a = {"weight": torch.tensor([[3e38], [0.0]])}
    b = {"weight": torch.tensor([[-3e38], [0.0]])}
    data = [(torch.tensor([[1.0]]), torch.tensor([0]))]
    wrong = b | {"weight": torch.tensor([[inf], [0.0]])}
    assert barrier(net, a, b, data, steps=3, progress=False).loss[0] == 0
    with pytest.raises(InferKitError, match="The loss of the state is nan"):
        evaluate(net, wrong, data)
    with pytest.raises(InferKitError, match="The loss at l = 0.5 is nan"):
        barrier(net, a, wrong, data, steps=3, progress=False)


def test_an_exception_of_the_users_leaves_the_model_alone() -> None:
    net = residual(0).train()
    before = snapshot(net)

    def failing(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        classification(model, batch)
        raise RuntimeError("stop")

    for data in (pairs(2, 1, 6, 6), pairs(2, 1, 2, 2)):  # the second is too small for the network
        with pytest.raises(RuntimeError, match="stop|Kernel size"):
            barrier(
                net, net.state_dict(), residual(1).state_dict(), data, failing, bn_data=data,
                progress=False,
            )  # fmt: skip
        assert same(snapshot(net), before)


# Language models


def gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=0,
        eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def test_a_curve_of_next_tokens_has_the_losses_of_the_models_own_labels() -> None:
    model, a, b = gpt2(2), gpt2(0).state_dict(), gpt2(1).state_dict()
    generator = torch.Generator().manual_seed(0)
    data, lengths = [], ((9, 4, 7), (12, 2))
    for each in lengths:
        ids = torch.randint(2, 32, (len(each), max(each)), generator=generator)
        mask = (torch.arange(max(each)) < torch.tensor(each)[:, None]).long()
        data.append({"input_ids": ids, "attention_mask": mask, "labels": ids})
    before = snapshot(model)
    curve = barrier(model, a, b, data, next_token, steps=3, progress=False)
    assert same(snapshot(model), before)
    for i, l in enumerate(curve.lambdas):  # noqa: E741
        own = gpt2(0).eval()
        own.load_state_dict({name: (1 - l) * a[name] + l * b[name] for name in a})
        total = 0.0
        for each, batch in zip(lengths, data, strict=True):
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            with torch.no_grad():
                loss = own(**(batch | {"labels": labels})).loss
            total += float(loss) * (sum(each) - len(each))
        assert curve.loss[i] == pytest.approx(total / (34 - 5), rel=1e-5)
    assert len({round(loss, 2) for loss in curve.loss}) == 3  # the points differ

    plain = [(batch["input_ids"],) for batch in data]
    tensors = barrier(model, a, b, plain, next_token, steps=3, progress=False)
    ids = [batch["input_ids"] for batch in data]
    assert tensors == barrier(model, a, b, ids, next_token, steps=3, progress=False)


def test_padding_on_the_left_is_left_out() -> None:
    model = gpt2(0).eval()
    ids = torch.randint(2, 32, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    logits, targets = next_token(model, {"input_ids": ids, "attention_mask": mask})
    assert targets.tolist() == [*ids[0, 3:].tolist(), *ids[1, 1:].tolist()]
    whole = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, torch.cat([whole[0, 2:-1], whole[1, :-1]]))
    with pytest.raises(InferKitError, match=r"int64 \[2, 1\], where token ids"):
        next_token(model, ids[:, :1])


def test_two_values_of_a_tied_tensor_are_refused() -> None:
    model = gpt2(0)
    state = copied(model.state_dict())
    data = [torch.randint(2, 32, (2, 6))]
    curve = barrier(model, state, copied(state), data, next_token, steps=3, progress=False)
    del state["lm_head.weight"]
    one = barrier(model, state, copied(state), data, next_token, steps=3, progress=False)
    assert curve == one and curve.barrier == 0
    state["lm_head.weight"] = torch.zeros(32, 16)
    with pytest.raises(InferKitError, match="'transformer.wte.weight' and 'lm_head.weight' are on"):
        barrier(model, state, state, data, next_token, progress=False)


def test_outputs_with_logits_and_mappings_are_classified() -> None:
    class Named(nn.Module):
        def forward(self, values: Tensor, times: Tensor) -> Any:
            return type("Output", (), {"logits": values * times})

    batch = ({"values": torch.eye(3), "times": torch.tensor(2.0)}, torch.arange(3))
    logits, targets = classification(Named(), batch)
    assert torch.equal(logits, 2 * torch.eye(3)) and torch.equal(targets, torch.arange(3))


def test_a_temperature_fitted_on_what_was_trained_on_is_told() -> None:
    """Networks that fit it to 99 % and more, not wholly, and the same tensors in another list."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1100, 20, generator=generator)
    teacher = torch.randn(20, 4, generator=generator)
    y = (x @ teacher).argmax(1)
    x[6], y[6] = x[5], (y[5] + 1) % 4  # one of the two cannot be fitted
    train, test = (x[:300], y[:300]), (x[300:], y[300:])
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        for layer in (model[0], model[2]):
            layer.reset_parameters()
        start = {name: t.clone() for name, t in model.state_dict().items()}
        ends.append(fit(model, start, [train], 150, 0.3, progress=False).state)
    with pytest.warns(
        UserWarning, match="data that the networks know better than those they are judged by"
    ):
        barrier(model, *ends, [test], steps=3, calibrate_on=[train], progress=False)
    with pytest.warns(UserWarning, match="beta is fitted on the data that it is judged by"):
        barrier(model, *ends, [test], steps=3, calibrate_on=[test], progress=False)
    half = (test[0][:400], test[1][:400]), (test[0][400:], test[1][400:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        barrier(model, *ends, [half[0]], steps=3, calibrate_on=[half[1]], progress=False)
