"""The nearest 2,048 of a million phrases: chunks beside FAISS and a product with the whole bank."""

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.benchmarks.measuring import Claim, at_least, at_most, interleaved, median_ratio
from infer_kit.concepts.retrieval import FaissIndex, topk

D, K, BANK = 512, 2048, 1_000_000
CHUNKED, HALF, BRUTE, FAISS = "ours", "ours, float16 bank", "whole product, torch", "FAISS, flat"


def bank(rows: int, seed: int = 0) -> Tensor:
    """`[N, d]` float32: unit rows around a common mean."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.empty(rows, D)
    mean = torch.randn(D, generator=generator)
    for part in table.split(65_536):
        torch.nn.functional.normalize(
            torch.randn(part.shape, generator=generator) + mean, dim=1, out=part
        )
    return table


def measure(queries: int, rounds: int) -> tuple[list[Claim], list[dict[str, Any]]]:
    """CPU time, memory and exactness of every side."""
    table = bank(BANK)
    v = torch.nn.functional.normalize(torch.randn(queries, D) + 0.3 * table[:queries], dim=1)
    half = table.half()
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(side: str, search: Callable[[], tuple[Tensor, Tensor]]) -> None:
        found[side] = search()

    def brute() -> tuple[Tensor, Tensor]:
        values, rows = (v @ table.T).topk(K, dim=1)
        return values, rows

    sides = {
        CHUNKED: partial(keep, CHUNKED, lambda: topk(v, table, K)),
        HALF: partial(keep, HALF, lambda: topk(v, half, K)),
        BRUTE: partial(keep, BRUTE, brute),
    }
    bytes_of = {CHUNKED: table.nbytes, HALF: half.nbytes, BRUTE: table.nbytes}
    index = _faiss(table)
    if index is not None:
        sides[FAISS] = partial(keep, FAISS, lambda: index.topk(v, K))
        bytes_of[FAISS] = table.nbytes
    times = interleaved(sides, rounds)
    peaks = {side: _peak(search) for side, search in sides.items()}
    exact, values = _reference(v[:4], table)
    rows: list[dict[str, Any]] = []
    for side in sides:
        got = found[side]
        same = [len(set(a) & set(b)) / K for a, b in zip(got[1][:4].tolist(), exact, strict=True)]
        rows.append(
            {
                "side": side,
                "CPU ms a query": 1e3 * statistics.median(times[side]) / queries,
                "to ours": median_ratio(times, side, CHUNKED),
                "bank GB": bytes_of[side] / 1e9,
                "search MB": peaks[side] / 1e6,
                "set alike": statistics.mean(same),
                "values off": float((got[0][:4].double() - values).abs().max()),
            }
        )
    by = {row["side"]: row for row in rows}
    claims = [
        at_least("retrieval_set_alike", by[CHUNKED]["set alike"], 1 - 1 / K),
        at_most("retrieval_values_off", by[CHUNKED]["values off"], 1e-6),
    ]
    if index is not None:
        claims.append(at_most("retrieval_vs_faiss", median_ratio(times, CHUNKED, FAISS), 1.0))
    return claims, rows


def _reference(v: Tensor, table: Tensor) -> tuple[list[list[int]], Tensor]:
    """The nearest rows in float64."""
    scores = torch.cat([v.double() @ part.double().T for part in table.split(65_536)], 1)
    values, rows = scores.topk(K, dim=1)
    return rows.tolist(), values


def _faiss(table: Tensor) -> FaissIndex | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return FaissIndex.build(table)


def _peak(search: Callable[[], Any]) -> float:
    """Bytes of memory that a search needs beside what is there before; NaN where not Linux."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(int(statm.read_text().split()[1]))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    before = int(statm.read_text().split()[1])
    watcher.start()
    try:
        search()
    finally:
        done.set()
        watcher.join()
    return 4096.0 * max(0, max(seen) - before)
