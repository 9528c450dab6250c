"""Taggers of captions by name, by pipeline or by function, brought to three tags.

A is an adjective, N a noun, X any other. The packages of two of them are optional and are imported
when they are asked for.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from infer_kit.concepts import lexicon
from infer_kit.concepts.lexicon.tagging import LexiconTagger
from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.methods.named import did_you_mean

Tagged = tuple[str, str]
Tagger = str | Callable[[str], Any]
"""A name, a loaded spaCy pipeline, or a function from a text to its (word, tag) pairs."""
Tagging = Callable[[Iterable[str]], Iterator[list[Tagged]]]

_PIPELINE = "en_core_web_sm"
_NAMES = ("lexicon", "nltk", f"spacy:{_PIPELINE}")
_TAGS = {
    **dict.fromkeys(("A", "ADJ", "JJ", "JJR", "JJS"), "A"),
    **dict.fromkeys(("N", "NOUN", "PROPN", "NN", "NNS", "NNP", "NNPS"), "N"),
}
"""Tags of our own, of Universal Dependencies and of the Penn Treebank; all others are X."""


def tagging(tagger: Tagger) -> Tagging:
    """A function from captions to their words with tags.

    Args:
        tagger: "lexicon"; "nltk" (Penn tags of nltk.pos_tag); "spacy" or "spacy:PIPELINE" (UPOS);
            a spaCy pipeline that is loaded; or a function of a text. Its tags may be A and N, UPOS
            or Penn's.
    """
    if tagger == "lexicon":
        return lambda captions: map(_lexicon(), captions)
    if tagger == "nltk":
        return _each(_nltk())
    if isinstance(tagger, str):
        name, _, pipeline = tagger.partition(":")
        if name == "spacy":
            return _piped(_spacy(pipeline or _PIPELINE))
        raise InferKitError(f"Unknown tagger {tagger!r}.{did_you_mean(tagger, _NAMES)}")
    if callable(getattr(tagger, "pipe", None)):
        return _piped(tagger)
    if not callable(tagger):
        raise InferKitError(
            f"A tagger is a name, a spaCy pipeline or a function, not {type(tagger).__name__}.",
            hint=f"One of {', '.join(_NAMES)}, or text -> [(word, tag), ...].",
        )
    return _each(tagger)


@cache
def _lexicon() -> LexiconTagger:
    return LexiconTagger(lexicon.load())


def _each(function: Callable[[str], Any]) -> Tagging:
    def tag(captions: Iterable[str]) -> Iterator[list[Tagged]]:
        for caption in captions:
            tagged = function(caption)
            try:
                yield [(word, _TAGS.get(tag, "X")) for word, tag in tagged]
            except (TypeError, ValueError) as error:
                raise InferKitError(
                    f"The tagger gave {str(tagged)[:80]!r} for {caption[:60]!r}.",
                    hint="A tagger gives a list of pairs: (word, tag).",
                ) from error

    return tag


def _nltk() -> Callable[[str], list[Tagged]]:
    try:
        import nltk
    except ImportError as error:
        raise MissingExtra("nltk is not installed.", hint="pip install nltk") from error
    words = nltk.tokenize.NLTKWordTokenizer()

    def tag(caption: str) -> list[Tagged]:
        # the tokenizer takes one sentence
        return [
            pair
            for sentence in re.split(r"(?<=[.!?])\s+", caption)
            for pair in nltk.pos_tag(words.tokenize(sentence))
        ]

    try:
        tag("a dog")
    except LookupError as error:
        raise MissingExtra(
            "nltk has no data of its tagger.",
            hint="python -m nltk.downloader averaged_perceptron_tagger_eng",
        ) from error
    return tag


def _spacy(pipeline: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise MissingExtra(
            "spacy is not installed.",
            hint=f"pip install spacy, then python -m spacy download {pipeline}",
        ) from error
    try:
        return spacy.load(pipeline, exclude=["parser", "ner", "lemmatizer"])
    except OSError as error:
        raise MissingExtra(
            f"spaCy has no pipeline {pipeline!r}.", hint=f"python -m spacy download {pipeline}"
        ) from error


def _piped(pipeline: Any) -> Tagging:
    def tag(captions: Iterable[str]) -> Iterator[list[Tagged]]:
        seen = False  # a part of speech; without any the pipeline has no tagger
        for document in pipeline.pipe(captions):
            tags = [token.pos_ for token in document]
            seen = seen or any(tags)
            if tags and not seen:
                raise InferKitError(
                    "The pipeline of spaCy sets no part of speech (token.pos_).",
                    hint=f"Take one that has a tagger: {_NAMES[-1]}.",
                )
            yield [
                (token.text, _TAGS.get(tag, "X")) for token, tag in zip(document, tags, strict=True)
            ]

    return tag
