"""Checkpoints of models whose weights are saved under other names than their own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError


class RenamedWeights:
    """Loads them whole; to be named before a trainer's class.

    `save_pretrained` writes some models (ViT) under the names of older versions, which the trainer
    of transformers 5.19 looks for as they are when it resumes or loads the best model. It then
    leaves those weights as they were, with a warning in the log.
    """

    _renamed = False

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        self._renamed = bool(load_result.missing_keys and load_result.unexpected_keys)
        if self._renamed and not hasattr(self.model, "from_pretrained"):
            raise _other("The checkpoint", load_result.missing_keys)
        if not self._renamed:
            super()._issue_warnings_after_load(load_result)  # type: ignore[misc]

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self._load_renamed(resume_from_checkpoint, self.model if model is None else model)

    def _load_best_model(self: Any) -> None:
        super()._load_best_model()  # type: ignore[misc]
        self._load_renamed(self.state.best_model_checkpoint, self.model)

    def _load_renamed(self: Any, folder: str | Path, model: Any) -> None:
        if not self._renamed:
            return
        self._renamed = False
        loaded, told = type(model).from_pretrained(folder, output_loading_info=True)
        if told["missing_keys"]:
            raise _other(repr(str(folder)), told["missing_keys"])
        model.load_state_dict(loaded.state_dict())


def _other(what: str, missing: Iterable[str]) -> InferKitError:
    return InferKitError(
        f"{what} is of another model: it lacks {min(missing)!r}.",
        "Resume with the model that the checkpoint was made with.",
    )
