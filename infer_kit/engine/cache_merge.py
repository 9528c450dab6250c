"""Left-padded merging of caches that were prefilled apart.

Prompts of unequal length are prefilled one by one, never padded, and their caches are joined here
into one batch for decoding: cheaper than a padded prefill for long and short prompts together, and
free of what padding does to a prefill (fully masked query rows).
"""

from collections.abc import Container, Sequence

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache

from infer_kit.errors import NotMergeable

# Layer classes whose whole state is known here. A subclass may carry more, so it is not taken.
_MERGEABLE = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "DummyLayer",
}

_STATES = ("conv_states", "recurrent_states")


def check_mergeable(cache: Cache, length: int, cross_attention: Container[int] = ()) -> None:
    """Raise `NotMergeable` unless every layer of a freshly prefilled cache can be merged.

    Args:
        cache: the cache after one unpadded prefill.
        length: tokens that were prefilled.
        cross_attention: indices of layers that hold the image, not the tokens. By their length
            alone they could pass for others, where prompt and image are equally long.
    """
    for index, layer in enumerate(cache.layers):
        name = type(layer).__name__
        if name not in _MERGEABLE or getattr(cache_utils, name, None) is not type(layer):
            raise NotMergeable(f"Cache layer {index} is a {name}, which cannot be merged.")
        if has_keys(layer) and (
            index in cross_attention or layer.keys.shape[-2] != _width(layer, length)
        ):
            raise NotMergeable(
                f"Cache layer {index} holds {layer.keys.shape[-2]} states for a prompt of {length} "
                "tokens (cross-attention), so rows with different images cannot share a batch."
            )


def merge_caches(caches: Sequence[Cache], lengths: Sequence[int]) -> Cache:
    """Join prefilled caches along the batch, left-padding the shorter ones.

    Works in place in the first cache; the others are emptied layer by layer, so the key and value
    memory is held twice for one layer only.

    Args:
        caches: each from one unpadded prefill, of one or more rows of equal length.
        lengths: tokens prefilled in each. Read these, not the caches: merging layer 0 of the
            first cache changes what it reports.

    Returns:
        The first cache, now holding all rows over `max(lengths)` positions.

    Raises:
        NotMergeable: the layers differ in type or hold states that cannot be padded.
    """
    for cache, length in zip(caches, lengths, strict=True):
        check_mergeable(cache, length)
    merged = caches[0]
    if len(caches) == 1:
        return merged
    total = max(lengths)
    rows = list(zip(*(cache.layers for cache in caches), strict=True))
    for index, layers in enumerate(rows):  # all of them first: a serial group may yet need them
        _check_alike(layers, index)
    for layers in rows:
        if hasattr(layers[0], "conv_states"):
            _merge_states(layers)
        if has_keys(layers[0]):
            _merge_keys(layers, total)
    return merged


def has_keys(layer: object) -> bool:
    """Whether a layer holds states of attention."""
    keys = getattr(layer, "keys", None)
    return keys is not None and keys.numel() > 0


def _width(layer: object, length: int) -> int:
    """Positions that a layer keeps of `length`: all, or one less than its sliding window."""
    window = getattr(layer, "sliding_window", None)
    return length if window is None else min(length, window - 1)


def _check_alike(layers: Sequence, index: int) -> None:
    """Raise `NotMergeable` where the same layer of several prompts differs in kind or shape."""
    if len({type(layer) for layer in layers}) > 1:
        raise NotMergeable(f"Cache layer {index} differs in type between the prompts.")
    if len({has_keys(layer) for layer in layers}) > 1:
        raise NotMergeable(f"Cache layer {index} holds states for some prompts only.")
    for name in _STATES:
        for key in getattr(layers[0], name, ()):
            states = [getattr(layer, name)[key] for layer in layers]
            if len({None if state is None else state.shape[1:] for state in states}) > 1:
                raise NotMergeable(f"Cache layer {index}: {name} differ between the prompts.")


def _merge_states(layers: Sequence) -> None:
    """Concatenate the fixed-size states of linear attention along the batch."""
    for name in _STATES:
        merged: dict[int, Tensor | None] = getattr(layers[0], name)
        for key in merged:
            if merged[key] is not None:
                merged[key] = torch.cat([getattr(layer, name)[key] for layer in layers])


def _merge_keys(layers: Sequence, total: int) -> None:
    """Left-pad keys and values to a common width and concatenate them along the batch."""
    width = _width(layers[0], total)
    for name in ("keys", "values"):
        setattr(layers[0], name, _left_padded([getattr(layer, name) for layer in layers], width))
        for layer in layers[1:]:
            setattr(layer, name, None)
    if hasattr(layers[0], "cumulative_length"):
        layers[0].cumulative_length = total


def _left_padded(states: Sequence[Tensor], width: int) -> Tensor:
    """`[b_i, heads, l_i, dim]` tensors as one `[sum b_i, heads, width, dim]`, zeros on the left."""
    if all(state.shape[-2] == width for state in states):
        return torch.cat(tuple(states))
    rows = sum(state.shape[0] for state in states)
    _, heads, _, dim = states[0].shape
    merged = states[0].new_zeros(rows, heads, width, dim)
    start = 0
    for state in states:
        kept = state[:, :, -width:]
        merged[start : start + len(state), :, width - kept.shape[-2] :] = kept
        start += len(state)
    return merged
