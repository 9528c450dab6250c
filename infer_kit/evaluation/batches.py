"""Which samples are answered together: a function of the data alone.

Neither the number of processes nor where a run was cut changes a batch, so neither changes an
answer, under sampling and in low precision included.
"""

from collections.abc import Sequence

from infer_kit.evaluation.samples import Sample

_WINDOW = 64  # batches whose samples are sorted together
_IMAGE = 2000  # characters that a picture counts for


def plan(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Batches of sample numbers: of like length, longest first, within windows of the data."""
    step = _WINDOW * batch_size
    batches = []
    for start in range(0, len(samples), step):
        window = range(start, min(start + step, len(samples)))
        ordered = sorted(window, key=lambda n: (-length(samples[n]), n))
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return batches


def length(sample: Sample) -> int:
    """About how long its prompt is, in characters."""
    shots = sum(len(s.question) + len(s.answer) + _IMAGE * len(s.images) for s in sample.shots)
    own = len(sample.asked()) + len(sample.context or "") + len(sample.passage or "")
    return own + _IMAGE * len(sample.images) + shots
