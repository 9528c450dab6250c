"""The rows of one call, as the engine runs them and as `generate` sees them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.context_prefix import PREFIX, whole_row
from infer_kit.engine.image_features import ImageMemory
from infer_kit.engine.prefill import Entry
from infer_kit.errors import InferKitError
from infer_kit.pooling import Pooling

Rows = Sequence[Sequence[Mapping[str, Any] | None]]
"""`rows[b][k]`: what the processor returned for stream k of request b, or None."""


def entries_by_model(
    rows: Rows, models: Sequence[PreTrainedModel], pooling: Pooling, images: ImageMemory
) -> list[tuple[PreTrainedModel, list[Entry]]]:
    """The streams to run, for each distinct model, ordered by request and stream.

    Rows that show the same images share one pass through the vision encoder; a row object that
    several streams read is one object for them all in the result.
    """
    grouped: dict[int, tuple[PreTrainedModel, list[Entry]]] = {}
    encoded: dict[tuple[int, int], dict[str, Any]] = {}
    for b, row in enumerate(rows):
        for slot, k in enumerate(pooling.streams):
            if not pooling.present[b, slot]:
                continue
            model, inputs = models[k], row[k]
            assert inputs is not None
            _, entries = grouped.setdefault(id(model), (model, []))
            key = (id(model), id(inputs))
            if key not in encoded:
                encoded[key] = images.encode(model, inputs)
                if PREFIX in inputs and inputs[PREFIX].cache is None:
                    encoded[key] = whole_row(encoded[key])
            entries.append(Entry(request=b, stream=slot, inputs=encoded[key]))
    return list(grouped.values())


def token_ids(tokens: Sequence[int] | Tensor, request: int) -> Tensor:
    """One continuation as `[n]` int64."""
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError) as error:
        raise InferKitError(f"The continuation of request {request} is not token ids.") from error
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        if not ids.numel():
            return ids.reshape(-1).long()
        raise InferKitError(
            f"The continuation of request {request} has shape {list(ids.shape)} and dtype "
            f"{ids.dtype}; expected token ids [n]."
        )
    return ids.long()


def left_padded(
    prompts: Sequence[Tensor], pad_token: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`[B, longest]` ids and their mask."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_token, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt.to(device)
        mask[row, width - len(prompt) :] = 1
    return ids, mask
