"""MME (Fu et al. 2023): two yes-or-no questions about each image, in 14 tasks.

python evals/data/mme.py --questions MME_Benchmark_release_version --out data/mme

Below the folder there is one for each task. It has the images and a file of text for each, with
lines "question TAB Yes" and "question TAB No"; or two folders, images and questions_answers_YN,
that have them apart. The category is the task.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import read_text_lines
from evals.data.writing import Entry, Output, arguments, run
from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.yes_no import COGNITION, PERCEPTION

_EXTENSIONS = (".jpg", ".png", ".jpeg")


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """Two of each image."""
    tasks = [task for task in PERCEPTION + COGNITION if (options.questions / task).is_dir()]
    if not tasks:
        raise InferKitError(
            f"{options.questions} has no folder of a task of MME.",
            hint=f"It is the folder that has {', '.join((PERCEPTION + COGNITION)[:4])}, … in it.",
        )
    for task in tasks:
        folder = options.questions / task
        texts, images = folder / "questions_answers_YN", folder / "images"
        if not texts.is_dir():
            texts = images = folder
        for path in sorted(texts.glob("*.txt")):
            image = _image(images, path, output)
            for number, line in read_text_lines(path):
                question, tab, answer = line.rpartition("\t")
                where = f"{path}, line {number}"
                if not tab or answer.strip().lower() not in ("yes", "no"):
                    raise InferKitError(
                        f"{where}: 'question TAB Yes' or 'No' is expected, got {line!r}."
                    )
                yield Entry(
                    where,
                    f"{task}/{path.stem}/{number}",
                    question.strip(),
                    [answer.strip().lower()],
                    [image],
                    category=task,
                )


def _image(folder: Path, text: Path, output: Output) -> str:
    for extension in _EXTENSIONS:
        path = Path(os.path.abspath(folder / f"{text.stem}{extension}"))
        if path.is_file():
            return output.shown(path)
    raise InferKitError(
        f"{text}: there is no image {text.stem}.jpg or .png in {folder}.",
        hint="Was everything unpacked?",
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="DIR", help="the folder of the tasks"
    )
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
