"""Samples: one question with its true answers, as a line of a JSONL file.

    {"id": "7", "question": "What is it?", "answers": ["a cat"], "images": ["images/7.png"]}
    {"id": "8", "text": "A text whose bits per byte are wanted."}

Optional: "choices" (texts in order; "answers" are then letters), "category", "context" (a document
for context-aware decoding), "demonstrations" (of this sample alone: objects with "question",
"answer" and "images"). Paths of images are relative to the file. "<image 1>" in a question or
choice stands for the first picture; pictures without a mark come before the text.
"""

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError

_FIELDS = {
    *("id", "question", "answers", "images", "choices", "category", "context", "demonstrations"),
    "text",
}
_MARK = re.compile(r"<image (\d+)>")
_SHOWN = 5  # missing images, doubled ids and the like that a message names


@dataclass(frozen=True)
class Shot:
    """A demonstration: an answered question with its pictures."""

    question: str
    answer: str
    images: tuple[Path, ...] = ()

    def turns(self, instruction: str = "") -> list[dict[str, Any]]:
        """The user's turn, asked as samples are, and the answer: what `ParallelICL.fit` takes."""
        asked = "\n".join(part for part in (self.question, instruction) if part)
        return [
            {"role": "user", "content": parts_of(asked, self.images)},
            {"role": "assistant", "content": [{"type": "text", "text": self.answer}]},
        ]


@dataclass(frozen=True)
class Sample:
    """A question with its true answers.

    Attributes:
        id: unique in its file. question: the text.
        answers: at least one; with choices their letters.
        images: absolute paths. choices: texts, the first is A.
        category: for figures apart. context: a document, or None.
        shots: demonstrations of this sample alone.
        passage: a text to be scored, in place of question and answers; or None.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    images: tuple[Path, ...] = ()
    choices: tuple[str, ...] = ()
    category: str | None = None
    context: str | None = None
    shots: tuple[Shot, ...] = ()
    passage: str | None = None

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Its own, then those of its demonstrations."""
        return (*self.images, *(image for shot in self.shots for image in shot.images))

    def asked(self, instruction: str = "") -> str:
        """Question, choices with their letters, and an instruction, a line each."""
        options = (
            f"{letter}. {choice}"
            for letter, choice in zip(string.ascii_uppercase, self.choices, strict=False)
        )
        return "\n".join(part for part in (self.question, *options, instruction) if part)

    def chat(
        self,
        instruction: str = "",
        shots: Sequence[Shot] = (),
        system: str | None = None,
        instructed: bool = True,
    ) -> list[dict[str, Any]]:
        """The chat that asks it: perhaps a system turn, demonstrations, then the question.

        Args:
            instruction: after every question; `instructed=False` leaves it out of the last one.
        """
        turns = [turn for shot in (*shots, *self.shots) for turn in shot.turns(instruction)]
        if system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        content = parts_of(self.asked(instruction if instructed else ""), self.images)
        return [*turns, {"role": "user", "content": content}]


