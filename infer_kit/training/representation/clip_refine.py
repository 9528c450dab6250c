"""CLIP-Refine: one more epoch for a CLIP-like model, that narrows the modality gap."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.utils.data import ConcatDataset, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments

from infer_kit.errors import InferKitError
from infer_kit.training.renamed_weights import RenamedWeights
from infer_kit.training.replicas import refuse_replicas
from infer_kit.training.representation.clip_losses import (
    SIMILARITIES,
    Reduction,
    Similarity,
    align_loss,
    contrastive_loss,
    hycd_loss,
    natural_similarity,
    rafa_loss,
    similarities,
)
from infer_kit.training.representation.image_text import (
    IMAGE,
    TEXT,
    CaptionedImages,
    ImageTextCollator,
    features_of_pairs,
)
from infer_kit.training.representation.logged_parts import LoggedParts
from infer_kit.training.representation.modality import ModalityReport
from infer_kit.training.representation.seeds import seeded

REFERENCES = ("shared", "zero", "apart")


@dataclass(frozen=True)
class CLIPRefineConfig:
    """The loss lam_rand RaFA + lam_kd HyCD + lam_align mse(a, b).

    With lam_rand = 0 it is HyCD alone, with alpha = 1 besides the contrastive loss; the last term
    and the references "zero" and "apart" are controls.

    Attributes:
        alpha: share of the pairs in HyCD's targets, the rest is the teacher's.
        temperature: T of HyCD.
        lam_rand, lam_kd, lam_align: weights of the terms.
        reduction: of RaFA, "mean" as in the published runs, or "paper", d/2 times larger.
        reference: z of RaFA: "shared", one draw for both modalities; "zero", a penalty on the
            norms; "apart", a draw for each.
        similarity: "raw" products, "scaled_cosine", or "auto", which takes "raw" where products of
            features are on the scale of the model's logits (`natural_similarity`).
    """

    alpha: float = 0.5
    temperature: float = 1.0
    lam_rand: float = 1.0
    lam_kd: float = 1.0
    lam_align: float = 0.0
    reduction: Reduction = "mean"
    reference: Literal["shared", "zero", "apart"] = "shared"
    similarity: Similarity | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InferKitError(f"alpha={self.alpha}: a number from 0 to 1 is expected.")
        if not self.temperature > 0:
            raise InferKitError(f"temperature={self.temperature}: above 0 is expected.")
        weights = {name: getattr(self, name) for name in ("lam_rand", "lam_kd", "lam_align")}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise InferKitError(f"{name}={weight}: a number from 0 on is expected.")
        if not any(weights.values()):
            raise InferKitError("All weights of the loss are 0.")
        choices = {
            "reduction": ("mean", "paper"),
            "reference": REFERENCES,
            "similarity": (*SIMILARITIES, "auto"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InferKitError(
                    f"{name}={getattr(self, name)!r}: one of {', '.join(known)} is expected."
                )

    @property
    def taught(self) -> bool:
        """Whether a teacher is needed."""
        return self.lam_kd > 0 and self.alpha < 1


class CLIPRefineMixin(RenamedWeights):
    """Refines a CLIP-like model; to be named before a trainer's class.

    The loss is that of the batch of all processes together: features are gathered with their
    gradients, so that n processes of B pairs are one of n B. Accumulated batches stay apart, as a
    softmax over them is not the sum of theirs. The teacher is held by the trainer: in evaluation
    mode, without gradients, in no checkpoint. The model's logit scale is not trained, and not
    decayed; weight decay is on all other parameters, as published.

    References of RaFA are drawn from the run's seed and the number of the batch: a run that is
    resumed draws what it would have drawn.

    Attributes:
        similarity: what S is; None before it is decided.
        product_of_norms: mean |a||b|, by which it was decided; None where it was given.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        refine: CLIPRefineConfig | None = None,
        teacher: Any = None,
        processor: Any = None,
        **options: Any,
    ) -> None:
        """Args:
        model: CLIP, SigLIP or their like, of transformers; trained in place.
        args: of the trainer; `refine_arguments` has the published ones.
        refine: the loss.
        teacher: reads the same batches; None for a copy of the model as it is now.
        processor: the model's, for data {"image", "text"} such as `CaptionedImages`; None where
            `data_collator` makes the model's inputs.
        options: see the trainer.

        Raises:
            InferKitError: see the messages: what cannot work is refused here.
        """
        self.refine = CLIPRefineConfig() if refine is None else refine
        if not isinstance(self.refine, CLIPRefineConfig):
            raise InferKitError(
                f"refine is a {type(self.refine).__name__}; expected a CLIPRefineConfig."
            )
        _check_model(model, "model")
        processor = options.get("processing_class") if processor is None else processor
        if options.get("compute_loss_func") is not None:
            raise InferKitError("compute_loss_func would replace the loss.", "Leave it out.")
        if processor is not None:
            options.setdefault("data_collator", ImageTextCollator(model, processor))
            options.setdefault("processing_class", processor)
        elif "data_collator" not in options:
            raise InferKitError(
                "Neither processor nor data_collator is given.",
                "Give the model's processor, with CaptionedImages as data.",
            )
        options.setdefault("compute_metrics", _metrics)
        super().__init__(model, args, **options)  # type: ignore[call-arg]
        self._begin(teacher)

    def _begin(self: Any, teacher: Any) -> None:
        refuse_replicas(self.args.n_gpu, "model")
        if self.args.label_smoothing_factor:
            raise InferKitError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor}; HyCD has no "
                "smoothing.",
                "CLIPRefineConfig(alpha=...) softens the targets by the teacher's.",
            )
        for name in ("logit_scale", "logit_bias"):
            if isinstance(parameter := getattr(self.model, name, None), Tensor):
                parameter.requires_grad_(False)
        self._teacher = None
        if self.refine.taught:
            if teacher is None:
                teacher = copy.deepcopy(self.model)
            if teacher is self.model:
                raise InferKitError(
                    "The teacher is the model itself, and would learn with it.",
                    "Leave teacher out: a copy is made.",
                )
            _check_model(teacher, "teacher")
            _check_same_inputs(self.model, teacher)
            teacher.requires_grad_(False).eval()
            self._teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs
        self.similarity: Similarity | None = (
            None if self.refine.similarity == "auto" else self.refine.similarity
        )
        self.product_of_norms: float | None = None
        self._parts = LoggedParts()
        self._micro = 0
        self.add_callback(_Epochs(list(_captioned(self.train_dataset))))

    # Loss

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch; with `return_outputs` also the features.

        Returns:
            A scalar, or that and {"image": `[B, d]`, "text": `[B, d]`}, of this process's pairs.
        """
        own_a, own_b = features_of_pairs(model, inputs)
        a, b = _gathered(own_a), _gathered(own_b)
        refine, parts = self.refine, {}
        with torch.autocast(a.device.type, enabled=False):
            a, b = a.float(), b.float()
            if refine.lam_kd:
                S_t = None
                if refine.taught:
                    with torch.no_grad(), self.compute_loss_context_manager():
                        t, u = features_of_pairs(self._teacher, inputs)
                    S_t = self._similarities(self._teacher, _gathered(t), _gathered(u))
                S = self._similarities(model, a, b)
                parts["hycd"] = refine.lam_kd * hycd_loss(S, S_t, refine.alpha, refine.temperature)
            if refine.lam_rand:
                parts["rafa"] = refine.lam_rand * self._rafa(a, b)
            if refine.lam_align:
                parts["align"] = refine.lam_align * align_loss(a, b)
        if self.model.training:
            self._micro += 1
            self._parts.add(parts, self.current_gradient_accumulation_steps)
        loss = torch.stack(list(parts.values())).sum()
        return (loss, {IMAGE: own_a, TEXT: own_b}) if return_outputs else loss

    def _rafa(self: Any, a: Tensor, b: Tensor) -> Tensor:
        number = self.state.global_step * self.args.gradient_accumulation_steps + self._micro
        generator = seeded(self.args.seed, number)
        if self.refine.reference == "zero":
            return rafa_loss(a, b, torch.zeros_like(a), self.refine.reduction)
        z = torch.randn(a.shape, generator=generator).to(a)
        if self.refine.reference == "shared":
            return rafa_loss(a, b, z, self.refine.reduction)
        other = torch.randn(a.shape, generator=generator).to(a)
        # Each with a reference of its own: half of each pair's loss twice.
        reduction = self.refine.reduction
        return (rafa_loss(a, a, z, reduction) + rafa_loss(b, b, other, reduction)) / 2

    def _similarities(self: Any, model: Any, a: Tensor, b: Tensor) -> Tensor:
        """Of the features of all processes, so that all decide alike where it is to be decided."""
        scale = self._scale(model)
        if self.similarity is None:
            self.similarity, self.product_of_norms = natural_similarity(
                a.detach(), b.detach(), float(scale)
            )
        return similarities(a, b, self.similarity, scale)

    def _scale(self: Any, model: Any) -> Tensor:
        scale: Tensor = self.accelerator.unwrap_model(model).logit_scale.detach().float().exp()
        return scale

    def train(self: Any, *args: Any, **options: Any) -> Any:
        """As the trainer's.

        Raises:
            InferKitError: there are no data, or they do not fill one batch.
        """
        self._check_data()
        if self.similarity is None:
            # By the model as it was given: one that is resumed has not been loaded yet.
            inputs = next(iter(self.get_eval_dataloader(self.train_dataset)))
            self.model.eval()
            with torch.no_grad(), self.compute_loss_context_manager():
                a, b = features_of_pairs(self.model, self._prepare_inputs(inputs))
            self._similarities(self.model, _gathered(a).float(), _gathered(b).float())
        return super().train(*args, **options)  # type: ignore[misc]

    def _check_data(self: Any) -> None:
        if self.train_dataset is None:
            raise InferKitError("There is no train_dataset.", "Give CaptionedImages.")
        batch = self.args.train_batch_size * self.args.world_size
        size = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else batch
        if batch == 1 and self.refine.lam_kd:
            raise InferKitError(
                "A batch is one pair, which has no other to be told from.",
                "Raise per_device_train_batch_size: the published one is 512.",
            )
        if self.args.dataloader_drop_last and size < batch:
            raise InferKitError(
                f"{size} pairs are less than a batch of {batch}, and dataloader_drop_last drops "
                "what does not fill one.",
                "Lower per_device_train_batch_size.",
            )

    def training_step(self: Any, *args: Any, **options: Any) -> Tensor:
        step: Tensor = super().training_step(*args, **options)  # type: ignore[misc]
        if self.accelerator.sync_gradients:
            self._micro = 0  # the number of a batch is that of its step and its place in it
        return step

    def log(self: Any, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """As the trainer's, with the weighted parts of the loss."""
        super().log(self._parts.into(logs, self.accelerator), *args, **options)  # type: ignore[misc]

    # Evaluation

    def prediction_step(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """The contrastive loss of a batch by the model's own logits, and its features.

        These are scaled cosines whatever the training's similarities are, so that runs compare. A
        pair has the others of its batch beside it: the loss grows with per_device_eval_batch_size.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            a, b = features_of_pairs(model, inputs)
        cosines = similarities(a.float(), b.float(), "scaled_cosine", self._scale(model))
        loss = contrastive_loss(cosines)
        if prediction_loss_only:
            return loss, None, None
        # Labels have no meaning here, but without them a trainer computes no metrics.
        return loss, (a.float(), b.float()), torch.zeros(len(a), device=a.device)

    def get_eval_dataloader(self: Any, *args: Any, **options: Any) -> Any:
        """As the trainer's, to the last pair: dataloader_drop_last is of training."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **options)  # type: ignore[misc]
        finally:
            self.args.dataloader_drop_last = drops

    # What a trainer decides by names

    def get_decay_parameter_names(self: Any, model: nn.Module) -> list[str]:
        """All: as published, biases and norms too."""
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        # Which the model's forward does not take, but the collator does.
        self._signature_columns += sorted({IMAGE, TEXT} - set(self._signature_columns))


class CLIPRefineTrainer(CLIPRefineMixin, Trainer):
    """transformers' `Trainer` for CLIP-Refine; see `CLIPRefineMixin` for what it takes beyond it.

    >>> trainer = CLIPRefineTrainer(model, refine_arguments("out"), processor=processor,
    ...                             train_dataset=CaptionedImages(images, captions))
    >>> trainer.train()
    >>> trainer.save_model("refined")

    Source: Yamaguchi et al., CVPR 2025, arXiv 2504.12717. Differs: similarities are scaled cosines
    where raw products are not on the scale of the model's logits; with alpha = 1 S is what it is
    otherwise, where the published contrastive baseline multiplies raw products by 100; the logit
    scale is neither trained nor decayed.
    """


def refine_arguments(output_dir: str | Path, **given: Any) -> TrainingArguments:
    """The published run: AdamW at 1e-6 without schedule, weight decay 0.1, 512 pairs, one epoch.

    Evaluation has the batches of training, if it is not given others: its loss depends on them.

    Args:
        output_dir: for checkpoints. given: other arguments, or others of these.
    """
    published: dict[str, Any] = {
        "learning_rate": 1e-6,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 512,
        "dataloader_drop_last": True,
        "num_train_epochs": 1,
        "report_to": "none",
    }
    batch = given.get("per_device_train_batch_size", published["per_device_train_batch_size"])
    published["per_device_eval_batch_size"] = batch
    return TrainingArguments(output_dir=str(output_dir), **published | given)


class _Epochs(TrainerCallback):
    """Tells the data which epoch it is: they draw a caption of each image anew."""

    def __init__(self, data: list[CaptionedImages]) -> None:
        self.data = data

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for one in self.data:
            one.set_epoch(int(state.epoch))


def _captioned(data: Any) -> Iterator[CaptionedImages]:
    """Those in a dataset, be it a part of them or several."""
    if isinstance(data, CaptionedImages):
        yield data
    elif isinstance(data, Subset):
        yield from _captioned(data.dataset)
    elif isinstance(data, ConcatDataset):
        for one in data.datasets:
            yield from _captioned(one)


def _metrics(prediction: Any) -> dict[str, Any]:
    a, b = (torch.as_tensor(features) for features in prediction.predictions)
    report = ModalityReport.of(a, b)
    found = {
        "gap": report.gap, "alignment": report.alignment, "uniformity": report.uniformity,
    }  # fmt: skip
    found |= {f"image_to_text_r{k}": value for k, value in report.image_to_text.items()}
    return found | {f"text_to_image_r{k}": value for k, value in report.text_to_image.items()}


def _gathered(x: Tensor) -> Tensor:
    """The rows of all processes, with gradients.

    Each process then has the loss of all pairs. Backward sums what each says of a row, and DDP
    takes the mean over the processes, which gives the gradient of that loss.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    if not x.requires_grad:
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)
    return torch.cat(list(all_gather(x.contiguous())))


def _check_model(model: Any, what: str) -> None:
    if not isinstance(model, nn.Module):
        raise InferKitError(
            f"{what} is a {type(model).__name__}; expected a CLIP or SigLIP model of transformers."
        )
    if not (hasattr(model, "get_image_features") and hasattr(model, "logit_scale")):
        raise InferKitError(
            f"The {what} ({type(model).__name__}) has no image and text features of one space.",
            "Give a CLIP or SigLIP model of transformers.",
        )


def _check_same_inputs(model: Any, teacher: Any) -> None:
    """A teacher reads the student's batches, and says as many numbers."""
    for part, names in {
        "vision_config": ("image_size", "patch_size"),
        "text_config": ("vocab_size", "max_position_embeddings", "projection_size"),
        "": ("projection_dim",),  # of CLIP; SigLIP has the texts' projection_size
    }.items():
        for name in names:
            own, others = (
                getattr(getattr(m.config, part) if part else m.config, name, None)
                for m in (model, teacher)
            )
            if own != others:
                raise InferKitError(
                    f"The teacher has {name}={others}, and the model {own}.",
                    "The teacher reads the model's own batches: take the model that is refined, "
                    "or one of its size.",
                )
