"""Held-out questions about scenes, for the teaching model that ships (category: kind of question).

python evals/data/scenes.py --out data/scenes --count 200 --seed 0
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.writing import drawn_arguments, run_drawn
from infer_kit.demo.samples import write_scenes


def write(path: Path, options: argparse.Namespace) -> None:
    write_scenes(path, options.count, options.seed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = drawn_arguments(__doc__)
    run_drawn(parser, write, argv)


if __name__ == "__main__":
    main()
