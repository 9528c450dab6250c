"""Synthetic scenes, and questions about them, for the teaching model.

A scene is a board of three rows (a, b, c) and three columns (1, 2, 3) on a plain background. Every
cell holds one shape in one colour, and no two cells hold the same. Two kinds of question:

* "walk": `start at the red circle , go up , left . what color is there ?`
  Its rationale walks there and says what it finds.
* "background": `what color is the background ?`
  Its rationale names the objects of the first row, as captions do, and never the background.

Every text is made of words with single spaces between them, punctuation included.

Scenes for training and held-out scenes are disjoint by construction: a checksum of the scene
decides to which side it belongs (`is_held_out`), whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 36),
    "green": (30, 150, 50),
    "blue": (40, 80, 230),
    "yellow": (250, 220, 30),
    "purple": (150, 50, 200),
    "teal": (0, 140, 140),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "diamond")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "black": (15, 15, 15),
    "pink": (255, 190, 215),
    "brown": (110, 70, 40),
    "cyan": (150, 235, 240),
}
CELLS: tuple[str, ...] = tuple(row + column for row in "abc" for column in "123")
MOVES: dict[str, tuple[int, int]] = {
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
}
KINDS: tuple[str, ...] = ("walk", "background")
LONGEST_WALK = 3
CELL_PIXELS = 80

_OPPOSITE = {"up": "down", "down": "up", "left": "right", "right": "left"}
_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Scene:
    """A board.

    Attributes:
        background: its colour.
        objects: colour and shape of each cell, a1 to c3.
    """

    background: str
    objects: tuple[tuple[str, str], ...]

    @property
    def is_held_out(self) -> bool:
        """Whether the scene is kept from training: a checksum of what it shows."""
        return zlib.crc32(repr((self.background, self.objects)).encode()) % _HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Record:
    """One question about one scene, with the true answer and a true rationale."""

    scene: Scene
    question: str
    kind: str
    answer: str
    rationale: str

    @cached_property
    def picture(self) -> Image:
        """The scene, drawn."""
        return draw(self.scene)


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene of the training side, or of the held-out side."""
    every = [(color, shape) for color in COLORS for shape in SHAPES]
    while True:
        scene = Scene(rng.choice(tuple(BACKGROUNDS)), tuple(rng.sample(every, len(CELLS))))
        if scene.is_held_out == held_out:
            return scene


def draw(scene: Scene) -> Image:
    """The picture of a scene, 240 by 240 pixels, RGB."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (3 * CELL_PIXELS, 3 * CELL_PIXELS), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(picture)
    for i, (color, shape) in enumerate(scene.objects):
        row, column = divmod(i, 3)
        x, y = (column + 0.5) * CELL_PIXELS, (row + 0.5) * CELL_PIXELS
        draw_object(pen, color, shape, x, y)
    return picture


def draw_object(pen: ImageDraw, color: str, shape: str, x: float, y: float) -> None:
    """Draw one object in the middle (x, y) of its cell."""
    r = 0.36 * CELL_PIXELS  # the rest is margin: no shape reaches into the next cell
    fill = COLORS[color]
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill)
    elif shape == "triangle":
        pen.polygon(((x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)), fill)
    elif shape == "cross":
        pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill)
        pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill)
    else:
        pen.polygon(((x, y - r), (x + r, y), (x, y + r), (x - r, y)), fill)


def step(cell: str, move: str) -> str | None:
    """The cell one move further, or None off the board."""
    row, column = CELLS.index(cell) // 3 + MOVES[move][0], CELLS.index(cell) % 3 + MOVES[move][1]
    return CELLS[3 * row + column] if 0 <= row < 3 and 0 <= column < 3 else None


def found_at(scene: Scene, cell: str) -> str:
    """The sentence that says what a cell holds."""
    color, shape = scene.objects[CELLS.index(cell)]
    return f"{cell} has a {color} {shape} ."


def place_of(scene: Scene, cell: str) -> str:
    """The sentence that says where an object is."""
    color, shape = scene.objects[CELLS.index(cell)]
    return f"the {color} {shape} is at {cell} ."


def walk(scene: Scene, rng: random.Random, length: int | None = None) -> Record:
    """A question of kind "walk", of 1 to 3 moves that stay on the board and never turn back."""
    length = rng.randint(1, LONGEST_WALK) if length is None else length
    cell = start = rng.choice(CELLS)
    moves: list[str] = []
    notes = [place_of(scene, start)]
    for _ in range(length):
        back = _OPPOSITE[moves[-1]] if moves else None
        moves.append(rng.choice([m for m in MOVES if m != back and step(cell, m)]))
        cell = str(step(cell, moves[-1]))
        notes.append(f"{moves[-1]} is {cell} .")
    notes.append(found_at(scene, cell))
    asked = rng.choice(("color", "shape"))
    color, shape = scene.objects[CELLS.index(start)]
    return Record(
        scene=scene,
        question=(
            f"start at the {color} {shape} , go {' , '.join(moves)} . what {asked} is there ?"
        ),
        kind="walk",
        answer=scene.objects[CELLS.index(cell)][asked == "shape"],
        rationale=" ".join(notes),
    )


def background(scene: Scene) -> Record:
    """The question of kind "background". Its rationale is a caption that leaves the answer out."""
    return Record(
        scene=scene,
        question="what color is the background ?",
        kind="background",
        answer=scene.background,
        rationale=" ".join(found_at(scene, cell) for cell in CELLS[:3]),
    )


def question(kind: str, scene: Scene, rng: random.Random) -> Record:
    """A question of the given kind."""
    return walk(scene, rng) if kind == "walk" else background(scene)


def held_out(n: int, seed: int = 0) -> list[Record]:
    """`n` questions about `n` held-out scenes, for evaluation.

    The kinds come in the order walk, background, background, walk: as many of each, and the next
    question is as often of the same kind as of the other.
    """
    rng = random.Random(f"held out {seed}")
    kinds = [KINDS[(i + 1) // 2 % 2] for i in range(n)]
    return [question(kind, random_scene(rng, held_out=True), rng) for kind in kinds]
