"""`infer-kit compare`: two runs on the same samples."""

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder: the baseline.")],
    second: Annotated[Path, typer.Argument(help="Another, on the same samples.")],
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
    from infer_kit.evaluation.run_folder import RunFolder

    if resamples < 100:
        raise InferKitError(f"--resamples is a number from 100 on, got {resamples}.")
    found = compared(RunFolder(first), RunFolder(second), resamples, seed)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    from rich.console import Console
    from rich.table import Table
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
        flips = Table("id", "question", "target", found.names[0][:24], found.names[1][:24])
        for flip in found.flips[:show]:
            texts = (flip.id, flip.question, str(flip.target), flip.first, flip.second)
            flips.add_row(*map(Text, texts))
        console.print(flips)
