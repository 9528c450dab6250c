"""Demonstrations drawn from a pool of samples, none of which gives a test sample away.

python evals/data/few_shot.py --pool data/gqa/train.jsonl --test data/gqa/test.jsonl --shots 16 \\
    --seed 0 --out data/gqa/shots.jsonl

Left out of the pool are samples with the id of a test sample, with a picture of one (the same
bytes, whatever its name), and without pictures those with the question of one. Each has one answer,
the most common of its answers. Use it as `infer-kit eval --demonstrations data/gqa/shots.jsonl`.
"""

import argparse
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.data.writing import Entry, Output, report, shown_errors, write
from infer_kit.errors import InferKitError
from infer_kit.evaluation.samples import Sample, read_samples


class Tested:
    """What the test samples have in them: ids, pictures and questions."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.ids = {sample.id for sample in samples}
        self.questions = {_plain(sample) for sample in samples if not sample.images}
        pictures = {path for sample in samples for path in sample.images}
        self.sizes = {path.stat().st_size for path in pictures}
        self.pictures = {_digest(path) for path in pictures}

    def leak(self, sample: Sample) -> str | None:
        """Why a sample must not be a demonstration, or None."""
        if sample.id in self.ids:
            return "id of a test sample"
        if any(map(self._is_tested, sample.images)):
            return "picture of a test sample"
        if not sample.images and _plain(sample) in self.questions:
            return "question of a test sample"
        return None

    def _is_tested(self, path: Path) -> bool:
        # most pictures differ in size, and are not read
        return path.stat().st_size in self.sizes and _digest(path) in self.pictures


def draw(
    pool: Sequence[Sample], test: Sequence[Sample], shots: int, seed: int
) -> tuple[list[Sample], Counter[str]]:
    """`shots` samples of the pool that do not leak, and how many leak, by reason.

    Raises:
        InferKitError: too few are left, or all that were drawn have one answer while the pool has
            several: such demonstrations teach to say it, whatever is asked.
    """
    tested = Tested(test)
    reasons = [tested.leak(sample) for sample in pool]
    excluded = Counter(reason for reason in reasons if reason is not None)
    left = [s for s, reason in zip(pool, reasons, strict=True) if reason is None]
    if not 1 <= shots <= len(left):
        why = ", ".join(f"{count} with the {reason}" for reason, count in excluded.items())
        raise InferKitError(
            f"{shots} demonstrations were asked for, and {len(left)} of the {len(pool)} in the "
            f"pool can be used{f' (left out: {why})' if why else ''}."
        )
    drawn = random.Random(seed).sample(left, shots)
    if shots > 1 and len(set(map(answer_of, drawn))) == 1 < len(set(map(answer_of, left))):
        raise InferKitError(
            f"All {shots} demonstrations drawn have the answer {answer_of(drawn[0])!r}.",
            hint="Take another --seed or more --shots.",
        )
    return drawn, excluded


def answer_of(sample: Sample) -> str:
    """The most common of its answers, of several the first."""
    return Counter(sample.answers).most_common(1)[0][0]


def _plain(sample: Sample) -> str:
    return " ".join(sample.asked().split()).casefold()


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _questions(path: Path) -> list[Sample]:
    samples = read_samples(path)
    if any(sample.passage is not None for sample in samples):
        raise InferKitError(f"{path} has texts to be scored; demonstrations are questions.")
    return samples


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", type=Path, required=True, metavar="FILE", help="of samples")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE", help="of samples")
    parser.add_argument("--shots", type=int, required=True, metavar="N", help="to be drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="to be written")
    options = parser.parse_args(argv)
    with shown_errors():
        if options.out.resolve() in (options.pool.resolve(), options.test.resolve()):
            raise InferKitError(f"--out {options.out} would replace what is read.")
        pool, test = _questions(options.pool), _questions(options.test)
        drawn, excluded = draw(pool, test, options.shots, options.seed)
        output = Output(options.out.parent, skipped=excluded)
        entries = (
            Entry(
                f"{options.pool}, id {sample.id!r}",
                sample.id,
                sample.question,
                [answer_of(sample)],
                [output.shown(path) for path in sample.images],
                sample.choices,
                sample.category,
                sample.context,
            )
            for sample in drawn
        )
        report(options.out, write(options.out, entries), output)


if __name__ == "__main__":
    main()
