"""`MGRTrainer`: MGR with a trainer of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED
from infer_kit.training.labelled_columns import LabelledColumns
from infer_kit.training.own_state import OwnState
from infer_kit.training.renamed_weights import RenamedWeights
from infer_kit.training.replicas import refuse_replicas
from infer_kit.training.representation.classifiers import classifier_loss
from infer_kit.training.representation.consistency import FeatureConsistency
from infer_kit.training.representation.generators import Generator, check_generator, samples_of
from infer_kit.training.representation.logged_parts import LoggedParts
from infer_kit.training.representation.meta_sampling import (
    check_finder,
    draw,
    mps_step,
)
from infer_kit.training.representation.seeds import seeded
from infer_kit.training.symmetry.placed import modes


@dataclass(frozen=True)
class MGRConfig:
    """How `MGRMixin` trains.

    Args:
        lam: weight of PCR; the paper's is 1.
        samples: of the generator for a batch on a device; None for as many as the batch has labels.
        consistency: augmentation, reduction, stop-gradient and layer of PCR.
        prepare: samples to inputs of the model (size, normalisation); None for as they are.
        eta: learning rate of the finder's virtual step; None for that of the model's optimizer.
        finder_lr: of Adam, for the finder.
        validation_batch: examples of a validation batch; None for the batch size of training.

    Raises:
        InferKitError: a number that cannot be.
    """

    lam: float = 1.0
    samples: int | None = None
    consistency: FeatureConsistency = field(default_factory=FeatureConsistency)
    prepare: Callable[[Tensor], Tensor] | None = None
    eta: float | None = None
    finder_lr: float = 1e-3
    validation_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("lam", "eta", "finder_lr"):
            number = getattr(self, name)
            if number is not None and not (isfinite(number) and number >= 0):
                raise InferKitError(f"{name}={number}: a number from 0 on is expected.")
        for name in ("samples", "validation_batch"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or number < 1):
                raise InferKitError(f"{name}={number}: a whole number from 1 on is expected.")


class MGRMixin(LabelledColumns, OwnState, RenamedWeights):
    """Adds PCR on samples of a generator to the loss; to be named before a trainer's class.

    The loss of training is the cross-entropy of the logits, or the trainer's `compute_loss_func`,
    and lam times PCR; over accumulated batches and processes both are means over the whole step.
    Evaluation has the first alone. Logged beside "loss":
    "loss_cross_entropy", "loss_pcr" and, with a finder, "loss_finder_validation" at theta'; means
    over the steps since the last log and over processes.

    With a finder one step of it is made before each step of the model, on the first of the batches
    that gradients are accumulated over. Finder and its optimizer are in the trainer's checkpoints.
    All draws follow from `args.seed`, the step and the process, so that a resumed run makes the
    same. Between processes the finder's gradient is averaged; it starts as the first process's.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *positional: Any,
        generator: Generator | None = None,
        mgr: MGRConfig | None = None,
        finder: nn.Module | None = None,
        validation_dataset: Any = None,
        **options: Any,
    ) -> None:
        """Args:
        model, args, positional, options: of the trainer.
        generator: frozen; if it is a module, it is moved to the model's device.
        mgr: weights and options.
        finder, validation_dataset: for MPS, both: a `Finder`, and labelled examples with a length
            that are neither trained on nor those of the final evaluation.

        Raises:
            InferKitError: see the messages: what cannot work is refused here.
        """
        self.mgr = MGRConfig() if mgr is None else mgr
        if not isinstance(self.mgr, MGRConfig):
            raise InferKitError(f"mgr is a {type(mgr).__name__}; expected an MGRConfig.")
        check_generator(generator)
        self.generator: Any = generator
        self.finder = finder
        self.validation_dataset = validation_dataset
        self._check_finder(options)
        super().__init__(model, args, *positional, **options)  # type: ignore[call-arg]
        self._begin()

    def _check_finder(self, options: dict[str, Any]) -> None:
        data = self.validation_dataset
        if (self.finder is None) != (data is None):
            lacking = "validation_dataset" if data is None else "finder"
            raise InferKitError(
                f"Meta pseudo-sampling needs finder and validation_dataset; {lacking} is not "
                "given.",
                "Hold a part of the labelled data out as validation_dataset, or give neither.",
            )
        if data is None:
            return
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or not len(data):
            raise InferKitError(
                f"validation_dataset is a {type(data).__name__} without examples that can be "
                "drawn.",
                "Give one with a length from 1 on and an example for each index.",
            )
        if data is options.get("train_dataset"):
            raise InferKitError(
                "validation_dataset is train_dataset: the finder would be judged on what the "
                "model has seen.",
                "Hold a part of it out.",
            )
        if data is options.get("eval_dataset"):
            warnings.warn(
                "validation_dataset is eval_dataset: what trains the finder does not tell how "
                "good the model is.",
                stacklevel=4,
            )

    def _begin(self: Any) -> None:
        """What needs the trainer's own model and arguments."""
        refuse_replicas(self.args.n_gpu, "model")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise InferKitError(
                "DeepSpeed and FSDP leave no whole model to run the samples through.",
                "Use DistributedDataParallel, one process for each device.",
            )
        if self.compute_loss_func is None and self.label_smoother is None:
            self.compute_loss_func = classifier_loss
        device = self.args.device
        if isinstance(self.generator, nn.Module):
            self.generator.to(device)
        self._parts, self._micro = LoggedParts(), 0
        if self.finder is not None:
            check_finder(self.finder, self.generator)
            if self.args.fp16:
                raise InferKitError(
                    "fp16 scales the loss so that gradients do not vanish, and the finder's "
                    "gradient of a gradient has no scale.",
                    "Train with bf16=True or in float32.",
                )
            self.finder.to(device)
            self._finder_optimizer = torch.optim.Adam(
                self.finder.parameters(), lr=self.mgr.finder_lr
            )
            if dist.is_available() and dist.is_initialized():
                for p in self.finder.parameters():
                    dist.broadcast(p.data, 0)
        self._check_samples()

    def _check_samples(self: Any) -> None:
        """The model runs on what the generator gives, and has features there."""
        z, y = draw(self.generator, 2, self.args.device, torch.Generator().manual_seed(0))
        with torch.no_grad():
            made = samples_of(self.generator, z, y)
        try:
            with torch.no_grad(), modes(self.model):
                x = self._inputs(made)
                self.mgr.consistency.features(self.model, x, x)
        except InferKitError:
            raise
        except Exception as error:
            raise InferKitError(
                f"{type(self.model).__name__} does not run on samples of the "
                f"{type(self.generator).__name__}: {type(error).__name__}: {error}",
                "Give MGRConfig(prepare=...), which makes them what the model takes: size, "
                "channels, normalisation.",
            ) from error

    # Loss

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's loss and, in training, lam times PCR."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        labels = inputs.get("labels")
        if labels is None:
            raise InferKitError(
                f"The batch has no labels, only {', '.join(inputs)}.",
                "Give data with a column labels, or label.",
            )
        rng = self._rng(0)
        z, y = draw(self.generator, self.mgr.samples or len(labels), self.args.device, rng)
        if self.finder is not None and self._micro == 0:
            self._finder_step(inputs, z, y, rng)
        ce, outputs = super().compute_loss(  # type: ignore[misc]
            model, dict(inputs), return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        with torch.no_grad():
            latents = z if self.finder is None else self.finder(z)
            x = self._inputs(samples_of(self.generator, latents, y))
        pcr = self.mgr.consistency(self.model, x, rng)
        # The trainer divides a mean of the batch by the batches of the step. Otherwise its loss is
        # the batch's share of the step's: so has this one to be.
        if num_items_in_batch is not None:
            share = labels.ne(IGNORED).sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                share = share * self.accelerator.num_processes
            pcr = share * pcr
        self._micro += 1
        self._parts.add(
            {"cross_entropy": ce, "pcr": pcr},
            self.current_gradient_accumulation_steps,
            shares=num_items_in_batch is not None,
        )
        loss = ce + self.mgr.lam * pcr
        return (loss, outputs) if return_outputs else loss

    def _finder_step(self: Any, inputs: dict[str, Any], z: Tensor, y: Tensor, rng: Any) -> None:
        eta = self.mgr.eta
        value = mps_step(
            self.model, self.finder, self._finder_optimizer, self.generator, inputs,
            self._validation_batch(), z, y,
            eta=self.optimizer.param_groups[0]["lr"] if eta is None else eta,
            lam=self.mgr.lam, consistency=self.mgr.consistency, loss=self._plain_loss,
            prepare=self._inputs, rng=rng,
        )  # fmt: skip
        self._parts.add_to_step({"finder_validation": value})

    def _plain_loss(self: Any, model: Any, batch: Any) -> Tensor:
        loss: Tensor = super().compute_loss(model, dict(batch))  # type: ignore[misc]
        return loss

    def _inputs(self: Any, x: Tensor) -> Tensor:
        x = x if self.mgr.prepare is None else self.mgr.prepare(x)
        return x.to(self.args.device, next(self.model.parameters()).dtype)

    # Draws

    def get_batch_samples(self: Any, *args: Any, **options: Any) -> Any:
        """As the trainer's: the batches of one step."""
        self._micro = 0
        return super().get_batch_samples(*args, **options)  # type: ignore[misc]

    def _rng(self: Any, use: int) -> torch.Generator:
        """Of this batch and process alone, whatever was drawn before."""
        place = self.args.seed, self.state.global_step, self._micro, self.args.process_index
        return seeded(*place, use)

    def _validation_batch(self: Any) -> dict[str, Any]:
        data, collate = self.validation_dataset, self.data_collator
        if hasattr(data, "column_names"):  # of the package datasets
            data = self._remove_unused_columns(data, description="validation")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="validation")
        size = min(self.mgr.validation_batch or self.args.train_batch_size, len(data))
        index = torch.randperm(len(data), generator=self._rng(1))[:size].tolist()
        batch: dict[str, Any] = self._prepare_inputs(collate([data[i] for i in index]))
        return batch

    # Logs and checkpoints

    def log(self: Any, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """As the trainer's, with the parts of the loss."""
        super().log(self._parts.into(logs, self.accelerator), *args, **options)  # type: ignore[misc]

    own_file = "mgr_finder.pt"

    def own_state(self: Any) -> dict[str, Any] | None:
        """Finder and its optimizer; None without a finder."""
        if self.finder is None:
            return None
        return {
            "finder": self.finder.state_dict(),
            "optimizer": self._finder_optimizer.state_dict(),
        }

    def load_own_state(self: Any, state: dict[str, Any]) -> None:
        """Takes them."""
        self.finder.load_state_dict(state["finder"])
        self._finder_optimizer.load_state_dict(state["optimizer"])


class MGRTrainer(MGRMixin, Trainer):
    """transformers' `Trainer` with PCR on generated samples; see `MGRMixin` for what it takes."""
