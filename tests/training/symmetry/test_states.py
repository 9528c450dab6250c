"""What is a state, and what is a permutation: refusals, and names of tied tensors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from infer_kit.errors import InferKitError
from infer_kit.training.symmetry import (
    LinearTrajectory,
    SavedTrajectory,
    Transfer,
    barrier,
    discover,
    effective_ranks,
    evaluate,
    fit,
    interpolate,
    lewc,
    match,
    next_token,
    reestimate_bn,
    ste_match,
)
from infer_kit.training.symmetry.sgd import gradient
from tests.training.symmetry.models import made
from tests.training.symmetry.small_nets import mlp, pairs


def test_states_and_permutations_that_do_not_fit() -> None:
    model, x = made("mlp", 0)
    spec = discover(model, x)
    state = model.state_dict()
    with pytest.raises(InferKitError, match=r"has no '2.weight'"):
        spec.apply(spec.identity(), {k: v for k, v in state.items() if k != "2.weight"})
    with pytest.raises(InferKitError, match=r"'0.weight' has shape \[9, 7\].* \[9, 6\]"):
        spec.apply(spec.identity(), state | {"0.weight": torch.zeros(9, 7)})
    with pytest.raises(InferKitError, match="has no 'more', the state has"):
        spec.apply(spec.identity(), state | {"more": torch.zeros(9)})
    with pytest.raises(InferKitError, match="no permutation of the group '0.weight"):
        spec.apply({}, state)
    with pytest.raises(InferKitError, match="is no permutation of 9 units"):
        spec.apply(spec.identity() | {"0.weight[0]": torch.zeros(9, dtype=torch.int64)}, state)
    with pytest.raises(InferKitError, match="no group 'other'"):
        spec.apply(spec.identity() | {"other": torch.arange(3)}, state)
    with pytest.raises(InferKitError, match="(?s)A Match is given where permutations .* .perms"):
        spec.apply(match(spec, state, state), state)


def test_models_and_checkpoints_are_no_states() -> None:
    net, data = mlp(0), pairs(0, 5)
    state, spec = net.state_dict(), discover(net, torch.randn(2, 5))
    checkpoint = {"epoch": 3, "model": state}
    calls: list[Any] = [
        lambda wrong: spec.apply(spec.identity(), wrong),
        lambda wrong: match(spec, state, wrong),
        lambda wrong: interpolate(state, wrong, 0.5),
        lambda wrong: barrier(net, state, wrong, data, steps=3, progress=False),
        lambda wrong: evaluate(net, wrong, data),
        lambda wrong: ste_match(net, spec, state, wrong, data, progress=False),
        lambda wrong: lewc(net, state, wrong, data[0][0]),
        lambda wrong: fit(net, wrong, data, 1, 0.1, progress=False),
        lambda wrong: Transfer(net, spec, SavedTrajectory([state, state]), wrong),
    ]
    for call in calls:
        with pytest.raises(InferKitError, match="A Sequential is given where a state is expected"):
            call(net)
        with pytest.raises(InferKitError, match="'epoch' of a state is a int, where tensors are"):
            call(checkpoint)


def test_what_is_no_trajectory() -> None:
    net = mlp(0)
    state, spec = net.state_dict(), discover(net, torch.randn(2, 5))
    with pytest.raises(InferKitError, match="A list is given where a trajectory is expected"):
        Transfer(net, spec, [state, state], state)  # type: ignore[arg-type]
    with pytest.raises(InferKitError, match="State 1 of a trajectory is a Sequential, where"):
        SavedTrajectory([state, net])  # type: ignore[list-item]


def test_files_with_one_name_of_a_tied_tensor() -> None:
    """safetensors keeps one; the other end may have both."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    a, b, c = (m.state_dict() for m in (model, *(GPT2LMHeadModel(config) for _ in range(2))))
    batch = {"input_ids": torch.randint(0, 32, (4, 12)), "attention_mask": torch.ones(4, 12)}
    data, spec = [batch], discover(model, {"input_ids": batch["input_ids"]})
    for tied in ("lm_head.weight", "transformer.wte.weight"):
        one, other = ({n: t for n, t in state.items() if n != tied} for state in (b, c))
        for ours, theirs in ((a, one), (one, a)):
            first, second = (b if state is one else state for state in (ours, theirs))
            options: Any = {"steps": 3, "progress": False}
            found = barrier(model, ours, theirs, data, next_token, **options)
            assert found == barrier(model, first, second, data, next_token, **options)
            options = {"predict": next_token, "progress": False, "epochs": 1}
            order = ste_match(model, spec, ours, theirs, data, **options).perms
            expected = ste_match(model, spec, first, second, data, **options).perms
            assert all(torch.equal(order[group], expected[group]) for group in expected)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*that ran has")
                assert lewc(model, ours, theirs, batch) == lewc(model, first, second, batch)
            carried, expected_too = (
                Transfer(
                    model,
                    spec,
                    LinearTrajectory(start, end, 2),
                    target,
                    next_token,
                    judge=data,
                    progress=False,
                ).fgmt(data)
                for start, end, target in ((one, other, ours), (b, c, first))
            )
            assert carried.losses == expected_too.losses
            last = carried.thetas[-1]
            assert torch.equal(last["lm_head.weight"], last["transformer.wte.weight"])
            lazy = SavedTrajectory([lambda: ours, lambda: theirs])  # noqa: B023
            whole = SavedTrajectory([first, second])
            moved, wanted = (
                Transfer(model, spec, source, a, next_token, progress=False).naive().thetas[-1]
                for source in (lazy, whole)
            )
            assert all(torch.equal(moved[name], wanted[name]) for name in wanted)
        torch.manual_seed(0)  # of dropout
        ended = fit(model, one, data, 1, 0.1, predict=next_token, progress=False).state
        torch.manual_seed(0)
        both = fit(model, b, data, 1, 0.1, predict=next_token, progress=False).state
        assert all(torch.equal(ended[name], both[name]) for name in one)


