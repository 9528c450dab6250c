"""IteRand's draws, edge-popup, resuming, and what they reach on digits."""

from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from evals.benchmarks.tickets_digits import Batches, Freezing, Redrawing, loss
from infer_kit.errors import InferKitError
from infer_kit.training.tickets import EdgePopup, Freeze, IteRand, TopK, fit, make_ticket
from tests.training.tickets import reference, tasks


def test_redraws_come_when_they_should_and_spare_what_is_kept() -> None:
    layer = nn.Linear(200, 100, bias=False)
    search = IteRand(make_ticket(layer, 9, mask_rule=TopK(0.5)), k_per=3, r=0.1)
    weights = search.ticket.weights()["weight"]
    scores = search.layers["weight"].scores
    gens = [[0] * 200 for _ in range(100)]
    for step in range(1, 13):
        with torch.no_grad():
            scores += torch.randn(scores.shape)
        before, kept = weights.clone(), search.layers["weight"].mask()
        search.step()
        changed = weights != before
        if step % 3:
            assert not changed.any()
            continue
        assert not changed[kept].any()
        n, redrawn = int((~kept).sum()), search.layers["weight"].gens == step // 3
        assert abs(int(redrawn.sum()) - 0.1 * n) <= 4 * (0.09 * n) ** 0.5
        assert torch.equal(changed, redrawn)
        for i, j in redrawn.nonzero().tolist():
            gens[i][j] = step // 3
    for i, j in [(i, j) for i in range(0, 100, 7) for j in range(0, 200, 3)]:
        expected = reference.weight(9, "weight", i * 200 + j, gens[i][j], 200)
        assert float(weights[i, j]) == expected


def test_nothing_frozen_is_drawn_anew() -> None:
    model = tasks.mlp(64, 32, 10)
    rule = TopK(0.5, scope="global")
    ticket = make_ticket(model, mask_rule=rule, frozen=Freeze(0.2, 0.2))
    search = IteRand(ticket, k_per=1, r=1.0)
    search.step()
    for layer in search.layers.values():
        assert not layer.gens[layer.frozen != 0].any() and layer.gens[layer.frozen == 0].any()


def test_without_redraws_it_is_edge_popup(digits: tuple) -> None:
    models = [tasks.mlp(64, 16, 10) for _ in range(2)]
    searches = [EdgePopup(make_ticket(models[0])), IteRand(make_ticket(models[1]), 2, r=0.0)]
    for model, search in zip(models, searches, strict=True):
        fit(
            model, Batches(digits[0], 0), loss, 2, search.optimizer(), search=search, progress=False
        )
    a, b = (search.layers["0.weight"].scores for search in searches)
    assert torch.equal(a, b)
    assert torch.equal(
        searches[0].ticket.weights()["0.weight"], searches[1].ticket.weights()["0.weight"]
    )


class _Stop(Exception):
    pass


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10))


def _resumable(file: Path | None, stop: int | None, data: tuple, **settings: int) -> dict:
    torch.manual_seed(0)
    model = _net()
    search = IteRand(make_ticket(model, settings.get("seed", 0)), settings.get("k_per", 7), r=0.3)
    seen = 0

    def counted(model: nn.Module, batch: tuple) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise _Stop
        return loss(model, batch)

    batches = tasks.batches(data)
    optimizer = search.optimizer(lr=0.1)
    losses = fit(
        model, batches, counted, 3, optimizer, search=search, checkpoint=file,
        checkpoint_every=5, progress=False,
    )  # fmt: skip
    return {"losses": losses, **model.state_dict()}


@pytest.mark.parametrize("stop", [9, 31, 43])
def test_a_search_resumes_exactly(stop: int, digits: tuple, tmp_path: Path) -> None:
    whole = _resumable(None, None, digits[0])
    with pytest.raises(_Stop):
        _resumable(tmp_path / "c", stop, digits[0])
    torch.rand(100)  # other numbers drawn in between
    again = _resumable(tmp_path / "c", None, digits[0])
    assert whole["losses"] == again["losses"]
    for name, value in whole.items():
        assert name == "losses" or torch.equal(value, again[name]), name


def test_a_checkpoint_of_another_search_is_refused(digits: tuple, tmp_path: Path) -> None:
    with pytest.raises(_Stop):
        _resumable(tmp_path / "c", 9, digits[0])
    with pytest.raises(InferKitError, match="the checkpoint of another search"):
        _resumable(tmp_path / "c", None, digits[0], seed=1)
    with pytest.raises(InferKitError, match="Resume with the settings of the checkpoint"):
        _resumable(tmp_path / "c", None, digits[0], k_per=8)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:1000])
    with pytest.raises(InferKitError, match="cannot be read as a checkpoint"):
        _resumable(tmp_path / "c", None, digits[0])


