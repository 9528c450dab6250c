"""Encode each image once, however many streams and steps look at it.

transformers ≥ 5.18 lets a forward take the vision encoder's output in place of pixels
(`mm_encoder_outputs`). Where a model's forward does not (older releases, Llama 4, Mllama), rows are
left alone and every stream pays for its own vision pass.
"""

import copy
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.model_facts import forward_parameters
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


@dataclass(frozen=True)
class EncodedImage:
    """What the language model reads of one image: `[tokens, D]`, and `[tokens, D]` a deep layer."""

    features: Tensor
    deepstack: tuple[Tensor, ...]


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
        self._grid = vision_inputs.get("image_grid_thw")
        self._output = _encode(model, _encoder_arguments(model, vision_inputs))
        if self._output.pooler_output is None:
            raise InferKitError(
                f"{type(model).__name__} gives no features that can be told apart by image.",
                hint="Pass pixel values in each row; equal sets of images are encoded once.",
            )
        self._images = _split(self._output, list(tokens_per_image))

    def rows_of(self, images: Sequence[int]) -> dict[str, Any]:
        """Row inputs that stand for pixels: the features of `images`, in placeholder order.

        Args:
            images: indices into the images that were encoded; repeats are fine.

        Returns:
            `mm_encoder_outputs`, and `image_grid_thw` where the family has it. Merge it into a row
            that has no pixel values.
        """
        output = _joined(self._output, [self._images[i] for i in images])
        row: dict[str, Any] = {"mm_encoder_outputs": {"image": output}}
        if self._grid is not None:
            row["image_grid_thw"] = self._grid[list(images)]
        return row