def parts_of(text: str, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Content of a turn: pictures where "<image n>" marks them, the others before the text."""
    marked = [int(n) for n in _MARK.findall(text) if 1 <= int(n) <= len(images)]
    free = [path for n, path in enumerate(images, 1) if n not in marked]
    parts = [{"type": "image", "image": str(path)} for path in free]
    rest = 0
    for mark in _MARK.finditer(text):
        if not 1 <= int(mark[1]) <= len(images):
            continue  # a text that happens to look like a mark
        if text[rest : mark.start()].strip():
            parts.append({"type": "text", "text": text[rest : mark.start()]})
        parts.append({"type": "image", "image": str(images[int(mark[1]) - 1])})
        rest = mark.end()
    if text[rest:].strip():
        parts.append({"type": "text", "text": text[rest:]})
    return parts


def read_samples(path: str | Path) -> list[Sample]:
    """All samples of a JSONL file, checked before anything is run.

    Raises:
        InferKitError: the file cannot be read, a line is no JSON object or no UTF-8, a field is
            missing, unknown, empty or of another type, an id comes twice, or an image is not there;
            names the line.
    """
    path = Path(path)
    samples: list[Sample] = []
    lines: dict[str, int] = {}
    for number, record in _records(path):
        sample = _sample(record, path, number)
        if sample.id in lines:
            raise InferKitError(
                f"{path}: id {sample.id!r} is on lines {lines[sample.id]} and {number}.",
                hint="Ids tell the samples of a run apart; make them unique.",
            )
        lines[sample.id] = number
        samples.append(sample)
    if not samples:
        raise InferKitError(f"{path} has no samples.")
    _check_images(path, samples)
    return samples


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InferKitError(
            f"The data file {str(path)!r} {what}.",
            hint="It is a JSONL file; the scripts of evals/data/ write one.",
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InferKitError(f"{path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise InferKitError(
                f"{path}, line {number}: not UTF-8 (byte {error.start} of the line is "
                f"{line[error.start]:#04x}).",
                hint="Save the file as UTF-8.",
            ) from error
        except json.JSONDecodeError as error:
            raise InferKitError(f"{path}, line {number}: not JSON: {error}.") from error
        if not isinstance(record, Mapping):
            kind = "a list" if isinstance(record, list) else f"{record!r:.40}"
            raise InferKitError(
                f"{path}, line {number}: an object is expected, got {kind}.",
                hint="A file of samples has one JSON object a line, and no list around them.",
            )
        yield number, record


def _sample(record: Mapping[str, Any], path: Path, number: int) -> Sample:
    where = f"{path}, line {number}"
    unknown = sorted(set(record) - _FIELDS)
    if unknown:
        raise InferKitError(
            f"{where}: unknown fields {unknown}.",
            hint=f"Fields are {sorted(_FIELDS)}; evals/data/jsonl.py converts other files.",
        )
    id = record.get("id")
    if id is None:
        raise InferKitError(f"{where}: there is no id.", hint='Give each sample one: "id": "7".')
    if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
        raise InferKitError(f"{where}: id is a text or a number, got {id!r}.")
    if "text" in record:
        others = sorted(set(record) - {"id", "text", "category"})
        if others:
            raise InferKitError(f"{where} (id {id!r}): a text to be scored has no {others}.")
        passage = _text(record["text"], "text", where)
        return Sample(
            str(id), "", (), category=_optional(record, "category", where), passage=passage
        )
    choices = _texts(record.get("choices", []), "choices", where)
    answers = _texts(record.get("answers"), "answers", where)
    if not answers:
        raise InferKitError(f"{where} (id {id!r}): there is no answer.")
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) == 1 or len(choices) > len(string.ascii_uppercase):
        raise InferKitError(f"{where} (id {id!r}): 2 to 26 choices, got {len(choices)}.")
    wrong = [answer for answer in answers if choices and answer not in tuple(letters)]
    if wrong:
        raise InferKitError(
            f"{where} (id {id!r}): with choices an answer is a letter from A to {letters[-1]}, "
            f"got {wrong[0]!r}."
        )
    question = _text(record.get("question"), "question", where)
    images = _paths(record.get("images", []), path, where)
    for text in (question, *choices):
        for mark in _MARK.finditer(text):
            if not 1 <= int(mark[1]) <= len(images):
                raise InferKitError(
                    f"{where} (id {id!r}): {mark[0]} marks a picture, and there are {len(images)}."
                )
    return Sample(
        id=str(id),
        question=question,
        answers=answers,
        images=images,
        choices=choices,
        category=_optional(record, "category", where),
        context=_optional(record, "context", where),
        shots=_shots(record.get("demonstrations", []), path, where),
    )


def _shots(value: Any, path: Path, where: str) -> tuple[Shot, ...]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise InferKitError(f"{where}: demonstrations is a list of objects.")
    shots = []
    for n, item in enumerate(value):
        here = f"{where}, demonstration {n}"
        shots.append(
            Shot(
                _text(item.get("question"), "question", here),
                _text(item.get("answer"), "answer", here),
                _paths(item.get("images", []), path, here),
            )
        )
    return tuple(shots)


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InferKitError(f"{where}: {field} is a text that is not empty, got {value!r}.")
    return _writable(value, field, where)


def _writable(text: str, field: str, where: str) -> str:
    """The text, unless it has half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InferKitError(f"{where}: {field} has half of a surrogate pair: {text!r}.")
    return text


def _optional(record: Mapping[str, Any], field: str, where: str) -> str | None:
    return None if record.get(field) is None else _text(record[field], field, where)


def _texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InferKitError(
            f"{where}: {field} is a list of texts, got {value!r}.",
            hint=f"Write {json.dumps([value])}." if isinstance(value, str) else None,
        )
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise InferKitError(f"{where}: {field} has {text!r}, which is no text or an empty one.")
        _writable(text, field, where)
    return tuple(value)


def _paths(value: Any, path: Path, where: str) -> tuple[Path, ...]:
    return tuple((path.parent / text).absolute() for text in _texts(value, "images", where))


def _check_images(path: Path, samples: Sequence[Sample]) -> None:
    wanted = {image: s.id for s in samples for image in s.pictures}
    missing = [image for image in wanted if not image.is_file()]
    if missing:
        shown = ", ".join(
            f"{str(image)!r} (id {wanted[image]!r}{', a folder' if image.is_dir() else ''})"
            for image in missing[:_SHOWN]
        )
        more = f", and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InferKitError(
            f"{path}: {len(missing)} of {len(wanted)} images are no files: {shown}{more}.",
            hint="Paths are relative to the data file.",
        )
