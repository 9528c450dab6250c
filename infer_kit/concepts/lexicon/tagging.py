"""Tags of the words of a caption from a lexicon alone: A an adjective, N a noun, X any other.

There is no model and no parser. A word of several parts of speech is decided by what stands before
it, by agreement ("two dogs race" has a verb, "a dog race" has none) and by how often WordNet's
tagged texts have it as which.
"""

import re
from dataclasses import replace
from typing import NamedTuple

from infer_kit.concepts.lexicon import Lexicon
from infer_kit.concepts.lexicon.closed_class import KIND, PREPOSITIONS
from infer_kit.concepts.lexicon.words import OTHER, Word, Words

_TOKEN = re.compile(r"[^\W_]+(?:['.&-][^\W_]+)*|[^\w\s]")
_PREPOSITION = Word("preposition")
_POSSESSIVE = Word("possessive")
_ANNOUNCED = frozenset({"determiner", "possessive", "number", "preposition", "adjective"})
_BEFORE_NOUN = frozenset({"determiner", "possessive", "number"})
_FIRST = frozenset(phrase[0] for phrase in PREPOSITIONS)


class _Unit(NamedTuple):
    """A token, or the tokens of one noun; `first` is its first word."""

    text: str
    word: Word
    first: Word


class LexiconTagger:
    """A caption to its words with their tags; a noun of several words is one.

    >>> from infer_kit.concepts import lexicon
    >>> LexiconTagger(lexicon.load())("a dog by the traffic lights")[-1]
    ('traffic lights', 'N')
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self._words = Words(lexicon)
        self._longest: dict[str, int] = {}  # by first word, how many words its longest noun has
        for noun in self._words.nouns:
            words = noun.split(" ")
            if len(words) > 1 and KIND.get(words[0], "number") == "number":
                self._longest[words[0]] = max(len(words), self._longest.get(words[0], 0))

    def __call__(self, caption: str) -> list[tuple[str, str]]:
        units = self._units(_TOKEN.findall(caption.lower().replace("’", "'")))
        tagged: list[tuple[str, str]] = []
        context, head = "start", OTHER  # what stands before; the noun, where it is one
        listed = False  # only a determiner and adjectives since a noun and an "and"
        i = 0
        while i < len(units):
            text, word, first = units[i]
            if word.kind != "open":
                tagged.append((text, "X"))
                listed &= word.kind in _BEFORE_NOUN
                if context in ("noun", "noun and") and (text == "," or word.kind == "conjunction"):
                    context, listed = "noun and", True
                else:
                    context = "start" if text == "." else word.kind
            elif _is_adjective(units, i, context, head):
                tagged.append((text, "A"))
                context = "adjective"
            elif word is not first and first.verb and not _is_noun(first, context, head):
                units[i : i + 1] = self._units(text.split(" "), several=False)  # riding horses
                continue
            elif _is_noun(word, context, head):
                if context == "noun" and word.form == "ing" and word is not first:
                    tagged.append(("", "X"))  # "kids | ice skating"
                tagged.append((text, "N"))
                # "a man and a woman walk"
                head = replace(word, agrees=True) if listed and word.animate else word
                context, listed = "noun", False
            else:
                tagged.append((text, "X"))
                context, listed = "verb", False
            i += 1
        return tagged

    def _units(self, tokens: list[str], several: bool = True) -> list[_Unit]:
        units: list[_Unit] = []
        i = 0
        while i < len(tokens):
            token, size = tokens[i], 1
            if several and (token in self._longest or token in _FIRST):
                size, word = self._longest_match(tokens, i)
                if word is not None:
                    first = self._words.of(token.removesuffix("'s"))
                    units.append(_Unit(" ".join(tokens[i : i + size]), word, first))
                    i += size
                    continue
            i += 1
            if "'" in token and len(token) > 1 and token not in self._words.nouns:
                owner, _, rest = token.rpartition("'")
                word = self._words.of(owner) if rest == "s" else OTHER  # others: "don't", "i'm"
                units.append(_Unit(owner, word, word))
                token, word = f"'{rest}", _POSSESSIVE if rest == "s" else Word("auxiliary")
            else:
                word = self._words.of(token)
            units.append(_Unit(token, word, word))
        return units

    def _longest_match(self, tokens: list[str], i: int) -> tuple[int, Word | None]:
        for size in (3, 2):
            if tuple(tokens[i : i + size]) in PREPOSITIONS:
                return size, _PREPOSITION
        for size in range(min(self._longest.get(tokens[i], 0), len(tokens) - i), 1, -1):
            text = " ".join(tokens[i : i + size])
            word = self._words.several(text)
            # "three musketeers", but "two pieces" is no "two-piece"
            if word is not None and (tokens[i] not in KIND or text in self._words.lexicon.nouns):
                return size, word
        return 1, None


def _is_adjective(units: list[_Unit], i: int, context: str, head: Word) -> bool:
    """Is it an adjective of a noun that follows?"""
    word = units[i].word
    if not word.adjective:
        return False
    announced = context in _ANNOUNCED
    if word.verb and not announced:
        if word.form == "ing":
            return False
        as_verb = context == "to" or (context == "noun" and head.agrees)
        if word.form == "base" and as_verb and word.v > 0:
            return False
    if context == "noun" and word.noun and word.n >= word.a:
        return False  # one noun more: "kitchen counter"
    return _leads(units, i, announced and not word.noun)


def _leads(units: list[_Unit], i: int, announced: bool) -> bool:
    """Do adjectives from i on end in a noun? "red and white bus", but not "in red and walks"."""
    following = i + 1
    while following < len(units) and (
        units[following].text == "," or units[following].word.kind == "conjunction"
    ):
        following += 1
    if following >= len(units):
        return False
    word = units[following].word
    as_noun = word.by_itself or (announced and not (word.participle and word.v > 0))
    if word.noun and as_noun and following == i + 1:
        return True
    return word.adjective and _leads(units, following, announced)


def _is_noun(word: Word, context: str, head: Word) -> bool:
    """Is it a noun after this context, given that it is no adjective there?"""
    if not word.noun:
        return False
    if context in ("determiner", "adjective"):
        return True
    if context == "noun":
        return 2 * word.r <= word.n and _joins(word, head)
    if context == "number":
        return word.plural or word.by_itself
    if context in ("preposition", "start", "possessive"):
        if word.participle:
            return word.by_itself or (context == "preposition" and word.v == 0)
        return word.r <= word.n
    if context == "auxiliary":
        if word.participle or (word.adjective and word.n <= 4 * word.a):
            return False
    elif context in ("other", "conjunction", "break"):
        if word.participle:  # "while drinking coffee"
            return False
    elif context == "to":
        return word.by_itself and (word.form != "base" or word.hardly_a_verb)
    elif context == "noun and":
        if word.participle:
            return word.by_itself and 2 * word.n >= word.v
        if word.form == "base" and not head.agrees:
            return 2 * word.r <= word.n
    return word.by_itself


def _joins(word: Word, head: Word) -> bool:
    """Is it one noun more after the noun `head`, and not its verb?

    A verb in the third person has an s after a singular and none after a plural.
    """
    if not word.verb or word.hardly_a_verb:
        return True
    if word.form == "base":
        return not head.agrees
    if head.animate:
        return False
    if word.participle:
        return word.by_itself
    return head.plural or 2 * word.n >= word.v
