"""A ViT is saved under other names than its own; a trainer loads it whole all the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_callback import PrinterCallback

from infer_kit.errors import InferKitError
from infer_kit.training.renamed_weights import RenamedWeights


class Whole(RenamedWeights, Trainer):
    """Nothing else."""


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            image_size=8, patch_size=4, num_channels=1, num_labels=3, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def trainer_of(folder: Path, model: nn.Module | None = None, **given: Any) -> Whole:
    generator = torch.Generator().manual_seed(0)
    data = [
        {"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": n % 3}
        for n in range(32)
    ]
    options = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-2,
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "epoch", "report_to": "none",
        "logging_strategy": "no",
    } | given  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **options)
    trainer = Whole(model or vit(), arguments, train_dataset=data, eval_dataset=data)
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path)
    whole.train()
    resumed = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


class Named(nn.Module):
    """Of no class of transformers, whose weight has a name of one's own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        setattr(self, name, nn.Linear(64, 3))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        (layer,) = self.children()
        logits = layer(pixel_values.flatten(1))
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path, Named("first")).train()
    with pytest.raises(InferKitError, match="is of another model: it lacks 'second.bias'"):
        trainer_of(tmp_path, Named("second")).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-8")
        )


def test_the_best_model_is_loaded_whole(tmp_path: Path) -> None:
    best = trainer_of(  # the worst, so that it is not the last, which needs no loading
        tmp_path, load_best_model_at_end=True, eval_strategy="epoch", greater_is_better=True,
        metric_for_best_model="loss",
    )  # fmt: skip
    best.train()
    folder = best.state.best_model_checkpoint
    expected = ViTForImageClassification.from_pretrained(folder)
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, best.model.get_parameter(name)), name
    assert folder == str(tmp_path / "checkpoint-4")
