"""Records are right by construction: an independent reader of the picture finds the same."""

import random
from itertools import pairwise

import pytest

from infer_kit.demo import scenes, train
from infer_kit.demo.build import make_processor

SIDE, RADIUS = 80, 28.8
INKS = {**scenes.COLORS, **scenes.BACKGROUNDS}


def read_cell(picture, row, column):
    """(colour, shape) of a cell, from a few pixels of the picture."""

    def filled(x, y):
        at = ((column + 0.5) * SIDE + x * RADIUS, (row + 0.5) * SIDE + y * RADIUS)
        return picture.getpixel(tuple(round(v) for v in at)) != picture.getpixel((0, 0))

    ink = picture.getpixel((round((column + 0.5) * SIDE), round((row + 0.5) * SIDE)))
    (color,) = [name for name, value in scenes.COLORS.items() if value == ink]
    if filled(-0.8, -0.8):
        return color, "square"
    if filled(0.6, -0.6):
        return color, "circle"
    if not filled(0.9, 0):
        return color, "triangle"
    return color, "diamond" if filled(0.42, 0.42) else "cross"


def read_board(picture):
    """Cell name to (colour, shape), and the background's colour."""
    board = {
        "abc"[row] + "123"[column]: read_cell(picture, row, column)
        for row in range(3)
        for column in range(3)
    }
    (ground,) = [n for n, value in scenes.BACKGROUNDS.items() if value == picture.getpixel((0, 0))]
    return board, ground


def solve(picture, question):
    """The answer to a question, from the picture: (answer, cells walked through)."""
    board, ground = read_board(picture)
    if "background" in question:
        return ground, []
    order, asked = question.removeprefix("start at the ").split(" . what ")
    start, *moves = order.replace("go ", "").split(" , ")
    (cell,) = [name for name, found in board.items() if found == tuple(start.split())]
    cells = [cell]
    for move in moves:
        row, column = "abc".index(cell[0]), "123".index(cell[1])
        row += {"up": -1, "down": 1}.get(move, 0)
        column += {"left": -1, "right": 1}.get(move, 0)
        assert 0 <= row < 3
        assert 0 <= column < 3
        cell = "abc"[row] + "123"[column]
        cells.append(cell)
    return board[cell][asked.startswith("shape")], cells


def test_answers_and_rationales_are_what_the_picture_shows():
    for record in scenes.held_out(200, seed=3):
        board, _ = read_board(record.picture)
        answer, cells = solve(record.picture, record.question)
        assert record.answer == answer
        for sentence in record.rationale.removesuffix(" .").split(" . "):
            words = sentence.split()
            if words[0] == "the":  # the red circle is at b2
                assert board[words[-1]] == (words[1], words[2])
                assert words[-1] == cells[0]
            elif words[0] in board:  # b2 has a red circle
                assert board[words[0]] == (words[3], words[4])
            else:  # up is a2
                assert words[-1] in cells[1:]
        if record.kind == "walk":
            assert record.rationale.split(" . ")[-1].startswith(cells[-1])


def test_a_background_rationale_leaves_the_background_out():
    for record in scenes.held_out(50):
        if record.kind == "background":
            assert not set(record.rationale.split()) & {*scenes.BACKGROUNDS, "background"}


def test_colors_can_be_told_apart():
    assert len(set(INKS.values())) == len(INKS) == 12


def test_held_out_questions_are_balanced_and_repeatable():
    records = scenes.held_out(40, seed=5)
    assert [record.kind for record in records] == ["walk", "background", "background", "walk"] * 10
    assert records == scenes.held_out(40, seed=5)
    assert records != scenes.held_out(40, seed=6)
    assert records[0].picture.tobytes() == scenes.held_out(1, seed=5)[0].picture.tobytes()


@pytest.mark.parametrize("lesson", [train.places, train.look_up, train.questions])
def test_training_never_sees_a_held_out_scene(lesson):
    boards = [board for seed in range(5) for board in lesson(random.Random(seed))[0]]
    assert not any(board.is_held_out for board in boards)
    records = scenes.held_out(200)
    assert all(record.scene.is_held_out for record in records)
    assert not {record.scene for record in records} & set(boards)


def test_walks_have_every_length_and_never_turn_back():
    scene = scenes.held_out(1)[0].scene
    for length in (1, 2, 3):
        for seed in range(30):
            record = scenes.walk(scene, random.Random(seed), length)
            moves = [word for word in record.question.split() if word in scenes.MOVES]
            assert len(moves) == length
            pairs = {frozenset(pair) for pair in pairwise(moves)}
            assert not pairs & {frozenset(("up", "down")), frozenset(("left", "right"))}


def test_cached_cells_are_what_the_image_processor_makes_of_a_picture():
    from infer_kit.demo.build import cell_patches

    processor = make_processor()
    patches = cell_patches(processor)
    for record in scenes.held_out(6):
        seen = processor.image_processor(record.picture, return_tensors="pt")["pixel_values"][0]
        assert (train.pixels_of(patches, record.scene) - seen).abs().max() < 1.01 / 127.5
