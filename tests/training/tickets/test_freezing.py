"""How frozen shares are dealt out, and settings that leave nothing to search."""

import pytest
from torch import nn

from infer_kit.errors import InferKitError
from infer_kit.training.tickets import Freeze, TopK, allocate, make_ticket
from tests.training.tickets import tasks

CONV6 = {
    str(i): shape
    for i, shape in enumerate(
        [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3),
         (256, 256, 3, 3), (256, 4096), (256, 256), (10, 256)]
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("allocation", "expected"),
    [
        ("erk", [None, 1, 1, 0.57, 0.38, 0.23, 1, None, None]),
        ("epl", [None, None, None, None, 1, 0.83, 0.34, None, None]),
        ("uniform", [0.5] * 9),
    ],
)
def test_the_locked_share_of_conv6(allocation: str, expected: list[float | None]) -> None:
    pruned, locked = allocate.sparsity_distribution(
        CONV6, 0.25, 0.25, allocate.ALLOCATIONS[allocation]
    )
    share = [
        round(locked[k] / (locked[k] + pruned[k]), 2) if locked[k] + pruned[k] else None
        for k in CONV6
    ]
    assert share == expected


@pytest.mark.parametrize("allocation", allocate.ALLOCATIONS)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 0.5, 0.9, 1.0])
def test_an_allocation_keeps_the_density(allocation: str, density: float) -> None:
    shares = allocate.ALLOCATIONS[allocation](CONV6, density)
    sizes = {k: tasks.torch.Size(s).numel() for k, s in CONV6.items()}
    kept = sum((1 - shares[k]) * n for k, n in sizes.items())
    assert abs(kept - density * sum(sizes.values())) <= len(sizes)
    assert all(-1e-12 <= s <= 1 for s in shares.values())


def test_igq_is_one_factor_for_all() -> None:
    shares = allocate.igq(CONV6, 0.3)
    sizes = {k: tasks.torch.Size(s).numel() for k, s in CONV6.items()}
    factors = [shares[k] / (1 - shares[k]) / n for k, n in sizes.items()]
    assert factors == pytest.approx([factors[0]] * len(factors), rel=1e-9)
    assert len(set(shares.values())) > 3


def test_density_distribution_deals_out_each_by_itself() -> None:
    for allocation in allocate.ALLOCATIONS.values():
        pruned, locked = allocate.density_distribution(CONV6, 0.2, 0.3, allocation)
        assert pruned == allocation(CONV6, 0.8)
        assert locked == {k: 1 - s for k, s in allocation(CONV6, 0.3).items()}


@pytest.mark.parametrize("rule", allocate.RULES)
@pytest.mark.parametrize("allocation", allocate.ALLOCATIONS)
def test_frozen_weights_are_counted_and_apart(rule: str, allocation: str) -> None:
    shapes = {"a": (30, 40), "b": (20, 30), "c": (10, 20)}
    masks = Freeze(0.2, 0.3, allocation, rule).counts(shapes)
    for mask in masks.values():
        drawn = mask.draw(4)
        assert int((drawn == -1).sum()) == mask.pruned and int((drawn == 1).sum()) == mask.locked
        assert (mask.draw(4) == drawn).all()
        assert (mask.draw(5) != drawn).any() == (
            mask.pruned + mask.locked > 0 and mask.locked < drawn.numel()
        )
    if rule == "proportional":
        whole = [(m.pruned, m.locked) for m in masks.values() if m.locked]
        assert all(abs(p * 3 - r * 2) <= 5 for p, r in whole)


@pytest.mark.parametrize(
    ("freeze", "sparsity"),
    [
        (Freeze(0.8, 0.0), 0.7),  # two published configurations
        (Freeze(0.8, 0.0, "erk"), 0.7),
        (Freeze(0.25, 0.25), 0.25),
        (Freeze(0.25, 0.25), 0.75),
        (Freeze(0.0, 0.5), 0.5),
        (None, 0.0),
        (None, 1.0),
    ],
)
def test_what_leaves_nothing_to_search_is_refused(freeze: Freeze | None, sparsity: float) -> None:
    model = tasks.mlp(64, 50, 10)
    with pytest.raises(InferKitError, match="Nothing is left to search"):
        make_ticket(model, mask_rule=TopK(sparsity, scope="global"), frozen=freeze)


def test_a_layer_without_a_choice_is_named() -> None:
    with pytest.raises(InferKitError, match=r"Nothing is left to search in '1.weight'"):
        make_ticket(nn.Sequential(nn.Linear(9, 9), nn.Linear(2, 1)), mask_rule=TopK(0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.6, 0.4), "must leave weights to search"),
        ((-0.1, 0.4), "must not be negative"),
        ((0.1, 0.1, "even"), "no allocation 'even'"),
        ((0.1, 0.1, "epl", "half"), "no rule 'half'"),
    ],
)
def test_wrong_freezing_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        Freeze(*arguments)
