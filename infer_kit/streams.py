"""What a method asks of a backend: groups of streams."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infer_kit.errors import InferKitError


@dataclass(frozen=True)
class Stream:
    """One model reading one context.

    Attributes:
        context: the prompt as the backend rendered it (`Backend.render`).
        weight: its weight in the pool.
        name: how traces call it.
        model: the model that reads it, or None for the backend's own.
    """

    context: Any
    weight: float = 1.0
    name: str = "stream"
    model: Any = None


@dataclass(frozen=True)
class Group:
    """The streams of one request; all of them advance by the same token.

    Attributes:
        streams: at least one.
        primary: the stream whose prompt the output, the processors and the stopping criteria see.
    """

    streams: tuple[Stream, ...]
    primary: int = 0

    def __post_init__(self) -> None:
        if not self.streams:
            raise InferKitError("A group needs at least one stream.")
        if not 0 <= self.primary < len(self.streams):
            raise InferKitError(
                f"primary={self.primary}, but the group has {len(self.streams)} streams."
            )


def weight_table(groups: Sequence[Group]) -> list[list[float]]:
    """`[B][K]` weights, 0 where a group has fewer streams than the largest."""
    width = max(len(group.streams) for group in groups)
    return [
        [stream.weight for stream in group.streams] + [0.0] * (width - len(group.streams))
        for group in groups
    ]
