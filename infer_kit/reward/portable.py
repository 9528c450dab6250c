"""`PortableReward`: a trained reward, what its columns mean, and where it came from."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import torch
from torch import nn

from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.reward.labels import Labels, check_same_labels, label_hash, labels_of

Kind = Literal["causal-lm", "classification"]
KINDS: tuple[Kind, ...] = ("causal-lm", "classification")
FORMAT = 1
CONFIG, LABELS = "prt_config.json", "prt_labels.json"


@dataclass(frozen=True)
class RewardConfig:
    """What `prt_config.json` holds.

    Attributes:
        kind: "causal-lm" or "classification".
        output_size: V, how many columns have a meaning.
        labels_sha256: `label_hash` of what they mean.
        beta, alpha: β and α of the training.
        init: what the reward began as, e.g. "base" for a copy of the source base.
        base, base_revision: name or path of the source base, and its revision if known.
        dtype: of the model when it was saved, which it is loaded in unless asked otherwise.
        source_gain: cross-entropy of the source base less that of base and reward together, in
            nats a label on held-out data; None where it was not measured.
        format_version: of these two files.
    """

    kind: Kind
    output_size: int
    labels_sha256: str
    beta: float = 1.0
    alpha: float = 0.0
    init: str = "base"
    base: str = ""
    base_revision: str | None = None
    source_gain: float | None = None
    dtype: str | None = None
    format_version: int = FORMAT

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InferKitError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}.")
        check_strength(self.beta, "beta")
        check_strength(self.alpha, "alpha")


class PortableReward:
    """A model whose scores are rewards, to be added to those of any base with its labels.

    Attributes:
        model: a transformers model, in evaluation mode: a causal language model or a classifier.
        labels: what each of its first V columns means.
        config: a `RewardConfig`.
        path: the folder that it was loaded from or saved to; None before.
    """

    def __init__(
        self,
        model: Any,
        labels: Any = None,
        kind: Kind = "causal-lm",
        *,
        beta: float = 1.0,
        alpha: float = 0.0,
        init: str = "base",
        base: str = "",
        base_revision: str | None = None,
        source_gain: float | None = None,
    ) -> None:
        """Args:
        model: the trained reward; a PEFT model stays one, if its adapter changes weights (LoRA and
            its kin; prompts that are learnt cannot be added to a base's scores).
        labels: its tokenizer, or a list of labels; of a classifier, default: its `id2label`.
        kind: "causal-lm" or "classification".
        beta: the strength that it was trained with, and that `compose` uses by default.
        alpha, init, base, base_revision, source_gain: see `RewardConfig`.

        Raises:
            InferKitError: no labels, or fewer columns than labels.
        """
        if kind not in KINDS:
            raise InferKitError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}.")
        if labels is None:
            if kind == "causal-lm":
                raise InferKitError(
                    "A reward for language models needs to know its tokens.",
                    hint="Give the tokenizer that it was trained with: labels=tokenizer.",
                )
            labels = model
        self.model = model.eval()
        self.labels: Labels = labels_of(labels)
        _check_model(model, self.labels)
        self.config = RewardConfig(
            kind,
            len(self.labels),
            label_hash(self.labels),
            check_strength(beta, "beta"),
            check_strength(alpha, "alpha"),
            init,
            base or _name(model),
            base_revision,
            source_gain,
            dtype_name(model),
        )
        self.path: str | None = None

    def __repr__(self) -> str:
        gain = self.config.source_gain
        shown = "" if gain is None else f", gain {gain:.3f} nats on its source"
        return f"PortableReward({type(self.model).__name__}, {self.config.kind}{shown})"

    @property
    def scorer(self) -> Any:
        """The model that gives the rewards: of an adapter, its base with the adapter in it."""
        return self.model.get_base_model() if _is_adapter(self.model) else self.model

    def source(self) -> Any:
        """Of an adapter, the model that it was trained on, without it, on the same weights.

        Raises:
            InferKitError: the reward is a whole model.
        """
        if not _is_adapter(self.model):
            raise InferKitError("The reward is a whole model; its source base is not part of it.")
        made = twin(self.model)
        # PEFT's unload keeps the trained copies of what an adapter replaces whole.
        for module in list(made.modules()):
            for name, child in list(module.named_children()):
                if hasattr(child, "original_module") and hasattr(child, "modules_to_save"):
                    setattr(module, name, child.original_module)
        return made.unload().eval()

    def check_base(self, labels: Sequence[str | None], kind: Kind, whose: str = "the base") -> None:
        """Raise unless the reward can be added to the scores of a model.

        Raises:
            InferKitError: the model is of another kind.
            VocabularyMismatch: its labels are others; says which.
        """
        if kind != self.config.kind:
            raise InferKitError(
                f"The reward is one for {self.config.kind}, {whose} is a model for {kind}."
            )
        if label_hash(labels) != self.config.labels_sha256:
            check_same_labels(self.labels, tuple(labels), whose)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model (of a PEFT model the adapter alone) and what it means into a folder.

        Raises:
            InferKitError: an adapter of another name than "default", which would not be found.
        """
        if _is_adapter(self.model) and list(self.model.peft_config) != ["default"]:
            raise InferKitError(
                f"The PEFT model has the adapters {list(self.model.peft_config)}; a reward is one, "
                "by the name 'default'."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        (folder / LABELS).write_text(json.dumps(self.labels, ensure_ascii=False), "utf-8")
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=2) + "\n", "utf-8")
        self.path = str(folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, model_class: Any = None, base: Any = None, **kwargs: Any
    ) -> "PortableReward":
        """A reward from the folder that `save_pretrained` wrote.

        Args:
            folder: on disk.
            model_class: the model's class, where transformers' AutoModel does not know it.
            base: of an adapter, the model that it was trained on, if it is loaded already; its
                weights are shared, and it is not changed (merging the adapter would). Default:
                loaded from its path.
            **kwargs: of the model's `from_pretrained`; `dtype` is by default that of the model that
                was saved.

        Raises:
            InferKitError: no reward there, one of a later format, or labels that are not those of
                its hash.
        """
        folder = Path(folder)
        settings = _read(folder)
        labels = tuple(_json(folder / LABELS))
        try:
            config = RewardConfig(**settings)
        except TypeError as error:
            raise InferKitError(f"{folder / CONFIG} is no reward's: {error}.") from error
        if label_hash(labels) != config.labels_sha256:
            raise InferKitError(
                f"{folder / LABELS} does not have the labels whose hash {CONFIG} has: one of the "
                "two files was changed."
            )
        if config.dtype is not None:
            kwargs.setdefault("dtype", getattr(torch, config.dtype))
        if (folder / "adapter_config.json").is_file():
            model = _with_adapter(folder, config.kind, base, model_class, kwargs)
        else:
            model = _auto_class(config.kind, folder, model_class).from_pretrained(folder, **kwargs)
        _check_model(model, labels)
        made = cls.__new__(cls)
        made.model, made.labels, made.config = model.eval(), labels, config
        made.path = str(folder)
        return made


