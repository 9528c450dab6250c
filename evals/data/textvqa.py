"""TextVQA (Singh et al. 2019): questions about text in pictures, ten answers each.

python evals/data/textvqa.py --questions TextVQA_0.5.1_val.json --images train_images \\
    --out data/textvqa

Images are <image_id>.jpg; those of the validation split are in the folder of the training split.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, listed, read_json
from evals.data.writing import Entry, Output, arguments, run


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each question."""
    for where, record in listed(read_json(options.questions), "data", options.questions):
        yield Entry(
            where,
            str(get(record, "question_id", where)),
            get(record, "question", where),
            record.get("answers", []),  # the test split has none, which `write` says
            [output.image(f"{get(record, 'image_id', where)}.jpg", where)],
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="<image_id>.jpg")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
