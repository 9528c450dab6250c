"""Demonstrations that give no test sample away; and the teaching models' own samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evals.data import bindings, few_shot, scenes
from infer_kit.demo.icl.episodes import held_out as episodes
from infer_kit.demo.scenes import held_out
from infer_kit.evaluation.samples import Sample, read_samples
from tests.evals.data.conftest import as_lines, png


def sample(id: str, question: str = "?", answers: tuple[str, ...] = ("x",), **more) -> dict:
    return {"id": id, "question": question, "answers": list(answers), **more}


def with_picture(folder: Path, id: str, color: int, **more) -> dict:
    """Each in a file of its own name, so that only bytes tell equal pictures."""
    (folder / f"{id}.png").write_bytes(png(color))
    return sample(id, images=[f"{id}.png"], **more)


def drawn(folder: Path, pool: list[dict], test: list[dict], **options) -> list[Sample]:
    given = {"shots": 2, "seed": 0} | options
    few_shot.main(
        ["--pool", str(as_lines(folder / "pool.jsonl", *pool)),
         "--test", str(as_lines(folder / "test.jsonl", *test)),
         "--out", str(folder / "shots.jsonl"),
         *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
    )  # fmt: skip
    return read_samples(folder / "shots.jsonl")


def test_what_leaks_is_never_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same id, same bytes under another name, and all else can be drawn."""
    test = [
        with_picture(tmp_path, "t0", 0, answers=("secret",)),
        with_picture(tmp_path, "t1", 1, question="what?"),
    ]
    pool = [
        with_picture(tmp_path, "t0x", 5, question="what?"),  # the question alone is no leak
        with_picture(tmp_path, "p1", 1, question="another"),  # the picture alone is one
        with_picture(tmp_path, "p2", 0),
        with_picture(tmp_path, "p3", 7, answers=("y",)),
    ]
    (tmp_path / "t1.png").replace(tmp_path / "elsewhere.png")
    test[1]["images"] = ["elsewhere.png"]
    pool.append({**with_picture(tmp_path, "p4", 9), "id": "t1"})
    for seed in range(5):
        assert {s.id for s in drawn(tmp_path, pool, test, seed=seed)} == {"t0x", "p3"}
    said = capsys.readouterr().out
    assert "left out, id of a test sample: 1" in said
    assert "left out, picture of a test sample: 2" in said
    assert "secret" not in (tmp_path / "shots.jsonl").read_text()


def test_without_pictures_the_question_leaks(tmp_path: Path) -> None:
    pool = [sample("a", "How  MANY?"), sample("b", "how much?"), sample("c", "why?", ("y",))]
    found = drawn(tmp_path, pool, [sample("t", "how many?", ("z",))])
    assert {s.id for s in found} == {"b", "c"}


def test_choices_are_part_of_a_question(tmp_path: Path) -> None:
    pool = [
        sample("a", "which?", ("A",), choices=["1", "2"]),
        sample("b", "which?", ("B",), choices=["3", "4"]),
        sample("c", "which?", ("A",), choices=["5", "6"]),
    ]
    test = [sample("t", "which?", ("A",), choices=["1", "2"])]
    found = drawn(tmp_path, pool, test)
    assert {s.id for s in found} == {"b", "c"} and all(len(s.choices) == 2 for s in found)


def test_the_seed_decides(tmp_path: Path) -> None:
    pool = [sample(str(n), f"q{n}", (f"a{n}",)) for n in range(40)]
    test = [sample("t", "q")]
    runs = [[s.id for s in drawn(tmp_path, pool, test, seed=s, shots=5)] for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_one_answer_the_most_common_one(tmp_path: Path) -> None:
    pool = [sample("a", "q", ("red", "dark red", "dark red")), sample("b", "r", ("x", "y"))]
    found = {s.id: s.answers for s in drawn(tmp_path, pool, [sample("t", "u")])}
    assert found == {"a": ("dark red",), "b": ("x",)}


@pytest.mark.parametrize(
    ("pool", "shots", "message"),
    [
        ([sample("a", "q"), sample("b", "t?")], 2,
         "2 demonstrations were asked for, and 1 of the 2 in the pool can be used "
         "(left out: 1 with the question of a test sample)."),
        ([sample("a", "q")], 0, "0 demonstrations were asked for, and 1 of the 1"),
        ([*(sample(str(n), f"q{n}") for n in range(99)), sample("z", "z", ("y",))], 2,
         "All 2 demonstrations drawn have the answer 'x'"),
        ([{"id": "a", "text": "a text"}], 1, "demonstrations are questions"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, pool, shots, message, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        drawn(tmp_path, pool, [sample("t", "t?")], shots=shots)
    assert re.search(re.escape(message), capsys.readouterr().err)
    assert not (tmp_path / "shots.jsonl").exists()


def test_a_pool_with_one_answer_only_is_no_error(tmp_path: Path) -> None:
    assert len(drawn(tmp_path, [sample("a", "q"), sample("b", "r")], [sample("t", "u")])) == 2


def test_files_that_are_read_are_not_replaced(tmp_path: Path, capsys) -> None:
    path = as_lines(tmp_path / "pool.jsonl", sample("a"))
    before = path.read_text()
    with pytest.raises(SystemExit, match="2"):
        few_shot.main(
            ["--pool", str(path), "--test", str(path), "--shots", "1", "--out", str(path)]
        )
    assert "would replace what is read" in capsys.readouterr().err
    assert path.read_text() == before


def test_scenes_are_the_held_out_ones(tmp_path: Path) -> None:
    scenes.main(["--out", str(tmp_path), "--count", "6", "--seed", "3"])
    samples = read_samples(tmp_path / "test.jsonl")
    records = held_out(6, 3)
    assert [s.question for s in samples] == [r.question for r in records]
    assert [s.answers for s in samples] == [(r.answer,) for r in records]
    assert [s.category for s in samples] == [r.kind for r in records]
    assert all(s.images[0].suffix == ".png" for s in samples)


def test_scenes_of_two_seeds_in_one_folder(tmp_path: Path) -> None:
    """The second does not replace the pictures of the first, and is a pool for it."""
    scenes.main(["--out", str(tmp_path), "--count", "4"])
    before = [s.images[0].read_bytes() for s in read_samples(tmp_path / "test.jsonl")]
    scenes.main(["--out", str(tmp_path), "--split", "pool", "--count", "6", "--seed", "1"])
    assert [s.images[0].read_bytes() for s in read_samples(tmp_path / "test.jsonl")] == before
    few_shot.main(
        ["--pool", str(tmp_path / "pool.jsonl"), "--test", str(tmp_path / "test.jsonl"),
         "--shots", "4", "--out", str(tmp_path / "shots.jsonl")]
    )  # fmt: skip
    assert len(read_samples(tmp_path / "shots.jsonl")) == 4


def test_episodes_have_their_own_demonstrations(tmp_path: Path) -> None:
    bindings.main(["--out", str(tmp_path), "--split", "dev", "--count", "3", "--shots", "5"])
    samples = read_samples(tmp_path / "dev.jsonl")
    for one, episode in zip(samples, episodes(3, 5, 0), strict=True):
        assert one.answers == (episode.query.answer,) and len(one.shots) == 5
        assert [s.answer for s in one.shots] == [d.answer for d in episode.demonstrations]


def test_default_is_sixteen_shots(tmp_path: Path) -> None:
    bindings.main(["--out", str(tmp_path), "--count", "1"])
    assert len(read_samples(tmp_path / "test.jsonl")[0].shots) == 16
