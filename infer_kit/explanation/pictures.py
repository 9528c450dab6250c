"""The pictures of a chat for the page: data URIs of a size to look at."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from infer_kit.chats import Chat

LONGEST = 1024
_LARGE = 200_000


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it.

    Attributes:
        uri: `data:image/...;base64,...`.
        width, height: of the one that the model was given.
        scaled: whether it is shown smaller.
    """

    uri: str
    width: int
    height: int
    scaled: bool


def pictures_of(chat: Chat) -> tuple[Picture, ...]:
    """All pictures of a chat whose images are loaded, in order."""
    parts = [part for turn in chat for part in turn["content"] if part["type"] == "image"]
    return tuple(shown(part["image"]) for part in parts)


def shown(picture: Any) -> Picture:
    """A PIL image as a PNG, or as a JPEG where that is large."""
    width, height = picture.size
    small = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    small.thumbnail((LONGEST, LONGEST))
    kind, data = "png", _encoded(small, "PNG")
    if len(data) > _LARGE:
        ground = Image.new("RGB", small.size, "white")
        ground.paste(small, mask=small.getchannel("A") if small.mode == "RGBA" else None)
        kind, data = "jpeg", _encoded(ground, "JPEG", quality=85)
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, width, height, small.size != (width, height))


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
