"""`infer-kit compare`: two runs on the same samples."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="FIRST SECOND", help="Folders of two runs; the first the baseline."),
    ],
    show: Annotated[int, typer.Option(help="Samples that differ, to be shown.")] = 5,
    resamples: Annotated[int, typer.Option(help="Of the paired bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the paired bootstrap.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Compare two finished runs sample by sample: difference, interval, and who won where."""
    from infer_kit.errors import InferKitError
    from infer_kit.evaluation.comparison import compare as compared
    from infer_kit.evaluation.figures import FinishedRun, labels_of
    from infer_kit.evaluation.run_folder import RunFolder

    if resamples < 100:
        raise InferKitError(f"--resamples is a number from 100 on, got {resamples}.")
    if len(runs) != 2:
        named = ", ".join(map(str, runs))
        raise InferKitError(f"Two runs are compared, and {len(runs)} are given: {named}.")
    folders = [RunFolder(path) for path in runs]
    found = compared(folders[0], folders[1], resamples, seed)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    table = Table("run", found.metric)
    for name, value in zip(found.names, found.values, strict=True):
        table.add_row(Text(name), f"{value:.4f}")
    console.print(table)
    console.print(
        f"difference {found.difference:+.4f}, 95 % from {found.low:+.4f} to {found.high:+.4f} "
        f"(paired bootstrap over {found.n:,} samples), p = {found.p_value:.2g}",
        soft_wrap=True,
    )
    if found.left_out:
        console.print(
            f"{found.left_out:,} samples are left out: one of the runs failed on them.",
            style="yellow",
            soft_wrap=True,
        )
    exact = "" if found.mcnemar is None else f"; sign test p = {found.mcnemar:.2g}"
    console.print(
        f"better on {found.wins}, worse on {found.losses}, equal on {found.ties}{exact}",
        soft_wrap=True,
    )
    if found.flips and show > 0:
        labels = labels_of([FinishedRun(folder, folder.results) for folder in folders])
        flips = Table("id", "question", "target", *(Column(Text(label)) for label in labels))
        for flip in found.flips[:show]:
            texts = (flip.id, flip.question, _counted(flip.target), flip.first, flip.second)
            flips.add_row(*map(Text, texts))
        console.print(flips)


def _counted(target: str | list[str]) -> str:
    """True answers, each once, the most frequent first: white ×8, off white ×2."""
    if isinstance(target, str):
        return target
    counts = Counter(target).most_common()
    return ", ".join(answer if n == 1 else f"{answer} ×{n}" for answer, n in counts)
