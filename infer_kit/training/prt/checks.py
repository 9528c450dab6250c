"""What a training run refuses before its first step."""

from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED
from infer_kit.training.prt.config import PRTConfig
from infer_kit.training.prt.facts import adapter_parts, columns_of, is_adapter
from infer_kit.training.replicas import refuse_replicas

LOOKED_AT = 1000
"""Examples that are looked at, before training, for one with a label."""


def check_models(reward: Any, base: Any, peft_config: Any) -> None:
    """Raises for what is no model, and for what cannot be a base."""
    for name, given in (("model", reward), ("base_model", base)):
        if isinstance(given, str):
            raise InferKitError(
                f"{name} is the text {given!r}; expected a model.",
                hint="Load it, for example with AutoModelForCausalLM.from_pretrained(name).",
            )
        if given is not None and not isinstance(given, nn.Module):
            raise InferKitError(f"{name} is a {type(given).__name__}; expected a model.")
        if is_adapter(given) and not hasattr(given, "get_base_model"):
            raise InferKitError(
                f"{name} is a {type(given).__name__}, of adapters of several kinds.",
                hint="Give a model with adapters of one kind: get_peft_model without mixed=True.",
            )
    if base is not None and is_adapter(base):
        raise InferKitError(
            "base_model is a PEFT model.",
            hint="To train that adapter, give it as model and no base_model. To have it within the "
            "base, merge a copy: copy.deepcopy(base).merge_and_unload().",
        )
    if peft_config is None:
        return
    if reward is None:
        raise InferKitError(
            "There is a peft_config and no model to put its adapter on.", hint="Give model=."
        )
    check_adapter_config("peft_config", peft_config, own_base=base is not None)


def check_adapter(reward: Any, own_base: bool) -> None:
    """Raises for an adapter that trains its base too, or that no other base could have.

    Args:
        own_base: whether the base has weights of its own, which the reward cannot change.
    """
    if not is_adapter(reward):
        return
    active = getattr(reward, "active_adapters", None) or list(reward.peft_config)
    for name in [active] if isinstance(active, str) else active:
        check_adapter_config(f"The adapter {name!r}", reward.peft_config[name], own_base)
    if own_base:
        return
    parts = adapter_parts(reward)
    for name, tensor in reward.named_parameters():
        if tensor.requires_grad and not any(part in name for part in parts):
            raise InferKitError(
                f"{name} is trained and is no part of the adapter: the base would change with "
                "the reward.",
                hint="Freeze it (requires_grad_(False)), or give a copy of the model as "
                "base_model=.",
            )


def check_adapter_config(whose: str, config: Any, own_base: bool) -> None:
    """See `check_adapter`. whose: how to call it, for messages."""
    kind = type(config).__name__
    if getattr(config, "is_prompt_learning", False):
        raise InferKitError(
            f"{whose} ({kind}) learns a prompt, which cannot be added to a base's scores.",
            hint="Use an adapter that changes weights, such as LoRA.",
        )
    bias = getattr(config, "bias", "none")
    if not own_base and bias != "none":
        raise InferKitError(
            f"{whose} ({kind}) has bias={bias!r}: it trains the base's own biases, which stay "
            "changed with the adapter disabled.",
            hint='Give bias="none", or a copy of the model as base_model=.',
        )


def check_same_names(base: Any, reward: Any, size: int) -> None:
    """Raises where two classifiers have other names for the same labels."""
    tables: list[Any] = [
        getattr(getattr(m, "config", None), "id2label", None) for m in (base, reward)
    ]
    if not all(tables):
        return
    for n in range(size):
        mine, other = (table.get(n) for table in tables)
        if mine != other:
            raise InferKitError(
                f"Label {n} is {mine!r} for the base and {other!r} for the reward.",
                hint="Both have to have the same labels in the same order: config.id2label.",
            )


def check_not_empty(dataset: Any) -> None:
    if dataset is not None and not _is_stream(dataset) and not len(dataset):
        raise InferKitError("The training data have no examples.")


def check_options(args: Any, options: dict[str, Any]) -> None:
    """Options of the trainer that the loss would ignore."""
    loss_type = getattr(args, "loss_type", None) or "nll"
    if loss_type != "nll":
        raise InferKitError(
            f"loss_type is {loss_type!r}, which computes a loss of its own from hidden states.",
            hint='Give SFTConfig(loss_type="nll"). For less memory there is PRTConfig(chunk=1024).',
        )
    if getattr(args, "label_smoothing_factor", 0):
        raise InferKitError(
            f"label_smoothing_factor is {args.label_smoothing_factor}; the loss of a reward has no "
            "smoothing.",
            hint="Leave it out.",
        )
    if options.get("compute_loss_func") is not None:
        raise InferKitError(
            "compute_loss_func would replace the loss of the reward.", hint="Leave it out."
        )


