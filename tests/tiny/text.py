"""Random tiny text models of every family that the engine is tested on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny.weights import BOS, EOS, PAD, build

WINDOW = 8
"""Sliding window of the families that have one: prompts of more tokens cross it."""

TEXT_GRID = ("llama", "qwen3", "gemma3_text", "gpt2")

TEXT_SWEEP = (
    "mistral", "qwen2", "gemma", "gemma2", "phi", "phi3", "olmo2", "cohere2", "gpt_neox",
    "stablelm", "starcoder2", "opt", "bloom", "mpt", "falcon", "gptj", "qwen3_moe", "mixtral",
    "gpt_oss", "deepseek_v3", "llama4_text", "gemma3n_text", "gemma4_text", "qwen3_next",
    "qwen3_5_text", "lfm2", "falcon_h1", "bamba", "jamba", "granitemoehybrid", "glm4", "smollm3",
    "xglm",
)  # fmt: skip

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_SLIDING_THEN_FULL = ["sliding_attention", "full_attention"]
_GATED_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MAMBA2: dict[str, Any] = {
    "mamba_d_state": 8,
    "mamba_d_head": 16,
    "mamba_n_heads": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

# What a family needs beyond _COMMON; None takes an entry of _COMMON out.
_SPECIAL: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": _SLIDING_THEN_FULL},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "layer_types": _SLIDING_THEN_FULL},
    "cohere2": {"sliding_window": WINDOW, "layer_types": _SLIDING_THEN_FULL},
    "starcoder2": {"sliding_window": WINDOW},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "expansion_ratio": 2},
    "falcon": {
        "head_dim": None,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "bias": False,
    },
    "gptj": {"rotary_dim": 4, "n_inner": 64},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "gpt_oss": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING_THEN_FULL,
    },
    "deepseek_v3": {
        "head_dim": None,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "llama4_text": {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 2,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 8,
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "intermediate_size": [64] * 4,
        "vocab_size_per_layer_input": None,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "num_kv_shared_layers": 2,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING_THEN_FULL * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": None,
        "global_head_dim": 8,
        "num_kv_shared_layers": 2,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING_THEN_FULL * 2,
    },
    "qwen3_next": _GATED_DELTA
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_5_text": _GATED_DELTA,
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 64,
        "block_auto_adjust_ff_dim": False,
    },
    "falcon_h1": _MAMBA2 | {"mamba_d_ssm": 64},
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "granitemoehybrid": _MAMBA2
    | {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}  # fmt: skip


def available(family: str) -> tuple[bool, str]:
    """Whether the installed transformers has this text family, and if not, why."""
    if family in CONFIG_MAPPING and family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True, ""
    return False, f"transformers {transformers.__version__} has no {family}"


def text_model(
    family: str, vocab_size: int = 160, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A new tiny model: eval mode, float32, logits that depend on the whole context.

    Args:
        family: a name of `TEXT_GRID` or `TEXT_SWEEP`, which is the config's model type.
        vocab_size: rows of the head.
        seed: of the weights.
        **overrides: fields of the config.
    """
    config = AutoConfig.for_model(family, **_arguments(family, vocab_size, overrides))
    return build(
        lambda: AutoModelForCausalLM.from_config(config, dtype=torch.float32), vocab_size, seed
    )


@cache
def shared_text_model(family: str, vocab_size: int = 160, seed: int = 0) -> PreTrainedModel:
    """`text_model`, built once a process. For tests that change nothing in the model."""
    return text_model(family, vocab_size, seed)


def _arguments(family: str, vocab_size: int, overrides: dict[str, Any]) -> dict[str, Any]:
    merged = _COMMON | _SPECIAL.get(family, {})
    merged |= {"vocab_size": vocab_size, "pad_token_id": PAD, "bos_token_id": BOS}
    merged |= {"eos_token_id": EOS}
    if "vocab_size_per_layer_input" in merged:
        merged["vocab_size_per_layer_input"] = vocab_size
    merged |= overrides
    return {name: value for name, value in merged.items() if value is not None}
