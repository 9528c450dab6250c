"""GQA (Hudson and Manning 2019): questions about scenes, one answer each.

python evals/data/gqa.py --questions testdev_balanced_questions.json --images images --out data/gqa

The file of questions is one object with an entry for each question; images are <imageId>.jpg.
The category is the structural type: query, verify, choose, compare or logical.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import as_object, get, read_json
from evals.data.writing import Entry, Output, arguments, run


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each question."""
    questions = as_object(read_json(options.questions), str(options.questions))
    for id, value in questions.items():
        where = f"{options.questions}, question {id!r}"
        record = as_object(value, where)
        yield Entry(
            where,
            id,
            get(record, "question", where),
            [get(record, "answer", where)],
            [output.image(f"{get(record, 'imageId', where)}.jpg", where)],
            category=(record.get("types") or {}).get("structural"),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="<imageId>.jpg")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
