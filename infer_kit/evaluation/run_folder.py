"""A run's folder: what was run, one line a sample, and the figures.

    <data>-<method>-<12 hex>/config.json           what decides the answers; the hex is its hash
                            /samples-<rank>.jsonl  a flushed line a sample
                            /results.json          written when every sample has its line

Whoever is killed in the middle of a line leaves a torn one: no reader takes it, and the next who
writes to the file takes it away.
"""

import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from infer_kit.errors import InferKitError

Line = dict[str, Any]
CONFIG, RESULTS = "config.json", "results.json"
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
        cls, out: str | Path, name: str, config: Mapping[str, Any], paths: Mapping[str, Any]
    ) -> "RunFolder":
        """The folder `out/<name>-<hash>`, made or found.

        Args:
            config: what decides the answers. paths: as they were given, for people.

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
        if not (folder.path / CONFIG).exists():
            if folder.shards():
                raise InferKitError(
                    f"{folder.path} has samples, but no {CONFIG} that says what made them.",
                    hint="Give another --out.",
                )
            begun: dict[str, Any] = {"config": config, "paths": paths}
            begun |= {"versions": None, "commits": []}
            write_json(folder.path / CONFIG, begun)
        elif folder.config["config"] != json.loads(json.dumps(config)):
            raise InferKitError(
                f"{folder.path} is the folder of another configuration: "
                f"{_difference(folder.config['config'], config)}.",
                hint="Give another --out.",
            )
        return folder

    def begin(self, versions: Mapping[str, str], commit: str | None) -> None:
        """Say what is going to answer samples.

        Args:
            versions: must be those of the samples that are there.
            commit: of the project's clone; of several all are kept.

        Raises:
            InferKitError: samples were answered under other versions.
        """
        found = self.config
        if found["versions"] != versions and self.lines():
            raise InferKitError(
                f"{self.path} was begun elsewhere: {_difference(found['versions'], versions)}. "
                "Figures would mix.",
                hint="Finish it there, or give another --out.",
            )
        commits = [*found["commits"], *({commit} - {None, *found["commits"]})]
        if (found["versions"], found["commits"]) != (versions, commits):
            write_json(self.path / CONFIG, {**found, "versions": versions, "commits": commits})

    @property
    def config(self) -> dict[str, Any]:
        """`{"config", "paths", "versions", "commits"}`.

        Raises:
            InferKitError: this is no run's folder.
        """
        if not (self.path / CONFIG).is_file():
            raise InferKitError(
                f"{str(self.path)!r} is no run: it has no {CONFIG}.",
                hint="A run is a folder that infer-kit eval wrote, one level below its --out.",
            )
        return _read(self.path / CONFIG, ("config", "paths", "versions", "commits"))

    @property
    def is_finished(self) -> bool:
        """Whether the figures are there."""
        return (self.path / RESULTS).is_file()

    @property
    def results(self) -> dict[str, Any]:
        """The figures.

        Raises:
            InferKitError: the run is not finished.
        """
        if not self.is_finished:
            done = len(self.lines()) if self.config else 0
            raise InferKitError(
                f"The run {str(self.path)!r} is not finished: {done} samples are there.",
                hint="The command that began it goes on with it.",
            )
        return _read(self.path / RESULTS, ("config", "paths", "metrics", "n", "errors", "seconds"))

    def shards(self) -> list[Path]:
        """The files of samples, one a process."""
        return sorted(self.path.glob("samples-*.jsonl"))

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
                        if not {"prediction", "logprob"} & line.keys():
                            raise KeyError("prediction")
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
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InferKitError(
                f"Another process is writing {path}.",
                hint="Wait for it, or end it; this run would answer the same samples.",
            ) from error
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            with _opened(path) as file:
                if _cut_torn(file):
                    tqdm.write(f"{path}: a torn last line was taken away.", file=sys.stderr)
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
            content = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            end = self._file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(content):
                    written += self._file.write(content[written:])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, end)
                raise self._lost(f"sample {line['id']!r}", error) from error
        try:
            os.fsync(self._file.fileno())
        except OSError as error:  # quotas and remote disks say it here
            raise self._lost(f"the last {len(lines)} samples", error) from error

    def _lost(self, what: str, error: OSError) -> InferKitError:
        full = "The disk is full" if error.errno in _NO_SPACE else "Writing failed"
        return InferKitError(
            f"{full}: {what} could not be written to {self.path} ({error.strerror}). All samples "
            "before are kept.",
            hint="Make room, then run the same command: it goes on from there.",
        )


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


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or none."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON object with these keys.

    Raises:
        InferKitError: it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InferKitError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise InferKitError(f"{path} was not written by infer-kit eval: it lacks {list(keys)}.")
    return value


def _opened(path: Path) -> Any:
    try:
        return path.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InferKitError:
    return InferKitError(
        f"{path} could not be written: {error.strerror}.", hint="Make room, or give another --out."
    )


def _cut_torn(file: Any) -> bool:
    """Cut a file after its last line end; whether there was something after it."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    return whole < len(content)


def _difference(before: Any, now: Any) -> str:
    """What differs between two configurations, in words."""
    before, now = before or {}, json.loads(json.dumps(now)) or {}
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys[:4])
