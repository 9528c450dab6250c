"""`PortableReward`: a trained reward, what its columns mean, and where it came from."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, SupportsFloat

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
    format_version: int = FORMAT


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
        model: the trained reward; a PEFT model stays one.
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
        columns = columns_of(model)
        if columns is not None and columns < len(self.labels):
            raise InferKitError(
                f"The reward has {columns:,} columns, fewer than its {len(self.labels):,} labels."
            )
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
        return twin(self.model).unload().eval()

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
        """Write the model (of a PEFT model the adapter alone) and what it means into a folder."""
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
                weights are shared, and it is not changed. Default: loaded from its path.
            **kwargs: of the model's `from_pretrained`, such as `dtype`.

        Raises:
            InferKitError: no reward there, one of a later format, or labels that are not those of
                its hash.
        """
        folder = Path(folder)
        settings = _read(folder)
        labels = tuple(json.loads((folder / LABELS).read_text("utf-8")))
        config = RewardConfig(**settings)
        if label_hash(labels) != config.labels_sha256:
            raise InferKitError(
                f"{folder / LABELS} does not have the labels whose hash {CONFIG} has: one of the "
                "two files was changed."
            )
        if (folder / "adapter_config.json").is_file():
            model = _with_adapter(folder, base, kwargs)
        else:
            model = _auto_class(config.kind, folder, model_class).from_pretrained(folder, **kwargs)
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


def _name(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or "")


def _read(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise InferKitError(
            f"{folder} holds no portable reward: there is no {CONFIG}.",
            hint="Save one with PortableReward(...).save_pretrained(folder).",
        )
    settings: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if settings.get("format_version", 0) > FORMAT:
        raise InferKitError(
            f"{file} is of format {settings['format_version']}; this version reads up to {FORMAT}.",
            hint="Update infer_kit.",
        )
    return settings


def _auto_class(kind: Kind, folder: Path, model_class: Any) -> Any:
    if model_class is not None:
        return model_class
    import transformers

    if kind == "causal-lm":
        return transformers.AutoModelForCausalLM
    architectures = json.loads((folder / "config.json").read_text("utf-8")).get("architectures")
    found = getattr(transformers, (architectures or [""])[0], None)
    if found is None:
        raise InferKitError(
            f"transformers has no class {(architectures or [None])[0]!r} for the reward.",
            hint="Give it: from_pretrained(folder, model_class=...).",
        )
    return found


def _with_adapter(folder: Path, base: Any, kwargs: dict[str, Any]) -> Any:
    """The PEFT model of an adapter, on the given base's weights or on those of its own base."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtra(
            "The reward is an adapter, and peft is not installed.",
            hint='pip install "infer-kit[train]"',
        ) from error
    if base is None:
        from transformers import AutoModelForCausalLM

        path = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        base = AutoModelForCausalLM.from_pretrained(path["base_model_name_or_path"], **kwargs)
    else:
        base = twin(base)
    return PeftModel.from_pretrained(base, folder)


def twin(model: Any) -> Any:
    """A second model on the same weights: what is put into one does not change the other.

    The parameters and buffers are the same tensors, the modules are not.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
