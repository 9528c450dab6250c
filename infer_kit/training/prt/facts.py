"""What the trainer has to know of models and data before the first step."""

import inspect
from typing import Any, Literal

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from infer_kit.errors import InferKitError

Kind = Literal["causal-lm", "classification"]
_KINDS: dict[Kind, set[str]] = {
    "causal-lm": {
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    },
    "classification": {
        *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values(),
        *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values(),
        *MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(),
    },
}


def is_adapter(model: Any) -> bool:
    """Whether the model is a PEFT model, whose base is itself with the adapter disabled."""
    return hasattr(model, "disable_adapter") and hasattr(model, "peft_config")


def adapter_parts(model: Any) -> set[str]:
    """Of a PEFT model, the parts of names that tell the adapter's own tensors from the base's."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING as PREFIXES

    # Of X-LoRA, the model tells only the prefix of the LoRA within.
    prefixes = {PREFIXES.get(config.peft_type) for config in model.peft_config.values()}
    prefixes.add(getattr(model.base_model, "prefix", None))
    return {p for p in prefixes if p} | {".modules_to_save.", ".trainable_tokens_"}


def kind_of(model: Any, given: str | None) -> Kind:
    """What sort of labels the model predicts; told by its class where it is not given."""
    model = model.get_base_model() if is_adapter(model) else model
    if given is not None:
        for kind in _KINDS:
            if given == kind:
                return kind
        raise InferKitError(f"kind is {given!r}; expected one of {', '.join(_KINDS)}.")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InferKitError(
            f"{type(model).__name__} is an encoder-decoder model; rewards are for causal language "
            "models and classifiers."
        )
    for kind, names in _KINDS.items():
        if any(cls.__name__ in names for cls in type(model).__mro__):
            return kind
    raise InferKitError(
        f"{type(model).__name__} does not tell whether it is a causal language model or a "
        "classifier.",
        hint='Give kind="causal-lm" or kind="classification".',
    )


def takes_positions(model: Any) -> bool:
    """Whether the model is a text model that can be told the positions of its tokens."""
    model = model.get_base_model() if is_adapter(model) else model
    text = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return (
        any(cls.__name__ in text for cls in type(model).__mro__)
        and "position_ids" in inspect.signature(type(model).forward).parameters
    )


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a processor, a tokenizer itself, or None."""
    for found in (processing_class, getattr(processing_class, "tokenizer", None)):
        if hasattr(found, "get_vocab"):
            return found
    return None


def vocab_size_of(kind: Kind, model: Any, processing_class: Any, given: int | None) -> int:
    """V: ids that have a meaning. Never `config.vocab_size`, which may be padded.

    Raises:
        InferKitError: nothing tells.
    """
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise InferKitError(f"vocab_size is {given!r}; expected a whole number of at least 1.")
        return given
    if kind == "classification":
        size = getattr(getattr(model, "config", None), "num_labels", None)
        if size is None:
            raise InferKitError(
                f"{type(model).__name__} does not say how many labels it has.",
                hint="Give vocab_size=, the number of labels.",
            )
        return int(size)
    tokenizer = tokenizer_of(processing_class)
    if tokenizer is None:
        raise InferKitError(
            "Without a tokenizer nothing tells how many ids have a meaning: a model's own "
            "vocab_size may be padded.",
            hint="Give processing_class=tokenizer, or vocab_size=len(tokenizer).",
        )
    return 1 + max(tokenizer.get_vocab().values())


def columns_of(model: Any) -> int | None:
    config = getattr(model, "config", None)
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    if weight is not None:
        return int(weight.shape[0])
    if config is None:
        return None
    name = type(model.get_base_model() if is_adapter(model) else model).__name__
    if name in _KINDS["classification"]:
        return int(config.num_labels)
    size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return None if size is None else int(size)
