"""What the columns of a reward mean: tokens by id, or class labels, and a hash of them."""

import hashlib
from collections.abc import Sequence
from typing import Any

from infer_kit.errors import InferKitError, VocabularyMismatch

Labels = tuple[str | None, ...]

_NONE = b"\xff\xff\xff\xff"
_SHOWN = 3


def labels_of(source: Any) -> Labels:
    """The label of each column.

    Args:
        source: a tokenizer of transformers (tokens by id: the ids that it owns, up to its highest,
            never the padded rows of a model), a classifier or its config (`id2label`), or the
            labels themselves.

    Raises:
        InferKitError: it is none of these, or has no labels.
    """
    source = getattr(source, "tokenizer", source)
    if hasattr(source, "get_vocab"):
        vocabulary: dict[str, int] = source.get_vocab()
        if not vocabulary:
            raise InferKitError(f"{type(source).__name__} has no tokens.")
        tokens: list[str | None] = [None] * (max(vocabulary.values()) + 1)
        for token, id in vocabulary.items():
            tokens[id] = token
        return tuple(tokens)
    config = getattr(source, "config", source)
    names = getattr(config, "id2label", None)
    if names:
        return tuple(str(names[place]) for place in sorted(names, key=int))
    if isinstance(source, str) or not isinstance(source, Sequence) or not len(source):
        raise InferKitError(
            f"Expected a tokenizer, a classifier or a list of labels, got {type(source).__name__}."
        )
    for place, label in enumerate(source):
        if label is not None and not isinstance(label, str):
            raise InferKitError(f"Label {place} is {label!r}; expected a text.")
    return tuple(source)


def label_hash(labels: Sequence[str | None]) -> str:
    """SHA-256 of the labels in their order, each in UTF-8 after its length in 4 bytes.

    The number of labels never says which they are.
    """
    digest = hashlib.sha256()
    for label in labels:
        data = None if label is None else label.encode("utf-8", "surrogatepass")
        digest.update(_NONE if data is None else len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


def check_same_labels(mine: Labels, base: Labels, whose: str = "the base") -> None:
    """Raise unless two label tables are equal.

    Args:
        mine: of the reward. base: of the model that it is to be used with.

    Raises:
        VocabularyMismatch: says how many differ and where the first ones are.
    """
    if mine == base:
        return
    both = min(len(mine), len(base))
    apart = [place for place in range(both) if mine[place] != base[place]]
    shown = ", ".join(f"{n}: {mine[n]!r} and {base[n]!r}" for n in apart[:_SHOWN])
    sizes = f"{len(mine):,} labels and {whose} {len(base):,}"
    first = f"; {len(apart):,} of the first {both:,} differ ({shown})" if apart else ""
    raise VocabularyMismatch(
        f"The reward was trained for another vocabulary: it has {sizes}{first}.",
        hint="A reward fits models of its own tokenizer (or classes). Over other tokenizers use "
        "infer_kit.reward.compose.over_bytes; for classes under other numbers give id_map.",
    )
