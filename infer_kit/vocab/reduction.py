"""A model's vocabulary seen through a smaller alphabet."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from infer_kit.errors import InferKitError
from infer_kit.vocab.canonical import (
    Canonicality,
    EverySegmentation,
    Tokens,
    Window,
    canonicality_of,
)
from infer_kit.vocab.submap import SubwordMap
from infer_kit.vocab.trie import DfsTrie, Float
from infer_kit.vocab.utf8 import is_beginning
from infer_kit.vocab.vocabulary import Vocabulary

Mode = Literal["full", "late", "early"]
MODES: tuple[Mode, ...] = ("full", "late", "early")


class Reduction:
    r"""Trie, tokenizer rules and token order for one vocabulary over one alphabet.

    Args:
        vocabulary: of the model.
        symbols: the alphabet, "bytes" or byte strings; or a `SubwordMap` ($\phi$) made before.
        mode: which law of tokens is reduced.
            "full": $p(x)$ as it is. Every segmentation of a text counts.
            "late": $p(x)\,1[\text{completed tokens canonical}]$, the token in progress free.
            "early": $p(v|x')$ over the tokens that may follow $x'$, renormalised. Asks the
            tokenizer about every token at every new $x'$: for small vocabularies.
        warpers: of transformers, applied to the model's logits: part of its law.

    The law is over tokens with text and END, which stands for all stop ids together. Other
    special tokens and padding rows are banned: $p$ is renormalised without them, a changed law.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        symbols: "Sequence[bytes] | Literal['bytes'] | SubwordMap" = "bytes",
        mode: Mode = "late",
        warpers: Sequence[LogitsProcessor] = (),
    ) -> None:
        if mode not in MODES:
            raise InferKitError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")
        self.vocabulary = vocabulary
        self.mode = mode
        self.warpers = tuple(warpers)
        if not isinstance(symbols, SubwordMap):
            symbols = SubwordMap(vocabulary, symbols)
        self.map = symbols
        self.symbols = self.map.symbols
        text_ids = np.asarray(vocabulary.text_ids)
        # Tokens without text have no symbols: those with text lie side by side.
        self.trie = DfsTrie(
            self.map.flat, np.append(self.map.offsets[text_ids], len(self.map.flat))
        )
        self.tokens: NDArray[np.int64] = text_ids[self.trie.order]  # in the trie's order
        self.ends = np.asarray(vocabulary.end_ids, np.int64)
        self.banned = np.asarray(vocabulary.banned_ids)
        self._successors: dict[tuple[bytes, Tokens], NDArray[np.bool_]] = {}
        self._writable: dict[bytes, NDArray[np.bool_]] = {}
        self.canonicality: Canonicality = (
            EverySegmentation() if mode == "full" else canonicality_of(vocabulary)
        )

    def rows(self, logits: Tensor) -> "list[Row]":
        """One law of next tokens for each row of logits [n, vocabulary]."""
        if logits.shape[-1] < len(self.vocabulary.tokens):
            raise InferKitError(
                f"The model gives {logits.shape[-1]} logits, its tokenizer has "
                f"{len(self.vocabulary.tokens)} tokens."
            )
        for warper in self.warpers:
            logits = warper(torch.empty(len(logits), 0, dtype=torch.long), logits)
        host = logits.detach().cpu().numpy()[:, : len(self.vocabulary.tokens)]
        return [Row(self, row) for row in host]

    def successors(self, window: Window, since: Tokens) -> NDArray[np.bool_]:
        """[tokens with text] which tokens may follow, in the trie's order."""
        key = (window.text, since)
        if key not in self._successors:
            spell, follow = self.vocabulary.tokens, self.canonicality.follow
            allowed = [
                follow(window.step(spell[token] or b""), since, token) is not None
                for token in self.tokens.tolist()
            ]
            self._successors[key] = np.array(allowed)
        return self._successors[key]

    def may_write(self, tail: bytes) -> NDArray[np.bool_]:
        """[symbols + 1] which symbols, or END, keep a text valid UTF-8.

        Args:
            tail: the bytes of an incomplete last character.
        """
        found = self._writable.get(tail)
        if found is None:
            found = np.array([is_beginning(tail + symbol) for symbol in self.symbols] + [not tail])
            self._writable[tail] = found
        return found

    def of_tokens(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Symbols of tokens, all with text."""
        return tuple(self.map.of_tokens(ids).tolist())


class Row:
    """The law of the next token after one sequence, made when needed; float64."""

    __slots__ = ("_law", "_logits", "_masses", "_reduction")

    def __init__(self, reduction: Reduction, logits: NDArray[np.floating]) -> None:
        self._reduction = reduction
        self._logits = logits
        self._law: Float | None = None  # by token id
        self._masses: Float | None = None

    def part(self, low: int, high: int) -> Float:
        """[high - low] masses of tokens with text, by their places in the trie's order."""
        if self._masses is not None:
            return self._masses[low:high]
        return self._made()[self._reduction.tokens[low:high]]

    @property
    def masses(self) -> Float:
        """[tokens with text] in the trie's order, summing to 1 with `end`."""
        if self._masses is None:
            self._masses = self._made().take(self._reduction.tokens)
        return self._masses

    @property
    def end(self) -> float:
        """Mass of all stop ids together."""
        return float(self._made()[self._reduction.ends].sum())

    def restricted(self, allowed: NDArray[np.bool_]) -> "Row":
        """The law given that the next token is an allowed one [tokens with text] or END."""
        twin = Row(self._reduction, self._logits)
        law = self._made().copy()
        law[self._reduction.tokens] *= allowed
        total = law.sum()
        twin._law = law / total if total > 0 else law
        return twin

    def _made(self) -> Float:
        """[V] by token id."""
        if self._law is None:
            law = self._logits.astype(np.float64)
            law[self._reduction.banned] = -np.inf
            top = law.max()
            if not np.isfinite(top):
                raise InferKitError(
                    f"The model of {self._reduction.vocabulary.name!r} gives no token with text a "
                    "probability: its logits are not finite.",
                    hint="Is the model broken, or in half precision? Do token_warpers leave it "
                    "special tokens only?",
                )
            law -= top
            np.exp(law, out=law)
            law /= law.sum()
            self._law = law
        return self._law
