"""Tables and figures of finished runs.

python evals/report.py runs/
python evals/report.py runs/ --out report/
"""

from pathlib import Path
from typing import Annotated

import typer

from infer_kit.cli import run_app


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or runs.")],
    out: Annotated[Path | None, typer.Option(help="Write runs.csv and the figures here.")] = None,
) -> None:
    """Show the figures of finished runs, best first; with --out also a CSV file and figures.

    Figures: the main metric against a swept weight, speed against chunks, agreement of answers,
    and (runs with --trace) each stream's part by token.
    """
    from rich.console import Console

    from infer_kit.evaluation.report import finished_runs, rows_of, tables_of, write_report

    console = Console()
    done, left = finished_runs(runs)
    for table in tables_of(rows_of(done)):
        console.print(table)
    for path in left:
        console.print(f"not finished: {path}", style="yellow", soft_wrap=True)
    if out is not None:
        for path in write_report(done, out):
            console.print(f"wrote {path}", style="dim", soft_wrap=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog="Example: python evals/report.py runs/ --out report/")(report)
    run_app(app)
