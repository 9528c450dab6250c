"""What the teaching model is taught: rows of supervised texts about scenes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from infer_kit.demo import PROMPTS, scenes
from infer_kit.demo.build import IMAGE_TOKENS, encode
from infer_kit.demo.packing import Row

LESSONS = ("look up", "explain", "direct walk", "direct background", "notes", "image and notes")
LOOK_UP, EXPLAIN, DIRECT_WALK, DIRECT_BACKGROUND, NOTES, JOINT = range(len(LESSONS))

FURTHEST = 40

_IMAGE_TURN = "<s> user :" + " <image>" * IMAGE_TOKENS
_TEXT_TURN = "<s> user :"
_REPLY = " assistant :"


@dataclass(frozen=True)
class Noted:
    """A question with the rationale that the model itself wrote about it."""

    record: scenes.Record
    notes: str


def prompt_ids(text: str, image: bool) -> list[int]:
    """One user turn, as the chat template renders it."""
    return encode((_IMAGE_TURN if image else _TEXT_TURN) + f" {text}{_REPLY}")


def look_up_row(image: int, scene: scenes.Scene, rng: random.Random, places: float) -> Row:
    """A look-up of every cell, none seeing another: where its object is, or what it holds.

    `places` is the share of the first. Half of them are bare words. Each is put at a random
    distance from the image, since that varies in what follows.
    """
    row = Row(image)
    root = row.add(encode(_IMAGE_TURN))
    for cell, (color, shape) in zip(scenes.CELLS, scene.objects, strict=True):
        bare = rng.random() < 0.5
        if rng.random() < places:
            text = f"{color} {shape} {cell}" if bare else scenes.place_of(scene, cell)
            learn = [2] if bare else [5]
        else:
            text = f"{cell} {color} {shape}" if bare else scenes.found_at(scene, cell)
            learn = [1, 2] if bare else [3, 4]
        row.add(encode(text), root, learn, LOOK_UP, skip=rng.randint(0, FURTHEST))
    return row


def question_row(image: int, records: Sequence[scenes.Record]) -> Row:
    """Questions about one image: each is answered directly, and explained."""
    row = Row(image)
    root = row.add(encode(_IMAGE_TURN))
    tail = PROMPTS.rationale_request.removeprefix("{question}") + _REPLY
    for record in records:
        asked = row.add(encode(record.question), root)
        direct = DIRECT_WALK if record.kind == "walk" else DIRECT_BACKGROUND
        _reply(row, _REPLY, record.answer, asked, direct)
        _reply(row, tail, record.rationale, asked, EXPLAIN)
    return row


def notes_row(noted: Noted, image: int | None = None) -> Row:
    """Answer a question from notes, without the image or beside it."""
    text = PROMPTS.fill("rationale_context", noted.record.question, noted.notes)
    row = Row(image)
    lesson = NOTES if image is None else JOINT
    ids = prompt_ids(text, image is not None)
    answer = encode(noted.record.answer + " </s>")
    row.add(ids + answer, None, range(len(ids), len(ids) + 2), lesson)
    return row


def _reply(row: Row, before: str, text: str, parent: int, lesson: int) -> None:
    ids, words = encode(before), encode(text + " </s>")
    row.add(ids + words, parent, range(len(ids), len(ids) + len(words)), lesson)
