"""The layer of a cache whose places are the tokens of many sequences."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 256
"""Places that a layer has at first."""


class Fill:
    """How far the layers of a cache are filled.

    Attributes:
        slots: places in use.
        shown: those that the forward under way sees; none in a prefill.
    """

    slots = 0
    shown = 0


class TreeLayer(DynamicLayer):
    """Keys and values `[1, heads, slots, width]` in buffers with room, so that growing is rare.

    Full length whatever the model's window is: a window goes by positions, and neighbours in this
    cache need not be neighbours in a text.
    """

    def __init__(self, fill: Fill) -> None:
        super().__init__()
        self._fill = fill
        self._room: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new states, and return all that the forward under way sees."""
        new, start = (key_states, value_states), self._fill.slots
        end = start + key_states.shape[-2]
        if not self._room or end > self._room[0].shape[-2]:
            self._grow(new, start, end)
        for room, states in zip(self._room, new, strict=True):
            room[:, :, start:end] = states
        if not self._fill.shown:
            return key_states, value_states
        keys, values = (room[:, :, :end] for room in self._room)
        return keys, values

    def get_seq_length(self) -> int:
        return self._fill.shown

    def move(self, slots: Tensor, start: int) -> None:
        """Put the states of `slots` in their order from `start` on."""
        end = start + len(slots)
        for room in self._room:
            room[:, :, start:end] = room.index_select(2, slots.to(room.device))

    def release(self) -> None:
        """Give the memory back."""
        self._room = []

    def _grow(self, new: tuple[Tensor, Tensor], start: int, end: int) -> None:
        old, self._room = self._room, []
        for index, states in enumerate(new):
            room = states.new_empty(*states.shape[:2], max(ROOM, 2 * end), states.shape[-1])
            if start:
                room[:, :, :start] = old[index][:, :, :start]
            self._room.append(room)
