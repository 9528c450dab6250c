"""Bits per byte: how well a model predicts a text, whatever its tokenizer."""

import math

from infer_kit.errors import InferKitError


def bits_per_byte(logprob_nats: float, text: str) -> float:
    r"""$-\log_2 p(\text{text}) / |\text{UTF-8 bytes of the text}|$.

    Perplexities of models with different tokenizers cannot be compared, as they are per token;
    bytes are the same for all.

    Args:
        logprob_nats: $\ln p$ of the whole text, summed over its tokens.
        text: what was predicted, without the prompt before it.
    """
    size = len(text.encode())
    if not size:
        raise InferKitError("Bits per byte of an empty text are not defined.")
    return -logprob_nats / (math.log(2) * size)
