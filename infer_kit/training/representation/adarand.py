"""AdaRand: fine-tuning that pulls the features of each image to draws of its class's Gaussian."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer

from infer_kit.errors import InferKitError
from infer_kit.training.feature_tap import FeatureTap
from infer_kit.training.labelled_columns import LabelledColumns
from infer_kit.training.own_state import OwnState
from infer_kit.training.renamed_weights import RenamedWeights
from infer_kit.training.replicas import refuse_replicas
from infer_kit.training.representation.classifiers import classifier_loss
from infer_kit.training.representation.feature_moments import check_features, check_one_vector
from infer_kit.training.representation.gaussian_prior import ClassGaussianPrior, GaussianPrior
from infer_kit.training.representation.logged_parts import LoggedParts
from infer_kit.training.representation.seeds import seeded

REDUCTIONS = ("sum", "mean")
"""How the squared distance of a feature vector adds up: over its features, or their mean."""

FILE = "adarand.pt"
"""What `AdaRandMixin` adds to a checkpoint."""


class AdaRandLoss(nn.Module):
    r"""lam times the squared distance of features to draws of a prior, the mean over a batch.

    sum:   L = CE + lam/B sum_i |g_i - z_i|^2
    mean:  L = CE + lam/(B D) sum_i |g_i - z_i|^2,      z_i a draw for y_i, without gradient

    >>> prior = ClassGaussianPrior.from_loader(model, loader, n_classes=10)
    >>> adarand = AdaRandLoss(prior)
    >>> with FeatureTap(model) as tap:
    ...     loss = cross_entropy(model(x), y) + adarand(features := tap.take(), y)
    >>> loss.backward()
    >>> optimizer.step()
    >>> prior.update(features, y)

    Source: Yamaguchi et al., CVPR 2024 (arXiv 2403.10097), where the sum is written. The published
    runs take lam 1 with the mean, which is the sum with lam = 1/D; here both are named.

    Args:
        prior: `ClassGaussianPrior`, or `GaussianPrior` for the references with one Gaussian.
        lam: weight, from 0 on.
        reduction: "sum" or "mean".

    Raises:
        InferKitError: another prior, a lam below 0, or another reduction.
    """

    def __init__(
        self, prior: ClassGaussianPrior | GaussianPrior, lam: float = 1.0, reduction: str = "sum"
    ) -> None:
        super().__init__()
        if not isinstance(prior, ClassGaussianPrior | GaussianPrior):
            raise InferKitError(
                f"prior is a {type(prior).__name__}; a ClassGaussianPrior or GaussianPrior is "
                "expected.",
                "ClassGaussianPrior.from_loader(model, loader, n_classes) makes one.",
            )
        if not 0 <= lam < float("inf"):
            raise InferKitError(f"lam={lam}: a number from 0 on is expected.")
        if reduction not in REDUCTIONS:
            raise InferKitError(
                f"reduction={reduction!r}: one of {', '.join(REDUCTIONS)} is expected."
            )
        self.prior, self.lam, self.reduction = prior, lam, reduction

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        n_examples: Tensor | int | None = None,
    ) -> Tensor:
        """The term to add to the cross-entropy.

        Args:
            features: `[B, D]` floating; half precision is computed in float32.
            labels: `[B]` integers.
            generator: of the draws, on the prior's device; None for PyTorch's own.
            n_examples: what the sum over the batch is divided by: where gradients are accumulated,
                the examples of all micro-batches. None for B.

        Returns:
            A scalar, with a gradient to the features alone.

        Raises:
            InferKitError: features or labels that do not go with the prior.
        """
        z = self.prior.sample(labels, generator)
        check_features(features, len(labels), z.shape[1], "the prior's")
        distance = (features.to(torch.promote_types(features.dtype, z.dtype)) - z).square().sum(1)
        if self.reduction == "mean":
            distance = distance / z.shape[1]
        return self.lam * distance.sum() / (len(labels) if n_examples is None else n_examples)


class AdaRandMixin(LabelledColumns, OwnState, RenamedWeights):
    """Trains a classifier with AdaRand; to be named before a trainer's class.

    The loss is the cross-entropy of the logits, or the trainer's `compute_loss_func`, and the term
    of `AdaRandLoss`; evaluation has no term. The cross-entropy that a model computes by itself is
    not used, see `classifier_loss`. Both parts are logged, as `loss_cross_entropy` and
    `loss_adarand`.

    The prior is updated once an optimizer step, with the features of all its micro-batches and of
    all processes as they were before the step: as if they were one batch. All processes begin with
    the prior of the first. It goes into the trainer's checkpoints and comes from them.

    Draws follow from `args.seed`, the process and the number of batches so far; they move none of
    PyTorch's generators, so that dropout and the order of data are those of a run without AdaRand.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *positional: Any,
        adarand: AdaRandLoss | None = None,
        layer: str | None = None,
        **options: Any,
    ) -> None:
        """Args:
        model: a classifier whose outputs have `logits` `[B, K]`, of labels `[B]`.
        args: of the trainer.
        adarand: the term, with its prior. Make it before, of the model as it was pre-trained.
        layer: module whose output the features are; None for what the last `nn.Linear` reads, as
            for the prior.
        positional, options: see the trainer.

        Raises:
            InferKitError: no AdaRandLoss; no such module; several GPUs in one process.
        """
        if not isinstance(adarand, AdaRandLoss):
            raise InferKitError(
                f"adarand is a {type(adarand).__name__}; an AdaRandLoss is expected.",
                "Give AdaRandLoss(ClassGaussianPrior.from_loader(model, loader, n_classes)).",
            )
        super().__init__(model, args, *positional, **options)  # type: ignore[call-arg]
        self._begin(adarand, layer)

    def _begin(self: Any, adarand: AdaRandLoss, layer: str | None) -> None:
        """What needs the trainer's own model and arguments."""
        refuse_replicas(self.args.n_gpu, "model")
        FeatureTap(self.model, layer)
        self.adarand, self._layer = adarand.to(self.args.device), layer
        if self.compute_loss_func is None and self.label_smoother is None:
            self.compute_loss_func = classifier_loss
        if self.model_init is not None:
            self._start = copy.deepcopy(self.adarand.prior.state_dict())
        self._batches, self._counts_steps = 0, False
        self._parts = LoggedParts()

    # Loss

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's own loss; in training with the term, whose features the prior takes in."""
        loss_of = super().compute_loss  # type: ignore[misc]
        if not model.training:
            return loss_of(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("labels")
        if labels is None:
            raise InferKitError(
                f"The batch has no labels, only {', '.join(inputs)}.",
                "Give data with a column labels, or label.",
            )
        inner = self.accelerator.unwrap_model(model)
        with FeatureTap(inner, self._layer) as tap:
            loss, outputs = loss_of(model, inputs, True, num_items_in_batch)
            features = tap.take()
        check_one_vector(inner, tap, self._layer, features)
        term = self.adarand(features, labels, self._generator(), num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # They are those of all processes, over which gradients are then averaged.
            term = term * (self.accelerator.num_processes // self.get_tp_size())
        if isinstance(self.adarand.prior, ClassGaussianPrior):
            self.adarand.prior.accumulate(features, labels)
        self._parts.add(
            {"cross_entropy": loss, "adarand": term},
            self.current_gradient_accumulation_steps,
            shares=num_items_in_batch is not None,
        )
        return (loss + term, outputs) if return_outputs else loss + term

    def training_step(self: Any, *args: Any, **options: Any) -> Tensor:
        """As the trainer's; the prior is updated with the last micro-batch of a step."""
        loss: Tensor = super().training_step(*args, **options)  # type: ignore[misc]
        if self.accelerator.sync_gradients:
            prior = self.adarand.prior
            if isinstance(prior, ClassGaussianPrior):
                if self._counts_steps:  # those before this run, and those of it
                    before = int(prior.steps) - self.state.global_step
                    prior.total_steps = before + self.state.max_steps
                prior.step()
        return loss

    def _generator(self: Any) -> torch.Generator:
        """Of this batch's draws."""
        device = self.adarand.prior.mu.device
        self._batches += 1
        place = self.args.seed, self.args.process_index, self._batches
        return seeded(*place, device=device)

    def log(self: Any, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """As the trainer's, with both parts beside the loss of training."""
        super().log(self._parts.into(logs, self.accelerator), *args, **options)  # type: ignore[misc]

    # Training

    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        """As the trainer's, all processes with the prior of the first.

        With `model_init` each call begins with the prior that was given, as with a new model.
        Otherwise the prior goes on from where it is: a run of another model needs a new one.
        """
        if self.model_init is not None:  # which makes a new model for each call
            self.adarand.prior.load_state_dict(self._start)
            self._batches = 0
        if dist.is_initialized():
            for buffer in self.adarand.buffers():
                dist.broadcast(buffer, 0)
        prior = self.adarand.prior
        if not isinstance(prior, ClassGaussianPrior):
            return super().train(resume_from_checkpoint, *args, **options)  # type: ignore[misc]
        prior.forget()
        if int(prior.steps) and not resume_from_checkpoint:
            warnings.warn(
                f"The prior has followed {int(prior.steps)} steps of an earlier run, and goes on "
                "from there. Make a new one for a new model.",
                stacklevel=2,
            )
        self._counts_steps = prior.total_steps is None
        try:
            return super().train(resume_from_checkpoint, *args, **options)  # type: ignore[misc]
        finally:
            if self._counts_steps:
                prior.total_steps = None

    # Checkpoints

    own_file = FILE

    def own_state(self: Any) -> dict[str, Any]:
        """The prior, and how many batches were drawn for."""
        return {"prior": self.adarand.prior.state_dict(), "batches": self._batches}

    def load_own_state(self: Any, state: dict[str, Any]) -> None:
        """Takes them.

        Raises:
            InferKitError: the prior is of another kind or size.
        """
        try:
            self.adarand.prior.load_state_dict(state["prior"])
        except RuntimeError as error:
            raise InferKitError(
                f"The checkpoint has another prior: {error}",
                "Resume with a prior of the kind, classes and features that it was made with.",
            ) from error
        self._batches = state["batches"]


class AdaRandTrainer(AdaRandMixin, Trainer):
    """transformers' `Trainer` with AdaRand; see `AdaRandMixin` for what it takes beyond it."""
