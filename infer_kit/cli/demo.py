"""`infer-kit demo`: one picture's question in three ways, then accuracy over many questions."""

import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_kit.errors import InferKitError, MissingExtra

if TYPE_CHECKING:
    from rich.console import Console

LABELS = {
    "direct": "direct (image)",
    "cot": "chain of thought (image and rationale together)",
    "rationale_only": "rationale only",
    "red": "RED (image × rationale)",
    "red_shuffled": "RED, another picture's rationale",
}


def demo(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the picture and a figure of the trace here.")
    ] = None,
    weight: Annotated[float, typer.Option(help="RED's weight of the rationale.")] = 1.0,
    questions: Annotated[int, typer.Option(help="Held-out questions to answer, even.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the held-out questions.")] = 0,
) -> None:
    """Rationale-enhanced decoding on the tiny model that ships, offline, within a minute.

    Shows one picture's question, the rationale, and the answers of direct decoding, chain of
    thought and RED with each stream's part in every token; then the accuracy of each way over
    held-out questions of two kinds. It is a teaching model, and no evidence for the paper.

    Example: infer-kit demo --save demo/
    """
    if context.invoked_subcommand is not None:
        given = [n for n in context.params if "COMMANDLINE" in str(context.get_parameter_source(n))]
        if given:
            name = context.invoked_subcommand
            raise InferKitError(f"Options come after {name!r}: infer-kit demo {name} --…")
        return
    from rich.console import Console

    started = time.perf_counter()
    if questions < 4 or questions % 2:
        raise InferKitError(
            f"--questions must be an even number of at least 4 (two kinds), got {questions}."
        )
    check_save(save)
    console = Console(quiet=as_json)
    quieten()
    from infer_kit import demo as tiny
    from infer_kit.demo.scenes import held_out

    with console.status("Loading the tiny model"):
        model, processor = tiny.load()
        records = held_out(questions, seed)
    shown = _show_one(console, model, processor, records, weight, save)
    accuracies = _accuracies(console, model, processor, records, weight)
    seconds = time.perf_counter() - started
    _table(console, accuracies, len(records), weight)
    console.print(f"{len(records)} questions in {seconds:.1f} s.", style="dim")
    if as_json:
        print(json.dumps(_report(shown, accuracies, len(records), weight, seed, seconds)))


def check_save(save: Path | None) -> None:
    """Raise unless pictures and figures can be written to the folder `save`, if any."""
    if save is not None and save.exists() and not save.is_dir():
        raise InferKitError(f"--save takes a folder, and {str(save)!r} is a file.")
    if save is not None and importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra(
            "--save draws a figure, and matplotlib is not installed.",
            hint="pip install 'infer-kit[plots]'",
        )


def quieten() -> None:
    """No bars of transformers, and one thread: in a model this small, more would only wait."""
    import torch

    from infer_kit.cli.eval import quiet

    quiet()
    torch.set_num_threads(1)


def _show_one(
    console: "Console", model: Any, processor: Any, records: list, weight: float, save: Path | None
) -> dict[str, Any]:
    """Answer the first walk question in the three ways, with the trace."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from infer_kit.demo import PROMPTS
    from infer_kit.demo.ways import ANSWER, answers, chat_of
    from infer_kit.methods.red import RED

    record = records[0]
    out = RED(model, processor, weight=weight, prompts=PROMPTS).generate(chat_of(record), **ANSWER)
    others = answers(model, processor, [record], weight, ("direct", "cot"))
    facts = Table.grid(padding=(0, 2))
    for name, text in {
        "question": record.question,
        "true answer": record.answer,
        "rationale": out.rationale,
        "direct": others["direct"][0],
        "chain of thought": others["cot"][0],
        "RED": out.text,
    }.items():
        facts.add_row(Text(name, style="bold"), Text(text))
    console.print(Panel(facts, title="A held-out picture"))
    console.print(out.trace.table(title="What each stream added to RED's answer"))
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        record.picture.save(save / "picture.png")
        out.trace.figure(save / "trace.png", title=record.question)
        console.print(f"Saved {save / 'picture.png'} and {save / 'trace.png'}.")
    return {
        "question": record.question,
        "answer": record.answer,
        "rationale": out.rationale,
        "direct": others["direct"][0],
        "cot": others["cot"][0],
        "red": out.text,
        "trace": out.trace.to_dict(),
    }


def _accuracies(
    console: "Console", model: Any, processor: Any, records: list, weight: float
) -> dict[str, dict[str, float]]:
    from rich.progress import Progress

    from infer_kit.demo.ways import WAYS, accuracy, answers

    with Progress(console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("Answering", total=len(WAYS) + 1)

        def progress(way: str) -> None:
            bar.update(task, description=LABELS.get(way, f"Writing {way}"), advance=1)

        given = answers(model, processor, records, weight, progress=progress)
    return {way: accuracy(records, texts) for way, texts in given.items()}


def _table(
    console: "Console", accuracies: dict[str, dict[str, float]], n: int, weight: float
) -> None:
    from rich.table import Table

    kinds = list(accuracies["red"])
    table = Table("way", *kinds, title=f"Accuracy over {n} held-out questions, λ = {weight:g}")
    for way, shares in accuracies.items():
        style = "bold green" if way == "red" else ""
        table.add_row(LABELS[way], *(f"{shares[kind]:.3f}" for kind in kinds), style=style)
    console.print(table)


def _report(
    shown: dict[str, Any],
    accuracies: dict[str, dict[str, float]],
    n: int,
    weight: float,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """The object of --json."""
    return {
        "accuracy": {way: shares["all"] for way, shares in accuracies.items()},
        "accuracy_by_kind": {
            way: {kind: share for kind, share in shares.items() if kind != "all"}
            for way, shares in accuracies.items()
        },
        "n": n,
        "weight": weight,
        "seed": seed,
        "seconds": round(seconds, 2),
        "example": shown,
    }
