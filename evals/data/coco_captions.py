"""COCO captions (Chen et al. 2015): images with about five captions each, the references.

python evals/data/coco_captions.py --captions captions_val2014.json --images val2014 --out data/coco
python evals/data/coco_captions.py --captions dataset_coco.json --images . --split test \\
    --out data/coco

The second form is for Karpathy's file, which has all splits in it; --split chooses one.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.reading import as_object, get, listed, read_json
from evals.data.writing import Entry, Output, arguments, run
from infer_kit.errors import InferKitError

QUESTION = "What does the image show?"


def entries(options: argparse.Namespace, output: Output) -> Iterator[Entry]:
    """One of each image."""
    content = as_object(read_json(options.captions), str(options.captions))
    from_coco = "annotations" in content
    return (_from_coco if from_coco else _from_karpathy)(content, options, output)


def _from_coco(
    content: Mapping[str, Any], options: argparse.Namespace, output: Output
) -> Iterator[Entry]:
    captions: dict[Any, list[str]] = defaultdict(list)
    for where, record in listed(content, "annotations", options.captions):
        captions[get(record, "image_id", where)].append(get(record, "caption", where))
    images = list(listed(content, "images", options.captions))
    known = {get(image, "id", where) for where, image in images}
    astray = sum(len(several) for id, several in captions.items() if id not in known)
    if astray:
        output.skipped["captions of images that are not listed"] += astray
    for where, image in images:
        id = get(image, "id", where)
        name = get(image, "file_name", where)
        yield Entry(where, str(id), QUESTION, captions[id], [output.image(name, where)])


def _from_karpathy(
    content: Mapping[str, Any], options: argparse.Namespace, output: Output
) -> Iterator[Entry]:
    splits = set()
    found = False
    for where, image in listed(content, "images", options.captions):
        split = get(image, "split", where)
        splits.add(split)
        if split != options.split:
            continue
        found = True
        name = get(image, "filename", where)
        yield Entry(
            where,
            str(get(image, "cocoid", where)),
            QUESTION,
            [_raw(sentence, where) for sentence in get(image, "sentences", where)],
            [output.image(name, where, f"{image.get('filepath', '')}/{name}")],
        )
    if not found:
        raise InferKitError(
            f"{options.captions} has no split {options.split!r}; it has {sorted(splits)}."
        )


def _raw(sentence: Mapping[str, Any], where: str) -> str:
    return str(get(sentence, "raw", where))


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images="COCO_val2014_….jpg")
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="JSON")
    run(parser, entries, argv)


if __name__ == "__main__":
    main()
