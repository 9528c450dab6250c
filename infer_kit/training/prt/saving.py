"""From a trained reward to the artefact."""

from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError
from infer_kit.reward.labels import labels_of
from infer_kit.training.prt import facts


def save_reward(trainer: Any, folder: str | Path, init: str) -> None:
    """See `PRTMixin.save_reward`."""
    from infer_kit.reward.portable import PortableReward

    if not trainer.args.should_save:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    source = trainer._base.source()
    config = getattr(source, "config", None)
    reward = PortableReward(
        model,
        _label_names(trainer, model),
        kind=trainer.kind,
        beta=trainer.prt.beta,
        alpha=trainer.prt.alpha,
        init=init,
        base=str(getattr(source, "name_or_path", None) or getattr(config, "_name_or_path", "")),
        base_revision=getattr(config, "_commit_hash", None),
        source_gain=None if trainer._gain is None else trainer._gain.gain,
    )
    reward.save_pretrained(folder)


def _label_names(trainer: Any, model: Any) -> Any:
    """A tokenizer, or the names of the labels in their order."""
    if trainer.kind == "causal-lm":
        tokenizer = facts.tokenizer_of(trainer.processing_class)
        if tokenizer is None:
            raise InferKitError(
                "A reward is saved with its tokens, and the trainer has no tokenizer.",
                hint="Give processing_class=tokenizer to the trainer.",
            )
        own = len(labels_of(tokenizer))
        if own != trainer.vocab_size:
            raise InferKitError(
                f"The reward was trained with vocab_size {trainer.vocab_size}, and its tokenizer "
                f"has ids for {own} tokens.",
                hint="Leave vocab_size out of the trainer: it is then the tokenizer's.",
            )
        return tokenizer
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not names or len(names) < trainer.vocab_size:
        raise InferKitError(
            f"A reward is saved with the names of its labels; the model has "
            f"{len(names or ())} of {trainer.vocab_size}.",
            hint="Set model.config.id2label.",
        )
    return [str(names[n]) for n in range(trainer.vocab_size)]
