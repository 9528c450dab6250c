"""The files of a concept bank.

concepts.txt (a phrase a line), features.npy (`[N, d]`, can be mapped), and bank.json, written last:
a folder without it is no bank. A build that is under way keeps progress.json in its place.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from infer_kit.concepts.bank import DTYPES, ConceptBank, Dtype, checksum
from infer_kit.concepts.encoders import Encoder, text_features
from infer_kit.concepts.phrase_lists import filled
from infer_kit.errors import InferKitError

_FORMAT = 1
_ROWS = 8192  # rows that are encoded between two notes of progress
_PROGRESS = "progress.json"
_HINT = "Give another folder, or delete this one."
_AGAIN = "Copy or build it again."


def save(bank: ConceptBank, folder: Path) -> Path:
    """See `ConceptBank.save`."""
    with _alone(folder):
        if (folder / "bank.json").exists() or (folder / _PROGRESS).exists():
            raise InferKitError(f"{str(folder)!r} holds a bank.", hint=_HINT)
        _refuse_others(folder)
        table = bank.features.cpu().numpy()
        _write_phrases(bank.phrases, folder)
        np.save(folder / "features.npy", table)
        _finish(bank, folder)
    return folder


def load(folder: Path, mmap: bool) -> ConceptBank:
    """See `ConceptBank.load`."""
    notes = _read(folder)
    try:
        phrases = tuple((folder / "concepts.txt").read_text(encoding="utf-8").split("\n"))
        # "c": pages of the file that a write would change are copied, so torch may have them
        table = np.load(folder / "features.npy", mmap_mode="c" if mmap else None)
        changed = (
            checksum(phrases) != notes["concepts_sha256"]
            or list(table.shape) != notes["shape"]
            or (not mmap and _digest(table) != notes["features_sha256"])
        )
        if not changed:
            return ConceptBank(
                phrases, torch.from_numpy(table), notes["encoder"], notes["prompt"],
                notes["dropped"],
            )  # fmt: skip
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise InferKitError(
            f"The bank in {str(folder)!r} cannot be read: {error}", hint=_AGAIN
        ) from error
    raise InferKitError(
        f"The files of the bank in {str(folder)!r} do not belong together: they were changed, "
        "or copied in part.",
        hint=_AGAIN,
    )


def build_in(
    folder: Path, blank: ConceptBank, encoder: Encoder, dtype: Dtype, batch_size: int
) -> ConceptBank:
    """Encode into a file, and go on where an earlier call was interrupted.

    Args:
        blank: the bank that is wanted, without features.
    """
    wanted = {**_identity(blank), "dtype": dtype, "dim": encoder.dim}
    with _alone(folder):
        if (folder / "bank.json").exists():
            bank = load(folder, mmap=True)
            found = _identity(bank)
            here = {**found, "dtype": str(bank.features.numpy().dtype), "dim": bank.dim}
            if here != wanted:
                raise InferKitError(f"{str(folder)!r} holds another bank.", hint=_HINT)
            bank.check(encoder)
            return bank
        table, done = _begun(folder, blank, encoder, wanted)
        _encode(folder, blank, encoder, batch_size, table, done, wanted)
        _finish(replace(blank, features=torch.from_numpy(np.asarray(table))), folder)
        (folder / _PROGRESS).unlink()
        return load(folder, mmap=True)


def _begun(
    folder: Path, blank: ConceptBank, encoder: Encoder, wanted: dict[str, Any]
) -> tuple[np.ndarray, int]:
    """The table to write to, and how many of its rows are there already."""
    done, shape = 0, (len(blank.phrases), encoder.dim)
    file = folder / "features.npy"
    if (folder / _PROGRESS).exists():
        try:
            notes = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            same, done = notes["bank"] == wanted, int(notes["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise InferKitError(
                f"{str(folder / _PROGRESS)!r} cannot be read: {error!r}", hint=_HINT
            ) from error
        if not same:
            raise InferKitError(
                f"{str(folder)!r} holds an unfinished build of another bank.", hint=_HINT
            )
    else:
        _refuse_others(folder)
        _write(folder / _PROGRESS, {"bank": wanted, "done": 0})
    _write_phrases(blank.phrases, folder)
    if not done:
        mapped = np.lib.format.open_memmap(file, mode="w+", dtype=wanted["dtype"], shape=shape)
        return mapped, 0
    try:
        table = np.lib.format.open_memmap(file, mode="r+")
    except (OSError, EOFError, ValueError) as error:
        raise InferKitError(f"{str(file)!r} cannot be read: {error}", hint=_HINT) from error
    if table.shape != shape:
        raise InferKitError(
            f"{str(file)!r} has shape {list(table.shape)}; expected {list(shape)}.", hint=_HINT
        )
    earlier = torch.from_numpy(np.array(table[:done]))
    replace(blank, phrases=blank.phrases[:done], features=earlier).check(encoder)
    return table, done


def _encode(
    folder: Path, blank: ConceptBank, encoder: Encoder, batch_size: int, table: np.ndarray,
    done: int, wanted: dict[str, Any],
) -> None:  # fmt: skip
    """Rows from `done` on, with a note of progress after every part."""
    N, kind = len(blank.phrases), DTYPES[wanted["dtype"]]
    with tqdm(total=N, initial=done, desc="encoding phrases", disable=_ROWS > N) as bar:
        while done < N:
            some = slice(done, min(done + _ROWS, N))
            texts = filled(blank.prompt, blank.phrases[some])
            table[some] = text_features(encoder, texts, batch_size, bar=False).to(kind).numpy()
            table.flush()  # type: ignore[attr-defined]
            bar.update(some.stop - done)
            done = some.stop
            _write(folder / _PROGRESS, {"bank": wanted, "done": done})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from writing to it meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InferKitError(f"{str(folder)!r} cannot be made: {error.strerror}.") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InferKitError(f"Another process writes a bank to {str(folder)!r}.") from error
    try:
        yield
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)


def _refuse_others(folder: Path) -> None:
    """Files of the user's own are not written over."""
    for name in ("concepts.txt", "features.npy"):
        if (folder / name).exists():
            raise InferKitError(
                f"{str(folder / name)!r} exists and is of no bank.", hint="Give another folder."
            )


