"""CLIP-like models of transformers: features of images and texts in one space."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError, MissingExtra


class DualEncoder:
    """A CLIP-like model of transformers (CLIP, SigLIP): image and text features of one space."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise InferKitError(
                f"{type(model).__name__} has no image and text features; expected a CLIP or SigLIP "
                "model."
            )

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "DualEncoder":
        """Load model and processor by path or name."""
        from transformers import AutoModel

        from infer_kit.processors import load_processor

        try:
            return cls(AutoModel.from_pretrained(name).eval(), load_processor(name))
        except ImportError as error:  # SigLIP's tokenizer asks for sentencepiece and protobuf
            raise MissingExtra(
                f"No encoder at {str(name)!r}: {str(error).strip().splitlines()[0]}",
                hint="pip install sentencepiece protobuf",
            ) from error
        except (OSError, ValueError) as error:
            if isinstance(error, InferKitError):
                raise
            raise InferKitError(
                f"No encoder at {str(name)!r}: {error}",
                hint="Give the folder or hub name of a CLIP or SigLIP model.",
            ) from error

    @torch.no_grad()
    def images(self, pictures: Sequence[Any], memory: Any = None) -> Tensor:
        """`[N, d]` float32, not normalised. `memory` is not used."""
        inputs = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        return pooled(self.model.get_image_features(**inputs))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """`[N, d]` float32, not normalised."""
        inputs = {
            name: value.to(self.model.device) for name, value in self.text_inputs(texts).items()
        }
        return pooled(self.model.get_text_features(**inputs))

    def text_inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the model takes of texts, on the CPU.

        Warns:
            UserWarning: a text is longer than the model reads, and is cut off.
        """
        # SigLIP was trained on texts padded to its full length.
        length = self.model.config.text_config.max_position_embeddings
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        whole = self.processor.tokenizer(list(texts))["input_ids"]
        if (longest := max(map(len, whole))) > length:
            warnings.warn(
                f"{type(self.model).__name__} reads {length} tokens; the longest text has "
                f"{longest}, and its feature is that of its beginning.",
                stacklevel=3,
            )
        inputs = self.processor.tokenizer(
            list(texts),
            padding=padding,
            padding_side="right",  # a causal text encoder then reads the same in any batch
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return dict(inputs)


def pooled(output: Any) -> Tensor:
    """Features as a tensor; newer transformers wrap them."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()
