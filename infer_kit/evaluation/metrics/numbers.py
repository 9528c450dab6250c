"""Number answers (GSM8K, MathVista): what number an answer ends in, and whether it is right.

Sources: Cobbe et al. 2021, arXiv 2110.14168 (`####` before the answer); Lu et al. 2024, MathVista,
arXiv 2310.02255 (answers to a number of decimals).

Differs from the usual evaluators: numbers are compared as decimals and not as strings or floats,
so 1,000.0 = 1000, and 0.1 + 0.2 is no problem; MathVista asks a language model to extract the
number, here it is read by rule.
"""

import re
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal

from infer_kit.errors import InferKitError

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""
    (?P<minus>(?<![\w.)])[-\u2212])?                # a minus, and not the hyphen of "3-5"
    (?:[$€£]\s?(?P<inner>[-\u2212])?)?              # $-5 is -$5
    (?:
      (?:(?P<whole>\d+)\s+)?                       # 3/4 and 1 1/2, and no dates
      (?<![\d/.])(?P<over>\d+)\s?/\s?(?P<under>0*[1-9]\d*)(?![\d/]|\.\d)
      | (?P<decimal>{_WHOLE}(?:\.\d+)?|\.\d+)
    )
    """,
    re.VERBOSE,
)
_MARKS = (re.compile(r"####"), re.compile(r"\banswer\s*(?:is|:|=)", re.IGNORECASE))


def final_number(text: str) -> Decimal | None:
    """The number that a text answers, or None.

    The first one after the last "####"; without that mark after the last "answer is" or "answer:";
    without that the last of all. If there is a mark, only what comes after it counts.

    >>> final_number("5 and 7 are 12. The answer is $1,012.50.")
    Decimal('1012.50')
    """
    for mark in _MARKS:
        marked = list(mark.finditer(text))
        if marked:
            found = _NUMBER.search(text, marked[-1].end())
            return None if found is None else _value(found)
    every = list(_NUMBER.finditer(text))
    return _value(every[-1]) if every else None


def number_match(prediction: str, answers: Sequence[str], *, precision: int | None = None) -> float:
    """1 where the number of the prediction is that of one of the answers, else 0.

    Args:
        prediction: free text. answers: texts that each have a number.
        precision: round both to so many decimals first; None compares exactly.

    Raises:
        InferKitError: an answer has no number.
    """
    given = _rounded(final_number(prediction), precision)
    for answer in answers:
        true = _rounded(final_number(answer), precision)
        if true is None:
            raise InferKitError(
                f"The answer {answer!r} has no number.",
                hint="Use a metric for texts, such as exact match.",
            )
        if given == true:
            return 1.0
    return 0.0


def _value(found: re.Match[str]) -> Decimal:
    if found["over"]:
        value = Decimal(found["whole"] or 0) + Decimal(found["over"]) / Decimal(found["under"])
    else:
        value = Decimal(found["decimal"].replace(",", ""))
    return -value if found["minus"] or found["inner"] else value


def _rounded(value: Decimal | None, precision: int | None) -> Decimal | None:
    if value is None or precision is None:
        return value
    return value.quantize(Decimal(1).scaleb(-precision), ROUND_HALF_EVEN)
