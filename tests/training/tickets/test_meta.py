"""Meta-learners against loops written out, and what a meta-ticket reaches."""

import pytest
import torch
from torch import nn

from evals.benchmarks.tickets_digits import FewShot, mlp
from infer_kit.errors import InferKitError
from infer_kit.training.tickets import (
    ANIL,
    BOIL,
    MAML,
    Episodes,
    EpisodeSampler,
    MetaTicket,
    TopK,
    make_ticket,
)

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def _episodes() -> Episodes:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, 6, generator=g, dtype=torch.float64)
    y = torch.randint(0, 4, (3, 10), generator=g)
    return Episodes(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


def _net() -> nn.Module:
    torch.manual_seed(0)
    return mlp(6, 5, 4, bias=True).double()


def _written_out(
    model: nn.Module, moved: list[str], steps: int, first: bool, masks: dict
) -> torch.Tensor:
    named = {n: p for n, p in model.named_parameters() if n in NAMES}
    total = torch.zeros((), dtype=torch.float64)
    e = _episodes()

    def call(w: dict, x: torch.Tensor) -> torch.Tensor:
        m = {n: v * masks[n] if n in masks else v for n, v in w.items()}
        hidden = (x @ m["0.weight"].T + m["0.bias"]).relu()
        return hidden @ m["2.weight"].T + m["2.bias"]

    for t in range(3):
        phi = dict(named)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(call(phi, e.support_x[t]), e.support_y[t])
            slopes = torch.autograd.grad(loss, [phi[n] for n in moved], create_graph=not first)
            phi |= {n: phi[n] - 0.3 * g for n, g in zip(moved, slopes, strict=True)}
        total = total + nn.functional.cross_entropy(call(phi, e.query_x[t]), e.query_y[t])
    return total / 3


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["MAML", "ANIL", "BOIL"])
def test_outer_gradients_equal_a_loop(kind: str, steps: int, first_order: bool) -> None:
    moved = {"MAML": NAMES, "ANIL": NAMES[2:], "BOIL": NAMES[:2]}[kind]
    ours, theirs = _net(), _net()
    settings = {"inner_lr": 0.3, "inner_steps": steps, "first_order": first_order}
    learner = (
        MAML(ours, **settings)
        if kind == "MAML"
        else {"ANIL": ANIL, "BOIL": BOIL}[kind](ours, "2", **settings)
    )
    learner(_episodes()).backward()
    _written_out(theirs, moved, steps, first_order, {}).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_score_gradients_equal_a_loop(steps: int) -> None:
    ours = _net()
    learner = MetaTicket(ours, head="2", inner_lr=0.3, inner_steps=steps)
    layer = learner.ticket.layers()["0.weight"]
    with torch.no_grad():
        layer.scores[:2] -= 10
    before = {n: p.clone() for n, p in ours.named_parameters()}
    learner(_episodes()).backward()
    mask = layer.mask().double().requires_grad_()
    theirs = _net()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            source = (
                before["0.parametrizations.weight.original"] if name == "0.weight" else before[name]
            )
            p.copy_(source)
    _written_out(theirs, NAMES, steps, False, {"0.weight": mask}).backward()
    torch.testing.assert_close(layer.scores.grad.double(), mask.grad, rtol=1e-5, atol=1e-8)
    optimizer = learner.optimizer(lr=10.0)
    optimizer.step()
    for name, p in ours.named_parameters():
        assert torch.equal(p, before[name]) != name.endswith("scores")


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_ticket_of_ones_own_keeps_its_rule(scope: str) -> None:
    ticket = make_ticket(_net(), mask_rule=TopK(0.5, scope=scope), exclude=["2"])
    learner = MetaTicket(ticket, "2", inner_lr=0.3)
    layer = ticket.layers()["0.weight"]
    learner(_episodes()).backward()
    mask, sign = layer.mask().double(), 1 if scope == "layer" else layer.scores.detach().sign()
    mask.requires_grad_()
    theirs = _net()
    with torch.no_grad():
        theirs[0].weight.copy_(ticket.weights()["0.weight"])
        theirs[0].bias.zero_()
    _written_out(theirs, NAMES, 1, False, {"0.weight": mask}).backward()
    torch.testing.assert_close(layer.scores.grad, (mask.grad * sign).float(), rtol=1e-5, atol=1e-7)
    assert layer.level is None


def test_the_head_may_stay_in_the_inner_loop() -> None:
    e = _episodes()
    for rate, same in ((0.0, True), (None, False)):
        learner = MetaTicket(_net(), "2", 0.3, head_lr=rate)
        solved = learner.solve(e.support_x[0], e.support_y[0])
        assert torch.equal(solved[2].weight, learner.model[2].weight) == same


def test_a_solved_model_says_what_the_learner_predicts() -> None:
    e = _episodes()
    for learner in (MAML(_net(), 0.3, 2), MetaTicket(_net(), "2", 0.3, 2)):
        predicted = learner.predict(e)
        for t in range(3):
            model = learner.solve(e.support_x[t], e.support_y[t])
            torch.testing.assert_close(model(e.query_x[t]), predicted[t], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(learner.predict(e), predicted, rtol=0, atol=0)


def test_tasks_have_different_examples_and_labels_of_their_own() -> None:
    y = torch.arange(200) % 8
    sampler = EpisodeSampler(torch.arange(200.0)[:, None], y, 5, 3, 4, tasks=6, batches=2)
    e = sampler.draw()
    assert e.support_x.shape == (6, 15, 1) and e.query_y.shape == (6, 20)
    for t in range(6):
        chosen = torch.cat([e.support_x[t], e.query_x[t]]).flatten().long()
        labels = torch.cat([e.support_y[t], e.query_y[t]])
        assert len(set(chosen.tolist())) == 35
        assert len({(int(y[i]), int(k)) for i, k in zip(chosen, labels, strict=True)}) == 5
    with pytest.raises(InferKitError, match="Tasks of 9 classes"):
        EpisodeSampler(torch.zeros(200, 1), y, 9)
    with pytest.raises(InferKitError, match="Class 0 has 25 examples"):
        EpisodeSampler(torch.zeros(200, 1), y, 5, 20, 6)


def test_running_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    with pytest.raises(InferKitError, match="'1' keeps running statistics"):
        MAML(model)
    with pytest.raises(InferKitError, match="at least one step"):
        MAML(_net(), inner_steps=0)
    with pytest.raises(InferKitError, match="No parameter matches 'head'"):
        ANIL(_net(), "head")


def test_a_meta_ticket_learns() -> None:
    start, _, ticket = (
        FewShot("Meta-ticket", 0, 0, 10.0).run(),
        None,
        FewShot("Meta-ticket", 1500, 0, 10.0).run(),
    )
    maml = FewShot("MAML", 1500, 0).run()
    assert ticket[1] >= start[1] + 25
    assert ticket[1] >= maml[1] - 4
