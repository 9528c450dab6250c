"""Chats: what users pass, checked, with their images opened."""

from collections.abc import Mapping, Sequence
from typing import Any

from infer_kit.errors import InferKitError
from infer_kit.images import open_image

Chat = list[dict[str, Any]]
_IMAGE_SOURCES = ("image", "url", "path", "base64")


def as_chats(messages: Any) -> tuple[list[Chat], bool]:
    """One chat or a list of chats, as a list, and whether it was one.

    A chat is a list of `{"role": ..., "content": ...}`; a plain string is a chat of one user turn.

    Raises:
        InferKitError: it is neither, or a chat is empty.
    """
    if isinstance(messages, str):
        return [_user_turn(messages)], True
    if not isinstance(messages, Sequence) or not len(messages):
        raise InferKitError(
            f"Expected a chat or a list of chats, got {_kind(messages)}.",
            hint='A chat is [{"role": "user", "content": [{"type": "image", "image": ...}, '
            '{"type": "text", "text": "..."}]}].',
        )
    if isinstance(messages[0], Mapping):
        return [_checked(messages, 0)], True
    chats = [_user_turn(m) if isinstance(m, str) else m for m in messages]
    return [_checked(chat, b) for b, chat in enumerate(chats)], False


def question_of(chat: Chat, request: int) -> str:
    """The text of the chat's last turn, which must be the user's and not empty."""
    last = chat[-1]
    if last["role"] != "user":
        raise InferKitError(
            f"Prompt {request} ends with a turn of {last['role']!r}; the last turn must be the "
            "user's question."
        )
    text = "\n".join(part["text"] for part in last["content"] if part["type"] == "text")
    if not text.strip():
        raise InferKitError(f"The question of prompt {request} is empty.")
    return text


def with_prompt(chat: Chat, head: str, tail: str, images: bool = True) -> Chat:
    """The chat with text put around the question, the text of its last turn.

    The order of texts and images stays: `head` goes before the first text of the last turn, `tail`
    after the last one.

    Args:
        images: False takes every image out of every turn.
    """
    turns = [
        {**turn, "content": [p for p in turn["content"] if images or p["type"] != "image"]}
        for turn in chat
    ]
    content = [dict(part) for part in turns[-1]["content"]]
    texts = [part for part in content if part["type"] == "text"]
    texts[0]["text"] = head + texts[0]["text"]
    texts[-1]["text"] += tail
    turns[-1] = {**turns[-1], "content": content}
    return turns


def load_images(chat: Chat, request: int, what: str = "Prompt") -> Chat:
    """The chat with every image opened, as PIL images; errors name it by `what` and number.

    Raises:
        InferKitError: an image has no source or cannot be read; names the prompt.
    """
    where = f"{what} {request}"
    turns = []
    for turn in chat:
        content = []
        for part in turn["content"]:
            if part["type"] == "image":
                source = next((part[k] for k in _IMAGE_SOURCES if part.get(k) is not None), None)
                if source is None:
                    _refuse_placeholders(chat, where)
                picture = open_image(source, where)
                part = {"type": "image", "image": picture}
            content.append(part)
        turns.append({**turn, "content": content})
    return turns


def _checked(chat: Any, request: int) -> Chat:
    """A chat with every content as a list of parts."""
    if not isinstance(chat, Sequence) or isinstance(chat, str) or not len(chat):
        raise InferKitError(f"Prompt {request}: expected a list of messages, got {_kind(chat)}.")
    turns = []
    for turn in chat:
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise InferKitError(
                f"Prompt {request}: a message needs 'role' and 'content', got {_kind(turn)}."
            )
        content = turn["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence):
            raise InferKitError(
                f"Prompt {request}: the content of a message is {_kind(content)}; expected a text "
                "or a list of parts."
            )
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") not in ("text", "image"):
                kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
                raise InferKitError(
                    f"Prompt {request}: content parts are of type 'text' or 'image', got {kind!r}."
                )
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise InferKitError(f"Prompt {request}: a text part has no 'text' string.")
        turns.append({**turn, "content": [dict(part) for part in content]})
    return turns


def _refuse_placeholders(chat: Chat, where: str) -> None:
    parts = [part for turn in chat for part in turn["content"] if part["type"] == "image"]
    given = sum(any(part.get(key) is not None for key in _IMAGE_SOURCES) for part in parts)
    raise InferKitError(
        f"{where} contains {len(parts)} image placeholder(s) but {given} image(s) were given.",
        hint='Give each: {"type": "image", "image": <PIL image, path or URL>}.',
    )


def _user_turn(text: str) -> Chat:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def _kind(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and not len(value):
        return f"an empty {type(value).__name__}"
    return type(value).__name__
