"""Places, as boards of things: the pictures and captions that the tiny CLIP is trained on.

A picture shows a place: a board of nine cells, of which three show things that are typical of it,
three show anything else, and three are empty, on a background that is mostly the place's own. No
thing gives a place away by itself: each is typical of one or two, and is seen anywhere. What is
typical is nowhere written but in the pictures: captions name things and places.

As in `infer_kit.demo.scenes`, a checksum of what a board shows decides whether it is held out.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infer_kit.demo.scenes import BACKGROUNDS, CELL_PIXELS, COLORS, SHAPES, draw_object

if TYPE_CHECKING:
    from PIL.Image import Image

THINGS: tuple[tuple[str, str], ...] = tuple((c, s) for c in COLORS for s in SHAPES)
PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("white", "purple square", "purple diamond", "green cross", "teal circle"),
    "castle": ("gray", "yellow square", "teal diamond", "red circle", "green square"),
    "city": ("black", "green triangle", "teal square", "green diamond", "teal triangle"),
    "desert": ("pink", "red square", "purple cross", "blue diamond", "teal diamond"),
    "forest": ("brown", "red cross", "red triangle", "yellow cross", "blue diamond"),
    "garden": ("cyan", "teal cross", "yellow triangle", "purple triangle", "purple circle"),
    "harbor": ("white", "yellow circle", "blue triangle", "blue cross", "blue square"),
    "kitchen": ("gray", "blue square", "blue circle", "teal triangle", "purple cross"),
    "market": ("black", "teal circle", "red diamond", "green square", "teal square"),
    "meadow": ("pink", "purple circle", "green circle", "yellow diamond", "purple diamond"),
}
"""Each place's own background, and the things typical of it. Written down, not drawn: the model was
trained on these, and a seed may give something else in another numpy."""

CLASSES: tuple[str, ...] = tuple(PLACES)
EMPTY = len(THINGS)
SHOWN, OTHERS = 3, 3
"""Typical things in a picture; other things in it. The rest is empty."""

OWN_BACKGROUND = 0.6
"""Share of the pictures of a place that have its own background."""

_HELD_OUT_ONE_IN = 8
_GROUNDS = tuple(BACKGROUNDS)


_NAMES = [" ".join(thing) for thing in THINGS]
TYPICAL_THINGS = np.array([[_NAMES.index(name) for name in own[1:]] for own in PLACES.values()])
TYPICAL_GROUND = np.array([_GROUNDS.index(own[0]) for own in PLACES.values()])
"""The same by number: `[10, 4]` things, `[10]` backgrounds."""

ATTRIBUTES: tuple[str, ...] = (
    *_NAMES,
    *SHAPES,
    *(f"something {color}" for color in COLORS),
    *(f"{ground} background" for ground in _GROUNDS),
    *CLASSES,
)
"""What is true of pictures or not; places at the end."""

N_THINGS, N_SHAPES, N_COLORS = len(THINGS), len(SHAPES), len(COLORS)
FIRST_PLACE = len(ATTRIBUTES) - len(CLASSES)
PHRASES: tuple[str, ...] = tuple(sorted(ATTRIBUTES[:FIRST_PLACE]))
"""The concepts of this world, sorted: what is true of pictures, but for the places."""


@dataclass(frozen=True)
class Boards:
    """n pictures.

    Attributes:
        place: `[n]`, number of the class. ground: `[n]`, of the background.
        cells: `[n, 9]`, number of the thing in each cell, or `EMPTY`.
    """

    place: np.ndarray
    ground: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, at: slice | np.ndarray) -> Boards:
        return Boards(self.place[at], self.ground[at], self.cells[at])

    def attributes(self) -> Tensor:
        """`[n, len(ATTRIBUTES)]` bool: what is true of each picture."""
        n = len(self)
        seen = np.zeros((n, N_THINGS + 1), dtype=bool)
        seen[np.arange(n)[:, None], self.cells] = True
        things = seen[:, :N_THINGS].reshape(n, N_COLORS, N_SHAPES)
        ground = np.eye(len(_GROUNDS), dtype=bool)[self.ground]
        place = np.eye(len(CLASSES), dtype=bool)[self.place]
        parts = (things.reshape(n, -1), things.any(1), things.any(2), ground, place)
        return torch.from_numpy(np.concatenate(parts, 1))


def boards(n: int, rng: np.random.Generator, held_out: bool = False) -> Boards:
    """n random pictures of the training side, or of the held-out side."""
    found: list[Boards] = []
    while sum(map(len, found)) < n:
        some = _any_boards(2 * n + 8 if not held_out else 10 * n + 8, rng)
        found.append(some[is_held_out(some) == held_out])
    whole = [np.concatenate([getattr(b, f) for b in found]) for f in ("place", "ground", "cells")]
    return Boards(*whole)[:n]


def _any_boards(n: int, rng: np.random.Generator) -> Boards:
    place = rng.integers(0, len(CLASSES), n)
    own = rng.random(n) < OWN_BACKGROUND
    ground = np.where(own, TYPICAL_GROUND[place], rng.integers(0, len(_GROUNDS), n))
    mine = np.zeros((n, N_THINGS), dtype=bool)
    mine[np.arange(n)[:, None], TYPICAL_THINGS[place]] = True
    noise = rng.random((n, N_THINGS))
    typical = np.where(mine, noise, 2).argsort(1)[:, :SHOWN]
    others = np.where(mine, 2, noise).argsort(1)[:, :OTHERS]
    cells = np.full((n, 9), EMPTY)
    cells[:, :SHOWN], cells[:, SHOWN : SHOWN + OTHERS] = typical, others
    cells = rng.permuted(cells, axis=1)
    return Boards(place, ground, cells)


def is_held_out(some: Boards) -> np.ndarray:
    """`[n]` bool: whether a picture is kept from training, by a checksum of what it shows.

    The place is no part of it: a board that fits two places is on one side.
    """
    rows = np.column_stack([some.ground, some.cells]).astype(np.uint8)
    sums = np.array([zlib.crc32(row.tobytes()) for row in rows])
    return sums % _HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Sample:
    """A picture.

    Attributes:
        label: its class. ground: the colour of its background.
        things: colour and shape in each cell, a1 to c3, or None.
        phrases: those of `PHRASES` that are true of it.
    """

    label: str
    ground: str
    things: tuple[tuple[str, str] | None, ...]
    phrases: tuple[str, ...]

    @cached_property
    def picture(self) -> Image:
        """The picture, 240 by 240 pixels, RGB."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (3 * CELL_PIXELS, 3 * CELL_PIXELS), BACKGROUNDS[self.ground])
        pen = ImageDraw.Draw(image)
        for i, thing in enumerate(self.things):
            if thing is not None:
                row, column = divmod(i, 3)
                draw_object(pen, *thing, (column + 0.5) * CELL_PIXELS, (row + 0.5) * CELL_PIXELS)
        return image


def samples_of(some: Boards) -> list[Sample]:
    """The pictures as users get them."""
    every = (*THINGS, None)
    true = some.attributes()[:, :FIRST_PLACE]
    return [
        Sample(
            label=CLASSES[some.place[n]],
            ground=_GROUNDS[some.ground[n]],
            things=tuple(every[cell] for cell in some.cells[n]),
            phrases=tuple(sorted(ATTRIBUTES[a] for a in true[n].nonzero()[:, 0].tolist())),
        )
        for n in range(len(some))
    ]
