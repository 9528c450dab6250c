"""Demonstrations of a run: drawn with a seed, and none that leaks."""

from pathlib import Path

import pytest
from PIL import Image

from infer_kit.errors import InferKitError
from infer_kit.evaluation.few_shot import (
    check_own_shots,
    content_key,
    leaks,
    shot_of,
    shots_from,
)
from infer_kit.evaluation.samples import Sample, Shot

POOL = [Sample(f"p{n}", f"question {n}?", ("a", "b", "b")) for n in range(6)]


def test_all_come_in_order_and_some_are_drawn_by_the_seed() -> None:
    assert [s.question for s in shots_from(POOL, [], None, 0, "f")] == [s.question for s in POOL]
    draws = [shots_from(POOL, [], 3, seed, "f") for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len({shot.question for shot in draws[0]}) == 3


def test_the_answer_is_that_of_most_annotators() -> None:
    assert shot_of(POOL[0]).answer == "b"
    assert shot_of(Sample("1", "q", ("x", "y"))).answer == "x"
    chosen = shot_of(Sample("1", "q", ("B",), choices=("one", "two")))
    assert chosen.question == "q\nA. one\nB. two" and chosen.answer == "B"


def test_a_question_about_the_same_picture_leaks_whatever_its_name(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("copy.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    asked = [Sample("t1", "What colour?", ("red",), (tmp_path / "a.png",))]
    pool = [
        Sample("p1", "what  colour?", ("red",), (tmp_path / "copy.png",)),
        Sample("p2", "What colour?", ("blue",), (tmp_path / "b.png",)),
        Sample("p3", "What shape?", ("square",), (tmp_path / "copy.png",)),
    ]
    assert [s.id for s in leaks(pool, asked)] == ["p1"]
    assert content_key(pool[0]) == content_key(asked[0]) != content_key(pool[1])
    with pytest.raises(InferKitError, match=r"f: 1 demonstrations are samples of the data \('p1'"):
        shots_from(pool, asked, 1, 0, "f")


@pytest.mark.parametrize("shots", [0, 7, -1])
def test_a_number_that_is_not_there_is_refused(shots: int) -> None:
    with pytest.raises(InferKitError, match=f"f has 6 demonstrations, {shots} were asked for"):
        shots_from(POOL, [], shots, 0, "f")


def test_texts_are_no_demonstrations() -> None:
    with pytest.raises(InferKitError, match="Sample '1' is a text; demonstrations are questions"):
        shots_from([Sample("1", "", (), passage="x")], [], None, 0, "f")


def test_a_sample_that_is_its_own_demonstration_is_refused() -> None:
    asked = Sample("1", "What?", ("a",), shots=(Shot("Who?", "b"), Shot("what? ", "a")))
    with pytest.raises(InferKitError, match="f: sample '1' is one of its own demonstrations"):
        check_own_shots([asked], "f")
    check_own_shots([Sample("1", "What?", ("a",), shots=(Shot("Who?", "b"),))], "f")
