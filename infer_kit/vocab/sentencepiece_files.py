"""Vocabularies of SentencePiece model files."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from infer_kit.errors import InferKitError
from infer_kit.vocab.readers import finished
from infer_kit.vocab.spelling import SPACE_SIGN, byte_of_piece
from infer_kit.vocab.vocabulary import Vocabulary

# Types of pieces and models, of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
_MODELS = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}


def read_sentencepiece(path: str | Path, model: Any, name: str) -> Vocabulary:
    """See `Vocabulary.from_sentencepiece`."""
    path = Path(path)
    if not path.is_file():
        raise InferKitError(f"No file {str(path)!r}.")
    try:
        file = _File(path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise InferKitError(f"{path.name} is no SentencePiece model file.") from error
    if not file.pieces or file.model_type not in (UNIGRAM, BPE):
        what = _MODELS.get(file.model_type, "unknown") if file.pieces else "empty"
        raise InferKitError(
            f"{path.name} is no SentencePiece BPE or Unigram model (it is {what!r})."
        )
    if file.suffix_space:
        raise InferKitError(f"{path.name} writes spaces after words; that is not supported.")
    ids = {piece: id for id, (piece, _, _) in enumerate(file.pieces)}
    tokens = [_spelt(piece, kind) for piece, _, kind in file.pieces]
    bos = ids.get(file.bos)
    if bos is not None and tokens[bos] is not None:
        bos = None
    return finished(
        tokens,
        model,
        ends=[ids[file.eos]] if file.eos in ids else [],
        start=bos,
        begin_ids=() if bos is None else (bos,),
        name=name or path.name,
        kind=_MODELS[file.model_type],
        encoder=_tokenizer(file),
        prefix=b" " if file.dummy_prefix else b"",
        special_names={
            id: piece
            for id, (piece, _, kind) in enumerate(file.pieces)
            if kind in (UNKNOWN, CONTROL)
        },
        byte_ids={
            byte: id
            for id, (piece, _, kind) in enumerate(file.pieces)
            if kind == BYTE and (byte := byte_of_piece(piece)) is not None
        },
    )


class _File:
    """The fields of a model file that matter, in Protocol Buffers' wire format."""

    def __init__(self, data: bytes) -> None:
        self.pieces: list[tuple[str, float, int]] = []
        self.model_type, self.suffix_space = UNIGRAM, False
        self.bos, self.eos = "<s>", "</s>"
        self.charsmap = b""
        self.dummy_prefix = self.one_space = self.space_sign = True
        for number, value in _fields(data):
            if number == 1:
                self._read_piece(value)
            elif number == 2:
                self._read_trainer(value)
            elif number == 3:
                self._read_normalizer(value)

    def _read_piece(self, data: Any) -> None:
        piece, score, kind = "", 0.0, NORMAL
        for number, value in _fields(data):
            if number == 1:
                piece = value.decode()
            elif number == 2:
                score = struct.unpack("<f", value)[0]
            elif number == 3:
                kind = value
        self.pieces.append((piece, score, kind))

    def _read_trainer(self, data: Any) -> None:
        for number, value in _fields(data):
            if number == 3:
                self.model_type = value
            elif number == 24:
                self.suffix_space = bool(value)
            elif number == 46:
                self.bos = value.decode()
            elif number == 47:
                self.eos = value.decode()

    def _read_normalizer(self, data: Any) -> None:
        for number, value in _fields(data):
            if number == 2:
                self.charsmap = value
            elif number == 3:
                self.dummy_prefix = bool(value)
            elif number == 4:
                self.one_space = bool(value)
            elif number == 5:
                self.space_sign = bool(value)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        length = {1: 8, 5: 4}.get(wire) or (varint() if wire == 2 else 0)
        if at + length > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + length]
        at += length


def _spelt(piece: str, kind: int) -> bytes | None:
    if kind == BYTE:
        byte = byte_of_piece(piece)
        return None if byte is None else bytes([byte])
    if kind in (NORMAL, USER_DEFINED) and piece:
        return piece.replace(SPACE_SIGN, " ").encode()
    return None


def _tokenizer(file: _File) -> Tokenizer:
    """A Rust tokenizer that encodes text as the file says; without the dummy prefix."""
    # Pieces without text get names that no text has, so that no text is encoded to them.
    names = [
        piece if kind in (NORMAL, USER_DEFINED, BYTE) else f"\U0010ffff{id}"
        for id, (piece, _, kind) in enumerate(file.pieces)
    ]
    unknown = next((id for id, (_, _, kind) in enumerate(file.pieces) if kind == UNKNOWN), None)
    fallback = any(kind == BYTE for _, _, kind in file.pieces)
    core: Tokenizer
    if file.model_type == UNIGRAM:
        scored = [(name, score) for name, (_, score, _) in zip(names, file.pieces, strict=True)]
        core = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=fallback))
    else:
        core = Tokenizer(
            models.BPE(
                vocab={name: id for id, name in enumerate(names)},
                merges=_merges(file),
                unk_token=None if unknown is None else names[unknown],
                fuse_unk=True,
                byte_fallback=fallback,
            )
        )
    defined = [piece for piece, _, kind in file.pieces if kind == USER_DEFINED]
    core.add_tokens([AddedToken(piece, normalized=True) for piece in defined])
    steps: list[Any] = []
    if file.charsmap:
        steps.append(normalizers.Precompiled(file.charsmap))
    if file.one_space:
        steps.append(normalizers.Replace(Regex(" +"), " "))
        steps.append(normalizers.Replace(Regex(r" \z"), ""))
        if not file.dummy_prefix:
            steps.append(normalizers.Replace(Regex(r"\A "), ""))
    if file.space_sign:
        steps.append(normalizers.Replace(" ", SPACE_SIGN))
    if steps:
        core.normalizer = normalizers.Sequence(steps)
    core.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_SIGN, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return core


def _merges(file: _File) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best first.

    SentencePiece merges the pair whose whole has the highest score, whichever pair it is, and of
    equals the first in the text. There the part on the left is the one that has grown most (runs
    of spaces have one score for all lengths), so longer left parts come first.
    """
    kinds = (NORMAL, USER_DEFINED)
    ids = {piece: id for id, (piece, _, kind) in enumerate(file.pieces) if kind in kinds}
    found = []
    for piece, score, kind in file.pieces:
        if kind != NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-score, -cut, left, right))
    found.sort()
    return [(file.pieces[left][0], file.pieces[right][0]) for _, _, left, right in found]
