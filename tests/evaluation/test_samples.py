"""Files of samples: what is read, and every way in which one can be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infer_kit.errors import InferKitError
from infer_kit.evaluation.samples import parts_of, read_samples

GOOD: dict[str, Any] = {"id": "1", "question": "What?", "answers": ["a cat"]}


def test_a_sample_is_read_whole(tmp_path: Path, written: Callable[..., Path]) -> None:
    for name in ("one.png", "two.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    shot = {"question": "And?", "answer": "dog", "images": ["two.png"]}
    record = GOOD | {
        "images": ["one.png"], "category": "pets", "context": "A page.", "demonstrations": [shot],
    }  # fmt: skip
    (sample,) = read_samples(written(record))
    assert sample.id == "1" and sample.answers == ("a cat",)
    assert sample.images == (tmp_path / "one.png",)
    assert sample.pictures == (tmp_path / "one.png", tmp_path / "two.png")
    assert (sample.category, sample.context) == ("pets", "A page.")
    chat = sample.chat("Be short.", system="You see.")
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user"]
    assert chat[1]["content"] == [
        {"type": "image", "image": str(tmp_path / "two.png")},
        {"type": "text", "text": "And?\nBe short."},
    ]
    assert chat[3]["content"][1]["text"] == "What?\nBe short."


def test_choices_stand_below_the_question_with_their_letters(written: Callable[..., Path]) -> None:
    record = GOOD | {"answers": ["B"], "choices": ["a dog", "a cat"]}
    (sample,) = read_samples(written(record))
    assert sample.asked("Answer.") == "What?\nA. a dog\nB. a cat\nAnswer."


def test_texts_to_score_have_no_question(written: Callable[..., Path]) -> None:
    (sample,) = read_samples(written({"id": 3, "text": "Once upon a time."}))
    assert sample.id == "3" and sample.passage == "Once upon a time."


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("What is in <image 2> and <image 1>?", ["text", "image:2", "text", "image:1", "text"]),
        ("<image 1> What?", ["image:2", "image:1", "text"]),
        ("No marks.", ["image:1", "image:2", "text"]),
        ("A mark <image 7> of nothing.", ["image:1", "image:2", "text"]),
    ],
)
def test_pictures_stand_where_they_are_marked(text: str, kinds: list[str]) -> None:
    parts = parts_of(text, [Path("1"), Path("2")])
    found = [p["type"] if p["type"] == "text" else f"image:{p['image']}" for p in parts]
    assert found == kinds


@pytest.mark.parametrize(
    "record, message",
    [
        ({"question": "q", "answers": ["a"]}, "there is no id"),
        (GOOD | {"id": " "}, "id is a text or a number, got ' '"),
        (
            GOOD | {"question": "What is in <image 2>?"},
            r"<image 2> marks a picture, and there are 0",
        ),
        (
            GOOD | {"choices": ["<image 1>", "b"], "answers": ["A"]},
            r"<image 1> marks a picture, and there are 0",
        ),
        (GOOD | {"question": ""}, "question is a text that is not empty, got ''"),
        (GOOD | {"answers": []}, "there is no answer"),
        (GOOD | {"answers": [""]}, "answers has '', which is no text or an empty one"),
        (GOOD | {"answers": "a cat"}, "answers is a list of texts, got 'a cat'"),
        (GOOD | {"answer": "a cat"}, r"unknown fields \['answer'\]"),
        (GOOD | {"choices": ["one"]}, "2 to 26 choices, got 1"),
        (GOOD | {"choices": ["one", "two"]}, "an answer is a letter from A to B, got 'a cat'"),
        (GOOD | {"choices": ["x", "y"], "answers": ["C"]}, "a letter from A to B, got 'C'"),
        (GOOD | {"images": ["gone.png"]}, r"1 of 1 images are no files: .*gone.png.*\(id '1'\)"),
        (GOOD | {"demonstrations": ["x"]}, "demonstrations is a list of objects"),
        (GOOD | {"demonstrations": [{"question": "q"}]}, "demonstration 0: answer is a text"),
        ({"id": "1", "text": "t", "answers": ["a"]}, r"a text to be scored has no \['answers'\]"),
        (["a", "list"], "line 1: an object is expected, got a list"),
        (GOOD | {"question": "\ud83d"}, "question has half of a surrogate pair"),
        (GOOD | {"answers": ["a\ud83d"]}, "answers has half of a surrogate pair"),
    ],
)
def test_a_bad_record_is_refused_by_line(
    record: Any, message: str, written: Callable[..., Path]
) -> None:
    with pytest.raises(InferKitError, match=message):
        read_samples(written(record))


def test_doubled_ids_are_named_with_their_lines(written: Callable[..., Path]) -> None:
    with pytest.raises(InferKitError, match=r"id '1' is on lines 1 and 3"):
        read_samples(written(GOOD, GOOD | {"id": "2"}, GOOD))


def test_broken_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"id": "1", "question": "q", "answers": ["a"]}\n{"id": "caf\xe9"}\n')
    with pytest.raises(InferKitError, match=r"line 2: not UTF-8 \(byte 11 of the line is 0xe9\)"):
        read_samples(path)


@pytest.mark.parametrize(
    "content, message",
    [(b"", "has no samples"), (b"\n\n", "has no samples"), (b"{not json}\n", "line 1: not JSON")],
)
def test_a_file_without_samples_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InferKitError, match=message):
        read_samples(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="does not exist"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(InferKitError, match="is a folder"):
        read_samples(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "1", "question": "q", "answers": ["a"]}\n')
    assert read_samples(path)[0].id == "1"
