"""The slow, obvious way to get next-token logits: the whole context, every time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infer_kit.testing import extended_row


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
    inputs = extended_row(model, row, continuation_ids[0])
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    return logits[0, prompt_length - 1 :].float()