def check_strength(value: Any, name: str) -> float:
    """A finite number, or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise InferKitError(f"{name} is {value!r}; expected a finite number.")
    number = float(value)
    if not math.isfinite(number):
        raise InferKitError(f"{name} is {value!r}; expected a finite number.")
    return number


def columns_of(model: Any) -> int | None:
    """How many scores a model gives: rows of its head, or classes; None where it does not say."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and hasattr(head, "weight"):
        return int(head.weight.shape[0])
    config = getattr(model, "config", None)
    labels = getattr(config, "num_labels", None)
    return int(labels) if labels else None


def _is_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def check_columns(name: str, model: Any, size: int, what: str) -> None:
    """Raise unless a model of a composition scores all of the base's tokens or classes."""
    columns = columns_of(model)
    if columns is not None and columns < size:
        raise InferKitError(
            f"{name} ({type(model).__name__}) has {columns:,} columns, fewer than the base's "
            f"{size:,} {what}."
        )


def dtype_name(model: Any) -> str | None:
    """Such as "float32"; None for a model without floating-point parameters."""
    found = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return None if found is None else str(found).removeprefix("torch.")


def _check_model(model: Any, labels: Labels) -> None:
    columns = columns_of(model)
    if columns is not None and columns < len(labels):
        raise InferKitError(
            f"The reward has {columns:,} columns, fewer than its {len(labels):,} labels."
        )
    for name, config in (model.peft_config if _is_adapter(model) else {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise InferKitError(
                f"The adapter {name!r} learns a prompt ({type(config).__name__}), which cannot be "
                "added to a base's scores.",
                hint="Use one that changes weights, such as LoRA.",
            )


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InferKitError(f"{file} cannot be read: {error}") from error


def _name(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or "")


def _read(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise InferKitError(
            f"{folder} holds no portable reward: there is no {CONFIG}.",
            hint="Save one with PortableReward(...).save_pretrained(folder).",
        )
    settings: dict[str, Any] = _json(file)
    if settings.get("format_version", 0) > FORMAT:
        raise InferKitError(
            f"{file} is of format {settings['format_version']}; this version reads up to {FORMAT}.",
            hint="Update infer_kit.",
        )
    return settings


def _auto_class(kind: Kind, folder: str | Path, model_class: Any) -> Any:
    if model_class is not None:
        return model_class
    import transformers

    if kind == "causal-lm":
        return transformers.AutoModelForCausalLM
    architectures = transformers.AutoConfig.from_pretrained(folder).architectures or [""]
    found = getattr(transformers, architectures[0], None)
    if found is None:
        raise InferKitError(
            f"transformers has no class {architectures[0]!r} for the reward.",
            hint="Give it: from_pretrained(folder, model_class=...).",
        )
    return found


def _with_adapter(
    folder: Path, kind: Kind, base: Any, model_class: Any, kwargs: dict[str, Any]
) -> Any:
    """The PEFT model of an adapter, on the given base's weights or on those of its own base."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtra(
            "The reward is an adapter, and peft is not installed.",
            hint='pip install "infer-kit[train]"',
        ) from error
    if base is None:
        path = _json(folder / "adapter_config.json")["base_model_name_or_path"]
        base = _auto_class(kind, path, model_class).from_pretrained(path, **kwargs)
    else:
        base = twin(base)
    return PeftModel.from_pretrained(base, folder)


def twin(model: Any) -> Any:
    """A second model on the same weights: what is put into one does not change the other.

    The parameters and buffers are the same tensors, the modules are not. What changes the tensors
    themselves, such as merging an adapter or training them, changes both.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in model.buffers()}
    for parameter in model.parameters():
        # The same numbers; whether they have gradients is each model's own.
        shared[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return copy.deepcopy(model, shared)
