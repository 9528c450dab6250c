"""The slow, obvious way to get next-token logits: the whole context, every time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NEW_TOKEN_TYPE = {"paligemma": 1}
"""PaliGemma's prompt (0) is bidirectional, its continuation (1) causal. Elsewhere 0 is text."""


def reference_logits(model: nn.Module, row: dict[str, Tensor], continuation_ids: Tensor) -> Tensor:
    """Logits of every next token along a continuation: batch 1, no cache, no padding.

    Args:
        model: a causal or a vision-language model.
        row: what the processor returns for one prompt of S tokens.
        continuation_ids: [1, n], n may be 0.

    Returns:
        [n + 1, V] float32: row j is the prediction after the prompt and j continuation tokens.
        One forward gives all of them; every family is causal over the continuation.
    """
    prompt_length = row["input_ids"].shape[1]
    inputs = extended_row(model, row, continuation_ids)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    return logits[0, prompt_length - 1 :].float()


def extended_row(
    model: nn.Module, row: dict[str, Tensor], continuation_ids: Tensor
) -> dict[str, Tensor]:
    """The row as it would be, had the continuation been part of the context; without `labels`."""
    count = continuation_ids.shape[1]
    token_type = _NEW_TOKEN_TYPE.get(model.config.model_type, 0)
    appended = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": token_type}
    out = {name: value for name, value in row.items() if name != "labels"}
    out["input_ids"] = torch.cat([row["input_ids"], continuation_ids], dim=1)
    for name, value in appended.items():
        if name in row:
            out[name] = torch.cat([row[name], row[name].new_full((1, count), value)], dim=1)
    if "cross_attention_mask" in row:  # new tokens see the images that the last token sees
        mask = row["cross_attention_mask"]
        out["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].repeat(1, count, 1, 1)], dim=1)
    return out
