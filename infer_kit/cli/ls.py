"""`infer-kit ls`: the methods and their formulas, the tasks, the models that ship."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infer_kit.methods import METHODS


def ls() -> None:
    """List the methods, what they compute and where they come from; tasks; bundled models."""
    from infer_kit.evaluation.tasks import TASKS
    from infer_kit.methods.named import CLASSES
    from infer_kit.vocab.sources import BUNDLED

    names = {path.partition(":")[2]: name for name, path in CLASSES.items()}
    names |= {"Ensemble": "ensemble", "ReducedLM": "reduced", "PortableReward": "reward"}
    console = Console()
    for method in METHODS:
        called = f" (--method {names[method.name]})" if method.name in names else ""
        console.print(
            Text.assemble((method.name, "bold"), called, f", on {', '.join(method.backends)}")
        )
        console.print(Text(f"    {method.formula}"))
        console.print(Text(f"    {method.paper}", style="dim"))
    console.print("\nBaselines: --method direct; --method cot, chain of thought in one context.")
    tasks = Table("--task", "judged by", title="Tasks of infer-kit eval")
    for task in TASKS.values():
        tasks.add_row(task.name, task.about)
    console.print(tasks)
    console.print(f"Models that ship: {', '.join(BUNDLED)}.")
