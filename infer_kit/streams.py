"""What a method asks of a backend: groups of streams."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
        experts: the streams that say what is plausible, where the pool has a cut-off; of several,
            their product. None: the primary.
        memories: of encoded images that the contexts show (`Backend.new_memory`).
    """

    streams: tuple[Stream, ...]
    primary: int = 0
    experts: tuple[int, ...] | None = None
    memories: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.streams:
            raise InferKitError("A group needs at least one stream.")
        if not 0 <= self.primary < len(self.streams):
            raise InferKitError(
                f"primary={self.primary}, but the group has {len(self.streams)} streams."
            )
        if self.experts is None:
            object.__setattr__(self, "experts", (self.primary,))
        if not self.experts or not all(0 <= k < len(self.streams) for k in self.experts):
            raise InferKitError(
                f"experts={self.experts}, but the group has {len(self.streams)} streams."
            )

    def replace(self, which: str | int, other: "Group") -> "Group":
        r"""The group with another one in the place of a stream, by name or number.

        A stream of weight w gives way to the streams of `other`, their weights times w:
        $w \log p \to w \sum_k w_k \log p_k$. Where it was the primary or an expert, those of
        `other` are.

        Raises:
            InferKitError: not exactly one stream has that name or number.
        """
        names = [stream.name for stream in self.streams]
        if isinstance(which, str) and names.count(which) != 1:
            raise InferKitError(f"{names.count(which)} streams are named {which!r}, of {names}.")
        place = names.index(which) if isinstance(which, str) else which
        if not 0 <= place < len(names):
            raise InferKitError(f"No stream {place}: the group has {len(names)} streams.")
        streams: list[Stream] = []
        primary, experts = 0, []
        for k, stream in enumerate(self.streams):
            begin = len(streams)
            if k == place:
                streams += [replace(s, weight=stream.weight * s.weight) for s in other.streams]
                inner_primary, inner_experts = other.primary, other.experts or ()
            else:
                streams.append(stream)
                inner_primary, inner_experts = 0, (0,)
            if k == self.primary:
                primary = begin + inner_primary
            if k in (self.experts or ()):
                experts += [begin + e for e in inner_experts]
        memories = (*self.memories, *other.memories)
        return Group(tuple(streams), primary, tuple(experts), memories)

    def reweighted(self, weights: Sequence[float]) -> "Group":
        """The group with other weights."""
        pairs = zip(self.streams, weights, strict=True)
        return replace(self, streams=tuple(replace(s, weight=float(w)) for s, w in pairs))


def weight_table(groups: Sequence[Group]) -> list[list[float]]:
    """`[B][K]` weights, 0 where a group has fewer streams than the largest."""
    width = max(len(group.streams) for group in groups)
    return [
        [stream.weight for stream in group.streams] + [0.0] * (width - len(group.streams))
        for group in groups
    ]
