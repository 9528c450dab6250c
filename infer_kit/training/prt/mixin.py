"""`PRTMixin`: any trainer of transformers, with the loss of portable reward tuning."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError
from infer_kit.training.indexed_data import (
    INDEX,
    IndexedCollator,
    IndexedDataset,
    predicted_labels,
)
from infer_kit.training.prt import checks, facts, saving
from infer_kit.training.prt.base import (
    AdapterBase,
    FrozenBase,
    Outputs,
    forward,
    restore_precision,
    with_positions,
)
from infer_kit.training.prt.cached import CachedBase
from infer_kit.training.prt.config import PRTConfig
from infer_kit.training.prt.gain import GainSums, SourceGain
from infer_kit.training.prt.heads import LanguageHead
from infer_kit.training.prt.scores import Places, Rows, Scored, same
from infer_kit.training.renamed_weights import RenamedWeights


class PRTMixin(RenamedWeights):
    """Trains `model` as a reward through a frozen base; to be named before a trainer's class.

    The loss is `prt_loss`, over the labels of the whole accumulated batch. The base is held by the
    trainer: it is in evaluation mode, has no gradients, and is in no checkpoint.
    """

    # `compute_loss` divides by the labels of all batches that gradients are accumulated over.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *positional: Any,
        base_model: Any = None,
        prt: PRTConfig | None = None,
        vocab_size: int | None = None,
        kind: facts.Kind | None = None,
        **options: Any,
    ) -> None:
        """Args:
        model: the reward: a copy of the base, another model of its vocabulary, or a PEFT model.
        args: of the trainer.
        base_model: the frozen base. None where `model` is a PEFT model: then it is that model
            with the adapter disabled, on the same weights.
        prt: strength, caches and chunks.
        vocab_size: V, ids that have a meaning. Default: those of the tokenizer in
            `processing_class`; of a classifier, its labels.
        kind: "causal-lm" (labels are shifted by one against the scores) or "classification" (not
            shifted). Default: told by the class of `model`.
        positional, options: see the trainer.

        Raises:
            InferKitError: see the messages: what cannot work is refused here.
        """
        self.prt = PRTConfig() if prt is None else prt
        if not isinstance(self.prt, PRTConfig):
            raise InferKitError(f"prt is a {type(prt).__name__}; expected a PRTConfig.")
        checks.check_models(model, base_model, options.get("peft_config"))
        checks.check_options(args, options)
        checks.check_not_empty(options.get("train_dataset"))
        checks.check_order(options.get("train_dataset"), self.prt)
        adapted = options.get("peft_config") is not None
        checks.check_base_given(base_model, model, adapted)
        super().__init__(model, args, *positional, **options)  # type: ignore[call-arg]
        self._begin(base_model, vocab_size, kind)

    def _begin(self: Any, base_model: Any, vocab_size: int | None, kind: Any) -> None:
        """What needs the trainer's own model, arguments and data."""
        checks.check_options(self.args, {})
        self.kind = facts.kind_of(self.model, kind)
        self.vocab_size = facts.vocab_size_of(
            self.kind, self.model, self.processing_class, vocab_size
        )
        self.model_accepts_loss_kwargs = True  # so that labels are counted over the whole batch
        if base_model is not None:
            checks.check_apart(base_model, self.model)
            if self.kind == "classification":
                checks.check_same_names(base_model, self.model, self.vocab_size)
        checks.check_adapter(self.model, own_base=base_model is not None)
        checks.check_columns(
            self.model if base_model is None else base_model, self.model, self.vocab_size
        )
        checks.check_not_empty(self.train_dataset)
        shifted = self.kind == "causal-lm"
        checks.check_labels(self.train_dataset, self.vocab_size, shifted)
        evaluated = self.eval_dataset
        for data in evaluated.values() if isinstance(evaluated, dict) else [evaluated]:
            if data is not None:
                checks.check_labels(data, self.vocab_size, shifted, "evaluation")
        checks.check_trainer(self)
        chunked = self.prt.chunk is not None
        apart = chunked or self.prt.base_cache == "hidden"
        if base_model is None:
            self._base: Any = AdapterBase(
                lambda: self.accelerator.unwrap_model(self.model), apart, self.accelerator.autocast
            )
        else:
            restore_precision(base_model)
            prepared = self.accelerator.prepare_model(base_model, evaluation_mode=True)
            self._base = FrozenBase(prepared, base_model, apart, self.accelerator.autocast)
        self._reward_head = (
            LanguageHead(self.model, "reward", self.accelerator.autocast) if chunked else None
        )
        self._positions = facts.takes_positions(self.model)
        self._cached: CachedBase | None = None
        self._sums: GainSums | None = None
        self._gain: SourceGain | None = None
        self._warned = False
        if self.prt.base_cache != "none" and self.train_dataset is not None:
            self.train_dataset = IndexedDataset(self.train_dataset)
            self.data_collator = IndexedCollator(self.data_collator)

    # Loss

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; with `return_outputs` also the log-probabilities that it is of.

        Returns:
            A scalar, or that and `{"logits": [..., V]}`, of base and reward together.
        """
        scored, outputs = self._score(model, inputs, whole=return_outputs)
        labels = scored.places.labels
        if not len(labels) and not self._warned:
            self._warned = True
            warnings.warn("A batch has no label at all; its loss is 0.", stacklevel=2)
        items: Any = max(len(labels), 1) if num_items_in_batch is None else num_items_in_batch
        items = items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
        prt = replace(self.prt, chunk=None) if return_outputs else self.prt
        loss = scored.loss(prt, self.vocab_size, items)
        if self._sums is not None:
            told = scored.logprobs(self.prt.beta, self.vocab_size)
            self._sums.add(*told, scored.places.examples)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # N counts the labels of all processes, over which gradients are then averaged.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(
        self: Any, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of one step, and N: their labels that something predicts."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if self.kind == "causal-lm" and items is not None:
            for batch in batches:
                batch["labels"] = predicted_labels(batch, shifted=True)
            items = self._get_num_items_in_batch(batches, device)
        return batches, items

    def _score(
        self: Any, model: Any, inputs: dict[str, Any], whole: bool
    ) -> tuple[Scored, dict[str, Tensor] | None]:
        """Base and reward at the labels. whole: all scores at once, and those of both together."""
        inputs = {name: value for name, value in inputs.items() if name != "skip_logits"}
        index = inputs.pop(INDEX, None)
        if inputs.get("labels") is None:
            raise InferKitError(
                f"The batch has no labels, only {', '.join(inputs)}.",
                hint="Give data with a column labels, or a collator that makes them, such as "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False).",
            )
        places = Places.of(inputs, self.kind == "causal-lm")
        del inputs["labels"]  # the models are not to compute a loss of their own
        chunked = self.prt.chunk is not None and not whole
        base: Rows | Outputs
        if index is not None and self._cached is not None and not whole:
            base = self._cached.rows(index, places.labels)
        else:
            base = self._base.outputs(inputs, chunked)
        if self._positions:
            inputs = with_positions(inputs)
        if chunked:
            # As the head, also where the model was not wrapped for mixed precision.
            with self.accelerator.autocast(), self._reward_head.taps() as tapped:
                logits = forward(model, inputs)
            states = self._reward_head.check(tapped, logits)
            reward = Rows(places.rows(states, "reward"), self._reward_head)
        else:
            rewards = forward(model, inputs)
            reward = Rows(places.rows(rewards, "reward"), same)
        if isinstance(base, Rows):
            return Scored(base, reward, places), None
        rows = Rows(places.rows(base.values, "base"), base.head)
        if not whole:
            return Scored(rows, reward, places), None
        size = self.vocab_size
        both = base.values[..., :size].float() + self.prt.beta * rewards[..., :size].float()
        return Scored(rows, reward, places), {"logits": both.log_softmax(-1)}

    # Evaluation

    def prediction_step(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, log-probabilities of base and reward together, and labels, of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if prediction_loss_only:
                return self.compute_loss(model, inputs).detach(), None, None
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs["logits"], inputs["labels"]

    def evaluation_loop(self: Any, dataloader: Any, description: str, *args: Any, **kw: Any) -> Any:
        """As the trainer's, with the cross-entropy of the base and of base and reward."""
        self._sums = GainSums()
        try:
            output = super().evaluation_loop(dataloader, description, *args, **kw)  # type: ignore[misc]
            sums = self._sums.state()
        finally:
            self._sums = None
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
        self._evaluated, gain = sums, GainSums.gain(sums)
        if gain is not None and output.metrics is not None:
            prefix = kw.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
            output.metrics.update(gain.metrics(prefix))
        return output

    def source_gain(self: Any, dataset: Any = None) -> SourceGain:
        """CE(base) − CE(base + reward), with its standard error, on held-out data.

        Args:
            dataset: default: `eval_dataset` of the trainer, all of them where there are several.

        Raises:
            InferKitError: there is no such data, or it has no labels.
        """
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise InferKitError(
                "There is no held-out data to measure the gain on.",
                hint="Give dataset= here, or eval_dataset= to the trainer.",
            )
        total = GainSums().state()
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            loader = self.get_eval_dataloader(part)
            self.evaluation_loop(loader, "Source gain", prediction_loss_only=True)
            total += self._evaluated
        gain = GainSums.gain(total)
        if gain is None:
            raise InferKitError("The held-out data have no labels, so there is no gain to measure.")
        self._gain = gain
        return gain

    # Training

    def train(self: Any, *args: Any, **options: Any) -> Any:
        """As the trainer's; then, with held-out data, reports the gain and warns if it is none."""
        checks.check_trainable(self.model)
        self.build_base_cache()
        result = super().train(*args, **options)  # type: ignore[misc]
        if self.eval_dataset is not None:
            gain = self.source_gain()
            result.metrics["source_gain"] = gain.gain
            self.log({"source_gain": gain.gain, "source_base_cross_entropy": gain.base})
            if gain.is_noise:
                warnings.warn(
                    f"The reward does not help its own base: the gain on held-out data is {gain}. "
                    "With a larger base such a reward is noise. Train longer, or at another rate.",
                    stacklevel=2,
                )
        return result

    def build_base_cache(self: Any) -> None:
        """Runs the base over the training data, as far as its cache is not complete; `train` does.

        Raises:
            InferKitError: the folder holds a cache made with something else.
        """
        if self.prt.base_cache == "none" or self._cached is not None or self.train_dataset is None:
            return
        folder = self.prt.cache_dir or Path(self.args.output_dir) / "base_cache"
        # The first process writes; the others wait, and find what it wrote.
        with self.args.main_process_first(desc="base cache"):
            self._cached = CachedBase(self, self._base, folder)

    def collate_training(self: Any, examples: list[Any]) -> dict[str, Any]:
        """Some examples as a batch of training."""
        return dict(self._get_collator_with_removed_columns(self.data_collator)(examples))

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        # Of a model whose own forward takes no labels, they would be removed from the data.
        missing = {INDEX, "labels"} - set(self._signature_columns)
        self._signature_columns += sorted(missing)

    # The artefact

    def save_reward(self: Any, folder: str | Path, *, init: str = "base") -> None:
        """Writes the reward as a `PortableReward`: to be added to any base of its labels.

        Args:
            init: what the reward began as: "base" for a copy of the base, or words of one's own.

        Raises:
            InferKitError: nothing tells what the columns of the reward mean.
        """
        saving.save_reward(self, folder, init)