def test_targets_and_outputs_that_do_not_fit() -> None:
    net, spec = mlp(0), discover(mlp(0), torch.randn(2, 5))
    state, wrong = net.state_dict(), [(torch.randn(3, 5), torch.tensor([0, 4, 1]))]
    source = SavedTrajectory([state, state])
    calls = [
        lambda: fit(net, state, wrong, 1, 0.1, progress=False),
        lambda: gradient(net, state, wrong),
        lambda: ste_match(net, spec, state, state, wrong, judge=pairs(0, 5), progress=False),
        lambda: Transfer(net, spec, source, state, progress=False).fgmt(wrong),
        lambda: evaluate(net, state, wrong),
    ]
    for call in calls:
        with pytest.raises(InferKitError, match="targets are from 0 to 4|from 0 to 4"):
            call()
    with pytest.raises(InferKitError, match="predict returned"):
        fit(net, state, wrong, 1, 0.1, predict=lambda m, batch: m(batch[0]), progress=False)


def test_numbers_below_zero() -> None:
    net, data = mlp(0), pairs(0, 5)
    state, spec = net.state_dict(), discover(net, torch.randn(2, 5))
    with pytest.raises(InferKitError, match="epochs=-1: a number from 0 on"):
        fit(net, state, data, -1, 0.1)
    with pytest.raises(InferKitError, match="keep_every=-1: a number from 0 on"):
        fit(net, state, data, 1, 0.1, keep_every=-1)
    with pytest.raises(InferKitError, match="restarts=-2: a number from 0 on"):
        match(spec, state, state, restarts=-2)
    with pytest.raises(InferKitError, match="sweeps=-2: a number from 0 on"):
        match(spec, state, state, sweeps=-2)
    with pytest.raises(InferKitError, match="lr=nan: a number from 0 on"):
        fit(net, state, data, 1, float("nan"))
    with pytest.raises(InferKitError, match="epochs=-1: a number from 0 on"):
        ste_match(net, spec, state, state, data, epochs=-1)
    carry = Transfer(net, spec, SavedTrajectory([state, state]), state)
    with pytest.raises(InferKitError, match="batches=0: at least 1"):
        carry.gmt(data, batches=0)


def test_training_under_no_grad() -> None:
    net, data = mlp(0), pairs(0, 5)
    with torch.no_grad():
        inside = fit(net, net.state_dict(), data, 1, 0.1, progress=False).state
    outside = fit(net, net.state_dict(), data, 1, 0.1, progress=False).state
    assert all(torch.equal(inside[name], outside[name]) for name in inside)
    assert not torch.equal(inside["0.weight"], net.state_dict()["0.weight"])


def test_a_learning_rate_that_is_too_high() -> None:
    net, data = mlp(0), pairs(0, 5)
    spec = discover(net, torch.randn(2, 5))
    with pytest.raises(InferKitError, match=r"(?s)not finite after step \d+.*Lower the learning"):
        ste_match(net, spec, net.state_dict(), mlp(1).state_dict(), data, lr=1e38, progress=False)


def test_extra_state_is_no_part_of_it() -> None:
    """What get_extra_state() adds to a state dict is no tensor."""

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None:
            assert state == {"version": 1}

    net, x = nn.Sequential(Extra(5, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(2, 5)
    spec = discover(net, x)
    assert spec.groups == {"0.weight[0]": 12} and spec.check(net, x) < 1e-5
    state = {name: t for name, t in net.state_dict().items() if isinstance(t, torch.Tensor)}
    assert Transfer(net, spec, SavedTrajectory([state, state]), state).naive().thetas


def test_lists_are_one_argument_and_tuples_several() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
            return self.norm(xs[0] + xs[1])

    net, parts = Summed(), [torch.randn(6, 4), torch.randn(6, 4)]
    whole, alone = (
        reestimate_bn(net, net.state_dict(), [batch], inputs=inputs)
        for batch, inputs in (((parts, 0), None), (parts, lambda batch: batch))
    )
    torch.testing.assert_close(whole["norm.running_mean"], (parts[0] + parts[1]).mean(0))
    assert torch.equal(whole["norm.running_mean"], alone["norm.running_mean"])


def test_an_example_that_does_not_run() -> None:
    net = mlp(0)
    state, spec = net.state_dict(), discover(net, torch.randn(2, 5))
    for call in (lambda x: spec.check(net, x), lambda x: lewc(net, state, state, x)):
        for wrong in (torch.randn(2, 6), (torch.randn(2, 5), torch.zeros(2))):
            with pytest.raises(InferKitError, match="Sequential does not run on this example"):
                call(wrong)
    with pytest.raises(InferKitError, match="A Sequential is given where a state is expected"):
        effective_ranks(net)  # type: ignore[arg-type]
