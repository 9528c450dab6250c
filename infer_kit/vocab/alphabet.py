"""Which alphabet the members of an ensemble share."""

from collections.abc import Sequence
from typing import Literal

from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.vocab.mismatch import best_method
from infer_kit.vocab.submap import Method
from infer_kit.vocab.vocabulary import Vocabulary

MOST_MISMATCH = 0.001  # share of symbols that another member would not have written there

Symbols = Literal["bytes"] | tuple[bytes, ...]


def choose_alphabet(
    vocabularies: Sequence[Vocabulary],
    wanted: Literal["bytes", "tokens"] | Sequence[bytes] | None,
    force: bool = False,
) -> tuple[str, Symbols, Method | None]:
    """Name and symbols of the alphabet, "tokens", "bytes" or "symbols", and how tokens are cut.

    Bytes fit every set of members: a text has one spelling in bytes. A larger common vocabulary
    does not: two members cut one text differently, and each would be asked about prefixes that it
    never saw in training.

    Args:
        vocabularies: of the members.
        wanted: what the user asked for; None: tokens where all members share them, else bytes.
        force: take a vocabulary of the user's though it fits badly.

    Raises:
        VocabularyMismatch: "tokens" of unlike tokenizers, or a common vocabulary that too often
            cuts one text in two ways.
    """
    same = len({vocabulary.fingerprint for vocabulary in vocabularies}) == 1
    if wanted is None:
        wanted = "tokens" if same and len(vocabularies) > 1 else "bytes"
    if isinstance(wanted, str):
        if wanted not in ("bytes", "tokens"):
            raise InferKitError(
                f"Unknown vocabulary {wanted!r}: use 'bytes', 'tokens' or a list of byte strings."
            )
        if wanted == "bytes":
            return "bytes", "bytes", None
        if not same:
            raise VocabularyMismatch(
                "The members' tokenizers differ: they share no tokens to be pooled over.",
                hint="Leave out vocabulary, or give 'bytes'.",
            )
        spellings = {text for text in vocabularies[0].tokens if text is not None}
        return "tokens", tuple(sorted(spellings)), None
    symbols = tuple(wanted)
    for symbol in symbols:
        if not isinstance(symbol, bytes) or not symbol:
            raise InferKitError(f"The vocabulary has {symbol!r}; expected non-empty byte strings.")
    if same or all(len(symbol) == 1 for symbol in symbols):
        return "symbols", symbols, None
    names = " and ".join(repr(vocabulary.name) for vocabulary in vocabularies)
    try:
        method, mismatch = best_method(vocabularies, symbols)
    except InferKitError as error:
        if force:
            return "symbols", symbols, None
        raise VocabularyMismatch(
            f"How differently {names} cut plain texts over this vocabulary cannot be counted: "
            f"{error}",
            hint="Leave out vocabulary to pool over bytes, or give force=True.",
        ) from error
    if mismatch.worst > MOST_MISMATCH and not force:
        raise VocabularyMismatch(
            f"{names} cut {mismatch.worst:.2%} of the symbols of plain texts differently over this "
            f"vocabulary, more than {MOST_MISMATCH:.1%}: each would be asked about beginnings that "
            "it never saw.",
            hint="Leave out vocabulary to pool over bytes, or give force=True.",
        )
    return "symbols", symbols, method
