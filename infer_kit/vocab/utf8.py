"""Characters in progress: what a text in bytes may still become."""

from infer_kit.errors import InferKitError

_LENGTHS = ((0x80, 1), (0xC2, 0), (0xE0, 2), (0xF0, 3), (0xF5, 4), (0x100, 0))
# Range of the second byte, where it is not that of all later ones: no character is spelt longer
# than it need be, and half of a surrogate pair is none.
_SECOND = {0xE0: (0xA0, 0xC0), 0xED: (0x80, 0xA0), 0xF0: (0x90, 0xC0), 0xF4: (0x80, 0x90)}
LONGEST_CHARACTER = 4


def character_length(lead: int) -> int:
    """Bytes of a UTF-8 character by its first byte; 0 for a byte that begins none."""
    return next(length for above, length in _LENGTHS if lead < above)


def may_begin_character(text: bytes) -> bool:
    """Whether the bytes are a character or the beginning of one."""
    low, high = _SECOND.get(text[0], (0x80, 0xC0))
    return (
        len(text) <= character_length(text[0])
        and all(low <= byte < high for byte in text[1:2])
        and all(0x80 <= byte < 0xC0 for byte in text[2:])
    )


def is_open_character(text: bytes) -> bool:
    """Whether the bytes are the beginning of a character, but not all of it."""
    return bool(text) and len(text) < character_length(text[0]) and may_begin_character(text)


def open_tail(text: bytes) -> bytes:
    """The bytes of an incomplete last character."""
    for length in range(1, min(LONGEST_CHARACTER, len(text) + 1)):
        if is_open_character(text[-length:]):
            return text[-length:]
    return b""


def is_beginning(text: bytes) -> bool:
    """Whether the bytes are UTF-8, but for an incomplete last character."""
    return is_text(text[: len(text) - len(open_tail(text))])


def is_text(text: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def as_text(text: bytes) -> str:
    """Bytes as text, without those of an incomplete last character."""
    return text[: len(text) - len(open_tail(text))].decode("utf-8", "replace")


def check_characters(text: str, what: str) -> None:
    """Raise unless a text can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InferKitError(
            f"{what} has half of a character ({text[error.start : error.end]!r}, a surrogate) at "
            f"place {error.start}: no bytes spell it.",
            hint="Give whole characters.",
        ) from error
