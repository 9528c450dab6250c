"""SEED-Bench (Li et al. 2023): multiple choice about images; questions about videos are left out.

python evals/data/seed.py --questions SEED-Bench.json --images SEED-Bench-image --out data/seed

Images are files named data_id, which have no extension in the release. The category is the
dimension, such as "Instance Counting".
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import as_object, get, listed, read_json
from evals.data.writing import Entry, Output, arguments, run


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each question about an image."""
    content = as_object(read_json(options.questions), str(options.questions))
    dimensions = {str(number): name for name, number in content.get("question_type", {}).items()}
    for where, record in listed(content, "questions", options.questions):
        if get(record, "data_type", where) != "image":
            output.skipped[f"about a {record['data_type']}"] += 1
            continue
        name, dimension = str(get(record, "data_id", where)), str(record.get("question_type_id"))
        yield Entry(
            where,
            str(get(record, "question_id", where)),
            get(record, "question", where),
            [get(record, "answer", where)],
            [output.image(name, where, f"{name}.jpg", f"{name}.png")],
            [str(get(record, f"choice_{letter}", where)) for letter in "abcd"],
            category=dimensions.get(dimension),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="files named data_id")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
