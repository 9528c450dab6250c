"""Data whose examples can be found again: their numbers, their labels and their hash."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED

INDEX = "prt_index"
"""The column of a batch that says which example of the data set each row is."""

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class DatasetFacts:
    """Attributes: sha256: of all examples as the model sees them. counts: `[N]` labels of each.
    frequencies: `[V]` how often each id is a label."""

    sha256: str
    counts: np.ndarray
    frequencies: Tensor


def predicted_labels(batch: Batch, shifted: bool) -> Tensor:
    """The labels of a batch, `IGNORED` where nothing predicts them.

    Of causal language models that is the first token of each text: also where padding comes before
    it, from which no score means anything.
    """
    labels: Tensor = batch["labels"]
    if not shifted or labels.ndim != 2:
        return labels
    later, mask = labels[:, 1:], batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        later = later.masked_fill(mask[:, :-1].to(labels.device) == 0, IGNORED)
    return torch.cat([torch.full_like(labels[:, :1], IGNORED), later], 1)


def labels_of(batch: Batch, shifted: bool) -> Tensor:
    """`[n]` the labels of a batch that are predicted, in its order."""
    labels = predicted_labels(batch, shifted)
    labels = labels[:, 1:] if shifted else labels
    return labels[labels != IGNORED]


def dataset_facts(dataset: Any, collate: Collate, shifted: bool, size: int) -> DatasetFacts:
    """Reads every example once.

    Raises:
        InferKitError: an example is not the same when it is read twice; a label outside the
            vocabulary.
    """
    sha, counts = hashlib.sha256(), np.zeros(len(dataset), dtype=np.int64)
    frequencies = torch.zeros(size, dtype=torch.float64)
    for n in tqdm(range(len(dataset)), desc="Training data", disable=len(dataset) < 10_000):
        batch = collate([dataset[n]])
        told = _batch_bytes(batch)
        # Random augmentation or masking shows in the first few, and would make the cache wrong.
        if n < 4 and _batch_bytes(collate([dataset[n]])) != told:
            raise InferKitError(
                f"Example {n} of the training data differs from one reading to the next.",
                hint="With random augmentation or masking the base has to see each reading: "
                'base_cache="none".',
            )
        sha.update(told)
        labels = labels_of(batch, shifted)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < size:
            raise InferKitError(
                f"Example {n} has a label outside the {size} ids: from {int(labels.min())} to "
                f"{int(labels.max())}.",
                hint="Were the labels made by another tokenizer?",
            )
        counts[n] = len(labels)
        frequencies += torch.bincount(labels.cpu(), minlength=size).double()
    return DatasetFacts(sha.hexdigest(), counts, frequencies)


class IndexedDataset(torch.utils.data.Dataset):
    """A data set whose examples say which one they are, in the column `INDEX`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], INDEX: index}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[n] for n in range(len(self)))


class IndexedCollator:
    """A collator that keeps the column `INDEX` where the one within would lose or pad it."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, examples: list[Any]) -> Batch:
        if not all(isinstance(example, dict) and INDEX in example for example in examples):
            return self.collate(examples)
        bare = [{k: v for k, v in example.items() if k != INDEX} for example in examples]
        batch = dict(self.collate(bare))
        batch[INDEX] = torch.tensor([example[INDEX] for example in examples])
        return batch


def tensor_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _batch_bytes(batch: Batch) -> bytes:
    told = []
    for name in sorted(batch):
        if name != INDEX:
            value = batch[name]
            told.append(f"{name} {getattr(value, 'shape', '')}".encode())
            told.append(tensor_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return b"\0".join(told)
