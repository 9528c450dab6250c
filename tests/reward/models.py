"""Tiny models of one tokenizer with unlike bodies and heads, and classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.tiny import tiny_tokenizer

VOCAB = 160


def llama(seed: int = 0, rows: int = VOCAB, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | overrides))).eval()


def gpt2(seed: int = 0, rows: int = VOCAB) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=rows,
        n_embd=24,
        n_layer=2,
        n_head=2,
        n_positions=128,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def classifier(seed: int = 0, labels: tuple[str, ...] = ("a", "b", "c")) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )
    return BertForSequenceClassification(config).eval()


def saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model loaded from a folder that has its tokenizer too."""
    model.save_pretrained(folder)
    tiny_tokenizer(VOCAB).save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()
