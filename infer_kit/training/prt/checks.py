"""What a training run refuses before its first step."""

from typing import Any

from torch.utils.data import IterableDataset

from infer_kit.errors import InferKitError
from infer_kit.reward.loss import IGNORED
from infer_kit.training.prt.config import PRTConfig
from infer_kit.training.prt.facts import columns_of, is_adapter

LOOKED_AT = 1000
"""Examples that are looked at, before training, for one with a label."""


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


def check_labels(dataset: Any, size: int, shifted: bool) -> None:
    """Looks at the first examples of a data set with labels.

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
        if not isinstance(example, dict) or not {"labels", "label"} & set(example):
            return
        found = example.get("labels", example.get("label"))
        predicted = _flat(found)[1:] if shifted else _flat(found)
        labels = [y for y in predicted if y != IGNORED]
        wrong = next((y for y in labels if not 0 <= y < size), None)
        if wrong is not None:
            raise InferKitError(
                f"Example {n} of the training data has the label {wrong}, outside the {size} ids "
                "of the vocabulary.",
                hint=f"Labels are ids below {size}, or {IGNORED} where there is none. Were they "
                "made by another tokenizer?",
            )
        if labels:
            return
    if looked:
        raise InferKitError(
            f"None of the first {looked} examples of the training data has a label: all are "
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
    if trainer.args.n_gpu > 1:
        raise InferKitError(
            f"One process sees {trainer.args.n_gpu} GPUs and would train on replicas of the "
            "reward alone.",
            hint="Start it with torchrun or accelerate launch, or make one GPU visible.",
        )
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
