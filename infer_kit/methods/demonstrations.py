"""Demonstrations of in-context learning, as users pass them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infer_kit.chats import Chat, as_chats
from infer_kit.errors import InferKitError

_RECORD = ("question", "answer", "image", "images")


@dataclass(frozen=True)
class Demonstration:
    """An answered question.

    Attributes:
        chat: its turns; the last one is the assistant's answer, the one before it the question.
    """

    chat: Chat

    @property
    def pictures(self) -> list[Any]:
        """Its images, as the user gave them."""
        return pictures_of(self.chat)

    @property
    def question(self) -> str:
        """The text of the user's last turn."""
        return _text(self.chat[-2])

    @property
    def answer(self) -> str:
        """The text of the assistant's last turn."""
        return _text(self.chat[-1])


def as_demonstrations(given: Any) -> list[Demonstration]:
    """What a user passes to `fit`, checked.

    Args:
        given: a list of chats that end with the assistant's answer, or of mappings with "question",
            "answer" and, if there are any, "image" or "images".

    Raises:
        InferKitError: there is none, or one lacks an answer; names it.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise InferKitError(
            f"Expected a list of demonstrations, got a {type(given).__name__}.", hint=_HINT
        )
    if not len(given):
        raise InferKitError(
            "No demonstrations: the list is empty.",
            hint="Without demonstrations there is nothing to learn from; call generate() itself.",
        )
    return [_demonstration(item, n) for n, item in enumerate(given)]


_HINT = (
    'A demonstration is {"image": ..., "question": "...", "answer": "..."}, or a chat that ends '
    "with the assistant's answer."
)


def _demonstration(item: Any, n: int) -> Demonstration:
    where = f"Demonstration {n}"
    if isinstance(item, Demonstration):
        return item
    if isinstance(item, Mapping):
        item = _chat_of_record(item, where)
    if not isinstance(item, Sequence) or isinstance(item, str) or not len(item):
        raise InferKitError(f"{where} is a {type(item).__name__}.", hint=_HINT)
    try:
        (chat,), _ = as_chats(item)
    except (InferKitError, ValueError) as error:
        raise InferKitError(f"{where}: {error}", hint=_HINT) from error
    roles = [turn["role"] for turn in chat]
    if roles[-1] != "assistant" or not _text(chat[-1]).strip():
        raise InferKitError(f"{where} has no answer: it ends with {roles[-1]!r}.", hint=_HINT)
    if len(chat) < 2 or roles[-2] != "user":
        raise InferKitError(f"{where} has no question before its answer.", hint=_HINT)
    if "system" in roles:
        raise InferKitError(
            f"{where} has a system turn.", hint="Pass ParallelICL(..., system='...'), once for all."
        )
    return Demonstration(chat)


def _chat_of_record(record: Mapping[str, Any], where: str) -> Chat:
    unknown = [key for key in record if key not in _RECORD]
    if unknown:
        raise InferKitError(f"{where} has unknown fields {unknown}.", hint=_HINT)
    for key in ("question", "answer"):
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            raise InferKitError(f"The {key} of {where} is {value!r}, not a text.", hint=_HINT)
        if value is None or not value.strip():
            raise InferKitError(f"{where} has no {key}: got {value!r}.", hint=_HINT)
    one, several = record.get("image"), record.get("images")
    if one is not None and several is not None:
        raise InferKitError(f"{where} has both 'image' and 'images'; give one of them.")
    if isinstance(several, str):
        raise InferKitError(f"{where}: 'images' is a list; one picture goes under 'image'.")
    if "image" in record and one is None:
        raise InferKitError(
            f"{where}: its image is None.", hint="Leave the field out where there is no picture."
        )
    images = [one] if one is not None else list(several or ())
    content = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": record["question"]})
    answer = [{"type": "text", "text": record["answer"]}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def pictures_of(chat: Chat) -> list[Any]:
    """The images of a chat, opened (`load_images`) or as the user gave them."""
    parts = [part for turn in chat for part in turn["content"] if part["type"] == "image"]
    keys = ("image", "url", "path", "base64")
    return [next((p[k] for k in keys if p.get(k) is not None), None) for p in parts]


def question_key(pictures: Sequence[Any], question: str) -> str:
    """Equal for equal pictures and questions: tells a query that is itself a demonstration."""
    digest = hashlib.blake2b(" ".join(question.split()).casefold().encode(), digest_size=16)
    for picture in pictures:
        rgb = picture.convert("RGB")
        digest.update(f"{rgb.size}".encode() + rgb.tobytes())
    return digest.hexdigest()


def _text(turn: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")
