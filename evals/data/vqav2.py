"""VQAv2 (Goyal et al. 2017): questions about COCO images, ten answers each.

python evals/data/vqav2.py --questions v2_OpenEnded_mscoco_val2014_questions.json \\
    --annotations v2_mscoco_val2014_annotations.json --images val2014 --out data/vqav2

Images are COCO_val2014_<image id, 12 digits>.jpg; the file of questions names the year. The
category is the type of the answer: yes/no, number or other.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import get, listed, read_json
from evals.data.writing import Entry, Output, arguments, run
from infer_kit.errors import InferKitError


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each question, with the answers of its annotation."""
    annotations = {
        get(record, "question_id", where): (where, record)
        for where, record in listed(
            read_json(options.annotations), "annotations", options.annotations
        )
    }
    content = read_json(options.questions)
    for where, record in listed(content, "questions", options.questions):
        year = get(content, "data_subtype", str(options.questions))
        id, image = get(record, "question_id", where), get(record, "image_id", where)
        if id not in annotations:
            raise InferKitError(
                f"{where}: question {id} has no annotation in {options.annotations}.",
                hint="Questions and annotations are of the same split.",
            )
        place, annotation = annotations[id]
        yield Entry(
            where,
            str(id),
            get(record, "question", where),
            [get(answer, "answer", place) for answer in get(annotation, "answers", place)],
            [output.image(f"COCO_{year}_{image:012d}.jpg", where)],
            category=annotation.get("answer_type"),
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="COCO_val2014_….jpg")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="JSON")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="JSON")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
