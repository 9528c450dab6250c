"""What each stream read, as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from infer_kit.backends import Backend
from infer_kit.streams import Group

_RUN = 4  # as many equal tokens in a row are the placeholders of a picture


@dataclass(frozen=True)
class Context:
    """The prompt of one stream.

    Attributes:
        name: of the stream. tokens: of the prompt, picture placeholders and all.
        shared: of these, how many all streams have in common from the first one on.
        begin: their text. rest: the text of the others.
    """

    name: str
    tokens: int
    shared: int
    begin: str
    rest: str


def contexts_of(backend: Backend, group: Group) -> tuple[Context, ...]:
    """The prompts of a group's streams."""
    prompts = [backend.prompt_ids(stream.context) for stream in group.streams]
    shared = 0
    if len(prompts) > 1:
        for several in zip(*prompts, strict=False):
            if len(set(several)) > 1:
                break
            shared += 1
    contexts = []
    for stream, ids in zip(group.streams, prompts, strict=True):
        begin, whole = (readable(part, backend.decoded) for part in (ids[:shared], ids))
        if whole.startswith(
            begin
        ):  # a tokenizer may write the rest otherwise where it stands alone
            rest = whole.removeprefix(begin)
        else:
            rest = readable(ids[shared:], backend.decoded)
        contexts.append(Context(stream.name, len(ids), shared, begin, rest))
    return tuple(contexts)


def readable(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    """The text of token ids; a token that comes many times in a row once, with the number."""
    parts: list[str] = []
    plain: list[int] = []
    for token, run in groupby(ids):
        count = len(list(run))
        if count < _RUN:
            plain += [token] * count
            continue
        parts += [decode(plain)] if plain else []
        parts.append(f"{decode([token])} (× {count})")
        plain = []
    return " ".join([*parts, decode(plain)] if plain else parts)
