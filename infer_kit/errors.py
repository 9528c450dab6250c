"""Errors in the user's terms: what was given, what was expected, what to do."""


class InferKitError(ValueError):
    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(hint)


class VocabularyMismatch(InferKitError):
    pass


class PromptTooLong(InferKitError):
    pass


class NotMergeable(InferKitError):
    pass


class UnsupportedArgument(InferKitError):
    pass


class MissingExtra(InferKitError, ImportError):
    pass
