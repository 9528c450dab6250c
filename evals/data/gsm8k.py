"""GSM8K (Cobbe et al. 2021): word problems whose answer is a number.

python evals/data/gsm8k.py --questions test.jsonl --out data/gsm8k

One JSON object a line, with question and answer; the number stands after "####".
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, read_json_lines
from evals.data.writing import Entry, Output, arguments, run
from infer_kit.errors import InferKitError


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each problem."""
    for number, (where, record) in enumerate(read_json_lines(options.questions)):
        _, mark, answer = get(record, "answer", where).partition("####")
        if not mark:
            raise InferKitError(f"{where}: there is no '####' in the answer.")
        yield Entry(where, f"{options.split}-{number}", get(record, "question", where), [answer])


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON lines")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