def _identity(bank: ConceptBank) -> dict[str, Any]:
    return {
        "concepts_sha256": checksum(bank.phrases),
        "encoder": bank.encoder,
        "prompt": bank.prompt,
    }


def _write_phrases(phrases: tuple[str, ...], folder: Path) -> None:
    (folder / "concepts.txt").write_text("\n".join(phrases), encoding="utf-8")


def _finish(bank: ConceptBank, folder: Path) -> None:
    from infer_kit import __version__

    _write(
        folder / "bank.json",
        {
            **_identity(bank),
            "features_sha256": _digest(bank.features.cpu().numpy()),
            "shape": list(bank.features.shape),
            "dropped": dict(bank.dropped),
            "format": _FORMAT,
            "infer_kit": __version__,
        },
    )


def _digest(table: np.ndarray) -> str:
    """sha256 of the numbers, read in parts."""
    digest = hashlib.sha256()
    for start in range(0, len(table), _ROWS):
        digest.update(np.ascontiguousarray(table[start : start + _ROWS]).tobytes())
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "bank.json"
    if not file.is_file():
        unfinished = (folder / _PROGRESS).exists()
        raise InferKitError(
            f"{str(folder)!r} holds no bank: " + ("its build did not end." if unfinished else
            "there is no bank.json."),
            hint="Build it with ConceptBank.build(..., folder=...) or infer-kit concepts build.",
        )  # fmt: skip
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InferKitError(f"{str(file)!r} cannot be read: {error}") from error
    if not isinstance(notes, dict):
        raise InferKitError(f"{str(file)!r} is no note of a bank.", hint=_AGAIN)
    if notes.get("format") != _FORMAT:
        raise InferKitError(
            f"{str(file)!r} has format {notes.get('format')}; this version reads {_FORMAT}."
        )
    return notes


def _write(path: Path, notes: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
