"""`infer-kit demo icl`: demonstrations against accuracy, and chunks against latency."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from infer_kit.cli.demo import check_save, quieten
from infer_kit.errors import InferKitError

ROUNDS = 15
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
        seconds = ways.latencies(model, processor, long, shots, ROUNDS)
    _tables(console, accuracy, episodes, seconds, shots)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        questions[0].query.picture.save(save / "query.png")
        figure = icl_figure(save / "icl.png", accuracy, seconds, shots)
        console.print(f"Saved {save / 'query.png'} and {figure}.")
    whole = time.perf_counter() - started
    console.print(f"{episodes} episodes in {whole:.1f} s.", style="dim")
    if as_json:
        full = seconds["full context"]
        report = {
            "accuracy": {
                way: {str(n): share for n, share in shares.items()}
                for way, shares in accuracy.items()
            },
            "latency": {
                "shots": shots,
                "cpu_seconds": seconds,
                "ratio": {name: value / full for name, value in seconds.items()},
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
    seconds: dict[str, float],
    shots: int,
) -> None:
    from rich.table import Table

    counts = sorted({n for shares in accuracy.values() for n in shares})
    table = Table("way", *(f"{n} shots" for n in counts), title=f"Accuracy, {episodes} queries")
    for way, shares in accuracy.items():
        table.add_row(way, *(f"{shares[n]:.3f}" if n in shares else "" for n in counts))
    console.print(table)
    table = Table("way", "CPU ms", "ratio", title=f"A query after {shots} demonstrations")
    for way, value in seconds.items():
        table.add_row(way, f"{1000 * value:.1f}", f"{value / seconds['full context']:.2f}")
    console.print(table)


def icl_figure(
    path: Path, accuracy: dict[str, dict[int, float]], seconds: dict[str, float], shots: int
) -> Path:
    """Accuracy against the number of demonstrations, and the time of a query."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.2))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for way, shares in accuracy.items():
        left.plot(list(shares), list(shares.values()), marker="o", label=way)
    left.set_xscale("symlog", base=2, linthresh=1)
    left.set_xticks(counts := sorted({n for s in accuracy.values() for n in s}), map(str, counts))
    left.set_xlabel("demonstrations")
    left.set_ylabel("accuracy")
    left.legend(fontsize="small")
    right.barh(list(seconds), [1000 * value for value in seconds.values()])
    right.invert_yaxis()
    right.set_xlabel(f"CPU ms a query, {shots} demonstrations")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    return path
