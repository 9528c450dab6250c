"""Numbers that answers end in."""

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.numbers import final_number, number_match


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 13 = 18\n#### 18", "18"),
        ("#### 18 and then 3", "18"),
        ("#### -1,234.50", "-1234.50"),
        ("12 #### none", None),  # after the mark only
        ("The answer is 7 since 3 + 4", "7"),
        ("The answer is 3. No, the answer is 4, not 5", "4"),
        ("Answer: 12 apples and 3 pears", "12"),
        ("the answer = $1,000,000.", "1000000"),
        ("we have 3, then 4, so 5 left", "5"),
        ("It costs $72.", "72"),
        ("It costs $ 0.50.", "0.50"),
        ("50%", "50"),
        ("-3", "-3"), ("−7", "-7"), ("$-5", "-5"), ("-$5", "-5"), ("x = -2", "-2"), ("(-2)", "-2"),
        ("3-5", "5"), ("a-4", "4"), ("2 - 5", "5"),
        (".5", "0.5"), ("3/4", "0.75"), ("3/4.", "0.75"), ("1 1/2 cups", "1.5"), ("-1/4", "-0.25"),
        ("on 1/2/2012", "2012"), ("1,2", "2"), ("1,234,567", "1234567"),
        ("no number", None), ("", None),
    ],
)  # fmt: skip
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize("seed", range(5))
def test_numbers_in_every_spelling_against_python(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        value = Decimal(rng.randint(-(10**7), 10**7)).scaleb(-rng.choice([0, 0, 1, 2]))
        spelled = rng.choice([f"{value}", f"{value:,}", f"${value:,}", f"{value}%", f"{value}."])
        filler = rng.choice(["First 7, then {}", "#### {}", "The answer is {}\n", "so {} apples"])
        assert final_number(filler.format(spelled)) == value, spelled
        over, under = rng.randint(0, 999), rng.choice([1, 2, 4, 5, 8, 10, 16])
        assert Fraction(final_number(f"{over}/{under}") or 0) == Fraction(over, under)


def test_match_is_exact_in_decimals() -> None:
    assert number_match("so 1,000.0", ["1000"]) == 1.0
    assert number_match("0.30", ["0.3"]) == 1.0
    assert number_match("1/3", ["1/3"]) == 1.0
    assert number_match("0.3000001", ["0.3"]) == 0.0
    assert number_match("no idea", ["3"]) == 0.0
    assert number_match("4", ["3", "4"]) == 1.0


def test_match_to_a_number_of_decimals() -> None:
    assert number_match("1.449", ["1.45"], precision=2) == 1.0
    assert number_match("1.449", ["1.45"], precision=3) == 0.0
    assert number_match("1.44", ["1.4"], precision=1) == 1.0
    assert number_match("12", ["12.4"], precision=0) == 1.0
    rng = random.Random(0)
    for _ in range(500):
        a, b, p = rng.randint(0, 999), rng.randint(0, 999), rng.randint(0, 2)
        expected = round(Fraction(a, 100), p) == round(Fraction(b, 100), p)  # half to even too
        assert number_match(str(a / 100), [str(b / 100)], precision=p) == float(expected)


def test_an_answer_without_number_is_refused() -> None:
    with pytest.raises(InferKitError, match="The answer 'red' has no number"):
        number_match("3", ["red"])
