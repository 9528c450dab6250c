"""What the pieces of a tokenizer spell, read from its own description (`tokenizer.json`)."""

from functools import lru_cache
from typing import Any

from infer_kit.errors import InferKitError

Spec = dict[str, Any]

SPACE_SIGN = "\u2581"
"""SentencePiece writes it for a space."""

# Pre-tokenizers that only cut; Split and Punctuation are judged by their behavior.
_CUT_ONLY = ("Digits", "UnicodeScripts", "FixedLength", "ByteLevel", "Metaspace")
_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_KINDS = {"Unigram": "unigram", "WordPiece": "wordpiece", "WordLevel": "words"}


class Spelling:
    """The rules of one tokenizer.

    Args:
        spec: its description.
        name: how messages call it.

    Attributes:
        pieces: id to the model's piece.
        kind: as `Vocabulary.kind`.
        byte_level: pieces are written in the letters of byte-level BPE.
        space_signed: spaces are written with SentencePiece's sign.
        words_only: words are cut at white space alone; the first token of each spells a space.
        byte_fallback: pieces `<0xNN>` are bytes.

    Raises:
        InferKitError: what a token spells depends on the text around it; names one.
    """

    def __init__(self, spec: Spec, name: str) -> None:
        self.name = name
        model = self.model = spec["model"]
        self.pieces = pieces_of(model)
        cuts = parts_of(spec, "pre_tokenizer")
        parts = [*parts_of(spec, "normalizer"), *cuts, *parts_of(spec, "decoder")]
        self.byte_level = any(part["type"] == "ByteLevel" for part in parts)
        self.space_signed = not self.byte_level and any(map(_writes_space_sign, parts))
        self.byte_fallback = bool(model.get("byte_fallback")) or any(
            part["type"] == "ByteFallback" for part in parts
        )
        self.words_only = (
            model["type"] in ("WordPiece", "WordLevel")
            and not (self.byte_level or self.space_signed)
            and [part["type"] for part in cuts] == ["WhitespaceSplit"]
        )
        byte_bpe = model["type"] == "BPE" and self.byte_level
        self.kind = "byte_bpe" if byte_bpe else _KINDS.get(model["type"], "bpe")
        self._joint: str = model.get("continuing_subword_prefix") or ""
        self._codes = {letter: byte for byte, letter in enumerate(byte_letters())}
        self._refuse_word_ends()
        if not self.words_only:
            self._refuse_lost_spaces(cuts)
        for token in spec["added_tokens"]:
            if self.words_only and not token["special"]:
                raise self._error(
                    f"whether a space stands before its added token {token['content']!r} depends "
                    "on the text."
                )

    def of_piece(self, piece: str) -> bytes:
        """What a piece of the model's vocabulary spells."""
        byte = byte_of_piece(piece) if self.byte_fallback else None
        if byte is not None:
            return bytes([byte])
        continues = bool(self._joint) and piece.startswith(self._joint) and piece != self._joint
        text = piece[len(self._joint) :] if continues else piece
        if self.byte_level:
            try:
                return bytes(map(self._codes.__getitem__, text))
            except KeyError as error:
                raise self._error(
                    f"{piece!r} has a letter {error.args[0]!r} that stands for no byte.",
                    hint="If it is a special token, it must be among the tokenizer's added tokens.",
                ) from None
        if self.space_signed:
            text = text.replace(SPACE_SIGN, " ")
        return (b" " if self.words_only and not continues else b"") + text.encode()

    def of_added(self, content: str) -> bytes:
        """What an added token spells: its own text, but for SentencePiece's space."""
        return self.of_piece(content) if self.space_signed else content.encode()

    def _refuse_word_ends(self) -> None:
        suffix = self.model.get("end_of_word_suffix")
        if suffix:
            piece = next((p for p in self.pieces.values() if p.endswith(suffix)), suffix)
            raise self._error(
                f"{piece!r} ends a word, and whether a space follows depends on the text."
            )

    def _refuse_lost_spaces(self, cuts: list[Spec]) -> None:
        for place, part in enumerate(cuts):
            keeps = part.get("behavior", "Removed") != "Removed" or part.get("invert", False)
            if part["type"] in _CUT_ONLY or keeps:
                continue
            later = [
                cut.get("prepend_scheme") for cut in cuts[place:] if cut["type"] == "Metaspace"
            ]
            if part["type"] == "WhitespaceSplit" and later == ["always"]:
                continue  # the sign stands for the space that was dropped
            words = [p for p in self.pieces.values() if p]
            odd = [p for p in words if not any(c.isalnum() or c.isspace() for c in p)]
            piece = (odd or words)[0]
            raise self._error(
                f"its pre-tokenizer {part['type']} drops spaces, so that {piece!r} spells "
                f"{piece!r} or {' ' + piece!r}, depending on the text.",
                hint="Byte-level BPE, SentencePiece-like BPE and Unigram can be spelled; WordPiece "
                "and whole words where words are cut at white space alone.",
            )

    def _error(self, why: str, hint: str | None = None) -> InferKitError:
        kind = self.model["type"]
        return InferKitError(
            f"The tokens of the {kind} tokenizer {self.name!r} cannot be spelled as bytes: {why}",
            hint=hint,
        )


def parts_of(spec: Spec, key: str) -> list[Spec]:
    """The parts of the normalizer, pre_tokenizer or decoder, sequences unfolded."""

    def unfolded(part: Spec | None) -> list[Spec]:
        if part is None:
            return []
        if part["type"] != "Sequence":
            return [part]
        return [leaf for inner in part[_PARTS[key]] for leaf in unfolded(inner)]

    return unfolded(spec[key])


def pieces_of(model: Spec) -> dict[int, str]:
    """Id to piece, of a tokenizer's model."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return {id: piece for id, (piece, _) in enumerate(vocab)}
    return {id: piece for piece, id in vocab.items()}


@lru_cache(1)
def byte_letters() -> tuple[str, ...]:
    """The letter that byte-level BPE writes for each byte: itself where it is visible Latin-1."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in visible else next(others)) for byte in range(256))


def byte_of_piece(piece: str) -> int | None:
    """0xNN of a byte-fallback piece `<0xNN>`, or None."""
    if len(piece) != 6 or not (piece.startswith("<0x") and piece.endswith(">")):
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None


def _writes_space_sign(part: Spec) -> bool:
    if part["type"] == "Metaspace":
        return bool(part["replacement"] == SPACE_SIGN)
    return part["type"] == "Replace" and SPACE_SIGN in (*part["pattern"].values(), part["content"])
