"""`infer-kit demo icl`: demonstrations against accuracy, and chunks against latency."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from infer_kit.cli.demo import check_save, quieten
from infer_kit.errors import InferKitError

ROUNDS = 11
MOST = 256


def demo_icl(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Write a picture and a figure here.")] = None,
    episodes: Annotated[int, typer.Option(help="Held-out episodes, one query each.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the held-out episodes.")] = 0,
) -> None:
    """Parallel in-context learning on a tiny model that ships, offline, in about a minute.

    In every episode made-up words are bound anew to colours or shapes, and the answer to a query
    is in its demonstrations alone. Shows accuracy by number of demonstrations in full context and
    in chunks, then the CPU time of a query at the most demonstrations that fit. It is a teaching
    model, and no evidence for the paper.

    Example: infer-kit demo icl --save demo/
    """
    from rich.console import Console
    from rich.progress import Progress

    started = time.perf_counter()
    if episodes < 2:
        raise InferKitError(f"--episodes must be at least 2 (two attributes), got {episodes}.")
    check_save(save)
    console = Console(quiet=as_json)
    quieten()
    from infer_kit.demo import icl
    from infer_kit.demo.icl import ways
    from infer_kit.demo.icl.episodes import held_out

    with console.status("Loading the tiny model"):
        model, processor = icl.load()
        questions = held_out(episodes, max(ways.SHOTS), seed)
    shown = _show_one(console, model, processor, questions[0])
    with Progress(console=console, transient=True, disable=as_json) as bar:
        task = bar.add_task("Answering", total=ways.fitted_steps())
        accuracy = ways.accuracies(
            model,
            processor,
            questions,
            progress=lambda name: bar.update(task, description=name, advance=1),
        )
    with console.status("Timing"):
        (long,) = held_out(1, MOST, seed)
        shots = ways.most_shots(model, processor, long)
        seconds = {
            count: ways.latencies(model, processor, long, count, ROUNDS)
            for count in ways.LATENCY_SHOTS
            if count <= shots
        }
    _tables(console, accuracy, episodes, seconds)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        questions[0].query.picture.save(save / "query.png")
        figure = icl_figure(save / "icl.png", accuracy, seconds)
        console.print(f"Saved {save / 'query.png'} and {figure}.")
    whole = time.perf_counter() - started
    console.print(f"{episodes} episodes in {whole:.1f} s.", style="dim")
    if as_json:
        most = seconds[shots]
        report = {
            "accuracy": {
                way: {str(n): share for n, share in shares.items()}
                for way, shares in accuracy.items()
            },
            "latency": {
                "shots": shots,
                "cpu_seconds": most,
                "ratio": {name: value / most["full context"] for name, value in most.items()},
                "cpu_seconds_by_shots": {str(count): row for count, row in seconds.items()},
            },
            "n": episodes,
            "seed": seed,
            "seconds": round(whole, 2),
            "example": shown,
        }
        print(json.dumps(report))


def _show_one(console: Any, model: Any, processor: Any, episode: Any) -> dict[str, Any]:
    """One query in two chunks, with each chunk's part in every token."""
    from rich.panel import Panel
    from rich.table import Table

    from infer_kit.demo.icl import ways
    from infer_kit.methods.parallel_icl import ParallelICL

    picl = ParallelICL(model, processor, chunks=2).fit(episode.records(8))
    out = picl.generate([episode.query.turn()], **ways.ANSWER)
    facts = Table.grid(padding=(0, 2))
    board = episode.query.board
    facts.add_row("query", f"a {board.color} {board.shape}, {episode.query.question}")
    names = [f"{d.board.color} {d.board.shape}: {d.answer}" for d in episode.demonstrations[:8]]
    for k, members in enumerate(out.chunks):
        shown = ", ".join(names[i] for i in members)
        facts.add_row(f"chunk {k}, weight {out.weights[k]:.2f}", shown)
    facts.add_row("true answer", episode.query.answer)
    facts.add_row("answer", out.text)
    console.print(Panel(facts, title="A held-out episode, 8 demonstrations in 2 chunks"))
    console.print(out.trace.table(title="What each chunk added to the answer"))
    return {
        "question": episode.query.question,
        "answer": episode.query.answer,
        "prediction": out.text,
        "chunks": out.chunks,
        "weights": out.weights,
        "trace": out.trace.to_dict(),
    }


def _tables(
    console: Any,
    accuracy: dict[str, dict[int, float]],
    episodes: int,
    seconds: dict[int, dict[str, float]],
) -> None:
    from rich.table import Table

    counts = sorted({n for shares in accuracy.values() for n in shares})
    table = Table("way \\ demonstrations", *map(str, counts), title=f"Accuracy, {episodes} queries")
    for way, shares in accuracy.items():
        table.add_row(way, *(f"{shares[n]:.3f}" if n in shares else "" for n in counts))
    console.print(table)
    title = "CPU ms of a query (ratio to full context)"
    table = Table("way \\ demonstrations", *map(str, seconds), title=title)
    for way in next(iter(seconds.values())):
        cells = [f"{1000 * row[way]:.0f} ({row[way] / row['full context']:.2f})"
                 for row in seconds.values()]  # fmt: skip
        table.add_row(way, *cells)
    console.print(table)


def icl_figure(
    path: Path, accuracy: dict[str, dict[int, float]], seconds: dict[int, dict[str, float]]
) -> Path:
    """Accuracy, and the time of a query, against the number of demonstrations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (way, shares) in enumerate(accuracy.items()):
        size = 11 - 2 * number  # lines that lie on each other stay visible
        left.plot(list(shares), list(shares.values()), marker="o", markersize=size, label=way)
    left.set_xscale("symlog", base=2, linthresh=1)
    counts = sorted({n for shares in accuracy.values() for n in shares})
    left.set_xticks(counts, map(str, counts))
    left.set_xlabel("demonstrations")
    left.set_ylabel("accuracy")
    left.legend(fontsize="small")
    for way in next(iter(seconds.values())):
        times = [1000 * row[way] for row in seconds.values()]
        right.plot(list(seconds), times, marker="o", label=way)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(list(seconds), map(str, seconds))
    right.set_xlabel("demonstrations")
    right.set_ylabel("CPU ms a query")
    right.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    return path
