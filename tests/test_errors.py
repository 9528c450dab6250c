"""The errors: all are ValueErrors with a hint that shows under the traceback."""

import traceback

import pytest

from infer_kit import errors


def test_a_hint_is_kept_and_shown_as_a_note() -> None:
    with pytest.raises(errors.InferKitError) as caught:
        raise errors.InferKitError("what was given", hint="what to do")
    assert caught.value.hint == "what to do"
    assert "Hint: what to do" in "".join(traceback.format_exception(caught.value))


def test_without_a_hint_there_is_no_note() -> None:
    assert errors.InferKitError("x").hint is None
    assert not getattr(errors.InferKitError("x"), "__notes__", [])


@pytest.mark.parametrize(
    "kind", ["VocabularyMismatch", "PromptTooLong", "NotMergeable", "UnsupportedArgument"]
)
def test_kinds_are_value_errors(kind: str) -> None:
    assert issubclass(getattr(errors, kind), errors.InferKitError)
    assert issubclass(errors.InferKitError, ValueError)


def test_a_missing_extra_is_an_import_error_too() -> None:
    assert issubclass(errors.MissingExtra, ImportError)
