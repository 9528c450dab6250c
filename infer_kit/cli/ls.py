"""`infer-kit ls`: the methods and their formulas."""

from rich.console import Console
from rich.table import Table

from infer_kit.methods import METHODS


def ls() -> None:
    """List the methods, what they compute, and where they come from."""
    table = Table()
    table.add_column("method", no_wrap=True)
    for title in ("formula", "runs on", "source"):
        table.add_column(title)
    for method in METHODS:
        table.add_row(method.name, method.formula, ", ".join(method.backends), method.paper)
    Console().print(table)
