"""POPE (Li et al. 2023): is an object in the image? Half of them are, half are not.

python evals/data/pope.py --questions coco_pope_random.json coco_pope_popular.json \\
    coco_pope_adversarial.json --images val2014 --out data/pope

The files have one JSON object a line: question_id, image, text and label. The category is how the
objects that are not there were chosen, which is the end of the file's name.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, read_json_lines
from evals.data.writing import Entry, Output, arguments, run


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each question; ids are made unique by the category."""
    for path in options.questions:
        category = path.stem.rpartition("_")[2]
        for where, record in read_json_lines(path):
            yield Entry(
                where,
                f"{category}-{get(record, 'question_id', where)}",
                get(record, "text", where),
                [get(record, "label", where)],
                [output.image(get(record, "image", where), where)],
                category=category,
            )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="COCO_val2014_….jpg")
    parser.add_argument(
        "--questions", type=Path, required=True, nargs="+", metavar="FILE", help="JSON lines"
    )
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
