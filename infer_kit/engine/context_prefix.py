"""The beginning of a prompt, prepared once and continued by many prompts.

The demonstrations of an in-context prompt precede its query, and attention is causal, so their keys
and values serve every query.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from infer_kit.engine.image_features import joined_outputs

PREFIX = "prefix"
"""The key of a row under which its `ContextPrefix` is; the row's other inputs follow it."""

# Inputs of the whole prompt, with the axis along which a prefix and its continuation are joined.
TOKEN_INPUTS = {
    "input_ids": 1,
    "attention_mask": 1,
    "token_type_ids": 1,
    "mm_token_type_ids": 1,
    "image_grid_thw": 0,
}


@dataclass(frozen=True)
class ContextPrefix:
    """The first P tokens of a prompt, and what a model keeps of them.

    Attributes:
        model: the model that reads them.
        inputs: their token inputs and image grids (`TOKEN_INPUTS`), no pixels.
        images: the encoded images, or None where there are none.
        cache: the model's own cache, never written to (see `fork`); None where the model has to
            read the whole prompt at once, and only images and texts are prepared.
    """

    model: PreTrainedModel
    inputs: Mapping[str, Any]
    images: Any = None
    cache: Cache | None = None

    @property
    def length(self) -> int:
        """P."""
        return self.inputs["input_ids"].shape[1]

    def fork(self) -> Cache:
        """A cache to go on with.

        Keys and values are shared, since layers replace these tensors when they grow; the states of
        linear attention are written in place, so they are copied.
        """
        assert self.cache is not None
        forked = copy.copy(self.cache)
        forked.layers = [
            copy.deepcopy(layer) if hasattr(layer, "conv_states") else copy.copy(layer)
            for layer in self.cache.layers
        ]
        return forked


def prompt_length(row: Mapping[str, Any]) -> int:
    """Tokens of a row's prompt, its prefix included."""
    prefix = row.get(PREFIX)
    read = prefix.length if isinstance(prefix, ContextPrefix) else 0
    return row["input_ids"].shape[1] + read


def prompt_ids(row: Mapping[str, Any]) -> Tensor:
    """`[1, S]` ids of a row's prompt, its prefix included."""
    prefix, ids = row.get(PREFIX), row["input_ids"]
    return ids if prefix is None else torch.cat([prefix.inputs["input_ids"].to(ids), ids], dim=1)


def whole_token_inputs(row: Mapping[str, Any]) -> dict[str, Any]:
    """The token inputs and grids of a row with a prefix, as one prompt."""
    before, after = row[PREFIX].inputs, row
    whole = {}
    for name, axis in TOKEN_INPUTS.items():
        parts = [inputs.get(name) for inputs in (before, after)]
        if all(part is None for part in parts):
            continue
        if axis == 1:  # what one part lacks is text and not masked
            fill = int(name == "attention_mask")
            parts = [
                torch.full_like(inputs["input_ids"], fill) if part is None else part
                for part, inputs in zip(parts, (before, after), strict=True)
            ]
        device = after["input_ids"].device
        whole[name] = torch.cat([p.to(device) for p in parts if p is not None], dim=axis)
    return whole


def whole_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that goes on from a prefix that was not read, as one prompt.

    Args:
        row: with encoded images in place of pixels, or with pixels after a prefix without images.
    """
    whole = whole_token_inputs(row)
    rest = row.keys() - TOKEN_INPUTS.keys() - {PREFIX, "mm_encoder_outputs", "labels"}
    whole |= {name: row[name] for name in rest}
    seen = row.get("cross_attention_mask")
    if seen is not None:  # `[1, S, images, tiles]`: nothing of the prefix sees a later image
        before = seen.new_zeros(1, row[PREFIX].length, *seen.shape[2:])
        whole["cross_attention_mask"] = torch.cat([before, seen], dim=1)
    own = row.get("mm_encoder_outputs")
    images = [row[PREFIX].images, None if own is None else own["image"]]
    shown = [image for image in images if image is not None]
    if shown:  # those of one part are left as they are: Llama 4's cannot be joined
        joined = shown[0] if len(shown) == 1 else joined_outputs(shown)
        whole["mm_encoder_outputs"] = {"image": joined}
    return whole
