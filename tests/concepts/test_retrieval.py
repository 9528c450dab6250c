"""Finding phrases: exactly, in chunks, over any bank; and by an index of FAISS."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infer_kit.concepts import near_duplicates
from infer_kit.concepts.near_duplicates import far_from, first_of_each
from infer_kit.concepts.retrieval import FaissIndex, topk
from infer_kit.errors import InferKitError, MissingExtra
from tests.concepts.lassos import unit


def banks(seed: int, n: int, d: int, queries: int = 3) -> tuple[Tensor, Tensor]:
    """Unit rows around a common mean, as float32, and queries."""
    g = torch.Generator().manual_seed(seed)
    bank = unit(torch.randn(n, d, generator=g) + torch.randn(d, generator=g))
    return unit(torch.randn(queries, d, generator=g)), bank


def assert_nearest(queries: Tensor, bank: Tensor, k: int, values: Tensor, rows: Tensor) -> None:
    """Acceptance check 1: the float64 brute force, up to ties below 1e-6."""
    scores = queries.double() @ bank.double().T
    best = scores.sort(dim=1, descending=True).values[:, :k]
    assert values.shape == rows.shape == (len(queries), k)
    torch.testing.assert_close(values.double(), best, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.gather(1, rows), best, atol=1e-6, rtol=0)
    assert all(len(set(row)) == k for row in rows.tolist())
    assert bool((values.diff(dim=1) <= 0).all())
    for q in range(len(queries)):  # whatever is clearly above the k-th is found
        above = (scores[q] > best[q, -1] + 1e-6).nonzero()[:, 0].tolist()
        assert set(above) <= set(rows[q].tolist())


@pytest.mark.parametrize("n, d", [(1, 3), (2, 5), (37, 8), (1000, 32), (2500, 16)])
def test_the_nearest_rows_are_the_brute_force(n: int, d: int) -> None:
    queries, bank = banks(n, n, d)
    for k in sorted({1, min(2, n), n // 3 or 1, n - 1 or 1, n}):
        for chunk in (1, 7, n - 1 or 1, n, 3 * n) if n < 100 else (64, 333, n, 16_384):
            assert_nearest(queries, bank, k, *topk(queries, bank, k, chunk))


def test_a_half_bank() -> None:
    queries, bank = banks(1, 700, 24)
    half = bank.half()
    assert_nearest(queries, half.float(), 50, *topk(queries, half, 50, 64))


def test_equal_rows_come_in_their_order() -> None:
    queries, bank = banks(2, 9, 6, queries=1)
    many = bank[[0] * 40 + list(range(9))]
    for chunk in (4, 16, 100):
        values, rows = topk(queries, many, 49, chunk)
        first = [r for r in rows[0].tolist() if r < 41]
        assert first == sorted(first)
        assert_nearest(queries, many, 45, *(x[:, :45] for x in (values, rows)))
    alike = torch.ones(30, 4) / 2
    assert topk(torch.ones(1, 4), alike, 30, 7)[1][0].tolist() == list(range(30))


def test_centred_rows() -> None:
    queries, bank = banks(3, 400, 20)
    mean = bank.mean(0)
    values, rows = topk(queries, bank, 30, 64, mean=mean)
    assert_nearest(queries, unit(bank - mean), 30, values, rows)


def test_a_bank_in_a_file(tmp_path: Path) -> None:
    queries, bank = banks(4, 500, 12)
    np.save(tmp_path / "bank.npy", bank.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "bank.npy", mmap_mode="c"))
    values, rows = topk(queries, mapped, 40, 100)
    assert torch.equal(rows, topk(queries, bank, 40, 100)[1])
    assert torch.equal(values, topk(queries, bank, 40, 100)[0])


@pytest.mark.parametrize("k", [0, -1, 6])
def test_more_than_there_are(k: int) -> None:
    with pytest.raises(InferKitError, match=rf"k={k} phrases are asked for, the bank has 5\."):
        topk(torch.ones(1, 2), torch.ones(5, 2), k)


def test_near_duplicates_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK", 16)
    monkeypatch.setattr(near_duplicates, "CHUNK", 24)
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        centres = unit(torch.randn(12, 8, generator=g))
        noise = 0.25 * torch.randn(90, 8, generator=g)
        bank = unit(centres[torch.randint(0, 12, (90,), generator=g)] + noise)
        kept: list[int] = []
        for n in range(90):
            if all(float(bank[n] @ bank[m]) < 0.9 for m in kept):
                kept.append(n)
        assert first_of_each(bank, 0.9).nonzero()[:, 0].tolist() == kept
        assert 12 <= len(kept) < 80


def test_what_went_drops_nothing() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 20, 40, 60]))
    bank = torch.stack([angles.cos(), angles.sin()], 1)
    assert first_of_each(bank, float(torch.deg2rad(torch.tensor(25.0)).cos())).tolist() == [
        True, False, True, False,
    ]  # fmt: skip


def test_rows_close_to_a_query() -> None:
    queries, bank = banks(5, 300, 4)
    expected = ((bank @ queries.T) < 0.9).all(1)
    assert torch.equal(far_from(bank, queries, 0.9), expected)
    assert 0 < int((~expected).sum()) < 300


def test_an_index_of_faiss(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    queries, bank = banks(6, 600, 16)
    index = FaissIndex.build(bank, chunk=100)
    assert_nearest(queries, bank, 25, *index.topk(queries, 25))
    index.save(tmp_path / "bank.index")
    for mmap in (False, True):
        again = FaissIndex.load(tmp_path / "bank.index", mmap=mmap)
        assert torch.equal(again.topk(queries, 25)[1], index.topk(queries, 25)[1])
    with pytest.raises(InferKitError, match=r"No index at '.*none': there is no such file"):
        FaissIndex.load(tmp_path / "none")
    rough = FaissIndex.build(bank, "IVF15,Flat")
    rough.index.nprobe = 1
    with pytest.raises(InferKitError, match="finds fewer than k=500 phrases for an image"):
        rough.topk(queries, 500)
    rough.index.nprobe = 15
    assert_nearest(queries, bank, 25, *rough.topk(queries, 25))


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match="faiss is not installed") as error:
        FaissIndex.build(torch.ones(2, 2))
    assert error.value.hint == "pip install 'infer-kit[concepts]'"


@pytest.mark.parametrize(
    "queries, message",
    [
        (torch.ones(4), r"queries have shape \[4\]; expected \[B, 4\]"),
        (torch.ones(2, 3), r"queries have shape \[2, 3\]; expected \[B, 4\]"),
        (torch.tensor([[1.0, float("nan"), 0, 0]]), "queries have numbers that are not finite"),
    ],
)
def test_queries_that_do_not_fit(queries: Tensor, message: str) -> None:
    bank = unit(torch.arange(20.0).reshape(5, 4) + 1)
    with pytest.raises(InferKitError, match=message):
        topk(queries, bank, 2)
    pytest.importorskip("faiss")
    with pytest.raises(InferKitError, match=message):
        FaissIndex.build(bank).topk(queries, 2)


def test_no_queries_and_no_chunk() -> None:
    values, rows = topk(torch.empty(0, 4), torch.ones(5, 4), 3)
    assert values.shape == rows.shape == (0, 3) and rows.dtype == torch.long
    with pytest.raises(InferKitError, match="chunk is a number from 1 on, got 0"):
        topk(torch.ones(1, 4), torch.ones(5, 4), 3, chunk=0)


def test_random_banks_with_duplicates() -> None:
    """Acceptance check 1 over many shapes; half of the rows are equal to others."""
    g = torch.Generator().manual_seed(7)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    for trial in range(150):
        n, d = number(1, 300), number(1, 40)
        queries, bank = banks(trial, n, d, queries=number(1, 5))
        if trial % 2:
            bank = bank[torch.randint(0, n, (n,), generator=g)]
        if trial % 3 == 0:
            bank = bank.half()
        k, chunk = number(1, n), number(1, n + 3)
        assert_nearest(queries, bank.float(), k, *topk(queries, bank, k, chunk))


def test_near_duplicates_depend_on_the_order() -> None:
    """The first one stays: from either end of a chain another choice is made."""
    angles = torch.deg2rad(torch.tensor([0.0, 20, 40, 60, 80]))
    bank = torch.stack([angles.cos(), angles.sin()], 1)
    cosine = float(torch.deg2rad(torch.tensor(45.0)).cos())
    assert first_of_each(bank, cosine).tolist() == [True, False, False, True, False]
    middle = bank[[2, 0, 1, 3, 4]]
    assert first_of_each(middle, cosine).tolist() == [True, False, False, False, False]
    half = first_of_each(bank.half(), cosine)
    assert half.tolist() == [True, False, False, True, False]


def test_close_rows_are_those_of_several_queries_and_all_of_them() -> None:
    queries, bank = banks(8, 2000, 3, queries=4)
    bank = bank[(bank @ queries.T).amax(1).argsort(descending=True)[:400]]
    assert torch.equal(far_from(bank, queries, 0.8), ((bank @ queries.T) < 0.8).all(1))
    assert far_from(bank, torch.empty(0, 3), 0.8).all()


def test_indices_that_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    bank = unit(torch.arange(20.0).reshape(5, 4) + 1)
    for factory in ("Nonsense", "IVF50,Flat"):
        with pytest.raises(InferKitError, match=f"cannot make the index '{factory}' of 5 rows"):
            FaissIndex.build(bank, factory)
    index = FaissIndex.build(bank)
    for k, message in ((0, "k=0 phrases are asked for"), (6, "finds fewer than k=6 phrases")):
        with pytest.raises(InferKitError, match=message):
            index.topk(torch.ones(1, 4), k)
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(InferKitError, match="is no index of FAISS"):
        FaissIndex.load(tmp_path / "bad")
