"""What two tokenizers have in common, and over which alphabet their models can be pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infer_kit.errors import InferKitError
from infer_kit.vocab.alphabet import MOST_MISMATCH
from infer_kit.vocab.mismatch import Mismatch, by_method
from infer_kit.vocab.plain_texts import PLAIN_TEXTS
from infer_kit.vocab.sources import load_tokenizer
from infer_kit.vocab.submap import Method, common_vocabulary
from infer_kit.vocab.vocabulary import Vocabulary

_ENOUGH = 1_000  # symbols of a text on which a mismatch is counted
_IN_UTF8 = (*range(0xC0), *range(0xC2, 0xF5))  # bytes that some text has
# What normalisers commonly change.
_PROBES = {
    "composes characters": "cafe\u0301",
    "replaces look-alikes": "ﬁ Ａ ①",
    "lower-cases": "A Word",
    "drops accents": "naïve",
    "joins spaces": "a   b",
    "drops spaces at the ends": "  a  ",
    "changes line breaks": "a\n\nb\tc",
    "reads U+2581 as a space": "a\u2581b",
}


@dataclass(frozen=True)
class TokenizerFacts:
    """One tokenizer.

    Attributes:
        name: as the user gave it.
        kind: see `Vocabulary`.
        size, texts, distinct: ids, those with text, and different texts among them.
        longest: bytes of its longest token.
        specials: name by id, of ids without text that have one.
        ends, begins: ids that end a text, and that are put before one.
        dummy_prefix: what it puts before any text, "" for nothing.
        changes: what its normaliser does to texts, and an example each: (before, after).
        chat_template: the template, or None.
        single_bytes: how many of the 256 bytes it can write by themselves.
        missing_bytes: those of UTF-8 that it cannot.
        text_tokens: tokens of the text, or None where it cannot be encoded.
        fallback: share of byte-fallback tokens among them.
        problem: why the text cannot be encoded.
    """

    name: str
    kind: str
    size: int
    texts: int
    distinct: int
    longest: int
    specials: Mapping[int, str]
    ends: tuple[int, ...]
    begins: tuple[int, ...]
    dummy_prefix: str
    changes: Mapping[str, tuple[str, str]]
    chat_template: str | None
    single_bytes: int
    missing_bytes: tuple[int, ...]
    text_tokens: int | None
    fallback: float
    problem: str | None


@dataclass(frozen=True)
class PairFacts:
    """Two tokenizers.

    Attributes:
        same: they have the same tokens under the same ids.
        shared: different texts that both have as a token.
        shares: of each one's different texts.
        same_template: whether their chat templates are equal; None if either has none.
        mismatch: on the text, over their common vocabulary, by method; empty where the text
            cannot be compared, or need not be.
        problem: why it cannot.
    """

    same: bool
    shared: int
    shares: tuple[float, float]
    same_template: bool | None
    mismatch: Mapping[Method, Mismatch] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect_tokenizers` found.

    Attributes:
        tokenizers: one or two.
        pair: of two.
        text_bytes: length of the text that was counted on.
        alphabet: "tokens", "common vocabulary" or "bytes".
        method: of `SubwordMap`, for a common vocabulary.
        why: the reasons, in sentences.
        cost: tokens that each model reads for a byte of text: over its own tokens, and, at most,
            over the alphabet.
    """

    tokenizers: tuple[TokenizerFacts, ...]
    pair: PairFacts | None
    text_bytes: int
    alphabet: str
    method: Method | None
    why: tuple[str, ...]
    cost: tuple[tuple[float | None, float | None], ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain lists and numbers; bytes as text, with escapes where they are none."""
        plain: dict[str, Any] = _plain(asdict(self))
        for facts in plain["tokenizers"]:
            facts["tokens_per_byte"] = (
                None if facts["text_tokens"] is None else facts["text_tokens"] / self.text_bytes
            )
        return plain


def inspect_tokenizers(
    first: str, second: str | None = None, text: str | None = None
) -> Inspection:
    """Facts of one tokenizer or of two, and advice on the alphabet.

    Args:
        first, second: what `load_tokenizer` takes.
        text: to count on; default: a page of English, code, German and Chinese.

    Raises:
        InferKitError: one of them cannot be loaded or spelled as bytes, or the text is empty.
    """
    texts = list(PLAIN_TEXTS.values()) if text is None else [text]
    if not texts[0]:
        raise InferKitError("The text to count on is empty.")
    names = [first] if second is None else [first, second]
    vocabularies, facts = [], []
    for name in names:
        vocabulary, tokenizer = load_tokenizer(name)
        vocabularies.append(vocabulary)
        facts.append(_facts(name, vocabulary, tokenizer, texts))
    size = sum(len(text.encode()) for text in texts)
    native = [None if fact.text_tokens is None else fact.text_tokens / size for fact in facts]
    if len(facts) == 1:
        alone = ("One model alone is reduced to bytes: exact, and any text can be written.",)
        return Inspection(tuple(facts), None, size, "bytes", None, alone, ((native[0], 1.0),))
    pair = _pair(facts, vocabularies, texts)
    alphabet, method, why = _advice(pair)
    steps: tuple[float | None, ...] = (1.0, 1.0)
    if alphabet == "tokens":
        steps = tuple(native)
    elif method is not None:
        steps = tuple(count / size for count in pair.mismatch[method].counts)
    costs = tuple(zip(native, steps, strict=True))
    return Inspection(tuple(facts), pair, size, alphabet, method, why, costs)


def _facts(
    name: str, vocabulary: Vocabulary, tokenizer: Any, counted: Sequence[str]
) -> TokenizerFacts:
    texts = [spelt for spelt in vocabulary.tokens if spelt is not None]
    singles = {spelt[0] for spelt in texts if len(spelt) == 1}
    changes = {}
    for what, probe in _PROBES.items():
        read = _read(vocabulary, probe)
        if read is not None and read != probe:
            changes[what] = (probe, read)
    ids: list[int] | None = None
    problem = None
    try:
        ids = [id for text in counted for id in vocabulary.encode(text)]
    except InferKitError as error:
        problem = str(error)
    fallback = set(vocabulary.byte_ids.values())
    return TokenizerFacts(
        name=name,
        kind=vocabulary.kind,
        size=vocabulary.size,
        texts=len(texts),
        distinct=len(set(texts)),
        longest=max(map(len, texts), default=0),
        specials=dict(vocabulary.special_names),
        ends=vocabulary.end_ids,
        begins=vocabulary.begin_ids,
        dummy_prefix=vocabulary.prefix.decode(),
        changes=changes,
        chat_template=getattr(tokenizer, "chat_template", None),
        single_bytes=len(singles),
        missing_bytes=tuple(byte for byte in _IN_UTF8 if byte not in singles),
        text_tokens=None if ids is None else len(ids),
        fallback=0.0 if not ids else sum(id in fallback for id in ids) / len(ids),
        problem=problem,
    )


def _read(vocabulary: Vocabulary, probe: str) -> str | None:
    try:
        return vocabulary.conditioned(probe)
    except InferKitError:  # no token for a character: nothing is changed, it is refused
        return None


def _pair(
    facts: Sequence[TokenizerFacts], vocabularies: list[Vocabulary], texts: Sequence[str]
) -> PairFacts:
    a, b = ({spelt for spelt in v.tokens if spelt is not None} for v in vocabularies)
    templates = [fact.chat_template for fact in facts]
    mismatch: dict[Method, Mismatch] = {}
    problem = next((fact.problem for fact in facts if fact.problem), None)
    same = vocabularies[0].fingerprint == vocabularies[1].fingerprint
    if not same and problem is None:
        try:
            mismatch = by_method(vocabularies, common_vocabulary(*vocabularies), texts)
        except InferKitError as error:
            problem = str(error)
    return PairFacts(
        same=same,
        shared=len(a & b),
        shares=(len(a & b) / max(len(a), 1), len(a & b) / max(len(b), 1)),
        same_template=None if None in templates else templates[0] == templates[1],
        mismatch=mismatch,
        problem=problem,
    )


def _advice(pair: PairFacts) -> tuple[str, Method | None, tuple[str, ...]]:
    """Alphabet, method of the map to it, and why."""
    if pair.same:
        return "tokens", None, (
            "The tokenizers are the same: the models are pooled over their tokens, by the coupled "
            "engine, at one step a token.",
        )  # fmt: skip
    any_pair = "Bytes fit any two tokenizers: a text is one string of bytes, however it is cut."
    price = (
        "Each model reads at most about one token a byte, at the default eps 0.4 to 1, in about as "
        "many forward calls as it has tokens."
    )
    if pair.problem is not None:
        return "bytes", None, (any_pair, f"On this text they were not compared: {pair.problem}")
    method, best = min(pair.mismatch.items(), key=lambda item: item[1].worst)
    if best.worst < MOST_MISMATCH and min(best.counts) < _ENOUGH:
        return "bytes", None, (
            f"The text has {min(best.counts):,} symbols; a mismatch below {MOST_MISMATCH:.1%} "
            f"shows in {_ENOUGH:,} or more.",
            any_pair,
            price,
        )  # fmt: skip
    if best.worst < MOST_MISMATCH:
        return "common vocabulary", method, (
            f"Over their common vocabulary the two cut {best.worst:.2%} of the text's symbols "
            f"differently, below {MOST_MISMATCH:.1%}: with longer symbols there are fewer steps.",
            "Other texts may differ more: give --text one that is like what will be generated.",
        )  # fmt: skip
    return "bytes", None, (
        f"Over their common vocabulary the two cut {best.worst:.2%} of the text's symbols "
        f"differently, more than {MOST_MISMATCH:.1%}: each would be asked about beginnings that it "
        "never saw.",
        any_pair,
        price,
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
