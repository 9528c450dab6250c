"""Demonstrations for a run: drawn with a seed, and checked against the samples."""

import hashlib
import random
from collections.abc import Sequence

from infer_kit.errors import InferKitError
from infer_kit.evaluation.identity import pictures_identity
from infer_kit.evaluation.samples import Sample, Shot

_SHOWN = 5


def shots_from(
    pool: Sequence[Sample], samples: Sequence[Sample], shots: int | None, seed: int, where: str
) -> tuple[Shot, ...]:
    """`shots` of a pool of answered samples (all if None, in their order), none of which leaks.

    A demonstration leaks if it has the question and the pictures of a sample.

    Raises:
        InferKitError: some leak, there are too few, or they are texts without questions.
    """
    every = tuple(map(shot_of, pool))
    leaking = leaks(pool, samples)
    if leaking:
        shown = ", ".join(repr(sample.id) for sample in leaking[:_SHOWN])
        raise InferKitError(
            f"{where}: {len(leaking)} demonstrations are samples of the data ({shown}"
            f"{', …' if len(leaking) > _SHOWN else ''}): their answers would be in the prompt.",
            hint="evals/data/few_shot.py makes a file without them.",
        )
    if shots is None:
        return every
    if not 1 <= shots <= len(pool):
        raise InferKitError(f"{where} has {len(pool)} demonstrations, {shots} were asked for.")
    return tuple(random.Random(seed).sample(every, shots))


def leaks(pool: Sequence[Sample], samples: Sequence[Sample]) -> list[Sample]:
    """Those of the pool that are samples themselves, whatever their ids."""
    keys = {content_key(sample) for sample in samples}
    return [sample for sample in pool if content_key(sample) in keys]


def check_own_shots(samples: Sequence[Sample], where: str) -> None:
    """Raise where a sample is one of its own demonstrations.

    Raises:
        InferKitError: names the sample.
    """
    for sample in samples:
        for shot in sample.shots:
            twin = Sample(sample.id, shot.question, (shot.answer,), shot.images)
            if content_key(twin) == content_key(sample):
                raise InferKitError(
                    f"{where}: sample {sample.id!r} is one of its own demonstrations: its answer "
                    "would be in the prompt."
                )


def content_key(sample: Sample) -> str:
    """Equal for equal questions, up to case and space, about equal files of pictures."""
    question = " ".join(sample.asked().split()).casefold()
    return hashlib.sha256(f"{question}\n{pictures_identity(sample.images)}".encode()).hexdigest()


def shot_of(sample: Sample) -> Shot:
    """A sample as a demonstration, with the answer that most annotators gave, the first of them.

    Raises:
        InferKitError: it is a text without a question.
    """
    if sample.passage is not None:
        raise InferKitError(
            f"Sample {sample.id!r} is a text; demonstrations are questions with answers."
        )
    answer = max(sample.answers, key=sample.answers.count)
    return Shot(sample.asked(), answer, sample.images)