class ImageMemory:
    """Encoded images of one call, by their pixels, over all its requests, streams and steps.

    A row that shows only new images makes the very pass through the vision encoder that it would
    make alone, so its logits do not change by a bit. Where a family's layout keeps images apart
    (one entry of `pixel_values` an image or tile, or a grid), an image that some earlier row
    showed among others is not encoded again; elsewhere the unit is a row's whole set of images.
    """

    def __init__(self) -> None:
        self._outputs: dict[tuple, Any] = {}
        self._images: dict[tuple, EncodedImage] = {}

    def encode(self, model: PreTrainedModel, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with encoded images in place of pixels, or as it is where that cannot be."""
        row = dict(row)
        vision = _encoder_arguments(model, row) if supports_shared_features(model) else {}
        if "pixel_values" not in vision:
            return row
        for name in vision.keys() - _KEPT_WITH_FEATURES:
            del row[name]
        whole = _key(model, vision)
        if whole not in self._outputs:
            self._outputs[whole] = self._encoded(model, vision)
        row["mm_encoder_outputs"] = {"image": copy.copy(self._outputs[whole])}
        return row

    def pooled(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
        """`[D]` float32, the mean of what the language model reads of the images of a row.

        Raises:
            InferKitError: the model has no image features of its own.
        """
        if not hasattr(model, "get_image_features"):
            raise InferKitError(
                f"{type(model).__name__} has no image features of its own.",
                hint="Pass encoder=<path of a CLIP or SigLIP model>, or encoder='text'.",
            )
        row = self.encode(model, inputs)
        if "mm_encoder_outputs" in row:
            output = row["mm_encoder_outputs"]["image"]
        else:
            output = _encode(model, _encoder_arguments(model, row))
        features = output.pooler_output if hasattr(output, "pooler_output") else output
        if features is None:  # Llama 4
            features = output.last_hidden_state
        return _flat(features).float().mean(0)

    def update(self, other: "ImageMemory") -> None:
        """Take over what another memory holds."""
        self._outputs |= other._outputs
        self._images |= other._images

    def copy(self) -> "ImageMemory":
        """A memory that starts with what this one holds; what it adds stays its own."""
        memory = ImageMemory()
        memory._outputs, memory._images = dict(self._outputs), dict(self._images)
        return memory

    def _encoded(self, model: PreTrainedModel, vision: dict[str, Any]) -> Any:
        """The encoder's output for a set of images that is new, some of them perhaps not."""
        units = _units(vision)
        keys = [_key(model, unit) for unit in units]
        new = {key: unit for key, unit in zip(keys, units, strict=True) if key not in self._images}
        if not self._images.keys() & set(keys):
            output = _encode(model, vision)
            counts = _token_counts(output, len(units))
            if counts is not None:
                self._images |= zip(keys, _split(output, counts), strict=True)
            return output
        if new:
            units = list(new.values())
            output = _encode(model, {n: torch.cat([unit[n] for unit in units]) for n in vision})
            counts = _token_counts(output, len(units))
            if counts is None:
                return _encode(model, vision)
            self._images |= zip(new, _split(output, counts), strict=True)
        like = next(o for key, o in self._outputs.items() if key[0] == id(model))
        return _joined(like, [self._images[key] for key in keys])


def _encode(model: PreTrainedModel, vision: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        output = model.get_image_features(
            **{n: v.to(model.device) if isinstance(v, Tensor) else v for n, v in vision.items()},
            return_dict=True,
        )
    for name in ("last_hidden_state", "hidden_states", "attentions"):
        if getattr(output, name, None) is not None:
            setattr(output, name, None)  # large, and the language model does not read them
    return output


def _split(output: Any, tokens_per_image: list[int]) -> list[EncodedImage]:
    """The encoder's output by image."""
    table = _flat(output.pooler_output)
    layers = [_flat(layer) for layer in getattr(output, "deepstack_features", None) or ()]
    if len(table) != sum(tokens_per_image):
        raise InferKitError(
            f"The vision encoder gave {len(table)} feature vectors for {sum(tokens_per_image)} "
            f"placeholder tokens {tokens_per_image}."
        )
    parts = [layer.split(tokens_per_image) for layer in layers]
    return [
        EncodedImage(features, tuple(layer[i] for layer in parts))
        for i, features in enumerate(table.split(tokens_per_image))
    ]


def can_be_joined(output: Any) -> bool:
    """Whether the encoder's output for several prompts can be made one (not Llama 4's)."""
    return output.pooler_output is not None


def joined_outputs(outputs: Sequence[Any]) -> Any:
    """The encoder's outputs for several prompts as one, in their order."""
    joined = copy.copy(outputs[0])
    joined.pooler_output = _concatenated([output.pooler_output for output in outputs])
    if getattr(joined, "deepstack_features", None):
        layers = zip(*(output.deepstack_features for output in outputs), strict=True)
        joined.deepstack_features = [_concatenated(layer) for layer in layers]
    return joined


def _concatenated(features: Sequence[Any]) -> Any:
    """Features of several prompts in the layout that each has: by image where it has an axis."""
    if not isinstance(features[0], Tensor):
        parts = [part for several in features for part in several]
        return tuple(parts) if isinstance(features[0], tuple) else parts
    if len({part.shape[1:] for part in features}) == 1:
        return torch.cat(tuple(features))
    return _like(features[0], torch.cat([_flat(part) for part in features]))


def _joined(like: Any, images: Sequence[EncodedImage]) -> Any:
    """An output of the encoder that holds these images, in this order."""
    output = copy.copy(like)
    output.pooler_output = _like(like.pooler_output, torch.cat([i.features for i in images]))
    if images[0].deepstack:
        layers = zip(*(image.deepstack for image in images), strict=True)
        output.deepstack_features = [
            _like(original, torch.cat(layer))
            for original, layer in zip(like.deepstack_features, layers, strict=True)
        ]
    return output


def _encoder_arguments(model: PreTrainedModel, row: Mapping[str, Any]) -> dict[str, Any]:
    """Those inputs of a row that the vision encoder takes."""
    takes = set(inspect.signature(model.get_image_features).parameters)
    return {name: value for name, value in row.items() if name in takes and value is not None}


def _units(vision: dict[str, Any]) -> list[dict[str, Any]]:
    """The encoder's arguments for each image (or tile) apart, where the layout keeps them apart."""
    pixels = vision["pixel_values"]
    if vision.keys() == {"pixel_values", "image_grid_thw"} and pixels.dim() == 2:
        grid = vision["image_grid_thw"]
        patches = pixels.split(grid.prod(-1).tolist())
        return [
            {"pixel_values": part, "image_grid_thw": grid[i : i + 1]}
            for i, part in enumerate(patches)
        ]
    if vision.keys() == {"pixel_values"} and pixels.dim() == 4:
        return [{"pixel_values": pixels[i : i + 1]} for i in range(len(pixels))]
    return [vision]


def _token_counts(output: Any, images: int) -> list[int] | None:
    """Feature vectors of each of `images` images, or None where the output does not tell."""
    if output.pooler_output is None:  # Llama 4 reads another field
        return None
    parts = [len(_flat(part)) for part in output.pooler_output]
    if images == 1:
        return [sum(parts)]
    return parts if len(parts) == images else None


def _key(model: PreTrainedModel, vision: Mapping[str, Any]) -> tuple:
    return (id(model), *((name, _digest(vision[name])) for name in sorted(vision)))


def _digest(value: Any) -> tuple:
    if not isinstance(value, Tensor):
        return (repr(value),)
    data = value.detach().cpu().contiguous().reshape(-1)
    content = hashlib.blake2b(data.view(torch.uint8).numpy().data, digest_size=16).digest()
    return (tuple(value.shape), str(value.dtype), content)


def _flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of any layout as one `[tokens, D]` table."""
    if not isinstance(features, Tensor):
        return torch.cat([_flat(part) for part in features])
    return features.reshape(-1, features.shape[-1])


def _like(original: Tensor | Sequence[Tensor], rows: Tensor) -> Any:
    """`[tokens, D]` rows in the container that the model itself uses, holding one item."""
    if isinstance(original, Tensor):
        return rows if original.dim() == 2 else rows[None]
    return (rows,) if isinstance(original, tuple) else [rows]
