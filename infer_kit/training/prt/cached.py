"""The base of a training run, read from a cache."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.reward.loss import TopK, topk_base
from infer_kit.training.base_cache import BaseCache, CacheKey
from infer_kit.training.indexed_data import INDEX, dataset_facts
from infer_kit.training.prt.scores import Places, Rows, same


class CachedBase:
    """Gives the base's scores at the labels of training examples."""

    def __init__(self, trainer: Any, base: Any, folder: str | Path) -> None:
        """Opens the cache in a folder, and builds what is missing of it.

        Args:
            trainer: with a `PRTMixin`; its data, collator, precision and settings are used.
            base: `FrozenBase` or `AdapterBase`.

        Raises:
            InferKitError: the folder holds a cache made with something else.
        """
        self._trainer, self._base = trainer, base
        self._kind, self._size = trainer.prt.base_cache, trainer.vocab_size
        self._shifted = trainer.kind == "causal-lm"
        data, collate = trainer.train_dataset, trainer.collate_training
        facts = dataset_facts(data, collate, self._shifted, self._size)
        dtype, width = self._arithmetic()
        key = CacheKey(
            self._kind,
            self._size,
            trainer.prt.topk if self._kind == "topk" else 0,
            dtype,
            base.sha256(),
            facts.sha256,
            len(data),
        )
        self._cache = BaseCache(folder, key, facts.counts, width)
        # Batches without padding are one row, of which the examples cannot be told.
        flat = getattr(trainer, "padding_free", False)
        if not self._cache.complete:
            self._cache.build(self._made, 1 if flat else trainer.args.per_device_eval_batch_size)
        self._prior: Tensor | None = None
        if trainer.prt.tail == "corpus":
            # Each id once more than it was seen: none may be left without its share of the tail.
            self._prior = ((facts.frequencies + 1) / (facts.frequencies + 1).sum()).float()

    def _arithmetic(self) -> tuple[str, int]:
        """Name of the dtype, and width of the hidden states."""
        mixed = self._trainer.accelerator.mixed_precision
        dtype, width = self._base.dtype(), 0
        if self._kind == "hidden":
            batch = self._trainer.collate_training([self._trainer.train_dataset[0]])
            states = self._outputs(batch).values
            self._dtype = dtype = states.dtype
            width = states.shape[-1]
        name = str(dtype).removeprefix("torch.")
        return (name if mixed == "no" else f"{name} {mixed}"), width

    def _outputs(self, batch: dict[str, Any]) -> Any:
        inputs = {n: v for n, v in batch.items() if n not in ("labels", INDEX)}
        inputs = self._trainer._prepare_inputs(inputs)  # to its device
        with self._trainer.compute_loss_context_manager():  # in the precision of a step
            return self._base.outputs(inputs, self._kind == "hidden")

    def _made(self, examples: list[int]) -> dict[str, Tensor]:
        """Rows of the cache for these examples."""
        data = self._trainer.train_dataset
        batch = self._trainer.collate_training([data[n] for n in examples])
        values = self._outputs(batch).values
        labels = batch["labels"].to(values.device)
        places = Places.of(batch | {"labels": labels}, self._shifted)
        rows = places.rows(values, "base")
        if self._kind == "hidden":
            return {"hidden": rows}
        logprobs = rows[:, : self._size].float().log_softmax(-1)
        if self._kind == "full":
            return {"logprobs": logprobs}
        head, ids = logprobs.topk(self._trainer.prt.topk, dim=-1)
        gold = logprobs.gather(-1, places.labels[:, None])[:, 0]
        return {"ids": ids.int(), "head": head.half(), "gold": gold}

    def rows(self, examples: Tensor, labels: Tensor) -> Rows:
        """Scores of the base at the labels of a batch.

        Args:
            examples: `[b]` indices. labels: `[n]`, of all of them.
        """
        found = self._cache.rows(examples, getattr(self, "_dtype", torch.float32), len(labels))
        found = {name: values.to(labels.device) for name, values in found.items()}
        if self._kind == "full":
            return Rows(found["logprobs"], same)
        if self._kind == "hidden":
            return Rows(found["hidden"], self._base.head)
        ids, head, gold = found["ids"].long(), found["head"].float(), found["gold"]
        prior = None if self._prior is None else self._prior.to(labels.device)

        def scores(places: Tensor) -> Tensor:
            """`[m, V]` of m of the labels."""
            topk = TopK(ids[places], head[places], gold[places])
            return topk_base(topk, labels[places], self._size, prior)

        return Rows(torch.arange(len(labels), device=labels.device), scores)
