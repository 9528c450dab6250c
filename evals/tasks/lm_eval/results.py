"""How `short_sums` is scored."""

from collections.abc import Mapping, Sequence
from typing import Any


def last_number(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the number that the filter found is the answer."""
    return {"exact_match": float(results[0].strip() == doc["answer"])}
