"""MMMU (Yue et al. 2024): college exams, choices or open questions, up to seven pictures.

python evals/data/mmmu.py --questions MMMU/*/validation-*.parquet --split validation --out data/mmmu

Rows have the columns id, question, options (a Python list as text), answer, question_type and
image_1 to image_7. Pictures are written below OUT/images/SPLIT. "<image 2>" in a question or an
option marks the place of a picture. The category is the subject, which is part of the id. The
answers of the test split are not released.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, read_parquet
from evals.data.writing import Entry, Output, arguments, run
from infer_kit.errors import InferKitError

_PICTURES = 7


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each row."""
    for where, row in read_parquet(options.questions):
        id, answer = get(row, "id", where), get(row, "answer", where)
        if answer == "?":
            raise InferKitError(
                f"{where}: the answer is hidden.",
                hint="MMMU has answers for the splits dev and validation only.",
            )
        choices = _listed(get(row, "options", where), where)
        yield Entry(
            where,
            id,
            get(row, "question", where),
            [answer] if choices or not answer.startswith("[") else _listed(answer, where),
            _pictures(id, row, output, where),
            choices,
            category=re.sub(r"^[a-z]+_|_\d+$", "", id),
        )


def _listed(text: str, where: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise InferKitError(f"{where}: {text!r} is no list of texts.") from error
    return [str(item) for item in value]


def _pictures(id: str, row: Mapping[str, Any], output: Output, where: str) -> list[str]:
    """Those of the row in order; the marks count on there being no gap."""
    found = [row.get(f"image_{n}") for n in range(1, _PICTURES + 1)]
    shown = [picture for picture in found if picture is not None]
    if found[: len(shown)] != shown:
        raise InferKitError(f"{where}: a picture between others is missing.")
    return [
        output.picture(f"{id}_{n}", get(picture, "bytes", where), where)
        for n, picture in enumerate(shown, 1)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--questions", type=Path, required=True, nargs="+", metavar="FILE", help="parquet"
    )
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
