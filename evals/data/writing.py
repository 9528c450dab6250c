"""What all converters share: arguments, checks, and the file of samples, whole or not at all.

A converter yields an `Entry` for each sample; `run` does the rest. The format is that of
`infer_kit.evaluation.samples`: one JSON object a line.
"""

import argparse
import io
import json
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Entry:
    """A sample to be written.

    Attributes:
        where: the file and the record in it, for messages.
        id: unique in the file that is written. question: the text.
        answers: all true ones; with choices their letters. Empty ones are left out.
        images: paths as `Output.image` or `Output.picture` give them.
        choices: texts in order. category: for figures apart; or None.
        context: a document, or None.
        demonstrations: "question", "answer" and "images" of each.
        passage: a text to be scored; the sample has no question and no answers then.
    """

    where: str
    id: str
    question: str
    answers: Sequence[str]
    images: Sequence[str] = ()
    choices: Sequence[str] = ()
    category: str | None = None
    context: str | None = None
    demonstrations: Sequence[dict[str, Any]] = ()
    passage: str | None = None


@dataclass
class Output:
    """The folder that is written to, and what was counted on the way.

    Attributes:
        folder: of the file of samples. split: the name of that file.
        images: the data set's folder of images, or None.
        skipped: how many records were left out, by reason.
        pictures: how many were written as files.
    """

    folder: Path
    split: str = "test"
    images: Path | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    pictures: int = 0

    def image(self, name: str, where: str, *also: str) -> str:
        """The path of an image of the data set, relative to the output where it is below it.

        Args:
            name: relative to the folder of images. where: the record, for messages.
            also: other names of the same image, tried in turn.
        """
        if self.images is None:
            raise InferKitError(
                f"{where} has the image {name!r}.", hint="Give the folder of images: --images DIR."
            )
        for candidate in (name, *also):
            path = Path(os.path.abspath(self.images / candidate))
            if path.is_file():
                return self.shown(path)
        raise InferKitError(
            f"{where}: there is no image {str(self.images / name)!r}.",
            hint=f"--images is the folder below which {name!r} is; was everything unpacked?",
        )

    def picture(self, name: str, content: bytes, where: str) -> str:
        """Write a picture that came as bytes; the path relative to the output.

        Args:
            name: without extension, which follows from the content.
            content: an encoded image. where: the record, for messages.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(content)) as opened:
                extension = {"JPEG": "jpg"}.get(str(opened.format), str(opened.format).lower())
        except (UnidentifiedImageError, OSError) as error:
            raise InferKitError(
                f"{where}: the picture {name!r} is no image that can be read.",
                hint="Was the file downloaded completely?",
            ) from error
        safe = re.sub(r"[^\w.-]", "_", name)
        path = self.folder / "images" / self.split / f"{safe}.{extension}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise _unwritable(path, error) from error
        self.pictures += 1
        return path.relative_to(self.folder).as_posix()

    def shown(self, path: Path) -> str:
        """A path as the file of samples has it: relative where it is below the folder."""
        root = Path(os.path.abspath(self.folder))
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


Convert = Callable[[argparse.Namespace, Output], Iterator[Entry]]


def arguments(description: str | None, images: str | None = None) -> argparse.ArgumentParser:
    """The arguments that every converter has.

    Args:
        description: the docstring of the script.
        images: what the folder of images has in it, where there is one.
    """
    parser = _parser(description)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N samples only")
    if images is not None:
        parser.add_argument("--images", type=Path, metavar="DIR", help=f"folder with {images}")
    return parser


def drawn_arguments(description: str | None) -> argparse.ArgumentParser:
    """The arguments of scripts that draw samples with a seed and read no files."""
    parser = _parser(description)
    parser.add_argument("--count", type=int, default=200, metavar="N", help="samples (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (0)")
    return parser


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--split", default="test", help="names the file, SPLIT.jsonl (test)")
    return parser


def run(parser: argparse.ArgumentParser, convert: Convert, argv: Sequence[str] | None) -> None:
    """Parse, convert and write; an `InferKitError` is shown without traceback, exit code 2."""
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is a number of samples from 1, got {options.limit}")
    images = getattr(options, "images", None)
    with shown_errors():
        if images is not None and not images.is_dir():
            raise InferKitError(f"The folder of images {str(images)!r} does not exist.")
        output = Output(options.out, options.split, images)
        path = options.out / f"{options.split}.jsonl"
        report(path, write(path, convert(options, output), options.limit), output)


def run_drawn(
    parser: argparse.ArgumentParser,
    write: Callable[[Path, argparse.Namespace], None],
    argv: Sequence[str] | None,
) -> None:
    """Parse `drawn_arguments` and write the file of samples; errors are shown as `run` does."""
    options = parser.parse_args(argv)
    path = options.out / f"{options.split}.jsonl"
    with shown_errors():
        write(path, options)
    print(f"{path}: {options.count} samples")


@contextmanager
def shown_errors() -> Iterator[None]:
    """A block whose `InferKitError` is printed with its hint; then the program ends with 2."""
    try:
        yield
    except InferKitError as error:
        print(f"Error: {error}", file=sys.stderr)
        if error.hint:
            print(f"Hint:  {error.hint}", file=sys.stderr)
        raise SystemExit(2) from None


def write(path: Path, entries: Iterator[Entry], limit: int | None = None) -> Counter[str]:
    """Write a file of samples, which appears when all are checked and written.

    Returns:
        How many samples there are of each category; those without one under "".

    Raises:
        InferKitError: an id comes twice, a question or all answers are empty, an answer is not
            the letter of a choice, a text has half of a surrogate pair, there are no samples, or
            the file cannot be written.
    """
    from tqdm import tqdm

    part = path.with_name(f".{path.name}.part")
    seen: dict[str, str] = {}
    counts: Counter[str] = Counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with file:
            for entry in tqdm(entries, unit=" samples", disable=None, total=limit):
                if entry.id in seen:
                    raise InferKitError(
                        f"{entry.where}: the id {entry.id!r} was already that of {seen[entry.id]}.",
                        hint="Is a file given twice, or a record in it doubled?",
                    )
                seen[entry.id] = entry.where
                record = _record(entry)
                _check_characters(record, entry.where)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                counts[entry.category or ""] += 1
                if limit is not None and len(seen) == limit:
                    break
        if not seen:
            raise InferKitError(f"There is no sample to write to {path}.")
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return counts


def report(path: Path, counts: Counter[str], output: Output) -> None:
    """Print what was written and what was left out."""
    print(f"{path}: {counts.total()} samples")
    if output.pictures:
        print(f"  {output.pictures} pictures in {output.folder / 'images' / output.split}")
    for category, count in sorted(counts.items()):
        if category:
            print(f"  {category}: {count}")
    for reason, count in sorted(output.skipped.items()):
        print(f"  left out, {reason}: {count}")


def letters_of(answer: str, choices: Sequence[str], where: str) -> list[str]:
    """The letter of the choice whose text the answer is, but for space and a full stop.

    Of choices with equal texts, all are right.
    """
    plain = answer.strip().rstrip(".")
    found = [
        letter
        for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
        if choice.strip().rstrip(".") == plain
    ]
    if not found:
        raise InferKitError(
            f"{where}: the answer {answer!r} is not one of the choices {list(choices)}."
        )
    return found


def _record(entry: Entry) -> dict[str, Any]:
    """The JSON object of an entry, checked."""
    if entry.passage is not None:
        if not entry.passage.strip():
            raise InferKitError(f"{entry.where}: the text is empty.")
        text = {"id": entry.id, "text": entry.passage}
        return text if entry.category is None else text | {"category": entry.category}
    answers = [answer.strip() for answer in entry.answers if answer.strip()]
    if not entry.question.strip():
        raise InferKitError(f"{entry.where}: the question is empty.")
    if not answers:
        raise InferKitError(
            f"{entry.where}: there is no answer.",
            hint="Test splits are often released without answers; take one that has them.",
        )
    letters = tuple(string.ascii_uppercase[: len(entry.choices)])
    if entry.choices and not set(answers) <= set(letters):
        raise InferKitError(
            f"{entry.where}: the answers {answers} are not letters of the {len(letters)} choices."
        )
    record: dict[str, Any] = {"id": entry.id, "question": entry.question, "answers": answers}
    for name in ("images", "choices", "demonstrations"):
        if getattr(entry, name):
            record[name] = list(getattr(entry, name))
    for name in ("category", "context"):
        if getattr(entry, name) is not None:
            record[name] = getattr(entry, name)
    return record


def _check_characters(record: Mapping[str, Any], where: str) -> None:
    """Refuse half of a surrogate pair, which valid JSON may have and UTF-8 has not."""
    for name, value in record.items():
        for text in _texts(value):
            if _SURROGATE.search(text):
                raise InferKitError(
                    f"{where}: {name} has half of a surrogate pair: {text!r}.",
                    hint="Was the text cut between the halves of a character?",
                )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _unwritable(path: Path, error: OSError) -> InferKitError:
    return InferKitError(
        f"{path} cannot be written: {error.strerror}.",
        hint="Give --out a folder that can be written to, with space left.",
    )
