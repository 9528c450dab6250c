"""A folder of runs as tables and figures."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_kit.errors import InferKitError
from infer_kit.evaluation.figures import (
    FinishedRun,
    against_option,
    agreement_of,
    labels_of,
    speed_against_chunks,
    streams_by_token,
)
from infer_kit.evaluation.run_folder import folders_of

if TYPE_CHECKING:
    from rich.table import Table

_LOWER = {"bits_per_byte"}  # figures of which less is better
_FIELDS = (
    "model",
    "data",
    "limit",
    "method",
    "metric",
    "value",
    "stderr",
    "n",
    "errors",
    "seconds",
    "run",
)


def finished_runs(paths: Sequence[str | Path]) -> tuple[list[FinishedRun], list[Path]]:
    """The runs that are finished, and the folders of those that are not.

    Raises:
        InferKitError: there are no runs.
    """
    folders = folders_of(paths)
    done = [folder for folder in folders if folder.is_finished]
    left = [folder.path for folder in folders if not folder.is_finished]
    return [FinishedRun(folder, folder.results) for folder in done], left


def rows_of(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """A row a run, best first within model and data."""
    rows = []
    for _, members in sorted(_grouped(runs).items()):
        best = [(run.main[1], run.main[0]) for run in members]
        pairs = zip(members, labels_of(members), best, strict=True)
        ordered = sorted(
            pairs, key=lambda p: (p[2][0] if p[2][1] in _LOWER else -p[2][0], _natural(p[1]))
        )
        rows += [_row(run, label) for run, label, _ in ordered]
    return rows


def _grouped(runs: Sequence[FinishedRun]) -> dict[tuple[str, ...], list[FinishedRun]]:
    """Runs whose figures stand in one table, see `FinishedRun.group`."""
    groups: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def _row(run: FinishedRun, label: str) -> dict[str, Any]:
    name, value, error = run.main
    return {
        "model": run.results["paths"]["model"],
        "data": run.results["paths"]["data"],
        "limit": run.results["config"]["limit"],
        "method": label,
        "metric": name,
        "value": value,
        "stderr": error,
        "n": run.results["n"],
        "errors": run.results["errors"],
        "seconds": run.results["seconds"],
        "run": run.folder.path.name,
    }


def tables_of(rows: Sequence[dict[str, Any]]) -> list["Table"]:
    """For the terminal, one for each model and data."""
    from rich.table import Table
    from rich.text import Text

    tables: dict[tuple[str, ...], Table] = {}
    for row in rows:
        limited = "" if row["limit"] is None else f", the first {row['limit']:,}"
        key = (row["model"], row["data"], row["metric"], limited)
        if key not in tables:
            title = Text(f"{row['model']} on {row['data']}{limited}")
            tables[key] = Table("method", row["metric"], "s.e.", "n", "s/sample", title=title)
        tables[key].add_row(
            Text(row["method"]),
            f"{row['value']:.4f}",
            f"{row['stderr']:.4f}",
            f"{row['n']:,}" + (f" (−{row['errors']})" if row["errors"] else ""),
            f"{row['seconds'] / max(row['n'], 1):.3f}",
        )
    return list(tables.values())


def write_report(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Write `runs.csv` and the figures that the runs have; returns the files.

    Raises:
        InferKitError: the folder cannot be written.
    """
    rows = rows_of(runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "runs.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        files = [out / "runs.csv"]
        for number, members in enumerate(_grouped(runs).values(), 1):
            paths = members[0].results["paths"]
            name = (
                f"{number}-{Path(paths['model']).name}-{Path(paths['data']).resolve().parent.name}"
            )
            files += _figures(members, out, _plain(name))
    except OSError as error:
        raise InferKitError(f"{str(out)!r} cannot be written: {error.strerror}.") from error
    return files


def _figures(runs: Sequence[FinishedRun], out: Path, prefix: str) -> list[Path]:
    """Of runs of one model on one file of samples."""
    files = []
    plain = [run for run in runs if run.method == "direct" and not run.options]
    baseline = plain[0] if len(plain) == 1 else None  # of several none is the baseline
    for option in ("weight", "alpha", "scale", "strength", "beta"):
        swept = [run for run in runs if _is_number(run.options.get(option))]
        if len({run.options[option] for run in swept}) > 1:
            path = out / f"{prefix}-against-{option}.png"
            files.append(against_option(swept, option, path, baseline))
    chunked = [run for run in runs if isinstance(run.options.get("chunks"), int)]
    if len({run.options["chunks"] for run in chunked}) > 1:
        files.append(speed_against_chunks(chunked, out / f"{prefix}-speed-against-chunks.png"))
    answering = [run for run in runs if run.results["config"]["task"] != "bits_per_byte"]
    if len(answering) > 1:
        labels = dict(zip(map(id, answering), labels_of(answering), strict=True))
        answering.sort(key=lambda run: _natural(labels[id(run)]))
        files.append(agreement_of(answering, out / f"{prefix}-agreement.png"))
    for run in runs:
        path = out / f"{run.folder.path.name}-streams.png"
        if run.results["config"]["trace"] and streams_by_token(run, path) is not None:
            files.append(path)
    return files


def _natural(label: str) -> list[tuple[float, str]]:
    """Orders labels with their numbers as numbers."""
    pieces = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(p), "") if p[:1].isdigit() else (-1.0, p) for p in pieces]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
