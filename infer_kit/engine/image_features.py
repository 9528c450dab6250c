"""Encode each image once, however many streams and steps look at it.

transformers ≥ 5.18 lets a forward take the vision encoder's output in place of pixels
(`mm_encoder_outputs`). Where a model's forward does not (older releases, Llama 4, Mllama), rows are
left alone and every stream pays for its own vision pass.
"""

import copy
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.prefill import forward_parameters
from infer_kit.errors import InferKitError

# What positions or placeholders are still computed from, when the features are there already.
_KEPT_WITH_FEATURES = {"image_grid_thw"}


def supports_shared_features(model: PreTrainedModel) -> bool:
    """Whether the model takes encoded images: its forward names `mm_encoder_outputs`.

    The signature decides: below transformers 5.18 the argument is swallowed and the image lost.
    """
    return hasattr(model, "get_image_features") and "mm_encoder_outputs" in forward_parameters(
        model
    )


class ImageFeatures:
    """The features of several images, encoded in one call, for rows that show some of them.

    LLaVA-OneVision encodes a lone image in tiles and one among several without: do not share
    features across that boundary there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vision_inputs: Mapping[str, Any],
        tokens_per_image: Sequence[int],
    ) -> None:
        """Run the vision encoder once.

        Args:
            model: a vision-language model whose forward takes `mm_encoder_outputs`.
            vision_inputs: what the processor returned for all the images together (pixel values,
                grid or sizes); keys that `get_image_features` does not take are ignored.
            tokens_per_image: placeholder tokens of each image in a prompt, in the same order.

        Raises:
            InferKitError: the model cannot take encoded images, or the number of feature vectors
                is not the number of placeholder tokens.
        """
        if not supports_shared_features(model):
            raise InferKitError(
                f"{type(model).__name__} does not take encoded images (mm_encoder_outputs).",
                hint="Pass pixel values in each row; transformers 5.18 or newer is needed.",
            )
        self.tokens_per_image = list(tokens_per_image)
        self._grid = vision_inputs.get("image_grid_thw")
        with torch.no_grad():
            self._output = model.get_image_features(
                **_encoder_arguments(model, vision_inputs), return_dict=True
            )
        self._table = _flat(self._output.pooler_output)
        self._deepstack = [
            _flat(layer) for layer in getattr(self._output, "deepstack_features", None) or ()
        ]
        if len(self._table) != sum(self.tokens_per_image):
            raise InferKitError(
                f"The vision encoder gave {len(self._table)} feature vectors for "
                f"{sum(self.tokens_per_image)} placeholder tokens {self.tokens_per_image}."
            )

    def rows_of(self, images: Sequence[int]) -> dict[str, Any]:
        """Row inputs that stand for pixels: the features of `images`, in placeholder order.

        Args:
            images: indices into the images that were encoded; repeats are fine.

        Returns:
            `mm_encoder_outputs`, and `image_grid_thw` where the family has it. Merge it into a row
            that has no pixel values.
        """
        ends = torch.tensor([0, *self.tokens_per_image]).cumsum(0).tolist()
        spans = [slice(ends[i], ends[i + 1]) for i in images]
        output = copy.copy(self._output)
        output.pooler_output = _like(
            self._output.pooler_output, torch.cat([self._table[span] for span in spans])
        )
        if self._deepstack:
            output.deepstack_features = [
                _like(original, torch.cat([table[span] for span in spans]))
                for original, table in zip(
                    self._output.deepstack_features, self._deepstack, strict=True
                )
            ]
        row: dict[str, Any] = {"mm_encoder_outputs": {"image": output}}
        if self._grid is not None:
            row["image_grid_thw"] = self._grid[list(images)]
        return row


class ImageMemory:
    """Encoded images of one request, by their pixels, over all its streams and steps.

    Rows that show the same images, in the same order, share one pass through the vision encoder,
    the very pass that the row alone would make, so the logits do not change.
    """

    def __init__(self) -> None:
        self._encoded: dict[tuple, Any] = {}

    def encode(self, model: PreTrainedModel, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with encoded images in place of pixels, or as it is where that cannot be."""
        row = dict(row)
        vision = _encoder_arguments(model, row) if supports_shared_features(model) else {}
        if "pixel_values" not in vision:
            return row
        key = (id(model), *(_digest(vision[name]) for name in sorted(vision)))
        if key not in self._encoded:
            with torch.no_grad():
                self._encoded[key] = model.get_image_features(**vision, return_dict=True)
        for name in vision:
            if name not in _KEPT_WITH_FEATURES:
                del row[name]
        row["mm_encoder_outputs"] = {"image": copy.copy(self._encoded[key])}
        return row


def _encoder_arguments(model: PreTrainedModel, row: Mapping[str, Any]) -> dict[str, Any]:
    """Those inputs of a row that the vision encoder takes, on the model's device."""
    takes = set(inspect.signature(model.get_image_features).parameters)
    return {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in row.items()
        if name in takes and value is not None
    }


def _digest(value: Any) -> tuple:
    if not isinstance(value, Tensor):
        return (repr(value),)
    data = value.detach().cpu().contiguous()
    content = hashlib.blake2b(data.view(torch.uint8).numpy(), digest_size=16).digest()
    return (tuple(data.shape), str(data.dtype), content)


def _flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of any layout as one `[tokens, D]` table."""
    if not isinstance(features, Tensor):
        return torch.cat([_flat(part) for part in features])
    return features.reshape(-1, features.shape[-1])


def _like(original: Tensor | Sequence[Tensor], rows: Tensor) -> Any:
    """`[tokens, D]` rows in the container that the model itself uses, holding one item."""
    if isinstance(original, Tensor):
        return rows if original.dim() == 2 else rows[None]
    return type(original)([rows])
