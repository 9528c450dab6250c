"""MathVista (Lu et al. 2024): mathematics in pictures, choices or free answers.

python evals/data/mathvista.py --questions testmini-*.parquet --out data/mathvista
python evals/data/mathvista.py --questions testmini.json --images . --out data/mathvista

Parquet has the pictures in it, which are written below OUT/images/SPLIT; in the JSON file, an
object by pid, they are paths as images/1.jpg. Free answers are compared as numbers, so the question
says the unit and how many decimals are wanted, as the benchmark's own prompt does. The category is
the task. The answers of the split test are not released.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import as_object, get, read_json, read_parquet
from evals.data.writing import Entry, Output, arguments, letters_of, run

_PLACES = {1: "one decimal place", 2: "two decimal places"}


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each problem."""
    for where, record in _records(options.questions):
        pid, answer = str(get(record, "pid", where)), record.get("answer") or ""
        choices = list(record.get("choices") or [])
        yield Entry(
            where,
            pid,
            _question(record, bool(choices), where),
            letters_of(answer, choices, where) if choices and answer else [answer],
            [_picture(pid, record, output, where)],
            choices,
            category=as_object(record.get("metadata") or {}, where).get("task"),
        )


def _records(paths: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if paths[0].suffix == ".parquet":
        yield from read_parquet(paths)
        return
    for path in paths:
        for pid, value in as_object(read_json(path), str(path)).items():
            where = f"{path}, problem {pid}"
            yield where, {"pid": pid, **as_object(value, where)}


def _question(record: Mapping[str, Any], has_choices: bool, where: str) -> str:
    question = str(get(record, "question", where)).strip()
    if record.get("unit"):
        question += f" (Unit: {record['unit']})"
    kind, precision = record.get("answer_type"), record.get("precision")
    if has_choices:
        return question
    if kind == "integer":
        return f"{question}\nAnswer with a whole number."
    if kind == "float" and precision is not None and int(precision) in _PLACES:
        return f"{question}\nAnswer with a number to {_PLACES[int(precision)]}."
    return f"{question}\nAnswer with a list, such as [1, 2, 3]." if kind == "list" else question


def _picture(pid: str, record: Mapping[str, Any], output: Output, where: str) -> str:
    decoded = record.get("decoded_image")
    if isinstance(decoded, Mapping):
        return output.picture(pid, get(decoded, "bytes", where), where)
    return output.image(get(record, "image", where), where)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="images/1.jpg and so on, for JSON")
    parser.add_argument(
        "--questions", type=Path, required=True, nargs="+", metavar="FILE", help="parquet or JSON"
    )
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
