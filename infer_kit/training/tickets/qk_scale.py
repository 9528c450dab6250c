"""Larger initial queries and keys, as the strong-lottery-ticket theory of attention asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.maskable import Maskable
from infer_kit.training.tickets.spec import Gain

QK_SCALES = ("n**0.25",)
_QUERY_OR_KEY = {
    *("q_proj", "k_proj", "query", "key", "q_lin", "k_lin"),
    *("q_proj_weight", "k_proj_weight"),
}


def qk_init_scale(
    model: nn.Module, tensors: Mapping[str, Maskable], scale: str | float
) -> dict[str, tuple[Gain, ...]]:
    """Factors on the initial W_Q and W_K of each attention layer.

    Otsuka et al., "The Strong Lottery Ticket Hypothesis for Multi-Head Attention Mechanisms",
    AAAI 2026, arXiv 2511.04217: the theorem's random queries and keys are U[-n^(1/4), n^(1/4)] with
    n the width of a head, and edge-popup on GPT-2 is near its best with that factor (2.83 for
    n = 64) on both.

    Args:
        model: with linear layers named q_proj and k_proj (Llama), query and key (ViT, BERT), fused
            ones (GPT-2's c_attn), or `nn.MultiheadAttention`.
        tensors: those that are masked, as `maskable.find` gives them.
        scale: "n**0.25", or a factor.

    Returns:
        By parameter name, the factors on its slices.

    Raises:
        InferKitError: an unknown scale, a model in which no queries and keys are found, or one
            whose head width is not known.
    """
    if isinstance(scale, str) and scale not in QK_SCALES:
        raise InferKitError(f'qk_scale={scale!r}: use "n**0.25" or a number.')
    if not isinstance(scale, str) and not scale > 0:
        raise InferKitError(f"qk_scale={scale!r}: a factor above 0 is expected.")
    out: dict[str, tuple[Gain, ...]] = {}
    for name, found in tensors.items():
        part = _slice(name, found)
        if part is None:
            continue
        factor = float(scale) if not isinstance(scale, str) else _head_width(model, found) ** 0.25
        out[name] = (Gain(*part, factor),)
    if not out:
        raise InferKitError(
            f"qk_scale: no queries and keys among the masked layers of {type(model).__name__}.",
            "They are found by name: q_proj and k_proj, query and key, c_attn.",
        )
    return out


def _slice(name: str, found: Maskable) -> tuple[int, int, int] | None:
    """(dim, start, stop) of the queries and keys in a tensor, if it has any."""
    shape = found.weight.shape
    last = name.split(".")
    if last[-1] == "in_proj_weight":
        return 0, 0, 2 * shape[0] // 3
    if len(last) > 1 and last[-2] == "c_attn" and shape[1] == 3 * shape[0]:
        return 1, 0, 2 * shape[1] // 3
    if not _QUERY_OR_KEY.isdisjoint(last[-2:]):
        return 0, 0, shape[0]
    return None


def _head_width(model: nn.Module, found: Maskable) -> int:
    if isinstance(found.module, nn.MultiheadAttention):
        return int(found.module.head_dim)
    config: Any = getattr(model, "config", None)
    config = getattr(config, "get_text_config", lambda: config)()
    width = getattr(config, "head_dim", None)
    heads = getattr(config, "num_attention_heads", None)
    if width is None and heads is None:
        raise InferKitError(
            f"qk_scale={QK_SCALES[0]!r} needs the width of a head, and {type(model).__name__} has "
            "no config that tells it.",
            "Give the factor as a number.",
        )
    return int(width or config.hidden_size // heads)
