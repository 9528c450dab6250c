r"""Composites: several models with one vocabulary inside one vLLM model.

All members read the same tokens; their next-token distributions are pooled before vLLM's sampler
sees them, so that samplers, log-probabilities, streaming and groups are those of one model::

    LLM("base", hf_overrides=composite_overrides(["b", "c"], weights=[1.0, 0.6, -0.4]))
    LLM("base", hf_overrides=reward_overrides("reward/", base="base"))           # portable reward
    LLM("base", hf_overrides=implicit_overrides("tuned", "untuned", base="base"))  # EFT

Here is what such a model is made of, and the checks; what vLLM builds is in `composite_model`. This
module imports neither vllm nor torch until something is checked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.vllm.member_folders import (
    OVER_BYTES,
    Folder,
    absolute,
    check_tokens,
    config_of,
    member_folder,
    tokenizer_of,
)

if TYPE_CHECKING:
    from infer_kit.pooling import Pooling

ARCHITECTURE = "InferKitCompositeForCausalLM"
FIELD = "infer_kit_composite"
MODES = ("product", "mixture")


@dataclass(frozen=True)
class Composite:
    """What a composite is made of; the base is the model that the engine is started with.

    Attributes:
        members: folders of the other models.
        weights: the base's first.
        mode: "product" or "mixture".
        plausibility: β of the cut-off by the base's distribution, 0 for none.
        vocab_size: V, how many ids have a meaning; 0 for as many as the base's head has rows.
        labels_sha256: `label_hash` of the tokens that the base must have; empty for those of the
            members' tokenizers.
    """

    members: tuple[str, ...] = ()
    weights: tuple[float, ...] = (1.0,)
    mode: str = "product"
    plausibility: float = 0.0
    vocab_size: int = 0
    labels_sha256: str = ""

    def overrides(self) -> dict[str, Any]:
        """`hf_overrides` of vLLM, which `--hf-overrides` of a server takes as JSON."""
        # as text: vLLM reads an object among its overrides as those of a part of the config
        out: dict[str, Any] = {"architectures": [ARCHITECTURE], FIELD: json.dumps(asdict(self))}
        if self.vocab_size:
            out["vocab_size"] = self.vocab_size
        return out

    @classmethod
    def of(cls, config: Any) -> "Composite":
        """What overrides, or a model's config with them, say.

        Raises:
            InferKitError: they say nothing of a composite.
        """
        text = config.get(FIELD) if isinstance(config, Mapping) else getattr(config, FIELD, None)
        if not isinstance(text, str):
            raise InferKitError(
                f"There is no {FIELD!r} among the overrides.",
                hint="LLM(base, hf_overrides=composite_overrides(members, weights=[...])).",
            )
        values = json.loads(text)
        members, weights = tuple(values.pop("members")), tuple(values.pop("weights"))
        return cls(members, weights, **values)

    def merged(self, base: Folder) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """All models, the base first, and their weights; one that occurs twice is run once."""
        weights: dict[str, float] = {}
        for path, weight in zip((str(base), *self.members), self.weights, strict=True):
            key = absolute(path)
            weights[key] = weights.get(key, 0.0) + weight
        return tuple(weights), tuple(weights.values())

    def pooling(self, base: Folder) -> tuple[tuple[str, ...], "Pooling"]:
        """The models that run, of weight other than 0, and how their logits become one.

        Raises:
            InferKitError: weights that cannot be.
        """
        import torch

        from infer_kit.pooling import resolve_pooling

        paths, weights = self.merged(base)
        there = torch.ones(1, len(paths), dtype=torch.bool, device="cpu")
        pooling = resolve_pooling(
            self.mode, [list(weights)], there, plausibility=self.plausibility, experts=(0,)
        )
        return tuple(paths[k] for k in pooling.streams), pooling


def composite_overrides(
    members: Sequence[Folder],
    weights: Sequence[float],
    mode: str = "product",
    *,
    plausibility: float = 0.0,
    base: Folder | None = None,
) -> dict[str, Any]:
    r"""`hf_overrides` that make the model of an engine a composite.

    Product: $\log \pi = \sum_k w_k \log p_k$ up to a constant, weights of any sign, not divided by
    their sum. Mixture: $\pi = \sum_k w_k p_k$. Contrastive decoding of a base (expert) and an
    amateur at temperature T: `weights=[1 + a, -a / T]`, `plausibility=0.1`.

    A member of weight 0 is not loaded, one that occurs twice is loaded once.

    Args:
        members: folders of the other models.
        weights: one a model, the base's first.
        mode: "product" or "mixture".
        plausibility: β in [0, 1]: tokens less likely than β times the base's likeliest are excluded
            (Li et al., "Contrastive Decoding", ACL 2023, eq. 2, there α); 0 excludes none.
        base: folder of the model that the engine will be started with: all is then checked at once,
            not only as the engine starts. Needed where its head has more rows than a member's.

    Raises:
        InferKitError: a folder that is not there or holds no language model, weights that cannot
            be, a plausibility outside its range.
        VocabularyMismatch: members that do not name the same tokens.
    """
    if isinstance(members, str | PathLike):
        raise InferKitError(f"members is a list of folders, got {str(members)!r}.")
    folders = tuple(member_folder(member) for member in members)
    numbers = _numbers(weights)
    if len(numbers) != 1 + len(folders):
        raise InferKitError(
            f"Got {len(numbers)} weights for {1 + len(folders)} models: the base and "
            f"{len(folders)} members. The base's weight is the first."
        )
    if mode not in MODES:
        raise InferKitError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")
    _check_weights(numbers, mode, plausibility)
    kept = [place for place, w in enumerate(numbers) if not place or w != 0]
    made = Composite(
        tuple(folders[k - 1] for k in kept[1:]),
        tuple(numbers[k] for k in kept),
        mode,
        float(plausibility),
    )
    return _checked(made, base)


def reward_overrides(
    reward: Folder, beta: float | None = None, *, base: Folder | None = None
) -> dict[str, Any]:
    r"""The same for a saved `PortableReward`: $\log \pi = z_B + \beta r$ over the ids with a name.

    The law of `infer_kit.compose(base, reward, beta)`.

    Args:
        reward: the folder that `PortableReward.save_pretrained` wrote.
        beta: β; default: what the reward was trained with.
        base: as in `composite_overrides`.

    Raises:
        InferKitError: no reward there, or one that cannot run inside vLLM: an adapter that is not
            merged, a classifier.
        VocabularyMismatch: the base has other tokens.
    """
    from infer_kit.reward.labels import label_hash
    from infer_kit.reward.portable import CONFIG, LABELS, RewardConfig, check_strength

    folder = Path(reward)
    if not (folder / CONFIG).is_file():
        raise InferKitError(
            f"{folder} holds no portable reward: there is no {CONFIG}.",
            hint="Save one with PortableReward(...).save_pretrained(folder).",
        )
    try:
        config = RewardConfig(**json.loads((folder / CONFIG).read_text("utf-8")))
        labels = json.loads((folder / LABELS).read_text("utf-8"))
    except (TypeError, OSError, json.JSONDecodeError) as error:
        raise InferKitError(f"{folder / CONFIG} is no reward's: {error}.") from error
    if config.kind != "causal-lm":
        raise InferKitError(
            f"{folder} holds a reward for {config.kind}; vLLM runs those for language models.",
            hint="Use infer_kit.compose(base, reward) on transformers.",
        )
    if (folder / "adapter_config.json").is_file():
        raise InferKitError(
            f"{folder} holds a reward that is an adapter on the weights of its source base; a "
            "member of a composite is a whole model.",
            hint="Merge it: m = PortableReward.from_pretrained(folder); PortableReward("
            "m.model.merge_and_unload(), m.labels, beta=m.config.beta).save_pretrained(other).",
        )
    if label_hash(labels) != config.labels_sha256:
        raise InferKitError(
            f"{folder / LABELS} does not have the labels whose hash {CONFIG} has: one of the two "
            "files was changed."
        )
    member_folder(folder)
    strength = check_strength(config.beta if beta is None else beta, "beta")
    return _tilted([(folder, strength)], config.output_size, config.labels_sha256, base)


def implicit_overrides(
    tuned: Folder, untuned: Folder, beta: float = 1.0, *, base: Folder | None = None
) -> dict[str, Any]:
    r"""The same for a difference of models: $\log \pi = z_B + \beta (z_{ft} - z_{pt})$.

    Emulated fine-tuning, proxy tuning; the law of `infer_kit.compose(base, implicit=(tuned,
    untuned), beta=beta)`. Where the base is one of the two it is run once.

    Args:
        tuned, untuned: folders of the models, with their tokenizers.
        beta: β. base: as in `composite_overrides`.

    Raises:
        InferKitError: a folder that is not there or has no tokenizer.
        VocabularyMismatch: the models do not name the same tokens.
    """
    from infer_kit.reward.labels import check_same_labels, label_hash, labels_of
    from infer_kit.reward.portable import check_strength

    strength = check_strength(beta, "beta")
    labels = []
    for folder in (tuned, untuned):
        member_folder(folder)
        labels.append(labels_of(tokenizer_of(str(folder), "nothing says what its ids mean")))
    check_same_labels(labels[0], labels[1], "the untuned model")
    parts = [(tuned, strength), (untuned, -strength)]
    return _tilted(parts, len(labels[0]), label_hash(labels[0]), base)


def check_members(base: Folder, overrides: Any) -> None:
    """Raise unless a composite can be put on a base.

    Called by vLLM's worker as the model is built; call it to know before.

    Args:
        base: folder of the base. overrides: what `composite_overrides` and its kin return.

    Raises:
        InferKitError: a model that is not there, or is no causal language model of text, or whose
            weights are quantised.
        VocabularyMismatch: the models do not name the same tokens, or one has too few rows.
    """
    composite = overrides if isinstance(overrides, Composite) else Composite.of(overrides)
    paths, _ = composite.pooling(base)
    folders = list(dict.fromkeys((absolute(base), *paths)))
    configs = {folder: config_of(folder) for folder in folders}
    rows = {folder: int(config.vocab_size) for folder, config in configs.items()}
    if composite.labels_sha256:
        from infer_kit.reward.labels import label_hash, labels_of

        labels = labels_of(tokenizer_of(folders[0], "nothing says what the base's ids mean"))
        if label_hash(labels) != composite.labels_sha256:
            raise VocabularyMismatch(
                f"The reward was made for other tokens than those of {folders[0]}, which has "
                f"{len(labels):,}; the reward {composite.vocab_size:,}.",
                hint=OVER_BYTES,
            )
    else:
        check_tokens(folders, configs)
    size = composite.vocab_size or rows[folders[0]]
    short = {folder: n for folder, n in rows.items() if n < size}
    if short:
        folder, n = next(iter(short.items()))
        raise VocabularyMismatch(
            f"{folder} has a head of {n:,} rows, fewer than the {size:,} tokens of the composite.",
            hint=f"Give base={folders[0]!r} too: the rows that all heads have are then used.",
        )


def _tilted(
    parts: Sequence[tuple[Folder, float]], size: int, labels_sha256: str, base: Folder | None
) -> dict[str, Any]:
    """Overrides of the base with weight 1 and others with theirs, over the first ids."""
    members = tuple(absolute(folder) for folder, weight in parts if weight)
    weights = (1.0, *(weight for _, weight in parts if weight))
    return _checked(Composite(members, weights, "product", 0.0, size, labels_sha256), base)


def _checked(made: Composite, base: Folder | None) -> dict[str, Any]:
    """The overrides, checked on a base where it is known."""
    if base is None:
        return made.overrides()
    paths, _ = made.pooling(base)
    if not made.vocab_size:
        own = int(config_of(absolute(base)).vocab_size)
        common = min(own, *(int(config_of(path).vocab_size) for path in paths))
        made = replace(made, vocab_size=common if common < own else 0)
    check_members(base, made)
    return made.overrides()


def _check_weights(weights: Sequence[float], mode: str, plausibility: float) -> None:
    shown = list(weights)
    if not all(math.isfinite(w) for w in weights):
        raise InferKitError(f"The weights are not finite: {shown}.")
    if all(w == 0 for w in weights):
        raise InferKitError(f"All weights are 0: {shown}; no model would be run.")
    if mode == "mixture" and min(weights) < 0:
        raise InferKitError(
            f"A mixture needs weights ≥ 0, got {shown}. Negative weights work with mode='product'."
        )
    if mode == "mixture" and abs(sum(weights) - 1) > 1e-5:
        raise InferKitError(f"Mixture weights must sum to 1, got {shown} (sum {sum(weights):g}).")
    if not 0 <= plausibility <= 1:
        raise InferKitError(f"plausibility is from 0 to 1, got {plausibility!r}.")
    if plausibility and not weights[0]:
        raise InferKitError(
            f"The base says what is plausible (plausibility={plausibility:g}), but has weight 0.",
            hint="Give it weight, or set plausibility=0.",
        )


def _numbers(weights: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(w) for w in weights)
    except (TypeError, ValueError) as error:
        raise InferKitError(f"weights is a list of numbers, got {weights!r}.") from error