def check_columns(base: Any, reward: Any, size: int) -> None:
    """Raises unless both have at least V columns, as far as they tell."""
    have = {"base": columns_of(base), "reward": columns_of(reward)}
    if any(columns is not None and columns < size for columns in have.values()):
        raise InferKitError(
            f"The vocabulary has {size} ids; the base has {have['base']} columns and the reward "
            f"{have['reward']}.",
            hint="Both have to score every id: they need the vocabulary of one tokenizer, or the "
            "same labels.",
        )


def check_apart(base: Any, reward: Any) -> None:
    """Raises if training the reward would change the base."""
    trained = {id(p) for p in reward.parameters() if p.requires_grad}
    if base is reward or any(id(p) in trained for p in base.parameters()):
        raise InferKitError(
            "The base shares weights with the reward that are trained.",
            hint="Give a second copy of the model as the reward (load it twice, or "
            "copy.deepcopy), or a PEFT model as the reward and no base_model.",
        )


def check_trainable(reward: Any) -> None:
    """Raise where a reward has nothing to train."""
    if not any(parameter.requires_grad for parameter in reward.parameters()):
        raise InferKitError(
            f"No parameter of the reward ({type(reward).__name__}) has gradients.",
            hint="Call model.requires_grad_(True), or give an adapter (peft_config=).",
        )


def check_labels(dataset: Any, size: int, shifted: bool, what: str = "training") -> None:
    """Looks at the first examples of a data set with labels.

    Args:
        what: the data are for.

    Raises:
        InferKitError: none of them has a label, or one has a label outside the vocabulary.
    """
    if _is_stream(dataset):
        return
    looked = min(len(dataset), LOOKED_AT)
    # A column of its own is read without what else an example holds, such as a picture.
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and getattr(dataset, "format", {}).get("type") != "custom":
        name = next((n for n in ("labels", "label") if n in columns), None)
        if name is None:
            return
        dataset = dataset.select_columns([name])
    for n in range(looked):
        example = dataset[n]
        if isinstance(example, str | bytes):
            raise InferKitError(
                f"Example {n} of the {what} data is a text; expected token ids.",
                hint='Give rows such as {"input_ids": ..., "labels": ...}: tokenizer(text).',
            )
        if not isinstance(example, dict) or not {"labels", "label"} & set(example):
            return
        found = example.get("labels", example.get("label"))
        predicted = _flat(found)[1:] if shifted else _flat(found)
        labels = [y for y in predicted if y != IGNORED]
        wrong = next((y for y in labels if not 0 <= y < size), None)
        if wrong is not None:
            raise InferKitError(
                f"Example {n} of the {what} data has the label {wrong}, outside the {size} ids "
                "of the vocabulary.",
                hint=f"Labels are ids below {size}, or {IGNORED} where there is none. Were they "
                "made by another tokenizer?",
            )
        if labels:
            return
    if looked:
        raise InferKitError(
            f"None of the first {looked} examples of the {what} data has a label: all are "
            f"{IGNORED}.",
            hint="Was the mask of prompt and completion made the wrong way round, or did "
            "truncation leave the prompts alone?",
        )


def check_order(dataset: Any, prt: PRTConfig) -> None:
    """Raises for a stream with a cache."""
    if prt.base_cache == "none" or dataset is None:
        return
    if _is_stream(dataset):
        raise InferKitError(
            f"The training data ({type(dataset).__name__}) are a stream, without an order to "
            f"keep the base's outputs in; base_cache is {prt.base_cache!r}.",
            hint='Give a data set with a length and an index, or base_cache="none".',
        )


def check_base_given(base: Any, reward: Any, adapted: bool) -> None:
    """Raises where nothing can be the base. adapted: whether the reward will be an adapter."""
    if base is None and reward is not None and not adapted and not is_adapter(reward):
        raise InferKitError(
            "There is no base_model, and the reward is not a PEFT model.",
            hint="Give the frozen base as base_model=; only an adapter can be trained over the "
            "weights that it is on.",
        )


def check_trainer(trainer: Any) -> None:
    """Raises where a trainer's devices, cache or chunks cannot work."""
    refuse_replicas(trainer.args.n_gpu, "reward")
    cache, size = trainer.prt.base_cache, trainer.vocab_size
    check_order(trainer.train_dataset, trainer.prt)
    apart = trainer.prt.chunk is not None or cache == "hidden"
    if apart and trainer.kind == "classification":
        raise InferKitError(
            "Scores of classifiers are not made from hidden states: chunk and "
            'base_cache="hidden" are for causal language models.',
            hint='Leave chunk out; base_cache="full" is small for classifiers.',
        )
    if apart and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise InferKitError(
            "With FSDP or DeepSpeed the head cannot be run apart from its model, as chunk and "
            'base_cache="hidden" do.',
            hint='Leave chunk out, and choose base_cache "none", "full" or "topk".',
        )
    if cache == "topk" and trainer.prt.topk >= size:
        raise InferKitError(
            f"topk is {trainer.prt.topk}, and there are {size} ids.",
            hint='base_cache="full" keeps them all.',
        )


def _is_stream(dataset: Any) -> bool:
    # A stream of torch inherits a __getitem__ that raises.
    return isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    )


def _flat(values: Any) -> list[Any]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    return list(values) if isinstance(values, (list, tuple)) else [values]
