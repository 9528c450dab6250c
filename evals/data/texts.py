"""Texts whose bits per byte are wanted: a field of JSON lines, or plain text files.

python evals/data/texts.py --texts my.jsonl --text body --out data/mine
python evals/data/texts.py --texts one.txt two.txt --out data/mine
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, read_json_lines, read_text
from evals.data.writing import Entry, Output, arguments, run
from infer_kit.errors import InferKitError


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each line, or of each file."""
    for path in options.texts:
        if options.text is None:
            yield Entry(str(path), path.stem, "", (), passage=read_text(path))
            continue
        for number, (where, record) in enumerate(read_json_lines(path)):
            text = get(record, options.text, where)
            if not isinstance(text, str):
                raise InferKitError(f"{where}: {options.text!r} is a text, got {text!r}.")
            category = (
                None if options.category is None else str(get(record, options.category, where))
            )
            id = f"{path.stem}-{number}"
            yield Entry(where, id, "", (), category=category, passage=text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--texts", type=Path, nargs="+", required=True, metavar="FILE", help="one or more"
    )
    parser.add_argument("--text", metavar="FIELD", help="of JSON lines; without it, plain files")
    parser.add_argument("--category", metavar="FIELD", help="its field, where there is one")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
