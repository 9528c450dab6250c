"""Exact match: the same text but for case, space around, and a full stop at the end."""

from collections.abc import Sequence

from infer_kit.methods.sweep import same_text


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, else 0."""
    return float(any(same_text(prediction, answer) for answer in answers))
