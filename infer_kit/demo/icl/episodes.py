"""Pictures with made-up names, and episodes of them, for learning in context.

A picture is a board of two rows (a, b) and two columns (1, 2) on a plain background. One cell
holds one object, a shape in a colour. In an episode made-up words are bound to the values of one
attribute, colour or shape: `color ?` may be `dax` for red pictures and `wug` for blue ones. The
bindings are drawn anew for every episode, so only its demonstrations can tell them.

Pictures for training and held-out pictures are disjoint by construction: a checksum of the picture
decides to which side it belongs (`is_held_out`), whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from infer_kit.demo.scenes import BACKGROUNDS, CELL_PIXELS, COLORS, SHAPES, draw_object

if TYPE_CHECKING:
    from PIL.Image import Image

CELLS: tuple[str, ...] = ("a1", "a2", "b1", "b2")
ATTRIBUTES: dict[str, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES}
WORDS: tuple[str, ...] = (
    *("dax", "wug", "blick", "toma", "fep", "zorp", "kiki", "bouba"),
    *("modi", "gazzer", "tufa", "koba", "pilk", "sorn", "vash", "jick"),
    *("nurt", "lorp", "quib", "hesk", "yorf", "rimp", "cheem", "glax"),
)

_HELD_OUT_ONE_IN = 4


@dataclass(frozen=True)
class Board:
    """What a picture shows."""

    background: str
    cell: str
    color: str
    shape: str

    @property
    def is_held_out(self) -> bool:
        """Whether it is kept from training: a checksum of what it shows."""
        shown = (self.background, self.cell, self.color, self.shape)
        return zlib.crc32(repr(shown).encode()) % _HELD_OUT_ONE_IN == 0

    def value(self, attribute: str) -> str:
        """Its colour or its shape."""
        return self.color if attribute == "color" else self.shape


@dataclass(frozen=True)
class Demonstration:
    """A picture, the question about it, and the answer: the word bound to its value."""

    board: Board
    attribute: str
    answer: str

    @property
    def question(self) -> str:
        """The text beside the picture."""
        return f"{self.attribute} ?"

    @cached_property
    def picture(self) -> Image:
        """The board, drawn."""
        return draw(self.board)

    def turn(self) -> dict[str, Any]:
        """The user's turn of a chat."""
        image = {"type": "image", "image": self.picture}
        content = [image, {"type": "text", "text": self.question}]
        return {"role": "user", "content": content}

    def turns(self) -> list[dict[str, Any]]:
        """The user's turn and the answer."""
        answer = [{"type": "text", "text": self.answer}]
        return [self.turn(), {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Episode:
    """Demonstrations and a query, all with one binding of words to the values of an attribute.

    Attributes:
        attribute: "color" or "shape".
        bindings: the word of each value, in the order of `ATTRIBUTES[attribute]`.
        demonstrations: in the order of the prompt.
        query: its answer is the true one, for scoring.
    """

    attribute: str
    bindings: tuple[str, ...]
    demonstrations: tuple[Demonstration, ...]
    query: Demonstration

    @property
    def is_covered(self) -> bool:
        """Whether a demonstration shows the query's value. Otherwise one can but guess."""
        return any(shown.answer == self.query.answer for shown in self.demonstrations)

    def records(self, shots: int | None = None) -> list[dict[str, Any]]:
        """The first `shots` demonstrations (all if None), as `ParallelICL.fit` takes them."""
        return [
            {"image": shown.picture, "question": shown.question, "answer": shown.answer}
            for shown in self.demonstrations[:shots]
        ]

    def chat(self, chosen: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The chat with the chosen demonstrations (all if None), and the query at its end."""
        shown = self.demonstrations
        if chosen is not None:
            shown = tuple(shown[i] for i in chosen)
        return [turn for one in shown for turn in one.turns()] + [self.query.turn()]


@cache
def boards(held_out: bool) -> tuple[Board, ...]:
    """Every board of one side."""
    every = (
        Board(background, cell, color, shape)
        for background in BACKGROUNDS
        for cell in CELLS
        for color in COLORS
        for shape in SHAPES
    )
    return tuple(board for board in every if board.is_held_out == held_out)


@cache
def boards_with(held_out: bool, color: str | None, shape: str | None) -> tuple[Board, ...]:
    """The boards of one side with a colour and a shape, or with either if the other is None."""
    return tuple(
        board
        for board in boards(held_out)
        if color in (None, board.color) and shape in (None, board.shape)
    )


def bind(attribute: str, rng: random.Random) -> tuple[str, ...]:
    """Different words for all values of the attribute."""
    return tuple(rng.sample(WORDS, len(ATTRIBUTES[attribute])))


def demonstrate(attribute: str, bindings: Sequence[str], board: Board) -> Demonstration:
    """The board with its word."""
    place = ATTRIBUTES[attribute].index(board.value(attribute))
    return Demonstration(board, attribute, bindings[place])


def held_out(n: int, shots: int = 16, seed: int = 0) -> list[Episode]:
    """`n` episodes of held-out pictures, as many about colour as about shape.

    All pictures of an episode have one background. Query and demonstrations have independent
    values, each as likely as the other. The picture of the query is never demonstrated. With fewer
    shots the same episodes begin alike.
    """
    return [_held_out(tuple(ATTRIBUTES)[i % 2], shots, f"held out {seed} {i}") for i in range(n)]


def _held_out(attribute: str, shots: int, seed: str) -> Episode:
    rng = random.Random(seed)
    bindings = bind(attribute, rng)
    background = rng.choice(tuple(BACKGROUNDS))
    asked = _random_board(attribute, background, rng)
    shown = [_random_board(attribute, background, rng, asked) for _ in range(shots)]
    return Episode(
        attribute,
        bindings,
        tuple(demonstrate(attribute, bindings, board) for board in shown),
        demonstrate(attribute, bindings, asked),
    )


def _random_board(
    attribute: str, background: str, rng: random.Random, other_than: Board | None = None
) -> Board:
    """A held-out board: its value first, each as likely, then the picture among those left."""
    value = rng.choice(ATTRIBUTES[attribute])
    color, shape = (value, None) if attribute == "color" else (None, value)
    alike = boards_with(True, color, shape)
    return rng.choice([b for b in alike if b.background == background and b != other_than])


def draw(board: Board) -> Image:
    """The picture of a board, 160 by 160 pixels, RGB."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (2 * CELL_PIXELS, 2 * CELL_PIXELS), BACKGROUNDS[board.background])
    row, column = divmod(CELLS.index(board.cell), 2)
    x, y = (column + 0.5) * CELL_PIXELS, (row + 0.5) * CELL_PIXELS
    draw_object(ImageDraw.Draw(picture), board.color, board.shape, x, y)
    return picture
