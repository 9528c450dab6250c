"""What a trainer has beside model and optimizer, in its checkpoints."""

from pathlib import Path
from typing import Any

import torch

from infer_kit.errors import InferKitError


class OwnState:
    """Saves and loads it; to be named before a trainer's class.

    Attributes:
        own_file: its name in a checkpoint.
    """

    own_file: str

    def own_state(self) -> dict[str, Any] | None:
        """What is to be saved, of what `torch.load` takes safely; None for nothing."""
        raise NotImplementedError

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Takes what `own_state` gave."""
        raise NotImplementedError

    def _save_optimizer_and_scheduler(self: Any, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        state = self.own_state()
        if state is not None and self.args.should_save:
            torch.save(state, Path(output_dir) / self.own_file)

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None or self.own_state() is None:
            return
        file = Path(checkpoint) / self.own_file
        if not file.is_file():
            raise InferKitError(
                f"The checkpoint {checkpoint!r} has no {self.own_file}: it is of another trainer, "
                "or was saved with save_only_model.",
                "Resume with the trainer that made it, or begin anew from its weights.",
            )
        self.load_own_state(torch.load(file, map_location=self.args.device, weights_only=True))
