"""Which token sequences a tokenizer could have produced."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Protocol

from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE

from infer_kit.errors import InferKitError
from infer_kit.vocab.utf8 import (
    LONGEST_CHARACTER,
    is_open_character,
    is_text,
    may_begin_character,
    open_tail,
)
from infer_kit.vocab.vocabulary import Vocabulary

Tokens = tuple[int, ...]

# What may follow a text, one of each kind that pre-tokenizers tell apart.
# "s", "l" and "e" go on with what an apostrophe began: 's, 'll, 're. "1" and "11" are for digits
# in groups of three from the right.
CONTEXTS = (
    *("", "a", " ", " a", "\n", "1", ".", "A", "'s", "中"),
    *("s", "l", "e", "🙂", "11"),
)
_PROBE = "it's a b2\n\nC, d: 中文 .5"
_KEPT = 4096  # windows remembered


class Window(Protocol):
    """The text since the last place before which its tokens are certain.

    Attributes:
        text: its bytes.
    """

    text: bytes

    def step(self, more: bytes) -> "Window":
        """The window with more text; not yet moved to a later place."""
        ...

    def anchored(self) -> "tuple[Window, Tokens]":
        """The window from the last certain place on, and the tokens before that."""
        ...


class Canonicality(Protocol):
    r"""The predicate "some text has an encoding that begins with these tokens".

    $C(x_{1:t}) \iff \exists c: \mathrm{encode}(b(x_{1:t})\,c) \text{ begins with } x_{1:t}$. It
    holds for a beginning wherever it holds for the whole, so $p(x)\,1[C]$ is a law of its own,
    close to that of a trained model, under which few hypotheses live at any time.

    A hypothesis keeps its tokens since the window's beginning (`since`). What cannot be decided is
    accepted: a wrong rejection would lose mass for good.

    Source: arXiv 2510.08102 assumes canonical models; both ways of deciding here are ours.
    """

    def open(self, before: Sequence[int] = ()) -> tuple[Window, Tokens]:
        """Window and tokens since its beginning, after the tokens `before` (all with text)."""
        ...

    def follow(self, window: Window, since: Tokens, token: int) -> Tokens | None:
        """The tokens since the window's beginning with one more, or None if that cannot be.

        Args:
            window: of the text up to the end of `token`.
        """
        ...


def canonicality_of(vocabulary: Vocabulary) -> Canonicality:
    """By pairs of tokens for BPE that never splits a text into words, else by windows.

    Raises:
        InferKitError: the vocabulary has no encoder to ask.
    """
    if vocabulary.encoder is None:
        raise InferKitError(
            f"Vocabulary {vocabulary.name!r} has no encoder: which token sequences are "
            "canonical cannot be decided.",
            hint='Use mode="full", which needs none.',
        )
    encoder = _without_normalisers(vocabulary.encoder)
    merging = _merging_model(encoder)
    if merging is not None and not _splits(encoder):
        return PairCanonicality(vocabulary, encoder, merging)
    return WindowCanonicality(vocabulary, encoder, merging)


class EverySegmentation:
    """Any tokens may follow any: the law of the model as it is."""

    def open(self, before: Sequence[int] = ()) -> tuple[Window, Tokens]:
        return _NO_WINDOW, ()

    def follow(self, window: Window, since: Tokens, token: int) -> Tokens | None:
        return ()


class PairCanonicality:
    """By pairs of adjacent tokens, which is exact for BPE over unsplit texts.

    The bytes of a character that falls back to byte tokens are judged when it is complete.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: Tokenizer, merging: BPE) -> None:
        self._tokens = vocabulary.tokens
        self._byte_tokens = {id: byte for byte, id in vocabulary.byte_ids.items()}
        self._encoder = encoder
        self._merging = merging
        self._added = frozenset(encoder.get_added_tokens_decoder())
        self._pairs: dict[tuple[int, int], bool] = {}
        self._singles: dict[int, bool] = {}

    def open(self, before: Sequence[int] = ()) -> tuple[Window, Tokens]:
        return _NO_WINDOW, self._trailing(tuple(before))

    def follow(self, window: Window, since: Tokens, token: int) -> Tokens | None:
        return self._trailing((*since, token)) if self._allows(since, token) else None

    def _allows(self, since: Tokens, token: int) -> bool:
        pending = self._pending(since)
        byte = self._byte_tokens.get(token)
        if byte is not None:
            character = bytes([*map(self._byte_tokens.__getitem__, pending), byte])
            if not may_begin_character(character):
                return False
            if is_open_character(character):
                return True
            return self._encoded(character) == [*pending, token]
        if pending:
            return False
        if not since or since[-1] in self._byte_tokens:
            return self._stands_alone(token)
        return self._stand_together(since[-1], token)

    def _stand_together(self, left: int, right: int) -> bool:
        """Whether the tokenizer leaves the two as they are, side by side."""
        key = (left, right)
        found = self._pairs.get(key)
        if found is None:
            if left in self._added or right in self._added:
                both = (self._tokens[left] or b"") + (self._tokens[right] or b"")
                # Next to a part of a character the two say nothing.
                found = not is_text(both) or self._encoded(both) == list(key)
            else:
                found = self._merged(left, right) == list(key)
            self._pairs[key] = found
        return found

    def _stands_alone(self, token: int) -> bool:
        found = self._singles.get(token)
        if found is None:
            found = token in self._added or self._merged(token) == [token]
            self._singles[token] = found
        return found

    def _merged(self, *tokens: int) -> list[int]:
        pieces = "".join(str(self._encoder.id_to_token(token)) for token in tokens)
        return [token.id for token in self._merging.tokenize(pieces)]

    def _encoded(self, text: bytes) -> list[int]:
        ids: list[int] = self._encoder.encode(text.decode(), add_special_tokens=False).ids
        return ids

    def _trailing(self, tokens: Tokens) -> Tokens:
        """The last token, or the byte tokens of an incomplete last character and one before."""
        return tokens[-1 - len(self._pending(tokens)) :]

    def _pending(self, tokens: Tokens) -> Tokens:
        """The byte tokens of an incomplete last character."""
        for length in range(1, min(LONGEST_CHARACTER, len(tokens) + 1)):
            run = tokens[-length:]
            if not all(token in self._byte_tokens for token in run):
                break
            if is_open_character(bytes(self._byte_tokens[token] for token in run)):
                return run
        return ()


