"""What a model reads before a text: prompts and chats, healed where they were cut in a word."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from infer_kit.chats import Chat
from infer_kit.errors import InferKitError
from infer_kit.vocab.reduction import Reduction
from infer_kit.vocab.utf8 import check_characters, is_text
from infer_kit.vocab.vocabulary import Vocabulary

HEALED = 2  # tokens: the last may be cut short, and the one before depends on it
_MOST_HEALED = 32  # tokens, however long a word is


@dataclass(frozen=True)
class Conditioning:
    """A prompt as a model reads it.

    The model reads `ids`; what `forced` spells then follows with certainty, however it is cut into
    tokens.

    Attributes:
        ids: never empty.
        before: the last of `ids` with text, for the tokenizer's rules.
        forced: the tokens taken off the prompt's end.
        prefix: bytes that follow in the place of `forced` where there is no prompt.
    """

    ids: tuple[int, ...]
    before: tuple[int, ...]
    forced: tuple[int, ...]
    prefix: bytes = b""


def condition_on_text(
    reduction: Reduction, text: str, healing: int = HEALED, tokenizer: Any = None
) -> Conditioning:
    """A prompt that is plain text.

    A prompt that ends inside a word would be read in tokens that no whole text has: the last
    tokens are taken off and their bytes forced instead.

    Args:
        reduction: of the model's vocabulary.
        text: may be empty. Names of the tokenizer's special tokens are those tokens, as
            everywhere in transformers, if the tokenizer is given.
        healing: at least so many tokens are taken off, and more where the last word has more, at
            most back to the last special token. 0 takes none.
        tokenizer: of transformers, for special tokens.

    Warns: where a normaliser changes the text, with both strings.
    """
    vocabulary = reduction.vocabulary
    ids = text_ids(vocabulary, text, tokenizer)
    if not ids:  # nothing but what the tokenizer itself puts before any text
        return Conditioning(tuple(vocabulary.empty_ids), (), (), vocabulary.prefix)
    return condition_on_ids(vocabulary, ids, unsettled(reduction, ids, healing))


def text_ids(vocabulary: Vocabulary, text: str, tokenizer: Any = None) -> list[int]:
    """Tokens of a prompt, those that begin it included; none for an empty one.

    See `condition_on_text`.
    """
    if not isinstance(text, str):
        raise InferKitError(f"A prompt is a text, got {type(text).__name__}.")
    check_characters(text, "The prompt")
    begin = list(vocabulary.begin_ids)
    if callable(tokenizer) and _has_special(vocabulary, text):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if ids[: len(begin)] == begin else [*begin, *ids]
    read = warn_if_changed(vocabulary, text, "prompt")
    return [*begin, *vocabulary.encode(text)] if read else []


def warn_if_changed(vocabulary: Vocabulary, text: str, what: str) -> str:
    """What a text is read as; warns, with both, where a normaliser changes it."""
    read = vocabulary.conditioned(text)
    if read != text:
        warnings.warn(
            f"The tokenizer {vocabulary.name!r} changes the {what}: {_short(text)} is read as "
            f"{_short(read)}.",
            stacklevel=6,
        )
    return read


def _has_special(vocabulary: Vocabulary, text: str) -> bool:
    return any(name in text for name in vocabulary.special_names.values())


def condition_on_chat(
    reduction: Reduction, tokenizer: Any, chat: Chat, healing: int = HEALED
) -> Conditioning:
    """A chat in the model's own template, up to where the answer begins."""
    ids = chat_ids(reduction.vocabulary, tokenizer, chat)
    return condition_on_ids(reduction.vocabulary, ids, unsettled(reduction, ids, healing))


def chat_ids(vocabulary: Vocabulary, tokenizer: Any, chat: Chat) -> list[int]:
    """Tokens of a chat in the tokenizer's template.

    Raises:
        InferKitError: the tokenizer has no chat template, or the chat has images.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InferKitError(
            f"The tokenizer {vocabulary.name!r} has no chat template.",
            hint="Give a text as prompt, or set tokenizer.chat_template.",
        )
    if any(part["type"] != "text" for turn in chat for part in turn["content"]):
        raise InferKitError("An ensemble of language models reads text; the chat has images.")
    turns = [
        {**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in chat
    ]
    ids: list[int] = tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return ids


def split_ids(
    vocabulary: Vocabulary, text: str, prompt: str, tokenizer: Any = None
) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and a text together, cut where those of the prompt alone end or differ.

    So a token that holds the prompt's end and the text's beginning belongs to the text. The cut
    lies between characters.
    """
    if not _has_special(vocabulary, prompt):
        tokenizer = None  # such names in a text are no special tokens
    whole = text_ids(vocabulary, prompt + text, tokenizer)
    alone = text_ids(vocabulary, prompt, tokenizer)
    most = min(len(alone), len(whole) - 1)
    cut = next((at for at in range(most) if whole[at] != alone[at]), most)
    while cut and not is_text(b"".join(vocabulary.tokens[id] or b"" for id in whole[cut:])):
        cut -= 1
    return whole[:cut] or list(vocabulary.empty_ids), whole[cut:]


def answer_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokens of a text that follows a chat: without a dummy prefix."""
    if vocabulary.encoder is None:
        return vocabulary.encode(text)
    ids: list[int] = vocabulary.encoder.encode(text, add_special_tokens=False).ids
    return ids


def condition_on_ids(vocabulary: Vocabulary, ids: Sequence[int], healing: int) -> Conditioning:
    """Prompt tokens, the last `healing` of them given back as bytes."""
    start = _text_start(vocabulary, ids)
    cut = max(len(ids) - healing, start)
    kept = tuple(ids[:cut]) if cut else tuple(vocabulary.empty_ids)
    if not kept:
        raise InferKitError(
            f"The model of {vocabulary.name!r} has no token to begin a text with, and the prompt "
            "is too short to give it one.",
            hint="Give a longer prompt.",
        )
    return Conditioning(kept, tuple(ids[start:cut]), tuple(ids[cut:]))


def unsettled(reduction: Reduction, ids: Sequence[int], healing: int = HEALED) -> int:
    """How many of a prompt's last tokens depend on how it goes on.

    Those since the last place before which the tokenizer's words are certain; those that one token
    may cover together with what follows, and the one before. At least `healing`; 0 is 0.
    """
    if not healing:
        return 0
    ids = ids[max(_text_start(reduction.vocabulary, ids), len(ids) - _MOST_HEALED) :]
    _, since = reduction.canonicality.open(ids)
    healing = max(healing, len(since))
    trie, symbols = reduction.trie, [reduction.of_tokens([id]) for id in ids]
    flat = [symbol for part in symbols for symbol in part]
    for start in range(max(0, len(flat) - trie.depth), len(flat)):
        place = trie.descend(flat[start:])
        if place is not None and trie.is_inner(place):  # a token may cover all this, and more
            before = sum(end <= start for end in accumulate(map(len, symbols)))
            return max(healing, len(ids) - before + 1)
    return healing


def _text_start(vocabulary: Vocabulary, ids: Sequence[int]) -> int:
    """Where the text begins that comes after the last special token."""
    special = (place for place, token in enumerate(ids) if vocabulary.tokens[token] is None)
    return max(special, default=-1) + 1


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:30]}…{text[-25:]}")
