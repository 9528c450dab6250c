"""A tokenizer as data: the bytes that each token spells, and how text becomes tokens."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from infer_kit.errors import InferKitError

Int = NDArray[np.int64]

KINDS = ("byte_bpe", "bpe", "unigram", "wordpiece", "bytes", "words")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one model: what each spells, which end the text, how text is encoded.

    Attributes:
        tokens: [V] spelling by id, never empty; None for a token without text (special, control,
            unknown, unused, or a row of the model beyond its tokenizer).
        end_ids: all ids that end a text; none of them has text.
        kind: "byte_bpe"; "bpe" (over characters, with or without byte fallback); "unigram";
            "wordpiece"; "bytes"; "words".
        encoder: the Rust tokenizer, text to ids. It puts nothing before the text, and the names of
            special tokens are ordinary text to it. None: `encode` works for kind "bytes" only.
        prefix: what belongs before any text (SentencePiece's dummy prefix, b" "); `encode` puts it
            there.
        begin_ids: fed to the model before any text (its bos token).
        empty_ids: what to feed where there is no text yet, since a model needs a token to start
            from: `begin_ids`, or else the bos token, or else an end token.
        byte_ids: byte to id, of the byte-fallback tokens `<0xNN>`.
        special_names: id to name, of the special tokens.
        name: how messages call it.

    Raises:
        InferKitError: a spelling is empty, or an id is out of range or has text where it may not.
    """

    tokens: tuple[bytes | None, ...]
    end_ids: tuple[int, ...]
    kind: str
    encoder: Tokenizer | None = field(default=None, repr=False)
    prefix: bytes = b""
    begin_ids: tuple[int, ...] = ()
    empty_ids: tuple[int, ...] = ()
    byte_ids: Mapping[int, int] = field(default_factory=dict, repr=False)
    special_names: Mapping[int, str] = field(default_factory=dict, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InferKitError(
                f"Unknown kind of vocabulary {self.kind!r}; expected one of {KINDS}."
            )
        for id, token in enumerate(self.tokens):
            if not (token is None or isinstance(token, bytes)):
                raise InferKitError(
                    f"Token {id} of {self.name!r} is {token!r}; expected its bytes, or None."
                )
        if all(token is None for token in self.tokens):
            raise InferKitError(f"No token of {self.name!r} has text.")
        if b"" in self.tokens:
            raise InferKitError(f"Token {self.tokens.index(b'')} of {self.name!r} spells nothing.")
        for id in self.end_ids:
            if not 0 <= id < self.size:
                raise InferKitError(f"end_ids has {id}, but {self.name!r} has {self.size} tokens.")
            if self.tokens[id] is not None:
                raise InferKitError(
                    f"Token {id} cannot end a text of {self.name!r}: it spells {self.tokens[id]!r}."
                )
        if not self.empty_ids:
            object.__setattr__(self, "empty_ids", self.begin_ids or self.end_ids[:1])

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, {self.kind}, {self.size} tokens)"

    @property
    def size(self) -> int:
        """V: how many ids there are, with and without text."""
        return len(self.tokens)

    @cached_property
    def text_ids(self) -> Int:
        """Ids with text, ascending."""
        return np.array([id for id, text in enumerate(self.tokens) if text is not None], np.int64)

    @cached_property
    def banned_ids(self) -> Int:
        """Ids that neither spell nor end a text, ascending: the reduced law gives them no mass."""
        ends = set(self.end_ids)
        banned = [id for id, text in enumerate(self.tokens) if text is None and id not in ends]
        return np.array(banned, np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids and what they spell: equal for equal tables only.

        The number of tokens never identifies a tokenizer.
        """
        lengths = [-1 if text is None else len(text) for text in self.tokens]
        digest = hashlib.sha256(np.array(lengths, "<i4").tobytes())
        digest.update(b"".join(text for text in self.tokens if text is not None))
        return digest.hexdigest()

    @cached_property
    def merges(self) -> NDArray[np.int32]:
        """[m, 3] BPE's merges in their order: ids of the left part, the right part, the whole.

        Empty for other kinds.
        """
        model = self._model()
        if model.get("type") != "BPE":
            return np.zeros((0, 3), np.int32)
        vocab, skip = model["vocab"], len(model.get("continuing_subword_prefix") or "")
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        parts = (
            [vocab[left] for left, _ in pairs],
            [vocab[right] for _, right in pairs],
            [vocab[left + right[skip:]] for left, right in pairs],
        )
        return np.array(parts, np.int32).T

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """[V] scores of a Unigram tokenizer, NaN where a token has none; all NaN for others."""
        found = np.full(self.size, np.nan)
        model = self._model()
        if model.get("type") == "Unigram":
            for id, (_, score) in enumerate(model["vocab"][: self.size]):
                found[id] = score if self.tokens[id] is not None else np.nan
        return found

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, after the dummy prefix where there is one; no special tokens.

        Raises:
            InferKitError: the tokenizer has no token for a character, or it is not here.
        """
        if self.encoder is None:
            return self._encode_bytes(text)
        full = self.prefix.decode() + text
        encoding = self.encoder.encode(full, add_special_tokens=False)
        ids: list[int] = encoding.ids
        for place, id in enumerate(ids):
            if self.tokens[id] is None:
                start, end = encoding.offsets[place]
                raise InferKitError(
                    f"The tokenizer {self.name!r} has no token for {full[start:end]!r}.",
                    hint="Leave it out of the text, or use a tokenizer with byte fallback.",
                )
        return ids

    def spell(self, ids: Sequence[int]) -> bytes:
        """What tokens spell, the dummy prefix included.

        Raises:
            InferKitError: one has no text.
        """
        parts = []
        for id in ids:
            part = self.tokens[id] if 0 <= id < self.size else None
            if part is None:
                raise InferKitError(f"Token {id} of {self.name!r} has no text.")
            parts.append(part)
        return b"".join(parts)

    def conditioned(self, text: str) -> str:
        """What a model reads when it is given `text`: the text, as normalisers leave it."""
        return self.spell(self.encode(text)).removeprefix(self.prefix).decode("utf-8", "replace")

    @classmethod
    def from_hf(cls, tokenizer: Any, model: Any = None, name: str = "") -> "Vocabulary":
        """Vocabulary of a transformers tokenizer with a Rust backend.

        Args:
            tokenizer: a tokenizer of transformers, a processor that has one, or a
                `tokenizers.Tokenizer`.
            model: the model that reads it: rows beyond the tokenizer become tokens without text,
                and its generation config says what else ends a text.
            name: how messages call it; default: the tokenizer's own.

        Raises:
            InferKitError: tokens that cannot be spelled as bytes, a tokenizer without a Rust
                backend, or a model with fewer rows than the tokenizer has ids.
        """
        from infer_kit.vocab.readers import read_hf

        return read_hf(tokenizer, model, name)

    @classmethod
    def from_tiktoken(
        cls,
        source: Any,
        pattern: str | None = None,
        specials: Mapping[str, int] | None = None,
        model: Any = None,
        name: str = "",
    ) -> "Vocabulary":
        """Vocabulary of a file of BPE ranks, of GPT-2's `vocab.bpe`, or of a `tiktoken.Encoding`.

        Args:
            source: path or encoding.
            pattern: the regular expression that splits text into words, or the name of a known
                one: "gpt2", "cl100k", "o200k", "qwen". Default: by the file's name.
            specials: special tokens by name. Default: those of the encoding or known name. The
                first one ends a text.
            model, name: as for `from_hf`.

        Raises:
            InferKitError: no such file, not such a file, or its pattern is not known.
        """
        from infer_kit.vocab.rank_files import read_tiktoken

        return read_tiktoken(source, pattern, specials, model, name)

    @classmethod
    def from_sentencepiece(
        cls, path: str | Path, model: Any = None, name: str = ""
    ) -> "Vocabulary":
        """Vocabulary of a SentencePiece model file, BPE or Unigram.

        Args:
            path: of the `.model` file.
            model, name: as for `from_hf`.

        Raises:
            InferKitError: no such file, not such a file, or a word or character model.
        """
        from infer_kit.vocab.sentencepiece_files import read_sentencepiece

        return read_sentencepiece(path, model, name)

    def _model(self) -> dict[str, Any]:
        if self.encoder is None:
            return {}
        model: dict[str, Any] = json.loads(self.encoder.to_str())["model"]
        return model

    def _encode_bytes(self, text: str) -> list[int]:
        if self.kind != "bytes":
            raise InferKitError(f"The vocabulary {self.name!r} has no tokenizer to encode with.")
        missing = set(self.prefix + text.encode()) - set(self._single_bytes)
        if missing:
            raise InferKitError(
                f"The vocabulary {self.name!r} cannot spell byte {min(missing):#04x}."
            )
        return [self._single_bytes[byte] for byte in self.prefix + text.encode()]

    @cached_property
    def _single_bytes(self) -> dict[int, int]:
        """Byte to the first id that spells it."""
        found: dict[int, int] = {}
        for id, text in enumerate(self.tokens):
            if text is not None and len(text) == 1:
                found.setdefault(text[0], id)
        return found


def as_vocabulary(tokenizer: Any, model: Any = None) -> Vocabulary:
    """A vocabulary as it is, or that of a transformers tokenizer (`Vocabulary.from_hf`)."""
    if isinstance(tokenizer, Vocabulary):
        return tokenizer
    return Vocabulary.from_hf(tokenizer, model)
