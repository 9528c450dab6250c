"""Small data, models and trainers for the tests of training."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from infer_kit.training.prt import PRTConfig, PRTTrainer
from tests.tiny import text_model, tiny_tokenizer

V = 160
"""Ids that the tokenizer owns; the models have 192 rows."""


class Texts(Dataset):
    """Texts of a rule that is easy to learn, with prompts of two to five tokens masked.

    The first label of all is not masked: it must not be counted, since nothing predicts it.
    """

    def __init__(self, n: int = 16, seed: int = 0, length: int = 12) -> None:
        g = torch.Generator().manual_seed(seed)
        starts = torch.randint(4, 40, (n,), generator=g)
        self.ids = [4 + (s + 3 * torch.arange(length)) % 40 for s in starts]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        labels = self.ids[n].clone()
        labels[1 : 2 + n % 4] = -100
        return {
            "input_ids": self.ids[n],
            "labels": labels,
            "attention_mask": torch.ones_like(labels),
        }


class Digits(Dataset):
    """Vectors whose label is the place of their largest number."""

    def __init__(self, n: int = 32, seed: int = 0, labels: int = 5) -> None:
        self.x = torch.randn(n, labels, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return {"x": self.x[n], "labels": self.x[n].argmax()}


class Classifier(nn.Module):
    """A model that is not of transformers."""

    def __init__(self, labels: int = 5) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(labels, 8), nn.Dropout(0.2)
        self.head = nn.Linear(8, labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x).tanh()))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(V)


@pytest.fixture
def base() -> PreTrainedModel:
    """A Llama of 192 rows: 32 more than the tokenizer has ids."""
    return text_model("llama", 192)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., TrainingArguments]:
    def make(**changed: Any) -> TrainingArguments:
        given = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 3e-3,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(**(given | changed))

    return make


@pytest.fixture
def trainer_of(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: Callable[..., Any]
) -> Callable[..., PRTTrainer]:
    """Trainers of a copy of `base`. Keywords of `PRTTrainer`, `PRTConfig` and the settings."""

    def make(prt: PRTConfig | None = None, model: Any = None, **given: Any) -> PRTTrainer:
        names = ("base_model", "train_dataset", "eval_dataset", "processing_class", "vocab_size",
                 "kind", "data_collator", "peft_config", "compute_metrics",
                 "compute_loss_func")  # fmt: skip
        own = {name: given.pop(name) for name in names if name in given}
        defaults = {
            "base_model": base,
            "train_dataset": Texts(),
            "processing_class": tokenizer,
        }
        model = copy.deepcopy(base) if model is None else model
        return PRTTrainer(model=model, args=settings(**given), prt=prt, **(defaults | own))

    return make


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two models' weights."""
    assert a.keys() == b.keys()
    return max(float((a[n].float() - b[n].float()).abs().max()) for n in a)
