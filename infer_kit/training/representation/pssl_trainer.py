"""`PSSLTrainer`: P-SSL with a trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED
from infer_kit.training.labelled_columns import LabelledColumns
from infer_kit.training.renamed_weights import RenamedWeights
from infer_kit.training.replicas import refuse_replicas
from infer_kit.training.representation.logged_parts import LoggedParts
from infer_kit.training.representation.seeds import seeded
from infer_kit.training.representation.semi_supervised import PseudoSemiSupervised


class PSSLMixin(LabelledColumns, RenamedWeights):
    """Trains an image classifier by P-SSL; to be named before a trainer's class.

    What is drawn in a step follows from the run's seed, the process and the number of the step, so
    that a run that is resumed draws what it would have drawn, and there is no state to save.
    Evaluation has the model's plain loss. Logged are loss_supervised, loss_unlabelled (without
    weight and ramp) and loss_kept, the share of pseudo samples that count.
    """

    # `compute_loss` divides by the labels of all batches that gradients are accumulated over.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *positional: Any,
        pssl: PseudoSemiSupervised | None = None,
        **options: Any,
    ) -> None:
        """Args:
        model: an image classifier of transformers, of `pixel_values` and `labels`.
        args: of the trainer.
        pssl: the loss.
        positional, options: see the trainer.

        Raises:
            InferKitError: see the messages: what cannot work is refused here.
        """
        if not isinstance(pssl, PseudoSemiSupervised):
            raise InferKitError(
                f"pssl is a {type(pssl).__name__}; expected a PseudoSemiSupervised.",
                "Make one of a PseudoSampler and a relatedness report.",
            )
        if options.get("compute_loss_func") is not None:
            raise InferKitError("compute_loss_func would replace the loss.", "Leave it out.")
        super().__init__(model, args, *positional, **options)  # type: ignore[call-arg]
        self._begin(pssl)

    def _begin(self: Any, pssl: PseudoSemiSupervised) -> None:
        refuse_replicas(self.args.n_gpu, "model")
        kind = getattr(getattr(self.model, "config", None), "problem_type", None)
        if kind not in (None, "single_label_classification"):
            raise InferKitError(
                f"The model's problem_type is {kind!r}; P-SSL has one class for an image."
            )
        if self.args.label_smoothing_factor:
            raise InferKitError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor}; the cross-entropy "
                "of P-SSL has no smoothing.",
                "Leave it out.",
            )
        self.pssl = pssl
        self.model_accepts_loss_kwargs = True  # so that labels are counted over the whole batch
        self._parts = LoggedParts()
        self._place = (-1, 0)

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; in evaluation the model's own.

        Returns:
            A scalar, or that and `{"logits": [B, K]}` of the labelled images.
        """
        if not self.model.training:
            # Without the count: not every model's forward takes it.
            return super().compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
        x, y, call = _parts_of(inputs)
        rng = self._generator()
        said = self.pssl(model, x, y, self.state.global_step, self.state.max_steps, rng, call)
        parts = ("supervised", "unlabelled", "kept")
        self._parts.add(
            {name: getattr(said, name) for name in parts}, self.current_gradient_accumulation_steps
        )
        loss = said.loss
        if num_items_in_batch is not None:
            # Each batch by its labels: the mean over all that gradients are accumulated over.
            loss = loss * (y != IGNORED).sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, {"logits": said.logits}) if return_outputs else loss

    def _generator(self: Any) -> torch.Generator:
        """That of this batch of this step of this process."""
        step, batch = self._place
        now = self.state.global_step
        self._place = (now, batch + 1 if step == now else 0)
        return seeded(self.args.seed, self.args.process_index, *self._place)

    def log(self: Any, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """As the trainer's, with the parts of the loss."""
        super().log(self._parts.into(logs, self.accelerator), *args, **options)  # type: ignore[misc]


class PSSLTrainer(PSSLMixin, Trainer):
    """transformers' `Trainer` for P-SSL; see `PSSLMixin` for what it takes beyond it.

    >>> trainer = PSSLTrainer(model, args, train_dataset=data, pssl=PseudoSemiSupervised(...))
    """


def _parts_of(
    inputs: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Callable[[nn.Module, Tensor], Any]]:
    """Images, labels, and the call of a model on more images with what else there is."""
    if not {"pixel_values", "labels"} <= set(inputs):
        raise InferKitError(
            f"The batch has {', '.join(inputs)}; pixel_values and labels are expected.",
            "P-SSL is for image classifiers.",
        )
    rest = {k: v for k, v in inputs.items() if k not in ("pixel_values", "labels")}
    rows = [name for name, value in rest.items() if isinstance(value, Tensor)]
    if rows:
        raise InferKitError(
            f"The batch has {', '.join(rows)}, which pseudo samples have not.",
            "Give data of pixel_values and labels alone.",
        )
    return inputs["pixel_values"], inputs["labels"], lambda m, x: m(pixel_values=x, **rest)
