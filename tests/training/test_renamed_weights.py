"""A ViT is saved under other names than its own; a trainer loads it whole all the same."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_callback import PrinterCallback

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


def trainer_of(folder: Path, **given: Any) -> Whole:
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
    trainer = Whole(vit(), arguments, train_dataset=data, eval_dataset=data)
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path)
    whole.train()
    resumed = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


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