def test_wrong_searches_are_refused(digits: tuple) -> None:
    ticket = make_ticket(tasks.mlp(64, 16, 10))
    for settings in ((0, 0.1), (10, 1.5), (10, 0.1, 0.0)):
        with pytest.raises(InferKitError, match="k_per is a number of"):
            IteRand(ticket, *settings)
    search = EdgePopup(ticket)
    with pytest.raises(InferKitError, match="does not train the scores"):
        search.attach(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    search.optimizer()
    with pytest.raises(InferKitError, match="attached to an optimizer already"):
        search.optimizer()
    with torch.no_grad():
        search.layers["0.weight"].scores[0, 0] = torch.inf
    with pytest.raises(InferKitError, match=r"1 of the 1024 scores of '0.weight'"):
        search.step()


def test_a_diverged_search_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    def run(bad: int | None) -> list[float]:
        model = nn.Linear(8, 4)
        search = EdgePopup(make_ticket(model))
        count = 0

        def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            return model(batch).square().sum() * (torch.nan if count == bad else 1)

        return fit(
            model, [torch.ones(2, 8)] * 10, loss, 1, search.optimizer(lr=0.01), search=search,
            checkpoint=tmp_path / "c", checkpoint_every=4, progress=False,
        )  # fmt: skip

    with pytest.raises(InferKitError, match=r"The loss became nan|not finite"):
        run(8)
    assert len(run(None)) == 1


@pytest.mark.parametrize("how", ["workers", "sampler", "no search named"])
def test_other_data_resume_exactly(how: str, digits: tuple, tmp_path: Path) -> None:
    data = TensorDataset(*(part[:200] for part in digits[0]))

    def run(stop: int | None, file: Path | None) -> dict:
        torch.manual_seed(0)
        model = _net()
        search = IteRand(make_ticket(model), 3, r=1.0)
        count = 0

        def counted(model: nn.Module, batch: tuple) -> torch.Tensor:
            nonlocal count
            count += 1
            if count == stop:
                raise _Stop
            return loss(model, batch)

        if how == "workers":
            batches = DataLoader(data, 50, shuffle=True, num_workers=1)
        else:
            generator = torch.Generator().manual_seed(3)
            batches = DataLoader(data, 50, sampler=RandomSampler(data, generator=generator))
        named = None if how == "no search named" else search
        fit(
            model, batches, counted, 3, search.optimizer(), search=named, checkpoint=file,
            checkpoint_every=2, progress=False,
        )  # fmt: skip
        return model.state_dict()

    whole = run(None, None)
    with pytest.raises(_Stop):
        run(8, tmp_path / "c")
    again = run(None, tmp_path / "c")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_checkpoints_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(8, 4)
    search = EdgePopup(make_ticket(model))
    optimizer = search.optimizer()
    data = TensorDataset(torch.zeros(4, 8))

    def run(batches: object, file: Path) -> None:
        fit(model, batches, loss, 1, optimizer, checkpoint=file, progress=False)

    with pytest.raises(InferKitError, match="There is no folder"):
        run([], tmp_path / "none" / "c")
    with pytest.raises(InferKitError, match="Leave persistent_workers at False"):
        run(DataLoader(data, num_workers=1, persistent_workers=True), tmp_path / "c")
    torch.save([1, 2], tmp_path / "c")
    with pytest.raises(InferKitError, match="the checkpoint of another search, of list"):
        run([], tmp_path / "c")


def test_a_second_search_draws_other_weights() -> None:
    ticket = make_ticket(nn.Linear(100, 100, bias=False))
    IteRand(ticket, k_per=1, r=1.0).step()
    before = ticket.weights()["weight"].clone()
    again = IteRand(ticket, k_per=1, r=1.0)
    again.step()
    assert again.events == 2
    assert int((ticket.weights()["weight"] != before).sum()) > 4900


def test_rerand_rate_spares_more() -> None:
    layer = nn.Linear(100, 100, bias=False)
    search = IteRand(make_ticket(layer, mask_rule=TopK(0.5)), 1, r=1.0, rerand_rate=0.4)
    scores = search.layers["weight"].scores.detach()
    search.step()
    expected = ~reference.layer_mask(scores, 0.2)
    assert torch.equal(search.layers["weight"].gens == 1, expected)
    frozen = {"mask_rule": TopK(0.5, scope="global"), "frozen": Freeze(0.3, 0.1)}
    ticket = make_ticket(nn.Linear(100, 100), **frozen)
    with pytest.raises(InferKitError, match="Nothing is left to search"):
        IteRand(ticket, 1, 1.0, rerand_rate=0.5)


def test_groups_hold_what_else_learns() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    scores, others = EdgePopup(make_ticket(model, train=["1"])).groups(weight_decay=0.1)
    assert [p.shape for p in scores["params"]] == [(8, 8), (4, 8)]
    assert scores["weight_decay"] == 0.1
    assert {id(p) for p in others["params"]} == {id(model[1].weight), id(model[1].bias)}
    assert others["weight_decay"] == 0


def test_iterand_gains_at_a_narrow_width() -> None:
    gains = [
        Redrawing(16, 0.1, 30, seed).run() - Redrawing(16, 0.0, 30, seed).run()
        for seed in range(10)
    ]
    assert mean(gains) >= 3


def test_locking_and_pruning_beats_pruning() -> None:
    both, one = [], []
    for seed in range(3):
        both.append(Freezing(0.35, 0.35, 0.5, seed).run()[0])
        one.append(Freezing(0.7, 0.0, 0.85, seed).run()[0])
    assert mean(both) >= mean(one) + 6
