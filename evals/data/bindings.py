"""Held-out episodes of made-up words, for the second teaching model; each sample has its shots.

python evals/data/bindings.py --out data/bindings --shots 16 --count 200 --seed 0

The category is what the words stand for: color or shape.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.writing import shown_errors
from infer_kit.demo.samples import write_bindings


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--split", default="test", help="names the file, SPLIT.jsonl (test)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="samples (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (0)")
    parser.add_argument("--shots", type=int, default=16, metavar="N", help="of each sample (16)")
    options = parser.parse_args(argv)
    path = options.out / f"{options.split}.jsonl"
    with shown_errors():
        write_bindings(path, options.count, options.seed, options.shots)
    print(f"{path}: {options.count} samples")


if __name__ == "__main__":
    main()
