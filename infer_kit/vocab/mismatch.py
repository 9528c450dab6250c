"""How often two models, on one text, use different symbols of a common vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infer_kit.errors import InferKitError
from infer_kit.vocab.plain_texts import PLAIN_TEXTS
from infer_kit.vocab.submap import Method, SubwordMap, common_vocabulary
from infer_kit.vocab.vocabulary import Vocabulary, as_vocabulary

_AROUND = 24  # bytes of text shown on either side
_EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """A place where the two cut differently.

    Attributes:
        before, after: the text around.
        first, second: the symbols of the place, under each.
    """

    before: str
    first: tuple[bytes, ...]
    second: tuple[bytes, ...]
    after: str


@dataclass(frozen=True)
class Mismatch:
    """What a common vocabulary would cost in agreement.

    Attributes:
        forward: share of the first model's symbols that the second one does not have there.
        backward: share of the second model's symbols that the first one does not have there.
        counts: symbols of the texts, under each.
        examples: some of the places.
    """

    forward: float
    backward: float
    counts: tuple[int, int]
    examples: tuple[Example, ...]

    @property
    def worst(self) -> float:
        """The larger share. Above 0.1 % take bytes: with them it is 0."""
        return max(self.forward, self.backward)


def mismatch_report(
    first: Any,
    second: Any,
    symbols: Literal["bytes"] | Sequence[bytes] | None = None,
    texts: Sequence[str] | None = None,
    method: Method | None = None,
) -> Mismatch:
    r"""Compare the symbols of the two models for the same texts.

    Symbols drawn by the first model are a prefix that the second one is conditioned on. Where
    $\varphi_1(\mathrm{encode}_1(t)) \ne \varphi_2(\mathrm{encode}_2(t))$, that prefix is one which
    the second model never writes, and what it says after it is worth little. Bytes never differ.

    Args:
        first, second: vocabularies, or transformers tokenizers.
        symbols: default: their common vocabulary.
        texts: to count on, the more alike what will be generated the better. Default: a page of
            English, code, German and Chinese.
        method: see `SubwordMap`.

    Raises:
        InferKitError: no text, or normalisers of the two that make different texts of one.
    """
    pair = as_vocabulary(first), as_vocabulary(second)
    texts = list(PLAIN_TEXTS.values()) if texts is None else texts
    if not any(texts):
        raise InferKitError("A mismatch is counted on texts; none was given.")
    symbols = common_vocabulary(*pair) if symbols is None else symbols
    return compare([SubwordMap(vocabulary, symbols, method) for vocabulary in pair], texts)


def compare(maps: Sequence[SubwordMap], texts: Sequence[str]) -> Mismatch:
    """The same for two maps that exist, over the same symbols."""
    a, b = (mapping.vocabulary for mapping in maps)
    absent, counts = [0, 0], [0, 0]
    examples: list[Example] = []
    for text in filter(None, texts):
        text = _agreed(text, a, b)
        ends = [_ends(mapping, text) for mapping in maps]
        spans = [np.stack([np.append(0, end[:-1]), end], 1) for end in ends]
        keys = [span[:, 0] << 32 | span[:, 1] for span in spans]
        lost = [~np.isin(keys[0], keys[1]), ~np.isin(keys[1], keys[0])]
        for side in range(2):
            absent[side] += int(lost[side].sum())
            counts[side] += len(ends[side])
        examples += _examples(text, ends, spans[0][lost[0]], _EXAMPLES - len(examples))
    shares = [lost / max(count, 1) for lost, count in zip(absent, counts, strict=True)]
    return Mismatch(shares[0], shares[1], (counts[0], counts[1]), tuple(examples))


def by_method(
    vocabularies: Sequence[Vocabulary], symbols: Sequence[bytes], texts: Sequence[str] | None = None
) -> dict[Method, Mismatch]:
    """For each way to cut tokens that all the vocabularies have, the worst of their pairs.

    The first vocabulary is compared with each of the others.
    """
    texts = list(PLAIN_TEXTS.values()) if texts is None else texts
    methods: list[Method] = ["greedy"]
    if all(len(vocabulary.merges) for vocabulary in vocabularies):
        methods.insert(0, "bpe")
    found: dict[Method, Mismatch] = {}
    for method in methods:
        first, *others = [SubwordMap(vocabulary, symbols, method) for vocabulary in vocabularies]
        compared = [compare([first, other], texts) for other in others]
        found[method] = max(compared, key=lambda mismatch: mismatch.worst)
    return found


def best_method(
    vocabularies: Sequence[Vocabulary], symbols: Sequence[bytes]
) -> tuple[Method, Mismatch]:
    """The way to cut tokens over which the vocabularies agree best on plain texts."""
    found = by_method(vocabularies, symbols)
    method = min(found, key=lambda method: found[method].worst)
    return method, found[method]


def _agreed(text: str, a: Vocabulary, b: Vocabulary) -> str:
    """The text as both read it."""
    for _ in range(3):
        if (text := b.conditioned(a.conditioned(text))) == a.conditioned(text):
            return text
    raise InferKitError(
        f"The normalisers of {a.name!r} and {b.name!r} make different texts of one; their symbols "
        "cannot be compared."
    )


def _ends(mapping: SubwordMap, text: str) -> NDArray[np.int64]:
    """[n] where each symbol of a text ends, in its bytes, a dummy prefix left out."""
    vocabulary = mapping.vocabulary
    indices = mapping.of_tokens(vocabulary.encode(text))
    lengths = np.array([len(symbol) for symbol in mapping.symbols], np.int64)
    ends = np.cumsum(lengths[indices]) - len(vocabulary.prefix)
    return ends[ends > 0]


def _examples(
    text: str, ends: list[NDArray[np.int64]], lost: NDArray[np.int64], limit: int
) -> list[Example]:
    """Places from one cut that both make to the next, the first `limit` that hold a lost symbol."""
    data = text.encode()
    both = np.append(0, np.intersect1d(ends[0], ends[1]))
    found: list[Example] = []
    reached = -1
    for start, end in lost.tolist():
        if len(found) >= limit:
            break
        if end <= reached:
            continue
        low = int(both[np.searchsorted(both, start, "right") - 1])
        reached = int(both[np.searchsorted(both, end)])
        cuts = [[low, *e[(e > low) & (e <= reached)].tolist()] for e in ends]
        first, second = (tuple(data[i:j] for i, j in pairwise(cut)) for cut in cuts)
        before = data[max(0, low - _AROUND) : low].decode("utf-8", "ignore")
        after = data[reached : reached + _AROUND].decode("utf-8", "ignore")
        found.append(Example(before, first, second, after))
    return found
