"""A run's folder: what was run, one line a sample, and the figures.

    <data>-<method>-<12 hex>/config.json           what decides the answers; the hex is its hash
                            /samples-<rank>.jsonl  a flushed line a sample
                            /results.json          written when every sample has its line

Whoever is killed in the middle of a line leaves a torn one, which the next start takes away.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from infer_kit.errors import InferKitError

Line = dict[str, Any]
CONFIG, RESULTS = "config.json", "results.json"
_HASH = re.compile(r"-([0-9a-f]{12})$")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that tell one configuration from another."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RunFolder:
    """The folder of one configuration.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(
        cls, out: str | Path, name: str, config: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> "RunFolder":
        """The folder `out/<name>-<hash>`, made or found.

        Args:
            config: what decides the answers. facts: what else is worth knowing (paths, versions);
                `facts["versions"]` must be those of the samples that are there.

        Raises:
            InferKitError: it cannot be written, or holds something else than this run.
        """
        folder = cls(Path(out) / f"{name}-{config_hash(config)}")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder.path):
                pass
        except OSError as error:
            raise InferKitError(
                f"The run folder {str(folder.path)!r} cannot be written: {error.strerror}.",
                hint="Give another --out.",
            ) from error
        folder._check(config, facts)
        return folder

    def _check(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        file = self.path / CONFIG
        if not file.exists():
            if self.shards():
                raise InferKitError(
                    f"{self.path} has samples, but no {CONFIG} that says what made them.",
                    hint="Give another --out.",
                )
            write_json(file, {"config": config, **facts})
            return
        found = read_json(file)
        if found.get("config") != json.loads(json.dumps(config)):
            raise InferKitError(
                f"{self.path} is the folder of another configuration: "
                f"{_difference(found.get('config'), config)}.",
                hint="Give another --out.",
            )
        before, now = found.get("versions"), facts.get("versions")
        if before != now and self.shards():
            raise InferKitError(
                f"{self.path} was begun elsewhere: {_difference(before, now)}. Figures would mix.",
                hint="Finish it there, or give another --out.",
            )
        if before != now:
            write_json(file, {"config": config, **facts})

    @property
    def config(self) -> dict[str, Any]:
        """What `open` wrote.

        Raises:
            InferKitError: this is no run's folder.
        """
        if not (self.path / CONFIG).is_file():
            raise InferKitError(
                f"{str(self.path)!r} is no run: it has no {CONFIG}.",
                hint="A run is a folder that infer-kit eval wrote, one level below its --out.",
            )
        return read_json(self.path / CONFIG)

    @property
    def results(self) -> dict[str, Any]:
        """The figures.

        Raises:
            InferKitError: the run is not finished.
        """
        if not (self.path / RESULTS).is_file():
            done = len(self.lines()) if self.config else 0
            raise InferKitError(
                f"The run {str(self.path)!r} is not finished: {done} samples are there.",
                hint="The command that began it goes on with it.",
            )
        return read_json(self.path / RESULTS)

    def shards(self) -> list[Path]:
        """The files of samples, one a process."""
        return sorted(self.path.glob("samples-*.jsonl"))

    def repair(self) -> int:
        """Take torn last lines from files that nobody writes; returns how many there were."""
        torn = 0
        for shard in self.shards():
            with contextlib.suppress(Timeout), _lock(shard), shard.open("r+b") as file:
                torn += _cut_torn(file)
        return torn

    def lines(self) -> dict[str, Line]:
        """The line of each sample by id, without torn lines and failures.

        Raises:
            InferKitError: a line within a file is no JSON object with an id.
        """
        found: dict[str, Line] = {}
        for shard in self.shards():
            content = shard.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            for number, text in enumerate(whole.splitlines(), 1):
                try:
                    line = json.loads(text)
                    if "error" not in line:
                        found.setdefault(line["id"], line)
                except (ValueError, KeyError, TypeError) as error:
                    raise InferKitError(
                        f"{shard}, line {number} is no sample: {text[:60]!r}.",
                        hint="Take the line away; its sample will be answered again.",
                    ) from error
        return found

    def failures(self) -> list[Line]:
        """The last failure of each sample that has no answer."""
        done, failed = self.lines(), {}
        for shard in self.shards():
            for text in shard.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    line = json.loads(text)
                    if "error" in line and line["id"] not in done:
                        failed[line["id"]] = line
        return list(failed.values())

    @contextlib.contextmanager
    def writer(self, rank: int) -> Iterator["ShardWriter"]:
        """For the samples of one process.

        Raises:
            InferKitError: another process is writing them.
        """
        path = self.path / f"samples-{rank}.jsonl"
        lock = _lock(path)
        try:
            lock.acquire()
        except Timeout as error:
            raise InferKitError(
                f"Another process is writing {path}.",
                hint="Wait for it, or end it; this run would answer the same samples.",
            ) from error
        try:
            with path.open("ab", buffering=0) as file:
                yield ShardWriter(path, file)
        finally:
            lock.release()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the figures."""
        write_json(self.path / RESULTS, results)


class ShardWriter:
    """Appends whole lines: what cannot be written whole is taken back."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file

    def write(self, lines: Sequence[Line]) -> None:
        """Append lines.

        Raises:
            InferKitError: the disk is full; the lines before it stay.
        """
        for line in lines:
            content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            end = self._file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(content):
                    written += self._file.write(content[written:])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, end)
                what = "The disk is full" if error.errno in _NO_SPACE else "Writing failed"
                raise InferKitError(
                    f"{what}: sample {line['id']!r} could not be written to {self.path} "
                    f"({error.strerror}). All samples before it are kept.",
                    hint="Make room, then run the same command: it goes on from there.",
                ) from error
        with contextlib.suppress(OSError):  # pipes and the like have nothing to sync
            os.fsync(self._file.fileno())


def folders_of(paths: Sequence[str | Path]) -> list[RunFolder]:
    """The runs at and right below some paths, finished or not, in order of their names.

    Raises:
        InferKitError: a path is no folder, or there is no run.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise InferKitError(f"There is no folder {str(path)!r}.")
        own = [path] if (path / CONFIG).is_file() else []
        found += own or sorted(child.parent for child in path.glob(f"*/{CONFIG}"))
    if not found:
        raise InferKitError(f"No runs in {', '.join(map(str, paths))}.")
    return [RunFolder(path) for path in found]


def name_of(folder: RunFolder) -> str:
    """The folder's name without its hash."""
    return _HASH.sub("", folder.path.name)


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InferKitError(f"{path} could not be written: {error.strerror}.") from error


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        InferKitError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InferKitError(f"{path} cannot be read: {error}.") from error


def _lock(shard: Path) -> FileLock:
    """Held by who writes a file of samples; not waited for."""
    return FileLock(shard.with_name(f".{shard.name}.lock"), timeout=0)


def _cut_torn(file: Any) -> int:
    """Cut a file after its last line end; whether there was something after it."""
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return 0
    file.truncate(whole)
    return 1


def _difference(before: Any, now: Any) -> str:
    """What differs between two configurations, in words."""
    before, now = before or {}, json.loads(json.dumps(now)) or {}
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys[:4])
