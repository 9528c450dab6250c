"""Numbers of a search or a training run."""

from collections.abc import Mapping
from math import inf

from infer_kit.errors import InferKitError


def check_numbers(numbers: Mapping[str, float]) -> None:
    """Whether they are from 0 on, and finite.

    Raises:
        InferKitError: names the first that is not.
    """
    for name, number in numbers.items():
        if not 0 <= number < inf:
            raise InferKitError(f"{name}={number}: a number from 0 on is expected.")
