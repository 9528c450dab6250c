"""Two tiny language models with different tokenizers that ship with the package.

>>> from infer_kit.demo import text
>>> model, tokenizer = text.load("a")

Model "a" (byte-level BPE) read mostly stories about children and their things, model "b"
(SentencePiece-like Unigram) mostly texts about animals, so that an ensemble of the two knows more
than each. They are teaching models; `model/README.md` is their card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL_DIR: Path = Path(__file__).parent / "model"
"""The folder with a folder of files for each model."""

NAMES: tuple[str, ...] = ("a", "b")
"""The names of the models."""


def load(name: str, folder: str | Path = MODEL_DIR) -> tuple[Any, Any]:
    """A model (float32, evaluation mode) and its tokenizer.

    Args:
        name: one of `NAMES`.
        folder: what `train` wrote, if not the models that ship.

    Raises:
        InferKitError: there is no model of that name.
    """
    from infer_kit.errors import InferKitError

    if name not in NAMES:
        raise InferKitError(
            f"There is no text model {name!r}.", f"The models that ship are {', '.join(NAMES)}."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / name)
    model = AutoModelForCausalLM.from_pretrained(Path(folder) / name, dtype=torch.float32)
    return model.eval(), tokenizer


__all__ = ["MODEL_DIR", "NAMES", "load"]
