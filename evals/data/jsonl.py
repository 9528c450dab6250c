"""Any file with one JSON object a line: say which field is what.

python evals/data/jsonl.py --questions my.jsonl --question prompt --answer label --image picture \\
    --images pictures --out data/mine

An answer, an image or a choice is a text or a list of them. With --choices the answer is a letter,
the text of a choice, or with --answer-is index its place from 0.
"""

import argparse
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, read_json_lines
from evals.data.writing import Entry, Output, arguments, letters_of, run
from infer_kit.errors import InferKitError


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each line."""
    if (options.answer_is is not None) != (options.choices is not None):
        raise InferKitError("--choices and --answer-is are given together or not at all.")
    for number, (where, record) in enumerate(read_json_lines(options.questions)):
        choices = _texts(record, options.choices, where)
        answers = _texts(record, options.answer, where)
        yield Entry(
            where,
            f"{options.split}-{number}" if options.id is None else _text(record, options.id, where),
            _text(record, options.question, where),
            [x for a in answers for x in _letters(a, choices, options.answer_is, where)],
            [output.image(name, where) for name in _texts(record, options.image, where)],
            choices,
            None if options.category is None else _text(record, options.category, where),
            None if options.context is None else _text(record, options.context, where),
        )


def _letters(answer: str, choices: Sequence[str], kind: str | None, where: str) -> list[str]:
    if kind == "text":
        return letters_of(answer, choices, where)
    if kind == "index":
        if not answer.isdecimal() or int(answer) >= len(choices):
            raise InferKitError(f"{where}: {answer!r} is no place of {len(choices)} choices.")
        return [string.ascii_uppercase[int(answer)]]
    return [answer.strip().upper() if kind == "letter" else answer]


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    value = get(record, name, where)
    if not isinstance(value, str | int | float):
        raise InferKitError(f"{where}: {name!r} is a text or a number, got {value!r}.")
    return str(value)


def _texts(record: Mapping[str, Any], name: str | None, where: str) -> list[str]:
    if name is None:
        return []
    value = get(record, name, where)
    return [
        _text({name: item}, name, where) for item in (value if isinstance(value, list) else [value])
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="the files that --image names")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON lines")
    for name in ("question", "answer"):
        parser.add_argument(f"--{name}", required=True, metavar="FIELD", help="its field")
    for name in ("id", "image", "choices", "category", "context"):
        parser.add_argument(f"--{name}", metavar="FIELD", help="its field, where there is one")
    parser.add_argument("--answer-is", choices=("letter", "text", "index"), help="with --choices")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
