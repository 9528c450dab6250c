"""Errors in the user's terms: what was given, what was expected, what to do."""


class InferKitError(ValueError):
    """Input that cannot work. Base of the project's errors.

    Attributes:
        hint: what to do about it, also shown under the traceback as a note; or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint is not None:
            self.add_note(f"Hint: {hint}")


class VocabularyMismatch(InferKitError):
    """Streams of one group do not name the same tokens."""


class PromptTooLong(InferKitError):
    """A context is longer than the model takes."""


class NotMergeable(InferKitError):
    """Streams cannot be decoded as one batch, because their caches cannot be merged."""


class CannotContinue(InferKitError):
    """A prompt cannot be read in two passes, a beginning and the rest; the message says why."""


class UnsupportedArgument(InferKitError):
    """A keyword of `generate` that is unknown or cannot work with several streams."""


class MissingExtra(InferKitError, ImportError):
    """A package of an optional extra is not installed; the hint has the install line."""
