"""Maps from the tokens of a model to strings over a smaller vocabulary of symbols."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infer_kit.errors import InferKitError
from infer_kit.vocab.vocabulary import Vocabulary, as_vocabulary

Method = Literal["bpe", "greedy", "shortest"]
Cut = Callable[[bytes], "list[bytes] | int"]

BYTES = tuple(bytes([byte]) for byte in range(256))
"""The alphabet of single bytes, byte b at place b."""


def common_vocabulary(*tokenizers: Any) -> tuple[bytes, ...]:
    """The 256 bytes, then every longer byte string that all the vocabularies have, sorted.

    Args:
        tokenizers: vocabularies, or transformers tokenizers.

    Source: the maximal common vocabulary of arXiv 2510.08102, with all bytes, so that any text can
    be written.
    """
    if not tokenizers:
        raise InferKitError("A common vocabulary needs at least one tokenizer.")
    tables = [set(as_vocabulary(tokenizer).tokens) for tokenizer in tokenizers]
    common = set.intersection(*tables) - {None}
    return (*BYTES, *sorted(text for text in common if text is not None and len(text) > 1))


class SubwordMap:
    r"""$\varphi: V \to S^+$, each token as a string of symbols that spells the same bytes.

    A token that is itself a symbol is that symbol.

    Args:
        vocabulary: V.
        symbols: S, "bytes" or distinct byte strings.
        method: for the other tokens, "bpe": the vocabulary's merges whose parts and whole are
            symbols; "greedy": the longest symbol that fits, from the left; "shortest": the fewest
            symbols, the longer first. The last two depend on the spelling alone. None: "bpe" where
            the vocabulary has merges, else "greedy".

    Attributes:
        symbols: [|S|] their spelling.
        flat: int32 [total] symbol indices of all tokens, one after the other.
        offsets: int64 [V + 1] token v is `flat[offsets[v]:offsets[v + 1]]`; empty without text.
        is_bytes: symbols are the 256 bytes in their order, so an index is the byte.

    Raises:
        InferKitError: symbols are empty or doubled, the symbols cannot spell a token (names the
            byte and the token), or "bpe" of a vocabulary without merges.

    Source: phi of arXiv 2510.08102; that a symbol stays itself is not in the paper.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        symbols: Literal["bytes"] | Sequence[bytes] = "bytes",
        method: Method | None = None,
    ) -> None:
        self._prepare(vocabulary, symbols)
        if self.is_bytes:
            texts = [text or b"" for text in vocabulary.tokens]
            self.flat = np.frombuffer(b"".join(texts), np.uint8).astype(np.int32)
            self.offsets = _offsets([len(text) for text in texts])
            return
        if method is None:
            method = "bpe" if len(vocabulary.merges) else "greedy"
        cut = _cutter(vocabulary, self.index, method)
        phi: list[tuple[int, ...]] = []
        for id, text in enumerate(vocabulary.tokens):
            if text is None:
                phi.append(())
            elif text in self.index:
                phi.append((self.index[text],))
            else:
                parts = cut(text)
                if isinstance(parts, int):
                    self._cannot_spell(id, text, parts)
                else:
                    phi.append(tuple(map(self.index.__getitem__, parts)))
        self._set(phi)

    @classmethod
    def from_phi(
        cls,
        vocabulary: Vocabulary,
        symbols: Sequence[bytes],
        phi: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    ) -> "SubwordMap":
        """A map of one's own.

        Args:
            phi: symbol indices by token id, nothing for tokens without text.

        Raises:
            InferKitError: a token's symbols do not spell what the token spells.
        """
        made = cls.__new__(cls)
        made._prepare(vocabulary, symbols)
        get = phi.get if isinstance(phi, Mapping) else dict(enumerate(phi)).get
        made._set([tuple(get(id, ())) for id in range(vocabulary.size)])
        return made

    def phi(self, id: int) -> tuple[int, ...]:
        """Symbol indices of a token."""
        return tuple(self.flat[self.offsets[id] : self.offsets[id + 1]].tolist())

    def of_tokens(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """Symbol indices of a sequence of tokens."""
        parts = [self.flat[self.offsets[id] : self.offsets[id + 1]] for id in ids]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def spell(self, indices: Sequence[int]) -> bytes:
        """What symbols spell."""
        return b"".join(self.symbols[index] for index in indices)

    def _prepare(self, vocabulary: Vocabulary, symbols: Literal["bytes"] | Sequence[bytes]) -> None:
        if isinstance(symbols, str) and symbols != "bytes":
            raise InferKitError(f'symbols={symbols!r}; expected "bytes" or a list of byte strings.')
        self.vocabulary = vocabulary
        self.symbols = BYTES if isinstance(symbols, str) else tuple(symbols)
        wrong = next((s for s in self.symbols if not isinstance(s, bytes) or not s), None)
        if wrong is not None or not self.symbols:
            raise InferKitError(f"Symbols are byte strings that are not empty; got {wrong!r}.")
        self.index = {symbol: place for place, symbol in enumerate(self.symbols)}
        if len(self.index) < len(self.symbols):
            twice = next(s for place, s in enumerate(self.symbols) if self.index[s] != place)
            raise InferKitError(f"Symbol {twice!r} is there twice.")
        self.is_bytes = self.symbols == BYTES

    def _set(self, phi: list[tuple[int, ...]]) -> None:
        """Take a map, and check that it spells every token."""
        self.offsets = _offsets([len(indices) for indices in phi])
        self.flat = np.fromiter((i for part in phi for i in part), np.int32, self.offsets[-1])
        if self.flat.size and not 0 <= self.flat.min() <= self.flat.max() < len(self.symbols):
            raise InferKitError(f"phi has indices beyond the {len(self.symbols)} symbols.")
        for id, text in enumerate(self.vocabulary.tokens):
            spelt = b"".join([self.symbols[i] for i in phi[id]])
            if spelt != (text or b""):
                raise InferKitError(f"phi of token {id} spells {spelt!r}, the token {text!r}.")

    def _cannot_spell(self, id: int, text: bytes, at: int) -> None:
        raise InferKitError(
            f"The symbols cannot spell byte {text[at : at + 1]!r} of token {id} ({text!r}) of "
            f"{self.vocabulary.name!r}.",
            hint="Add that byte to the symbols; with all 256 bytes any token can be spelt.",
        )


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.array([0, *accumulate(lengths)], np.int64)


# Cutting: the symbols of a text, or the place of a byte that cannot be spelt -------------------


def _cutter(vocabulary: Vocabulary, index: Mapping[bytes, int], method: Method) -> Cut:
    if method == "greedy":
        longest = max(map(len, index))
        return lambda text: _greedy(text, index, longest)
    if method == "shortest":
        longest = max(map(len, index))
        return lambda text: _shortest(text, index, longest)
    if method != "bpe":
        raise InferKitError(f'method={method!r}; expected "bpe", "greedy" or "shortest".')
    merges, tokens = vocabulary.merges, vocabulary.tokens
    if not len(merges):
        raise InferKitError(
            f"The {vocabulary.kind} vocabulary {vocabulary.name!r} has no merges.",
            hint='Use method="greedy".',
        )
    kept = merges[np.array([text in index for text in tokens])[merges].all(1)].tolist()
    order: dict[Any, int] = {}
    for place, (left, right, _) in enumerate(kept):
        order.setdefault((tokens[left], tokens[right]), place)
    by_character = vocabulary.kind != "byte_bpe"
    return lambda text: _bpe(text, index, order, by_character)


def _greedy(text: bytes, index: Mapping[bytes, int], longest: int) -> list[bytes] | int:
    parts, at = [], 0
    while at < len(text):
        for end in range(min(len(text), at + longest), at, -1):
            if text[at:end] in index:
                parts.append(text[at:end])
                at = end
                break
        else:
            return at
    return parts


def _shortest(text: bytes, index: Mapping[bytes, int], longest: int) -> list[bytes] | int:
    far = len(text) + 1
    fewest = [far] * len(text) + [0]  # symbols needed from each place to the end
    step = [0] * len(text)
    for at in range(len(text) - 1, -1, -1):
        for end in range(min(len(text), at + longest), at, -1):
            if fewest[end] + 1 < fewest[at] and text[at:end] in index:
                fewest[at], step[at] = fewest[end] + 1, end
    if fewest[0] >= far:
        missing = (at for at in range(len(text)) if text[at : at + 1] not in index)
        return next(missing, 0)
    parts, at = [], 0
    while at < len(text):
        parts.append(text[at : step[at]])
        at = step[at]
    return parts


def _bpe(
    text: bytes,
    index: Mapping[bytes, int],
    order: Mapping[tuple[bytes, bytes], int],
    by_character: bool,
) -> list[bytes] | int:
    parts = _letters(text, index) if by_character else [text[i : i + 1] for i in range(len(text))]
    for place, part in enumerate(parts):
        if part not in index:
            return sum(map(len, parts[:place]))
    never = len(order)
    costs = [order.get(pair, never) for pair in pairwise(parts)]
    while costs and (least := min(costs)) < never:
        at = costs.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del costs[at]
        if at < len(costs):
            costs[at] = order.get((parts[at], parts[at + 1]), never)
        if at:
            costs[at - 1] = order.get((parts[at - 1], parts[at]), never)
    return parts


def _letters(text: bytes, index: Mapping[bytes, int]) -> list[bytes]:
    """The characters of a text that are symbols, the bytes of the others."""
    parts: list[bytes] = []
    # Bytes that are no UTF-8 come back as they were.
    for character in text.decode("utf-8", "surrogateescape"):
        whole = character.encode("utf-8", "surrogateescape")
        parts += [whole] if whole in index else [bytes([byte]) for byte in whole]
    return parts
