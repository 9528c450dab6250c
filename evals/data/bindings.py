"""Held-out episodes of made-up words, for the second teaching model; each sample has its shots.

python evals/data/bindings.py --out data/bindings --shots 16 --count 200 --seed 0

The category is what the words stand for: color or shape.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.writing import drawn_arguments, run_drawn
from infer_kit.demo.samples import write_bindings


def write(path: Path, options: argparse.Namespace) -> None:
    write_bindings(path, options.count, options.seed, options.shots)


def main(argv: Sequence[str] | None = None) -> None:
    parser = drawn_arguments(__doc__)
    parser.add_argument("--shots", type=int, default=16, metavar="N", help="of each sample (16)")
    run_drawn(parser, write, argv)


if __name__ == "__main__":
    main()
