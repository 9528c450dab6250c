"""Small networks of every kind that a ticket masks, and the digits they are searched on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from evals.benchmarks.tickets_digits import digits, mlp

__all__ = ["FAMILIES", "batches", "cross_entropy", "digits", "mlp", "output"]


def batches(data: tuple[Tensor, Tensor], seed: int = 0, size: int = 64) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*data), size, shuffle=True, generator=generator)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0])


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.one = nn.Conv1d(4, 5, 2)
        self.three = nn.Conv3d(1, 2, 2)
        self.out = nn.Linear(2 * 4 * 5 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.two(x.view(-1, 1, 8, 8))).relu()
        x = self.one(self.up(self.grouped(x).relu()).flatten(2)).relu()
        x = x.unflatten(2, (6, 8)).unsqueeze(1)
        return self.out(self.three(x).flatten(1))


def gpt2(tied: bool = False) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
            eos_token_id=1, tie_word_embeddings=tied,
        )
    ).eval()  # fmt: skip


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            image_size=8, patch_size=4, num_channels=1, num_labels=10,
        )
    ).eval()  # fmt: skip


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(64, 32, 10),
    "convolutions": lambda: Convolutions().eval(),
    "attention": lambda: Attention().eval(),
    "gpt2": gpt2,
    "llama": llama,
    "vit": vit,
}


def output(family: str, model: nn.Module) -> Tensor:
    """What a model says of a fixed input."""
    generator = torch.Generator().manual_seed(1)
    if family in ("gpt2", "llama"):
        return model(torch.randint(0, 40, (2, 9), generator=generator)).logits
    if family == "vit":
        return model(torch.rand(2, 1, 8, 8, generator=generator)).logits
    shape = (2, 5, 16) if family == "attention" else (2, 64)
    return model(torch.rand(*shape, generator=generator))