class _NoWindow:
    """For what is decided without the text."""

    text = b""

    def step(self, more: bytes) -> "_NoWindow":
        return self

    def anchored(self) -> "tuple[_NoWindow, Tokens]":
        return self, ()


_NO_WINDOW = _NoWindow()


class WindowCanonicality:
    """By what the tokenizer makes of the window under the right contexts of `CONTEXTS`.

    Pre-tokenizers that look to the left and the right are asked about text, not about pairs of
    tokens. The window begins where every context splits the text: the tokens before are certain,
    and a hypothesis dies unless they are its own.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: Tokenizer, merging: BPE | None) -> None:
        self._tokens = vocabulary.tokens
        self.byte_tokens = {id: byte for byte, id in vocabulary.byte_ids.items()}
        self._encoder = encoder
        self._merging = merging
        self._alphabet = _byte_alphabet() if vocabulary.kind == "byte_bpe" else None
        self.window = lru_cache(_KEPT)(lambda text: _TextWindow(self, text))
        self.added = frozenset(encoder.get_added_tokens_decoder())
        texts = [self._tokens[id] or b"" for id in self.added]
        self._begun = frozenset(text[:end] for text in texts for end in range(1, len(text)))
        self._longest_begun = max(map(len, self._begun), default=0)

    def open(self, before: Sequence[int] = ()) -> tuple[Window, Tokens]:
        tokens = tuple(before)
        text = b"".join(self._tokens[token] or b"" for token in tokens)
        window, certain = self.window(text).anchored()
        if tokens[: len(certain)] == certain:
            return window, tokens[len(certain) :]
        # The prompt was not written by this tokenizer: nothing before its end is judged.
        return self.window(b""), ()

    def follow(self, window: Window, since: Tokens, token: int) -> Tokens | None:
        longer = (*since, token)
        assert isinstance(window, _TextWindow)
        return longer if window.allows(longer) else None

    def reading(self, text: str, context: str) -> "_Reading":
        """What the tokenizer makes of `text + context`."""
        encoding = self._encoder.encode(text + context, add_special_tokens=False)
        tokens: list[int] = []
        ends: list[int] = []
        starts: list[int] = []
        at, previous = 0, None
        for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
            spelling = self._tokens[token]
            if spelling is None:
                break
            if word != previous:
                starts.append(at)
                previous = word
            at += len(spelling)
            tokens.append(token)
            ends.append(at)
        return _Reading(tuple(tokens), tuple(ends), tuple(starts))

    def begun(self, text: bytes) -> list[int]:
        """How many bytes at the end of a text may be the beginning of an added token."""
        longest = min(self._longest_begun, len(text))
        return [n for n in range(longest, 0, -1) if text[-n:] in self._begun]

    def merged(self, text: bytes) -> Tokens | None:
        """BPE of bytes that may end inside a character, or None where tokens cannot hold such."""
        if self._alphabet is None or self._merging is None:
            return None
        letters = "".join(map(self._alphabet.__getitem__, text))
        return tuple(token.id for token in self._merging.tokenize(letters))


class _Reading:
    """An encoding: tokens, where each ends in bytes, and where the words begin."""

    __slots__ = ("ends", "starts", "tokens")

    def __init__(self, tokens: Tokens, ends: Tokens, starts: Tokens) -> None:
        self.tokens = tokens
        self.ends = ends
        self.starts = starts

    def up_to(self, place: int) -> Tokens | None:
        """The tokens before a place of the text, or None if one lies across it."""
        count = sum(end <= place for end in self.ends)
        return self.tokens[:count] if place == (self.ends[count - 1] if count else 0) else None


class _TextWindow:
    """A window of text, and what the tokenizer makes of it, found when asked for."""

    def __init__(self, canonicality: WindowCanonicality, text: bytes) -> None:
        self.text = text
        self._of = canonicality
        self._rest = open_tail(text)
        self._length = len(text) - len(self._rest)
        # Bytes that are no UTF-8 have no encoding: nothing is judged by them.
        try:
            self._whole: str | None = text[: self._length].decode()
        except UnicodeDecodeError:
            self._whole = None
        self._readings: list[_Reading] = []

    def step(self, more: bytes) -> "_TextWindow":
        return self._of.window(self.text + more)

    def readings(self) -> Iterator[_Reading]:
        """One for each right context."""
        assert self._whole is not None
        for number, context in enumerate(CONTEXTS):
            if number == len(self._readings):
                self._readings.append(self._of.reading(self._whole, context))
            yield self._readings[number]

    def allows(self, since: Tokens) -> bool:
        """Whether some right context lets the window be read as `since`."""
        if self._whole is None:
            return True
        if self._rest:
            return self._allows_open(since)
        if any(reading.tokens[: len(since)] == since for reading in self.readings()):
            return True
        return since in self._words_in_progress

    @cached_property
    def _words_in_progress(self) -> set[Tokens]:
        """Tokens where the last word goes on, whatever its next letters: BPE up to here.

        That they go on is all that is taken from the contexts: in "I'VE" the tokens "I'" and "VE"
        may be merged where in "I's" they are "I" and "'s".
        """
        found: set[Tokens] = set()
        if self._of.merged(b"") is None:
            return found  # elsewhere the next letters change nothing before them
        for reading in self.readings():
            begin = max((start for start in reading.starts if start < self._length), default=0)
            before = reading.up_to(begin)
            goes_on = reading.ends[-1:] > (self._length,) and self._length not in reading.starts
            if before is None or not goes_on:
                continue
            if reading.tokens[len(before)] not in self._of.added:  # these are never merged
                found.add(before + (self._of.merged(self.text[begin:]) or ()))
        return found

    def _allows_open(self, since: Tokens) -> bool:
        """The same where the window ends inside a character."""
        if self._of.merged(b"") is None:
            return self._allows_byte_tokens(since)
        for reading in self.readings():
            begins = [start for start in reading.starts if start <= self._length]
            # The last character may go on with the word before it, or begin one.
            for begin in {begins[-1] if begins else 0, self._length}:
                closed = reading.up_to(begin)
                if closed is not None and since == closed + (
                    self._of.merged(self.text[begin:]) or ()
                ):
                    return True
        return False

    def _allows_byte_tokens(self, since: Tokens) -> bool:
        count = len(since) - len(self._rest)
        tail = bytes(self._of.byte_tokens.get(token, 0) for token in since[count:])
        if tail != self._rest:
            return True  # some other way to end inside a character: not judged
        return any(reading.tokens[:count] == since[:count] for reading in self.readings())

    def anchored(self) -> "tuple[_TextWindow, Tokens]":
        return self._anchor

    @cached_property
    def _anchor(self) -> "tuple[_TextWindow, Tokens]":
        """Where a word of the pre-tokenizer begins under every right context."""
        if not self._whole:
            return self, ()
        # An added token is looked for before words are: what comes before it is read by itself,
        # and it may lie across splits.
        begun = self._of.begun(self.text)
        last = len(self.text) - max(begun, default=0)
        before = ((self._of.reading(self.text[:-count].decode(), ""), "") for count in begun)
        splits = set(range(1, last + 1))
        readings = []
        for reading, context in chain(zip(self.readings(), CONTEXTS, strict=True), before):
            readings.append(reading)
            # The end of a text by itself closes its last word.
            splits &= {*reading.starts, *(() if context else reading.ends[-1:])}
            if not splits:
                return self, ()
        place = max(splits)
        certain = readings[0].up_to(place)
        if certain is None or any(r.tokens[: len(certain)] != certain for r in readings):
            return self, ()
        return self._of.window(self.text[place:]), certain


def _without_normalisers(encoder: Tokenizer) -> Tokenizer:
    """The encoder without normalisers but that for the sign of a space.

    Windows are bytes that a model wrote, in its tokens' own spelling.
    """
    if encoder.normalizer is None:
        return encoder
    state = json.loads(encoder.normalizer.__getstate__())
    parts = state["normalizers"] if state["type"] == "Sequence" else [state]
    kept = [part for part in parts if part["type"] == "Replace" and " " in part["pattern"].values()]
    if kept == parts:
        return encoder
    plain = _shallow_copy(encoder)
    plain.normalizer = normalizers.Sequence(
        [normalizers.Replace(part["pattern"]["String"], part["content"]) for part in kept]
    )
    return plain


def _shallow_copy(encoder: Tokenizer) -> Tokenizer:
    """A tokenizer of its own around the same model: a copy of the model takes seconds."""
    copy = Tokenizer(encoder.model)
    copy.pre_tokenizer = encoder.pre_tokenizer
    added = encoder.get_added_tokens_decoder()
    copy.add_tokens(list(added.values()))
    if list(copy.get_added_tokens_decoder()) == list(added):
        return copy
    return Tokenizer.from_str(encoder.to_str())


def _merging_model(encoder: Tokenizer) -> BPE | None:
    """The BPE model, without its short cut for whole words; None for other models."""
    if not isinstance(encoder.model, BPE) or not encoder.model.ignore_merges:
        return encoder.model if isinstance(encoder.model, BPE) else None
    spec = json.loads(encoder.to_str())
    spec["model"]["ignore_merges"] = False
    return Tokenizer.from_str(json.dumps({**spec, "added_tokens": []})).model


def _splits(encoder: Tokenizer) -> bool:
    """Whether the pre-tokenizer splits a text into words."""
    if encoder.pre_tokenizer is None:
        return False
    text = encoder.normalizer.normalize_str(_PROBE) if encoder.normalizer else _PROBE
    return len(encoder.pre_tokenizer.pre_tokenize_str(text)) > 1


@lru_cache(1)
def _byte_alphabet() -> tuple[str, ...]:
    """The letter that byte-level BPE writes for each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    return tuple(letters[byte] for byte in range(256))
