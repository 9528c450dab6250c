"""Reading what data sets are released as: JSON, JSON lines and parquet; errors name the place."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError, MissingExtra


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InferKitError: it is not there, not UTF-8 or not JSON; names the line.
    """
    content = read_text(path)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        lines = len(content.splitlines())
        raise InferKitError(
            f"{path}, line {error.lineno}: not JSON: {error.msg}.",
            hint=(
                "This looks like one JSON object a line, which this converter does not expect."
                if error.msg == "Extra data" and lines > 1
                else "Was the file downloaded completely?"
            ),
        ) from error


def read_json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object of a file with one a line, with its place for messages; empty lines skipped."""
    for number, line in read_text_lines(path):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InferKitError(f"{where}: not JSON: {error.msg}.") from error
        yield where, as_object(record, where)


def read_text(path: Path) -> str:
    """A whole file as text, without a byte order mark."""
    content = _bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _not_utf8(path, line, content[error.start]) from error


def read_text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line that is not empty, with its number."""
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, line[error.start]) from error
        if text:
            yield number, text


def listed(content: Any, name: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object of a list that is a field of a file's content, with its place for messages."""
    yield from listed_alone(get(as_object(content, str(path)), name, str(path)), path)


def listed_alone(content: Any, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object of a list that is a file's whole content, with its place for messages."""
    if not isinstance(content, list):
        raise InferKitError(f"{path}: a list of objects is expected, got {_kind(content)}.")
    for number, record in enumerate(content, 1):
        where = f"{path}, record {number}"
        yield where, as_object(record, where)


def read_parquet(paths: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of parquet files, a few at a time, with its place for messages.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra(
            "pyarrow, which reads parquet files, is not installed.",
            hint="pip install 'infer-kit[evals]'",
        ) from error
    for path in paths:
        if not path.is_file():
            raise InferKitError(f"The file {str(path)!r} does not exist.")
        try:
            number = 0
            with ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
        except (pyarrow.ArrowException, OSError) as error:
            raise InferKitError(
                f"{path} cannot be read as parquet: {str(error).splitlines()[0]}",
                hint="Was the file downloaded completely, and not as a Git LFS pointer?",
            ) from error


def get(record: Mapping[str, Any], name: str, where: str) -> Any:
    """A field that has to be there.

    Raises:
        InferKitError: it is not; names those that are.
    """
    if record.get(name) is None:
        raise InferKitError(
            f"{where}: no field {name!r}; it has {', '.join(record) or 'none'}.",
            hint="Is this the file that the converter expects? See its --help.",
        )
    return record[name]


def as_object(value: Any, where: str) -> Mapping[str, Any]:
    """The value, which has to be a JSON object."""
    if not isinstance(value, Mapping):
        raise InferKitError(f"{where}: an object is expected, got {_kind(value)}.")
    return value


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InferKitError(f"{path} cannot be read: {error.strerror}.") from error


def _not_utf8(path: Path, line: int, byte: int) -> InferKitError:
    return InferKitError(
        f"{path}, line {line}: not UTF-8 (byte {byte:#04x}).",
        hint="Was the file downloaded completely, and as it was released?",
    )


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text"}
    return names.get(type(value).__name__, repr(value)[:40])
