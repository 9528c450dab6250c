"""The column of labels in a trainer's data."""

from typing import Any


class LabelledColumns:
    """Keeps it; to be named before a trainer's class.

    Of a model whose own forward takes no labels, a trainer would remove them from the data.
    """

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns += sorted({"labels"} - set(self._signature_columns))
