"""Which letter a free answer chooses; never a guess."""

import random
import re
import string

import pytest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.choices import choice_match, chosen_letter

COLORS = ["red", "dark red", "blue", "a cat"]


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"), ("b", "B"), (" B. ", "B"), ("(B)", "B"), ("[c]", "C"), ("**B**", "B"),
        ("B)", "B"),
        ("B. dark red", "B"), ("b) blue or so", "B"), ("(C) blue", "C"), ("C: as the sky", "C"),
        ("The answer is B", "B"), ("the answer is b.", "B"), ("answer: b", "B"),
        ("Answer: (C).", "C"),
        ("The correct answer is option D, I think", "D"), ("I would take option C", "C"),
        ("So it must be B.", "B"), ("I choose (A)", "A"), ("It is A.", "A"),
        ("red", "A"), ("Dark red.", "B"), ("It is dark red", "B"), ("The sky is blue!", "C"),
        ("A cat", "D"), ("the answer is a cat", "D"),
        # not one choice
        ("", None), ("E", None), ("none of them", None), ("red or blue", None), ("A or B", None),
        ("(A) or (B)", None), ("B. blue", None), ("The answer is A. No, the answer is B.", None),
        ("A dog sits here", None), ("I do not know", None), ("darkred", None), ("reddish", None),
        ("It's vitamin C or red", None),
    ],
)  # fmt: skip
def test_letters(prediction: str, letter: str | None) -> None:
    assert chosen_letter(prediction, COLORS) == letter


def test_a_letter_beyond_the_choices_is_none() -> None:
    assert chosen_letter("D", ["x", "y"]) is None
    assert chosen_letter("The answer is D", ["x", "y"]) is None


def test_choices_that_look_like_letters_are_meant_by_their_text() -> None:
    assert chosen_letter("B", ["C", "B"]) == "B"
    assert chosen_letter("C", ["C", "B"]) == "A"


def test_numbers_as_choices() -> None:
    assert chosen_letter("There are 12.", ["1", "2", "12"]) == "C"
    assert chosen_letter("3.5", ["3", "5", "3.5"]) == "C"


@pytest.mark.parametrize("seed", range(5))
def test_every_way_to_write_a_letter_against_a_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    ways = [
        "{}",
        "({})",
        "{}.",
        "{}) {}",
        "{}. {}",
        "Answer: {}",
        "The answer is ({})",
        "Option {}",
    ]
    for _ in range(300):
        choices = rng.sample(["one", "two", "three", "four", "five", "six"], rng.randint(2, 5))
        n = rng.randrange(len(choices))
        letter = string.ascii_uppercase[n]
        text = rng.choice(ways).format(letter, choices[n])
        (seen,) = set(re.findall(r"\b[B-Z]\b|\bA\b", text))
        assert chosen_letter(text, choices) == seen == letter, text


def test_noise_is_never_right_more_often_than_it_says_something() -> None:
    """An evaluator that guesses would give a quarter of these to the model."""
    rng = random.Random(0)
    noise = ["".join(rng.choices("xyzw ", k=8)) for _ in range(400)]
    assert sum(choice_match(text, ["A"], COLORS) for text in noise) == 0


def test_match() -> None:
    assert choice_match("It is blue", ["C"], COLORS) == 1.0
    assert choice_match("It is blue", ["A", "C"], COLORS) == 1.0
    assert choice_match("It is blue", ["A"], COLORS) == 0.0
    assert choice_match("well", ["A"], COLORS) == 0.0


@pytest.mark.parametrize("choices", [["x"], ["x"] * 27])
def test_refused(choices: list[str]) -> None:
    with pytest.raises(InferKitError, match=f"2 to 26 choices, got {len(choices)}"):
        chosen_letter("A", choices)
