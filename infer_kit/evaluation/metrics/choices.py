"""Multiple choice: which letter a free answer chooses.

Differs from the official evaluators of MMMU and others: where an answer names no choice, or more
than one, they take one at random, which makes a model that says nothing score above 0. Here it is
None, and wrong.
"""

import re
import string
from collections.abc import Sequence

from infer_kit.errors import InferKitError

_STATED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would\s+be|should\s+be))?\s*[:=]?\s*(?:option\s+)?"
    r"[(\[*\"'`]*([A-Za-z])(?![\w'’])(?!\s+[a-z])"
)
_LEADING = re.compile(r"[(\[*\"'`]*([A-Za-z])(?:[)\].:,*\"'`]+|$)\s*(.*)", re.DOTALL)
_BRACKETED = re.compile(r"[(\[]([A-Za-z])[)\]]")
# "A" and "I" before a word are no letters of choices, but "A or B" has two.
_CAPITAL = re.compile(
    r"(?<![\w'’.])(?:([AI])(?![\w'’]|\s+(?!(?:or|and)\b)[a-z])|([B-HJ-Z])(?![\w'’]))"
)


def chosen_letter(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that the prediction names, or None where it is not one.

    Asked in this order, and the first that finds anything decides: is the whole answer a letter or
    the text of a choice? Does it begin with a letter, as "(B) cat"? Does it say "the answer is B"?
    Which letters in brackets, capital letters and texts of choices are in it?

    >>> [chosen_letter(text, ["dog", "cat"]) for text in ("b", "It is a cat.", "cat or dog")]
    ['B', 'B', None]
    """
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) < 2 or len(choices) > len(string.ascii_uppercase):
        raise InferKitError(f"2 to 26 choices, got {len(choices)}.")
    text = prediction.strip()
    for reading in (_whole, _leading, _stated, _within):
        found = {letter for letter in reading(text, choices) if letter in letters}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def choice_match(prediction: str, answers: Sequence[str], choices: Sequence[str]) -> float:
    """1 where the prediction chooses one of the answers, which are letters, else 0."""
    return float(chosen_letter(prediction, choices) in set(answers))


def _whole(text: str, choices: Sequence[str]) -> set[str]:
    alone = re.fullmatch(r"[(\[*\"'`]*([A-Za-z])[)\].:*\"'`]*", text)
    same = {
        letter
        for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
        if _plain(choice) == _plain(text)
    }
    return same or ({alone[1].upper()} if alone else set())


def _leading(text: str, choices: Sequence[str]) -> set[str]:
    """ "B. cat"; where another choice follows, as in "B. dog" or "(A) or (B)", both."""
    found = _LEADING.match(text)
    if not found:
        return set()
    rest = found[2].strip()
    others = {letter.upper() for letter in _BRACKETED.findall(rest)}
    return {found[1].upper()} | others | (_whole(rest, choices) if rest else set())


def _stated(text: str, choices: Sequence[str]) -> set[str]:
    return {letter.upper() for letter in _STATED.findall(text)}


def _within(text: str, choices: Sequence[str]) -> set[str]:
    marked = {letter.upper() for letter in _BRACKETED.findall(text)}
    capitals = {a or b for a, b in _CAPITAL.findall(text)}
    return marked | capitals | _named(text, choices)


def _named(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the choices whose text stands in the answer, longest first.

    What a longer choice has taken is not looked at again: "dark red" does not name "red".
    """
    rest = f" {_plain(text)} "
    found = set()
    for plain, letter in sorted(
        zip(map(_plain, choices), string.ascii_uppercase, strict=False),
        key=lambda pair: -len(pair[0]),
    ):
        if plain and f" {plain} " in rest:
            found.add(letter)
            rest = rest.replace(f" {plain} ", " | ")
    return found


def _plain(text: str) -> str:
    """Lower case; words and numbers with single spaces."""
    return " ".join(re.findall(r"\w+(?:[.,'’-]\w+)*|[^\w\s.,:;!?'\"()\[\]*`]", text.casefold()))
