"""Vocabularies of BPE rank files (tiktoken) and of GPT-2's `vocab.bpe`."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from infer_kit.errors import InferKitError
from infer_kit.vocab.readers import finished
from infer_kit.vocab.spelling import byte_letters
from infer_kit.vocab.vocabulary import Vocabulary

_END = "<|endoftext|>"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True)
class Splitting:
    """How a known tokenizer splits text into words, and its special tokens."""

    pattern: str
    specials: Mapping[str, int] = field(default_factory=dict)
    nfc: bool = False


PATTERNS = {
    "gpt2": Splitting(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", {_END: 50256}
    ),
    "cl100k": Splitting(
        rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        + _TAIL,
        {
            _END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k": Splitting(
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|"
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL,
        {_END: 199999, "<|endofprompt|>": 200018},
    ),
    "qwen": Splitting(
        rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|" + _TAIL,
        {_END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
        nfc=True,
    ),
}
"""By name; a file whose name begins with one of these is taken to be of it."""


def read_tiktoken(
    source: Any, pattern: str | None, specials: Mapping[str, int] | None, model: Any, name: str
) -> Vocabulary:
    """See `Vocabulary.from_tiktoken`."""
    ranks: dict[bytes, int]
    pairs: list[tuple[bytes, bytes]] | None = None
    if isinstance(source, (str, Path)):
        path = Path(source)
        name = name or path.name
        ranks, pairs = _read(path)
        known = pattern or next((key for key in PATTERNS if path.name.startswith(key)), None)
        if known is None and pairs is not None:
            known = "gpt2"
    elif not hasattr(source, "_mergeable_ranks"):
        raise InferKitError(
            f"Expected the path of a rank file or a tiktoken.Encoding, got {type(source).__name__}."
        )
    else:
        ranks = dict(source._mergeable_ranks)
        known = pattern or source._pat_str
        specials = dict(source._special_tokens) if specials is None else specials
        name = name or source.name
    if known is None:
        raise InferKitError(
            f"How {name!r} splits text into words is not known: a rank file does not say it.",
            hint=f"Give pattern=: one of {', '.join(PATTERNS)}, or the regular expression itself.",
        )
    splitting = PATTERNS.get(known, Splitting(known))
    specials = splitting.specials if specials is None else specials
    size = max([*ranks.values(), *specials.values()]) + 1
    tokens: list[bytes | None] = [None] * size
    for token, rank in ranks.items():
        tokens[rank] = token
    for special, id in specials.items():
        if tokens[id] is not None:
            raise InferKitError(f"Special token {special!r} has id {id}, which is {tokens[id]!r}.")
    end = list(specials.values())[:1]
    return finished(
        tokens,
        model,
        ends=end,
        start=None,
        begin_ids=(),
        name=name,
        kind="byte_bpe",
        special_names={id: special for special, id in specials.items()},
        encoder=_tokenizer(ranks, pairs, splitting),
    )


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each token, in the order of their ranks.

    BPE with the ranks below a token's own leaves it in two parts: these are its merge. A token
    that is left in more than two has none; as a whole word it is still found.
    """
    merges = []
    for token, limit in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts_below(token, limit, ranks)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _parts_below(token: bytes, limit: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """BPE of a token's bytes with the merges of ranks below `limit`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    rank = ranks.get
    costs = [rank(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
    while costs:
        least = min(costs)
        if least >= limit:
            break
        at = costs.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del costs[at]
        if at < len(costs):
            costs[at] = rank(parts[at] + parts[at + 1], limit)
        if at:
            costs[at - 1] = rank(parts[at - 1] + parts[at], limit)
    return parts


def _tokenizer(
    ranks: Mapping[bytes, int], pairs: list[tuple[bytes, bytes]] | None, splitting: Splitting
) -> Tokenizer:
    letters = byte_letters()

    def written(token: bytes) -> str:
        return "".join(map(letters.__getitem__, token))

    merges = merges_of_ranks(ranks) if pairs is None else pairs
    core = Tokenizer(
        models.BPE(
            vocab={written(token): rank for token, rank in ranks.items()},
            merges=[(written(left), written(right)) for left, right in merges],
            ignore_merges=pairs is None,  # tiktoken looks whole words up first
        )
    )
    # Oniguruma reads `{1,3}+` as a repetition; the possessive that it means elsewhere only saves
    # time where, as here, it ends an alternative.
    pattern = re.sub(r"(\{\d+(?:,\d*)?\})\+", r"\1", splitting.pattern)
    try:
        regex = Regex(pattern)
    except Exception as error:  # the Rust side has no class of its own for it
        raise InferKitError(f"pattern is no regular expression: {error}") from error
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(regex, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if splitting.nfc:
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    return core


def _read(path: Path) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]] | None]:
    """Ranks of a file, and its merges if it is a file of merges."""
    if not path.is_file():
        raise InferKitError(f"No file {str(path)!r}.")
    data = path.read_bytes()
    if data.startswith(b"#version"):
        return _read_merges(data.decode(), path)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InferKitError(
                f"{path.name} is no file of BPE ranks: line {number} is {line[:40]!r}.",
                hint="Expected are lines of a base64 token and its rank, or GPT-2's vocab.bpe.",
            ) from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise InferKitError(f"{path.name} has no token for byte {missing[0]}.")
    return ranks, None


def _read_merges(text: str, path: Path) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """GPT-2's file: the 256 bytes in the order of their letters, then a token for each merge."""
    letters = byte_letters()
    codes = {letter: byte for byte, letter in enumerate(letters)}
    singles = sorted(range(256), key=letters.__getitem__)
    ranks = {bytes([byte]): rank for rank, byte in enumerate(singles)}
    pairs = []
    for number, line in enumerate(text.splitlines()[1:], 2):
        if not line.strip():
            continue
        try:
            left, right = (bytes(map(codes.__getitem__, part)) for part in line.split(" "))
        except (ValueError, KeyError):
            raise InferKitError(
                f"{path.name} is no file of BPE merges: line {number} is {line[:40]!r}."
            ) from None
        pairs.append((left, right))
        ranks.setdefault(left + right, len(ranks))
    return ranks, pairs
