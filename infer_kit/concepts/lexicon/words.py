"""What the lexicon knows of a word, by its form alone."""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from infer_kit.concepts.lexicon import Lexicon
from infer_kit.concepts.lexicon.closed_class import ANIMATE, KIND, PLURAL

_NONE = (0, 0, 0, 0)
_PLURALS = {"ses": "s", "xes": "x", "zes": "z", "ches": "ch", "shes": "sh", "men": "man"}
_PLURALS |= {"ies": "y", "s": ""}  # WordNet's rules of detachment, as the next ones
_VERBS = (
    *(("ies", "y"), ("es", "e"), ("es", ""), ("s", ""), ("ed", "e"), ("ed", "")),
    *(("ing", "e"), ("ing", ""), ("ying", "ie")),
)


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a noun of several words.

    Attributes:
        kind: of `closed_class`, "possessive", "break" for punctuation, or "open".
        verb: a form of a verb. form: which, by its ending: base, s, ing or ed.
        agrees: a verb without s can follow, as after a plural or a group.
        n, v, a, r: how often WordNet's texts have it as noun, verb, adjective, adverb.
    """

    kind: str
    noun: bool = False
    adjective: bool = False
    verb: bool = False
    form: str = "base"
    plural: bool = False
    agrees: bool = False
    animate: bool = False
    n: int = 0
    v: int = 0
    a: int = 0
    r: int = 0

    @property
    def participle(self) -> bool:
        return self.verb and self.form == "ing"

    @property
    def by_itself(self) -> bool:
        """Is it a noun where nothing before it says so?"""
        if not self.noun or 2 * self.r > self.n or (self.adjective and self.a > 8 * self.n):
            return False
        if self.participle:
            return self.n > 0 and 5 * self.n >= self.v
        return not self.verb or self.n >= self.v

    @property
    def hardly_a_verb(self) -> bool:
        return not self.verb or self.n > 4 * self.v + 2


OTHER = Word("other")


class Words:
    """Look-up of single tokens and of nouns of several."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.nouns = lexicon.nouns | {n.replace("-", " ") for n in lexicon.nouns if "-" in n}
        self.of = lru_cache(maxsize=1 << 17)(self._of)
        self.several = lru_cache(maxsize=1 << 17)(self._several)

    def _of(self, text: str) -> Word:
        """A token in lower case."""
        if text in KIND:
            return Word(KIND[text])
        if not text[0].isalnum():
            return Word("break")
        if not text.isascii():
            plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
            return self._of(plain) if plain and plain[0].isalnum() else OTHER
        if text[0].isdigit() and (text not in self.nouns or text.upper() == text):
            return Word("number") if "-" not in text else self._hyphenated(text)
        if len(text) == 1:
            return OTHER
        lemmas = self._singular(text)
        adjective = self._is_adjective(text)
        if "-" in text and not (lemmas or adjective or text in self.nouns):
            return self._hyphenated(text)
        return self._known(text, lemmas, adjective)

    def _known(self, text: str, lemmas: list[str], adjective: bool) -> Word:
        counts = self.lexicon.counts
        stems = self._stems(text)
        form = "base"
        if stems and text not in stems:
            form = next((end for end in ("ing", "ed") if text.endswith(end)), "s")
            if form == "ed" and text in self.nouns:  # "moped"
                stems, form = [], "base"
        n, _, a, r = counts.get(text, _NONE)
        n = max([n, *(counts.get(lemma, _NONE)[0] for lemma in lemmas)])
        v = max((counts.get(stem, _NONE)[1] for stem in stems), default=0)
        if text in self.lexicon.plurals:
            v = min(v, n)  # "leaves" are those of a tree
        return Word(
            "open",
            noun=text in self.nouns or bool(lemmas),
            adjective=adjective,
            verb=bool(stems),
            form=form,
            plural=bool(lemmas),
            agrees=bool(lemmas) or text in PLURAL,
            animate=text in ANIMATE or any(w in self.lexicon.animate for w in [text, *lemmas][:2]),
            n=n,
            v=v,
            a=a,
            r=r,
        )

    def _hyphenated(self, text: str) -> Word:
        """Unknown as a whole: "ski-lift" is a noun by its last part, "snow-covered" is none."""
        found = self._several(text.replace("-", " "))
        if found is not None:
            return found
        last = self.of(text.rpartition("-")[2])
        return Word("open", noun=last.by_itself, adjective=not last.by_itself, plural=last.plural)

    def _several(self, text: str) -> Word | None:
        """A noun of several words, its last one singular or plural."""
        start, _, last = text.rpartition(" ")
        if last in KIND:
            return None
        singular = [f"{start} {lemma}" for lemma in self._singular(last)]
        if text not in self.nouns and not any(noun in self.nouns for noun in singular):
            return None
        end = self.of(last)
        return Word(
            "open",
            noun=True,
            form="ing" if end.participle else "base",
            plural=end.plural,
            agrees=end.agrees,
            animate=end.animate,
        )

    def _singular(self, word: str) -> list[str]:
        """Noun lemmas that it is a plural of."""
        nouns, plurals = self.lexicon.nouns, self.lexicon.plurals
        if word in plurals:
            return [lemma for lemma in plurals[word] if lemma != word]
        if len(word) < 4 or word.endswith("ss"):
            return []
        found = [
            word.removesuffix(ending) + lemma
            for ending, lemma in _PLURALS.items()
            if word.endswith(ending)
        ]
        return [lemma for lemma in found if lemma in nouns and len(lemma) > 2]

    def _stems(self, word: str) -> list[str]:
        """Verb lemmas that it is a form of; irregular forms are not looked for."""
        verbs = self.lexicon.verbs
        found = [word] if word in verbs else []
        for ending, lemma in _VERBS:
            if word.endswith(ending) and len(word) > len(ending):
                stem = word.removesuffix(ending)
                found += [s for s in (stem + lemma,) if s in verbs]
                if not lemma and ending != "s" and len(stem) > 2 and stem[-1] == stem[-2]:
                    found += [s for s in (stem[:-1],) if s in verbs]  # running
        return found

    def _is_adjective(self, word: str) -> bool:
        adjectives = self.lexicon.adjectives
        if word in adjectives or word in self.lexicon.comparatives:
            return True
        if word in self.nouns:
            return False
        stems = [word[: -len(end)] for end in ("er", "est") if word.endswith(end) and len(word) > 4]
        return any(stem in adjectives or stem + "e" in adjectives for stem in stems)
