"""MIBench (Liu et al. 2024): several images, outside knowledge, and learning in context.

python evals/data/mibench.py --questions multi_image_instruction.json --images . --out data/mibench
python evals/data/mibench.py --questions multimodal_in_context_learning.json --images . \\
    --shots 4 --out data/mibench

The files are JSON lists, or JSON lines of the same objects. Images are paths as
image/general_comparison/….png; "<image>" in a question is the place of the next one. With options
the answer is the text of one. The demonstrations of in-context tasks are in "context", by number of
shots. The category is the task.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import as_object, get, listed_alone, read_json, read_json_lines
from evals.data.writing import Entry, Output, arguments, letters_of, run
from infer_kit.errors import InferKitError


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each question."""
    for path in options.questions:
        in_lines = path.suffix == ".jsonl"
        records = read_json_lines(path) if in_lines else listed_alone(read_json(path), path)
        for where, record in records:
            names, choices = _names(record, where), list(record.get("options") or [])
            answer = str(get(record, "answer", where))
            yield Entry(
                where,
                str(get(record, "id", where)),
                _marked(get(record, "question", where), len(names), where),
                letters_of(answer, choices, where) if choices else [answer],
                [output.image(name, where) for name in names],
                choices,
                category=record.get("task"),
                demonstrations=_demonstrations(record, options.shots, output, where),
            )


def _names(record: Mapping[str, Any], where: str) -> list[str]:
    images = get(record, "image", where)
    return [images] if isinstance(images, str) else list(images)


def _marked(question: str, images: int, where: str) -> str:
    """ "<image>" numbered; those of a question whose every image is marked in turn."""
    pieces = question.split("<image>")
    if len(pieces) - 1 > images:
        raise InferKitError(f"{where}: {len(pieces) - 1} places of images and {images} images.")
    return pieces[0] + "".join(f"<image {n}>{piece}" for n, piece in enumerate(pieces[1:], 1))


def _demonstrations(
    record: Mapping[str, Any], shots: int | None, output: Output, where: str
) -> list[dict[str, Any]]:
    """The first `shots` of the longest list, or all of it."""
    if not record.get("context"):
        return []
    by_count = as_object(record["context"], where)
    longest = max(by_count.values(), key=len)
    if shots is not None and shots > len(longest):
        raise InferKitError(f"{where} has {len(longest)} demonstrations, --shots is {shots}.")
    found = []
    for shot in longest[:shots]:
        names = _names(shot, where)
        found.append(
            {
                "question": _marked(get(shot, "question", where), len(names), where),
                "answer": str(get(shot, "answer", where)),
                "images": [output.image(name, where) for name in names],
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="image/…, as unpacked")
    parser.add_argument(
        "--questions", type=Path, required=True, nargs="+", metavar="FILE", help="JSON or JSONL"
    )
    parser.add_argument("--shots", type=int, metavar="N", help="of each sample; all there are")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
