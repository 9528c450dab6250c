"""The random numbers: their vectors, a Python-integer reference, and what they look like."""

import random

import pytest
import torch
from scipy.stats import kstest

from infer_kit.training.tickets import rng
from tests.training.tickets import reference


def test_the_vectors() -> None:
    found = [int(b) & reference.MASK for b in rng.bits(0, "w", torch.arange(3))]
    assert found == [0x7B442BB3F9CE2F3B, 0x115854498B0AC19A, 0x977A5B9C0DF1967F]
    assert int(rng.bits(0, "w", 0, gen=1)) & reference.MASK == 0x8464C2EB436D4BD7


def test_bits_equal_python_integers() -> None:
    draw = random.Random(0)
    for _ in range(300):
        seed, name = draw.randrange(1 << 40), f"layer.{draw.randrange(9)}.weight"
        i, gen = draw.randrange(1 << 40), draw.randrange(1 << 20)
        found = int(rng.bits(seed, name, torch.tensor([i]), torch.tensor([gen]))) & reference.MASK
        assert found == reference.bits(seed, name, i, gen)


@pytest.mark.parametrize("init", rng.INITS)
def test_a_part_is_drawn_as_in_the_whole(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rng.INITS[init](3, "a", (40, 25))
    monkeypatch.setattr(rng, "_CHUNK", 64)
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:300]
    assert torch.equal(rng.INITS[init](3, "a", (40, 25), index=index), whole.flatten()[index])
    assert torch.equal(rng.INITS[init](3, "a", (40, 25)), whole)
    gens = torch.arange(300) % 3
    mixed = rng.INITS[init](3, "a", (40, 25), gens, index=index)
    for gen in range(3):
        part = rng.INITS[init](3, "a", (40, 25), gen, index=index)
        assert torch.equal(mixed[gens == gen], part[gens == gen])


def test_kaiming_uniform_equals_the_reference() -> None:
    drawn = rng.kaiming_uniform(5, "w", (7, 11), gen=2).flatten()
    assert drawn.tolist() == [reference.weight(5, "w", i, 2, 11) for i in range(77)]


def test_the_distributions() -> None:
    u = rng.uniform(1, "w", torch.arange(50_000)).double()
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    normal = rng.kaiming_normal(1, "w", (500, 100)).double().flatten() / (2 / 100) ** 0.5
    assert kstest(normal.numpy(), "norm").pvalue > 1e-3
    signs = rng.signed_constant(1, "w", (500, 100))
    assert signs.abs().unique().tolist() == [pytest.approx((2 / 100) ** 0.5)]
    assert abs(float(signs.sign().mean())) < 4 / 50_000**0.5
    others = [
        rng.uniform(1, "v", torch.arange(50_000)),
        rng.uniform(1, "w", torch.arange(50_000), 1),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([u, other.double()]))[0, 1])) < 0.02


def test_the_order_is_of_unsigned_bits() -> None:
    order = rng.ascending(0, "w#freeze", 500).tolist()
    assert order == sorted(range(500), key=lambda i: reference.bits(0, "w#freeze", i))
