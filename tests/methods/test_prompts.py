"""Prompt texts: which fields each must have, and filling them."""

import pytest

from infer_kit.errors import InferKitError
from infer_kit.methods.prompts import CCOT, COT, KINDS, Prompts


def test_the_shipped_kinds_ask_for_what_they_say() -> None:
    assert KINDS == {"cot": COT, "ccot": CCOT}
    assert "JSON" in CCOT.rationale_request and "JSON" not in COT.rationale_request


def test_fill_leaves_braces_in_values_alone() -> None:
    filled = COT.fill("rationale_context", "what is {rationale}?", '{"a": "{question}"}')
    assert 'notes about it:\n{"a": "{question}"}\n' in filled
    assert filled.endswith("what is {rationale}?")


def test_other_braces_of_a_template_are_literal() -> None:
    prompts = Prompts('{question} as {"json": 1}')
    assert prompts.fill("rationale_request", "q") == 'q as {"json": 1}'


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rationale_request": "explain"}, "rationale_request must have the field {question} once"),
        (
            {"rationale_request": "{question} {question}"},
            "rationale_request must have the field {question} once",
        ),
        (
            {"rationale_request": "{question}", "rationale_context": "{question}"},
            "rationale_context lacks the field {rationale}",
        ),
        (
            {"rationale_request": "{question}", "image_context": "{question} {rationale}"},
            "image_context must not have the field {rationale}",
        ),
    ],
)
def test_missing_and_misplaced_fields_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        Prompts(**fields)
