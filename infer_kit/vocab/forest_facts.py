"""How a model can be read as a forest of tokens: what its class and its config say of it."""

from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from infer_kit.engine.cache_merge import check_mergeable
from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.model_facts import forward_parameters
from infer_kit.errors import NotMergeable

_ATTENTION = ("sdpa", "eager")
# Families without transformers' common attention interface that pass a mask on as it is.
_PASS_MASKS = frozenset({"falcon", "gptj", "stablelm", "xglm"})
# Families that take a token's place in the cache for its position, beside `position_ids`.
_BY_PLACE = frozenset({"llama4", "llama4_text"})
_SPANS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
# Families without an argument for positions where padding in front changes nothing: ALiBi.
_DISTANCES = frozenset({"bloom", "mpt"})
# Families that are read whole each time: RecurrentGemma keeps its state on its modules, MiniMax in
# a cache of its own class; Nemotron-H bounds its time steps in a pass, not in single steps.
_READ_WHOLE = frozenset({"recurrent_gemma", "minimax", "nemotron_h"})


def why_no_tree(model: PreTrainedModel) -> str | None:
    """Why a model cannot read a forest from one row of its cache; None where it can.

    It has to take a mask for each pair of query and key, a position for each token, and keep
    nothing but keys and values. All of this is read off the class and its config; no model is
    tried.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation not in _ATTENTION:
        return f"its attention is {config._attn_implementation}, which takes no mask of ancestors"
    if model.config.model_type in _BY_PLACE or config.model_type in _BY_PLACE:
        return "its attention takes a token's place in the cache for its position"
    if {"position_ids", "attention_mask", CACHE} - forward_parameters(model):
        return "its forward takes no positions or no cache"
    if getattr(config, "alibi", False):
        return "its positions are distances in the cache (ALiBi)"
    if not model._supports_attention_backend and config.model_type not in _PASS_MASKS:
        return "its attention is of its own kind, and may make its masks itself"
    if model._is_stateful:
        return "its layers keep a state besides keys and values"
    for layer in DynamicCache(config=config).layers:
        kind = type(layer)
        if kind not in (DynamicLayer, DynamicSlidingWindowLayer) and kind.__name__ != "DummyLayer":
            return f"a layer of its cache is a {kind.__name__}"
        if getattr(layer, "sliding_window", None) not in (None, *windows(config).values()):
            return "its layers have windows of several sizes"
    unknown = [kind for kind in mask_kinds(config) if kind not in (*_SPANS, "full_attention")]
    return f"it has layers of kind {unknown[0]}" if unknown else None


def mask_kinds(config: Any) -> list[str]:
    """The kinds of masks that a model's layers take, by transformers' rule for ready-made ones."""
    if getattr(config, "layer_types", None) is not None:
        return sorted(set(config.layer_types))
    return next(([kind] for kind in windows(config)), ["full_attention"])


def windows(config: Any) -> dict[str, int]:
    """How far back layers look, by their kind: the kinds that the config has a size for."""
    sizes = {kind: getattr(config, name, None) for kind, name in _SPANS.items()}
    return {kind: size for kind, size in sizes.items() if size is not None}


def pads(model: PreTrainedModel, parameters: set[str]) -> bool:
    """Whether rows of unequal length can share a batch, the shorter ones padded in front."""
    config = model.config.get_text_config(decoder=True)
    if config.model_type in _BY_PLACE:
        return False
    if "position_ids" in parameters or config.model_type in _DISTANCES:
        return True
    layers = DynamicCache(config=config).layers
    return not any(isinstance(layer, DynamicLayer) for layer in layers)  # Mamba: nothing to pad


def cache_argument(model: PreTrainedModel, parameters: set[str]) -> str | None:
    """Under what name a forward takes a cache whose rows can be picked and joined; None if none.

    RWKV and xLSTM keep their state in forms of their own.
    """
    if model.config.model_type in _READ_WHOLE:
        return None
    name = next((name for name in (CACHE, "cache_params") if name in parameters), None)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    recurrent = any(hasattr(layer, "conv_states") for layer in cache.layers)
    if (model._is_stateful or name == "cache_params") and not recurrent:
        return None
    try:
        check_mergeable(cache, 0)
    except NotMergeable:
        return None
    return name
