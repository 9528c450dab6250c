"""The files of a concept bank.

concepts.txt (a phrase a line), features.npy (`[N, d]`, can be mapped), and bank.json, written last:
a folder without it is no bank. A build that is under way keeps progress.json in its place.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from infer_kit.concepts.bank import DTYPES, ConceptBank, Dtype, checksum
from infer_kit.concepts.encoders import Encoder, text_features
from infer_kit.errors import InferKitError

_FORMAT = 1
_ROWS = 8192  # rows that are encoded between two notes of progress
_HINT = "Give another folder, or delete this one."


def save(bank: ConceptBank, folder: Path) -> Path:
    """See `ConceptBank.save`."""
    if (folder / "bank.json").exists():
        raise InferKitError(f"{str(folder)!r} holds a bank.", hint=_HINT)
    _start(bank.phrases, folder)
    np.save(folder / "features.npy", bank.features.cpu().numpy())
    _finish(bank, folder)
    return folder


def load(folder: Path, mmap: bool) -> ConceptBank:
    """See `ConceptBank.load`."""
    notes = _read(folder)
    phrases = tuple((folder / "concepts.txt").read_text(encoding="utf-8").split("\n"))
    # "c": pages of the file that a write would change are copied, so torch may have them
    table = np.load(folder / "features.npy", mmap_mode="c" if mmap else None)
    changed = (
        checksum(phrases) != notes["concepts_sha256"]
        or list(table.shape) != notes["shape"]
        or (not mmap and _digest(table) != notes["features_sha256"])
    )
    if changed:
        raise InferKitError(
            f"The files of the bank in {str(folder)!r} do not belong together: they were changed, "
            "or copied in part.",
            hint="Copy or build it again.",
        )
    return ConceptBank(
        phrases, torch.from_numpy(table), notes["encoder"], notes["prompt"], notes["dropped"]
    )


def build_in(
    folder: Path, blank: ConceptBank, encoder: Encoder, dtype: Dtype, batch_size: int
) -> ConceptBank:
    """Encode into a file, and go on where an earlier call was interrupted.

    Args:
        blank: the bank that is wanted, without features.
    """
    wanted = {**_identity(blank), "dtype": dtype, "dim": encoder.dim}
    if (folder / "bank.json").exists():
        bank = load(folder, mmap=True)
        found = _identity(bank)
        here = {**found, "dtype": str(bank.features.numpy().dtype), "dim": bank.dim}
        if here != wanted:
            raise InferKitError(f"{str(folder)!r} holds another bank.", hint=_HINT)
        bank.check(encoder)
        return bank
    N, d = len(blank.phrases), encoder.dim
    done = 0
    progress = folder / "progress.json"
    if progress.exists():
        notes = json.loads(progress.read_text())
        if notes["bank"] != wanted:
            raise InferKitError(
                f"{str(folder)!r} holds an unfinished build of another bank.", hint=_HINT
            )
        done = notes["done"]
        table = np.lib.format.open_memmap(folder / "features.npy", mode="r+")
        if done:
            earlier = torch.from_numpy(np.array(table[:done]))
            replace(blank, phrases=blank.phrases[:done], features=earlier).check(encoder)
    else:
        _start(blank.phrases, folder)
        table = np.lib.format.open_memmap(
            folder / "features.npy", mode="w+", dtype=dtype, shape=(N, d)
        )
    with tqdm(total=N, initial=done, desc="encoding phrases", disable=_ROWS > N) as bar:
        while done < N:
            some = slice(done, min(done + _ROWS, N))
            texts = [blank.prompt.format(phrase) for phrase in blank.phrases[some]]
            table[some] = (
                text_features(encoder, texts, batch_size, bar=False).to(DTYPES[dtype]).numpy()
            )
            table.flush()
            bar.update(some.stop - done)
            done = some.stop
            _write(progress, {"bank": wanted, "done": done})
    _finish(replace(blank, features=torch.from_numpy(np.asarray(table))), folder)
    progress.unlink()
    return load(folder, mmap=True)


def _identity(bank: ConceptBank) -> dict[str, Any]:
    return {
        "concepts_sha256": checksum(bank.phrases),
        "encoder": bank.encoder,
        "prompt": bank.prompt,
    }


def _start(phrases: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
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
        unfinished = (folder / "progress.json").exists()
        raise InferKitError(
            f"{str(folder)!r} holds no bank: " + ("its build did not end." if unfinished else
            "there is no bank.json."),
            hint="Build it with ConceptBank.build(..., folder=...) or infer-kit concepts build.",
        )  # fmt: skip
    try:
        notes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InferKitError(f"{str(file)!r} cannot be read: {error}") from error
    if notes.get("format") != _FORMAT:
        raise InferKitError(
            f"{str(file)!r} has format {notes.get('format')}; this version reads {_FORMAT}."
        )
    return notes


def _write(path: Path, notes: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
