"""The words of WordNet 3.0 that noun phrases are found with.

Princeton University's WordNet 3.0 (wordnet.princeton.edu), under the licence in LICENSE.wordnet.
`make` writes the file that is read here.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("wordnet.txt.gz")


@dataclass(frozen=True)
class Lexicon:
    """Words by part of speech, lower-cased, the words of a lemma parted by spaces.

    Attributes:
        nouns: all noun lemmas, of one word or more.
        adjectives, verbs: lemmas of one word.
        animate: nouns of one word, first of all a person or an animal.
        counts: how often a word was tagged as noun, verb, adjective and adverb; none is (0, 0, 0,
            0).
        plurals, comparatives: irregular forms, and their lemmas.
    """

    nouns: frozenset[str]
    adjectives: frozenset[str]
    verbs: frozenset[str]
    animate: frozenset[str]
    counts: dict[str, tuple[int, int, int, int]]
    plurals: dict[str, list[str]]
    comparatives: dict[str, list[str]]


@cache
def load() -> Lexicon:
    """Read once; some tenths of a second."""
    return parse(gzip.decompress(_FILE.read_bytes()).decode("ascii"))


def parse(text: str) -> Lexicon:
    """The lexicon that `make.lexicon_text` wrote."""
    sections: dict[str, list[str]] = {}
    for section in ("\n" + text.rstrip("\n")).split("\n["):
        name, _, lines = section.partition("]\n")
        sections[name] = lines.split("\n") if lines else []
    counts: dict[str, tuple[int, int, int, int]] = {}
    for line in sections["counts"]:
        word, n, v, a, r = line.split(" ")
        counts[word] = (int(n), int(v), int(a), int(r))
    return Lexicon(
        frozenset("\n".join(sections["nouns"]).replace("_", " ").split("\n")),
        frozenset(sections["adjectives"]),
        frozenset(sections["verbs"]),
        frozenset(sections["animate"]),
        counts,
        _forms(sections["plurals"]),
        _forms(sections["comparatives"]),
    )


def _forms(lines: list[str]) -> dict[str, list[str]]:
    return {form: lemmas for form, *lemmas in map(str.split, lines)}
