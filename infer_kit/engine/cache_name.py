"""The name under which transformers passes caches around."""

import inspect
from typing import Any

from transformers import GenerationMixin

CACHE_NAMES = ("cache", "past_key_values")
CACHE = next(
    name
    for name in CACHE_NAMES
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
"""`cache` from transformers 5.24, `past_key_values` before: argument, model_kwargs and output."""


def cache_of(output: Any) -> Any:
    """The cache in a model's or `generate`'s output."""
    return getattr(output, CACHE)
