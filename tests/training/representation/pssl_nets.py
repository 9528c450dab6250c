"""A small image classifier of transformers, its data, and one of two processes that train it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ConvNextConfig, ConvNextForImageClassification, TrainingArguments

from infer_kit.training.representation import (
    FeatureConsistency,
    PseudoSemiSupervised,
    PSSLTrainer,
    UDALoss,
)

SIZE = 8


class Images(Dataset):
    """Noise with a bright row, which is the label."""

    def __init__(self, n: int = 16, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(3, (n,), generator=g)
        self.x = torch.randn(n, 1, SIZE, SIZE, generator=g)
        self.x[torch.arange(n), 0, 2 * self.y] += 2

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return {"pixel_values": self.x[n], "labels": self.y[n]}


def convnext(drop_path: float = 0.0) -> ConvNextForImageClassification:
    torch.manual_seed(0)
    return ConvNextForImageClassification(
        ConvNextConfig(
            num_channels=1, patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1],
            image_size=SIZE, num_labels=3, drop_path_rate=drop_path, layer_scale_init_value=1.0,
        )
    )  # fmt: skip


def settings(folder: Path | str, **changed: Any) -> TrainingArguments:
    given = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True,
        "max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1,
        "save_strategy": "no", "learning_rate": 0.02, "optim": "sgd",
        "dataloader_pin_memory": False,
        "max_grad_norm": 0.0,  # which would hide a wrong scale of the loss
    }  # fmt: skip
    return TrainingArguments(**(given | changed))


def trainer(folder: Path | str, pssl: PseudoSemiSupervised, **changed: Any) -> PSSLTrainer:
    return PSSLTrainer(
        convnext(changed.pop("drop_path", 0.0)), settings(folder, **changed), pssl=pssl,
        train_dataset=Images(), eval_dataset=Images(8, seed=1),
    )  # fmt: skip


def rank_of_two(rank: int, folder: str, port: int) -> None:
    """Trains on half of each batch; what it drew and the weights go to a file."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
    }  # fmt: skip
    run = trainer(folder, constant("features"), per_device_train_batch_size=2, ddp_backend="gloo")
    run.train()
    drawn = run._generator().initial_seed()
    torch.save((drawn, run.accelerator.unwrap_model(run.model).state_dict()), f"{folder}/{rank}.pt")
    # Freeing the group joins its threads with the interpreter's lock held, which they may wait for.
    os._exit(0)


def constant(consistency: str) -> PseudoSemiSupervised:
    """Of one pseudo sample, mirrored by the augmentation: the same term for every batch."""
    return PseudoSemiSupervised(
        Images(1, seed=5).x, allow_unrelated=True, consistency=consistency, ramp_share=0.0,
        uda=UDALoss(0.5, 0.0), features=FeatureConsistency(mirrored), weight=3.0,
    )  # fmt: skip


def mirrored(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return x.flip(2)
