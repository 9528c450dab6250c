"""The teaching models' held-out questions as files of samples, for `infer-kit eval --data demo`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from PIL.Image import Image

SETS = {"demo": "scenes", "demo-icl": "bindings"}
"""Names of the sets, and of their folders: questions about scenes, and words bound in context."""

COUNT = 200
SHOTS = 16


def written(name: str, folder: Path) -> Path:
    """The file of a set of `COUNT` samples, written below `folder` if it is not there.

    Raises:
        InferKitError: it cannot be written.
    """
    out = folder / SETS[name] / "test.jsonl"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(".writing.lock")):  # of several processes one writes
            if not out.is_file():
                (write_scenes if name == "demo" else write_bindings)(out)
    except OSError as error:
        raise InferKitError(f"{out} cannot be written: {error.strerror}.") from error
    return out


def write_scenes(out: Path, count: int = COUNT, seed: int = 0) -> None:
    """Write `count` held-out questions about scenes; their kind is the category."""
    from infer_kit.demo.scenes import held_out

    pictures, name = _Pictures(out), _named("scene", seed)
    _write(
        out,
        (
            {
                "id": f"{name}-{n}",
                "question": record.question,
                "answers": [record.answer],
                "images": [pictures.save(f"{name}-{n}", record.picture)],
                "category": record.kind,
            }
            for n, record in enumerate(held_out(count, seed))
        ),
    )


def write_bindings(out: Path, count: int = COUNT, seed: int = 0, shots: int = SHOTS) -> None:
    """Write `count` held-out episodes, each with demonstrations of its own."""
    from infer_kit.demo.icl.episodes import held_out

    pictures, name = _Pictures(out), _named("episode", seed)
    _write(
        out,
        (
            {
                "id": f"{name}-{n}",
                "question": episode.query.question,
                "answers": [episode.query.answer],
                "images": [pictures.save(f"{name}-{n}", episode.query.picture)],
                "category": episode.attribute,
                "demonstrations": [
                    {
                        "question": shown.question,
                        "answer": shown.answer,
                        "images": [pictures.save(f"{name}-{n}-{k}", shown.picture)],
                    }
                    for k, shown in enumerate(episode.demonstrations)
                ],
            }
            for n, episode in enumerate(held_out(count, shots, seed))
        ),
    )


def _named(kind: str, seed: int) -> str:
    """How ids and pictures begin: sets of several seeds may be written to one folder."""
    return kind if seed == 0 else f"{kind}-seed{seed}"


class _Pictures:
    """Saves pictures beside the file of samples."""

    def __init__(self, out: Path) -> None:
        self.root = out.parent

    def save(self, name: str, picture: "Image") -> str:
        """The path relative to the file of samples."""
        path = Path("images") / f"{name}.png"
        picture.save(self.root / path)
        return path.as_posix()


def _write(out: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """The file appears whole or not at all."""
    try:
        (out.parent / "images").mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        with part.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        part.replace(out)
    except OSError as error:
        raise InferKitError(f"{out} cannot be written: {error.strerror}.") from error
