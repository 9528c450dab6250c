"""Candidate concepts from captions: their noun phrases without determiners.

Yamaguchi et al., *Zero-shot Concept Bottleneck Models*, arXiv 2502.09018, take noun phrases of the
captions of large data sets, up to 20 characters long. Here a phrase is at most one adjective and
then nouns, so that a bank has "red ball" and not "the big red ball".
"""

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from infer_kit.concepts import lexicon
from infer_kit.concepts.phrase_lists import LONGEST, cleaned
from infer_kit.concepts.taggers import Tagged, Tagger, tagging
from infer_kit.errors import InferKitError


def noun_phrases(
    captions: Iterable[str],
    tagger: Tagger = "lexicon",
    longest: int | None = LONGEST,
    progress: bool = False,
) -> list[str]:
    """The noun phrases of captions, lower-cased, unlike and sorted.

    >>> noun_phrases(["Two dogs play with a red ball in the park."])
    ['dogs', 'park', 'red ball']

    Args:
        captions: read once; a generator of millions will do, only phrases are kept.
        tagger: "lexicon" (needs nothing else, see `lexicon.tagging`), "nltk", "spacy:PIPELINE", or
            one of your own: a loaded spaCy pipeline, or text -> [(word, tag), ...]. See `taggers`.
        longest: phrases of more characters are left out; None keeps all.
        progress: show a bar.

    Raises:
        InferKitError: captions that are one text, an item that is none, an unknown tagger.
        MissingExtra: the tagger's package or data are not installed.

    Known misses of the lexicon: WordNet 3.0 is of 2006, "selfie" and "smartphone" are not in it. A
    noun that is mostly a verb is lost where nothing announces it ("he likes trains"). A verb that
    is mostly a noun joins ("a player swing" in "watches a player swing", "a table set for dinner",
    "a seal balances a ball"), as does a past tense that is a noun ("a man saw a dog" has "man
    saw"). An -ing form after a noun never joins: "a hotel swimming pool" has "hotel" and "pool".
    WordNet's nouns of several words are found where they are none ("a bus stops").
    """
    tag = tagging(tagger)
    found: set[str] = set()
    bar = tqdm(_texts(captions, "captions"), desc="captions", unit="", disable=not progress)
    for tagged in tag(bar):
        found.update(p for p in _phrases(tagged) if longest is None or len(p) <= longest)
    return clean(found, longest)


def lexicon_noun_phrases(captions: Iterable[str], longest: int | None = LONGEST) -> list[str]:
    """`noun_phrases` by the lexicon, which needs nothing else."""
    return noun_phrases(captions, "lexicon", longest)


def wordnet_nouns(longest: int | None = LONGEST) -> list[str]:
    """All nouns of WordNet 3.0 as phrases: a bank of its own."""
    return clean(lexicon.load().nouns, longest)


def clean(phrases: Iterable[str], longest: int | None = LONGEST) -> list[str]:
    """Lower-cased, unlike and sorted phrases with single spaces; empty and longer ones go.

    >>> clean(["Red  ball ", "dog", "red ball", ""])
    ['dog', 'red ball']
    """
    return list(cleaned(phrases, longest=longest)[0])


def _texts(items: Iterable[str], what: str) -> Iterator[str]:
    if isinstance(items, str | bytes):
        raise InferKitError(
            f"{what} is one text, and a list of texts is wanted.", hint=f"{what}=[TEXT]"
        )
    return _each(items, what)


def _each(items: Iterable[str], what: str) -> Iterator[str]:
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise InferKitError(
                f"{what}[{number}] is no text but {type(item).__name__}: {str(item)[:60]!r}.",
                hint="Give a list, or any iterable, of str.",
            )
        yield item


def _phrases(tagged: Iterable[Tagged]) -> Iterator[str]:
    """A? N+ over the tags, each time the longest."""
    words: list[str] = []
    nouns = False
    for word, tag in tagged:
        if tag == "N":
            words.append(word.lower())
            nouns = True
            continue
        if nouns:
            yield " ".join(words)
        words = [word.lower()] if tag == "A" else []
        nouns = False
    if nouns:
        yield " ".join(words)
