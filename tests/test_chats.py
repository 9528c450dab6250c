"""Chats as users write them, and the errors that name what is wrong with them."""

from pathlib import Path

import pytest
from PIL import Image

from infer_kit.chats import as_chats, load_images, question_of, with_prompt
from infer_kit.errors import InferKitError

PICTURE = Image.new("RGB", (4, 4), "red")


def chat(*content: dict, role: str = "user") -> list[dict]:
    return [{"role": role, "content": list(content)}]


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def test_a_string_is_a_chat_of_one_turn() -> None:
    chats, single = as_chats("hello")
    assert single and chats == [chat(text("hello"))]


def test_a_list_of_chats_and_strings_is_a_batch() -> None:
    chats, single = as_chats(["one", [{"role": "user", "content": "two"}]])
    assert not single
    assert [question_of(c, b) for b, c in enumerate(chats)] == ["one", "two"]


def test_string_content_becomes_parts_and_the_users_messages_are_left_alone() -> None:
    messages = [{"role": "user", "content": "hello"}]
    (made,), _ = as_chats(messages)
    made[0]["content"].append(text("more"))
    assert messages == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "got an empty list"),
        (3, "got int"),
        ([[{"role": "user"}]], "Prompt 0: a message needs 'role' and 'content'"),
        ([[], "x"], "Prompt 0: expected a list of messages, got an empty list"),
        (chat({"type": "video", "video": "x"}), "type 'text' or 'image', got 'video'"),
        ([{"role": "user", "content": None}], "the content of a message is NoneType"),
        (chat({"type": "text"}), "Prompt 0: a text part has no 'text' string"),
    ],
)
def test_what_is_no_chat_is_refused(messages: object, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        as_chats(messages)


def test_an_empty_question_is_refused_with_its_number() -> None:
    with pytest.raises(InferKitError, match="The question of prompt 4 is empty"):
        question_of(chat({"type": "image", "image": PICTURE}, text("  ")), 4)


def test_the_last_turn_must_be_the_users() -> None:
    with pytest.raises(InferKitError, match="Prompt 1 ends with a turn of 'assistant'"):
        question_of(chat(text("done"), role="assistant"), 1)


def test_with_prompt_puts_text_around_the_question_and_keeps_the_image() -> None:
    old = chat(text("a"), role="system") + chat({"type": "image", "image": PICTURE}, text("b"))
    new = with_prompt(old, "before ", " after")
    assert new[0] == old[0]
    assert [part["type"] for part in new[1]["content"]] == ["image", "text"]
    assert question_of(new, 0) == "before b after"
    assert question_of(old, 0) == "b"


def test_with_prompt_keeps_the_order_of_texts_and_images() -> None:
    image = {"type": "image", "image": PICTURE}
    old = chat(text("A:"), image, text("B:"), image, text("same?"))
    (turn,) = with_prompt(old, "<", ">")
    assert turn["content"] == [text("<A:"), image, text("B:"), image, text("same?>")]
    assert with_prompt(old, "", "") == old


def test_with_prompt_without_images_takes_them_from_every_turn() -> None:
    old = chat({"type": "image", "image": PICTURE}, text("a")) + chat(text("b"))
    parts = [p for turn in with_prompt(old, "", "", images=False) for p in turn["content"]]
    assert {part["type"] for part in parts} == {"text"}


def test_an_array_is_no_image() -> None:
    with pytest.raises(InferKitError, match="Prompt 1: an image is a list; expected a PIL image"):
        load_images(chat({"type": "image", "image": [[0, 1]]}, text("?")), 1)


def test_images_are_opened_from_paths_and_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    PICTURE.save(file)
    for source in ({"image": PICTURE}, {"image": str(file)}, {"path": file}, {"url": str(file)}):
        (turn,) = load_images(chat({"type": "image", **source}, text("?")), 0)
        picture = turn["content"][0]["image"]
        assert isinstance(picture, Image.Image)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_an_unreadable_image_is_named_with_its_prompt(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(InferKitError, match=r"Prompt 2: image '.*broken\.png' cannot be read"):
        load_images(chat({"type": "image", "image": str(broken)}), 2)
    with pytest.raises(
        InferKitError, match=r"'.*absent\.png' cannot be read: there is no such file"
    ):
        load_images(chat({"type": "image", "image": str(tmp_path / "absent.png")}), 0)
    with pytest.raises(InferKitError, match="cannot be read: it is a folder"):
        load_images(chat({"type": "image", "image": tmp_path}), 0)


def test_a_placeholder_without_an_image_is_counted() -> None:
    with pytest.raises(
        InferKitError, match=r"Prompt 2 contains 1 image placeholder\(s\) but 0 image"
    ):
        load_images(chat({"type": "image"}, text("?")), 2)
