"""A short text under construction: what all generators of text share."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

GIRLS: tuple[str, ...] = (
    *("Mia", "Anna", "Lily", "Zoë", "Ruth", "Emma", "Nora", "Chloé", "Lucy", "Ida", "Grace"),
    *("Rosa", "Ella", "Amy", "Jane", "Sara", "Eve", "Olga", "Clara", "Martha", "Helen", "Ines"),
    *("Judith", "Kate", "Vera", "Frida", "Wanda", "Susan"),
)
BOYS: tuple[str, ...] = (
    *("Tom", "Ben", "Max", "Sam", "José", "Leo", "Paul", "Finn", "Noël", "Jack", "Hugo", "Adam"),
    *("Oskar", "Emil", "Peter", "Dan", "Karl", "Otto", "Simon", "Felix", "George", "Victor"),
    *("Walter", "Bruno", "Theo", "Ivan", "Luke", "Henry"),
)
COLOURS: tuple[str, ...] = (
    *("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "grey", "orange"),
    *("purple", "golden"),
)
NUMBERS: tuple[str, ...] = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
WEATHER: tuple[str, ...] = (
    *("it was raining", "the wind was strong", "it was cold", "snow lay on the ground"),
    *("the sky was grey", "there was fog over the fields", "the sun was hot"),
    *("a storm was coming", "the sun was shining", "it had just stopped raining"),
)
TIMES: tuple[str, ...] = (
    *("one morning", "one day", "one evening", "last Sunday", "on Monday", "on Friday"),
    *("after lunch", "in spring", "in summer", "in autumn", "in winter", "yesterday"),
    *("before sunrise", "a long time ago"),
)
AIR: tuple[str, ...] = (
    *("warm", "cold", "quiet", "bright", "dark", "windy", "wet", "lovely", "misty", "mild"),
)
AROUND: tuple[str, ...] = (
    *("somewhere", "far away", "not far away", "behind the trees", "in the distance", "above them"),
    *("in the next street", "near the river", "on the other side", "between the houses"),
)
PASSING: tuple[str, ...] = (
    *("a bell rang", "a dog barked", "a door closed", "somebody was singing", "a cart passed"),
    *("birds were singing", "a train whistled", "leaves were falling", "smoke was rising"),
    *("somebody laughed", "water was dripping", "bees were humming"),
)
MANNERS: tuple[str, ...] = (
    *("quietly", "loudly", "with a smile", "and laughed", "after a while", "at once", "kindly"),
    *("in a low voice", "and looked up", "very slowly"),
)

QA = tuple[str, str]
"""A question and its answer, a full sentence."""

_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Person:
    """A child of a story."""

    name: str
    she: bool

    def __str__(self) -> str:
        return self.name

    @property
    def he(self) -> str:
        """The pronoun as a subject."""
        return "she" if self.she else "he"

    @property
    def him(self) -> str:
        """The pronoun as an object."""
        return "her" if self.she else "him"

    @property
    def his(self) -> str:
        """The possessive pronoun."""
        return "her" if self.she else "his"


@dataclass(frozen=True)
class Text:
    """A short text that holds together.

    Attributes:
        domain: what it is about, "errands" or "animals".
        title: a line that may stand above it.
        body: its sentences.
        questions: questions that it answers, each with its answer.
        facts: questions that can be answered without it, by who knows the domain.
    """

    domain: str
    title: str
    body: str
    questions: tuple[QA, ...]
    facts: tuple[QA, ...] = ()

    @property
    def is_held_out(self) -> bool:
        """Whether the text is kept from training: a checksum of what it says."""
        return zlib.crc32(self.body.encode()) % _HELD_OUT_ONE_IN == 0


class Tale:
    """Sentences and questions, as a generator adds them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.title = ""
        self._sentences: list[str] = []
        self._questions: list[QA] = []
        self._facts: list[QA] = []

    def say(self, *ways: str, chance: float = 1.0) -> None:
        """Add one of these sentences, or, with probability 1 - `chance`, none."""
        if self.rng.random() < chance:
            self._sentences.append(cap(self.rng.choice(ways)))

    def ask(self, question: str, answer: str) -> None:
        """Add a question that the text answers."""
        self._questions.append((question, cap(answer)))

    def know(self, question: str, answer: str) -> None:
        """Add a question that can be answered without the text."""
        self._facts.append((question, cap(answer)))

    def shuffle(self, *parts: str) -> None:
        """Add all these sentences, in any order."""
        for part in self.rng.sample(parts, len(parts)):
            self.say(part)

    def people(self, n: int) -> list[Person]:
        """Different children."""
        everyone = [(name, True) for name in GIRLS] + [(name, False) for name in BOYS]
        return [Person(*one) for one in self.rng.sample(everyone, n)]

    def scene(self, chance: float = 0.5) -> None:
        """Perhaps say what the weather is, or what else goes on."""
        one, two = self.rng.sample(AIR, 2)
        self.say(
            f"{self.rng.choice(WEATHER)}.",
            f"it was {a(one)} and {two} day.",
            f"it was {one} and {two}.",
            f"{self.rng.choice(AROUND)} {self.rng.choice(PASSING)}.",
            f"{self.rng.choice(PASSING)}, and {self.rng.choice(WEATHER)}.",
            chance=chance,
        )

    def manner(self) -> str:
        """How something is said: often nothing, else words with a space before them."""
        return f" {self.rng.choice(MANNERS)}" if self.rng.random() < 0.4 else ""

    def number(self, least: int, most: int) -> int:
        """A number of `NUMBERS`, both ends included."""
        return self.rng.randint(least, most)

    def done(self, domain: str) -> Text:
        """What was said."""
        body = " ".join(self._sentences)
        return Text(domain, self.title, body, tuple(self._questions), tuple(self._facts))


def cap(text: str) -> str:
    """`text` with a capital first letter, after an opening quotation mark if it has one."""
    first = int(text.startswith('"'))
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def count(n: int, one: str, many: str) -> str:
    """How many of something: "one duck", "two ducks"."""
    return f"{NUMBERS[n]} {one if n == 1 else many}"
