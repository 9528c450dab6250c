"""Which alphabet the members of an ensemble share."""

from collections.abc import Sequence
from typing import Literal

from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.vocab.mismatch import mismatch_report
from infer_kit.vocab.vocabulary import Vocabulary

MOST_MISMATCH = 0.001  # share of symbols that another member would not have written there

Symbols = Literal["bytes"] | tuple[bytes, ...]


def choose_alphabet(
    vocabularies: Sequence[Vocabulary],
    wanted: Literal["bytes", "tokens"] | Sequence[bytes] | None,
    force: bool = False,
) -> tuple[str, Symbols]:
    """Name and symbols of the alphabet: "tokens", "bytes" or "symbols".

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
            return "bytes", "bytes"
        if not same:
            raise VocabularyMismatch(
                "The members' tokenizers differ: they share no tokens to be pooled over.",
                hint="Leave out vocabulary, or give 'bytes'.",
            )
        return "tokens", tuple(sorted({t for t in vocabularies[0].tokens if t is not None}))
    symbols = tuple(wanted)
    for symbol in symbols:
        if not isinstance(symbol, bytes) or not symbol:
            raise InferKitError(f"The vocabulary has {symbol!r}; expected non-empty byte strings.")
    first = vocabularies[0]
    for other in vocabularies[1:]:
        if force or other.fingerprint == first.fingerprint:
            continue
        mismatch = mismatch_report(first, other, symbols)
        if mismatch.worst > MOST_MISMATCH:
            raise VocabularyMismatch(
                f"{first.name!r} and {other.name!r} cut {mismatch.worst:.2%} of the symbols of "
                f"plain texts differently over this vocabulary, more than {MOST_MISMATCH:.1%}: "
                "each would be asked about beginnings that it never saw.",
                hint="Leave out vocabulary to pool over bytes, or give force=True.",
            )
    return "symbols", symbols
