"""Figures of finished runs, by matplotlib, on canvases of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer_kit.canvas import canvas, saved
from infer_kit.evaluation.comparison import agreement
from infer_kit.evaluation.run_folder import RunFolder

_MOST_AGREEING = 16  # runs in a picture of agreement
_MOST_TOKENS = 24  # places in a heat map of traces


@dataclass(frozen=True)
class FinishedRun:
    """A run with its figures.

    Attributes:
        folder: its folder. results: what it holds.
    """

    folder: RunFolder
    results: dict[str, Any]

    @property
    def method(self) -> str:
        name: str = self.results["config"]["method"]
        return name

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.results["config"]["options"]
        return options

    def facts(self) -> dict[str, str]:
        """What the run was asked for beside data and method, flat, as texts."""
        config = self.results["config"]
        out = {key: str(value) for key, value in self.options.items()}
        out |= {key: str(value) for key, value in config["generation"].items()}
        for part in ("model_arguments", "processor_arguments"):
            out |= {key: str(value) for key, value in config[part].items()}
        for name in ("instruction", "system", "chat_template", "batch_size", "seed", "trace"):
            out[name] = str(config[name])[:24]
        shots = config["demonstrations"]
        out["shots"] = "none" if shots is None else f"{shots[1] or 'all'} of {shots[0][:6]}"
        out |= {key: self.named(key) for key in self.options if key in out}
        return out

    def named(self, option: str) -> str:
        """An option's value; of models and rewards the names of their folders."""
        given = str(self.results["paths"]["options"].get(option, self.options[option]))
        return "+".join(Path(part).name for part in given.split("+")) if "/" in given else given

    @property
    def main(self) -> tuple[str, float, float]:
        """Name, value and standard error of the task's main figure."""
        name = next(iter(self.results["metrics"]))
        figure = self.results["metrics"][name]
        value = float("nan") if figure["value"] is None else figure["value"]
        return name, value, figure["stderr"] or 0.0

    @property
    def group(self) -> tuple[str, ...]:
        """Equal for runs whose figures stand in one table: model, data, task, limit."""
        config = self.results["config"]
        return tuple(str(config[k]) for k in ("model", "data", "task", "limit", "backend"))


def labels_of(runs: Sequence[FinishedRun], but: str | None = None) -> list[str]:
    """What to call each of some runs: its method, its options, and in what else they differ.

    Args:
        but: an option that is not told, since it is an axis.
    """
    tables = [run.facts() for run in runs]
    differing = {
        key
        for table in tables
        for key, value in table.items()
        if any(other.get(key, value) != value for other in tables)
    }
    labels = []
    for run, table in zip(runs, tables, strict=True):
        told = [k for k in table if k != but and (k in run.options or k in differing)]
        inner = ", ".join(f"{key}={table[key]}" for key in told)
        labels.append(f"{run.method} ({inner})" if inner else run.method)
    return labels


def against_option(
    runs: Sequence[FinishedRun], option: str, path: Path, baseline: FinishedRun | None
) -> Path:
    """The main figure against the value of an option, a line a setting, with standard errors."""
    figure, axes = canvas()
    labels = labels_of(runs, but=option)
    for label in dict.fromkeys(labels):
        own = [run for run, called in zip(runs, labels, strict=True) if called == label]
        own.sort(key=lambda run: float(run.options[option]))
        x = [float(run.options[option]) for run in own]
        mains = [run.main for run in own]
        axes.errorbar(
            x, [m[1] for m in mains], [m[2] for m in mains], marker="o", capsize=3, label=label
        )
    if baseline is not None:
        axes.axhline(baseline.main[1], color="grey", ls="--", lw=1, label=baseline.method)
    axes.set_xlabel(option)
    axes.set_ylabel(f"{runs[0].main[0]} ({runs[0].results['n']:,} samples)")
    axes.legend(fontsize="small")
    return saved(figure, path)


def speed_against_chunks(runs: Sequence[FinishedRun], path: Path) -> Path:
    """Seconds a sample and the main figure of Parallel-ICL against its number of chunks."""
    figure, axes = canvas()
    first = labels_of(runs, but="chunks")[0]  # of several settings the first
    own = [
        r for r, label in zip(runs, labels_of(runs, but="chunks"), strict=True) if label == first
    ]
    own.sort(key=lambda run: int(run.options["chunks"]))
    axes.set_title(first, fontsize="small")
    x = [int(run.options["chunks"]) for run in own]
    axes.plot(x, [r.results["seconds"] / r.results["n"] for r in own], marker="o", color="tab:blue")
    axes.set_xlabel("chunks")
    axes.set_ylabel("seconds a sample", color="tab:blue")
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.set_xticks(x)
    other = axes.twinx()
    mains = [run.main for run in own]
    other.errorbar(
        x, [m[1] for m in mains], [m[2] for m in mains], marker="s", capsize=3, color="tab:orange"
    )
    other.set_ylabel(mains[0][0], color="tab:orange")
    return saved(figure, path)


def agreement_of(runs: Sequence[FinishedRun], path: Path) -> Path:
    """The share of equal answers of every two runs."""
    runs = runs[:_MOST_AGREEING]
    shares = [[agreement(a.folder, b.folder) for b in runs] for a in runs]
    table = np.array(shares, dtype=float)  # None, of runs without a common sample, is NaN
    figure, axes = canvas(1.2 + 0.55 * len(runs), 0.8 + 0.5 * len(runs))
    shown = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
    names = labels_of(runs)
    axes.set_xticks(range(len(runs)), names, rotation=45, ha="right", fontsize="x-small")
    axes.set_yticks(range(len(runs)), names, fontsize="x-small")
    for (i, j), share in np.ndenumerate(table):
        colour = "white" if share < 0.6 else "black"
        axes.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    figure.colorbar(shown, label="equal answers")
    return saved(figure, path)


def streams_by_token(run: FinishedRun, path: Path) -> Path | None:
    """Each stream's mean part in the margin of the first, second, … token.

    None without traces, and where there is one stream. Only of products: the margins of others are
    no sums over streams.
    """
    traces = [line["trace"] for line in run.folder.lines().values() if "trace" in line]
    traces = [trace for trace in traces if "parts" in trace and trace["streams"]]
    names = list(dict.fromkeys(name for trace in traces for name in trace["streams"]))
    width = min(max((len(trace["parts"]) for trace in traces), default=0), _MOST_TOKENS)
    if not width or len(names) < 2:
        return None
    total, count = np.zeros((len(names), width)), np.zeros((len(names), width))
    for trace in traces:
        for t, parts in enumerate(trace["parts"][:width]):
            for name, part in zip(trace["streams"], parts, strict=True):
                if part is not None:
                    total[names.index(name), t] += part
                    count[names.index(name), t] += 1
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    figure, axes = canvas(max(4.0, 0.45 * width + 2.5), 1.2 + 0.5 * len(names))
    most = float(np.nanmax(np.abs(mean))) or 1.0
    shown = axes.imshow(mean, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(width), range(1, width + 1))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("token")
    axes.set_title(f"{labels_of([run])[0]}: nats over the runner-up, mean", fontsize="small")
    figure.colorbar(shown)
    return saved(figure, path)
