"""`compose`: put rewards on a base, whatever they were trained on."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from infer_kit.backends import is_vllm
from infer_kit.errors import InferKitError
from infer_kit.reward.classifiers import ComposedClassifier, Tilt
from infer_kit.reward.composed_lm import ComposedLM, Part
from infer_kit.reward.labels import Labels, check_same_labels, label_hash, labels_of
from infer_kit.reward.portable import (
    Kind,
    PortableReward,
    check_columns,
    check_strength,
    columns_of,
)

Reward = PortableReward | str | PathLike[str]
Weighted = Mapping[str, tuple[Any, float]]
_LM: Kind = "causal-lm"


def compose(
    base: PreTrainedModel,
    rewards: Reward | Weighted | Sequence[Reward] | None = None,
    beta: float | None = None,
    *,
    implicit: tuple[Any, Any] | None = None,
    tokenizer: Any = None,
    id_map: Mapping[int, int] | None = None,
) -> Any:
    r"""A base tilted by rewards: $\log \pi = z_B + \beta (\sum_i w_i r_i + z_{ft} - z_{pt})$.

    | | |
    |---|---|
    | portable reward | `compose(base, reward)` |
    | several | `compose(base, {"math": (reward, 1.0), "polite": (other, 0.5)})` |
    | EFT, proxy tuning | `compose(base, implicit=(tuned, untuned))` |
    | DeRa, $(1-a) z_{ref} + a z_{al}$ | `compose(ref, implicit=(aligned, ref), beta=a)` |
    | GenARM-type, a language model as reward | `compose(base, {"arm": (model, 1.0)}, beta=a)` |

    Weights are not divided by their sum: temperature keeps its meaning. A language model that
    occurs twice is run once.

    Args:
        base: a causal language model, or a classifier.
        rewards: a `PortableReward`, the folder of one, a list of them, or name to (reward, weight),
            where a plain model may stand for a reward.
        beta: β, of all of them; default: what the reward was trained with, for several 1.
        implicit: (tuned, untuned) models, whose difference is the reward. Each may be a pair
            (model, tokenizer).
        tokenizer: the base's; default: loaded from the base's path.
        id_map: of classifiers: base class to reward class, where the reward knows only some of the
            base's classes. The others keep their probability.

    Returns:
        `ComposedLM`, or for a classifier `ComposedClassifier`.

    Raises:
        InferKitError: no reward, a reward of another kind, β that is no number, a model with fewer
            columns than the vocabulary has ids.
        VocabularyMismatch: a reward of another vocabulary; says what differs. Over bytes any two
            tokenizers go together: `over_bytes`.
    """
    if is_vllm(base):
        raise InferKitError(
            "A vLLM engine holds the base and its rewards from its start.",
            hint="CoupledLLM(base, hf_overrides=reward_overrides('reward/', base=base)), or "
            "implicit_overrides(tuned, untuned, base=base); see docs/vllm.md.",
        )
    named = _named(rewards)
    if not named and implicit is None:
        raise InferKitError(
            "There is nothing to compose the base with.",
            hint="Give a reward, or implicit=(tuned, untuned).",
        )
    kind = kind_of(base)
    labels = _labels(base, kind, tokenizer, "the base")
    known = [reward for reward, _ in named.values() if isinstance(reward, PortableReward)]
    if beta is None:
        single = len(named) == 1 and len(known) == 1 and implicit is None
        beta = known[0].config.beta if single else 1.0
    beta = check_strength(beta, "beta")
    if id_map is not None:
        return _with_id_map(base, named, implicit, beta, kind, labels, id_map)
    parts = [Part("base", base, 1.0, scaled=False, path=_path(base))]
    for name, (reward, weight) in named.items():
        weight = check_strength(weight, f"The weight of {name!r}")
        if isinstance(reward, PortableReward):
            reward.check_base(labels, kind)
            parts.append(Part(name, reward.scorer, weight, path=reward.path, is_reward=True))
        else:
            parts.append(_plain(name, reward, weight, base, labels))
    if implicit is not None:
        tuned, untuned = _pair(implicit)
        parts.append(_plain("tuned", tuned, 1.0, base, labels))
        parts.append(_plain("untuned", untuned, -1.0, base, labels))
    if kind == _LM:
        return ComposedLM(parts, beta, len(labels), label_hash(labels))
    for part in parts:
        check_columns(part.name, part.model, len(labels), "classes")
    tilts = [Tilt(part.model, part.weight) for part in parts[1:]]
    return ComposedClassifier(base, tilts, beta, len(labels))


def over_bytes(
    base: tuple[PreTrainedModel, Any],
    rewards: Sequence[tuple[PreTrainedModel | PortableReward, Any, float]] = (),
    beta: float = 1.0,
    *,
    implicit: tuple[tuple[PreTrainedModel, Any], tuple[PreTrainedModel, Any]] | None = None,
    eps: float = 1e-6,
    **options: Any,
) -> Any:
    r"""The same across tokenizers, by bytes: $\pi(s) \propto p_B(s) \prod_i p_i(s)^{\beta w_i}$.

    Every model is re-expressed over bytes (`Ensemble`). What is a reward over tokens is used as the
    language model softmax(r): a tilt by its law of the next byte, which is not the law of any
    tilt of tokens. It works where the models' laws agree on what is written and differ in how
    probable it is: a tuned and an untuned model of one kind of text, on a base that writes such
    text too. A reward whose softmax is no language model (trained on short answers, say) has no
    useful law of bytes inside a word; measure on validation data first.

    `eps` bounds each model's own law at each step, in total variation. The pooled law has no bound:
    a signed product may magnify an error where a probability is small, hence the small default.

    Args:
        base: (model, tokenizer). rewards: (model or `PortableReward`, tokenizer, weight).
        implicit: ((tuned, tokenizer), (untuned, tokenizer)).
        **options: of `Ensemble`.

    Returns:
        An `Ensemble` with pool "product".
    """
    from infer_kit.vocab.ensemble import Ensemble

    beta = check_strength(beta, "beta")
    members: list[tuple[PreTrainedModel, Any]] = [base]
    weights = [1.0]
    for model, tokenizer, weight in rewards:
        members.append((model.scorer if isinstance(model, PortableReward) else model, tokenizer))
        weights.append(beta * check_strength(weight, "A reward's weight"))
    for pair, sign in zip(_pair(implicit), (1.0, -1.0), strict=True) if implicit else ():
        members.append(pair)
        weights.append(beta * sign)
    if len(members) == 1:
        raise InferKitError(
            "There is nothing to compose the base with.",
            hint="Give rewards=[(model, tokenizer, weight)], or implicit=((tuned, tokenizer), "
            "(untuned, tokenizer)).",
        )
    return Ensemble(
        members, weights=weights, pool="product", vocabulary="bytes", eps=eps, **options
    )


def kind_of(model: Any, whose: str = "The base") -> Kind:
    """Whether a model is a language model or a classifier."""
    if not hasattr(model, "forward"):
        raise InferKitError(f"{whose} is {type(model).__name__}; expected a model.")
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        raise InferKitError(
            f"{whose} is a PEFT model.",
            hint="Merge a copy, copy.deepcopy(model).merge_and_unload(); or, of a reward's own "
            "base, give reward.source().",
        )
    can_generate = getattr(model, "can_generate", None)
    return "causal-lm" if can_generate is not None and can_generate() else "classification"


def _pair(implicit: Any) -> tuple[Any, Any]:
    if not isinstance(implicit, Sequence) or len(implicit) != 2:
        raise InferKitError("implicit is (tuned, untuned): two models.")
    return implicit[0], implicit[1]


def _named(rewards: Any) -> dict[str, tuple[Any, float]]:
    """Rewards by name, folders loaded."""
    if rewards is None:
        return {}
    if isinstance(rewards, Mapping):
        given = dict(rewards)
    elif isinstance(rewards, Sequence) and not isinstance(rewards, str):
        given = {f"reward {place}": (reward, 1.0) for place, reward in enumerate(rewards)}
    else:
        given = {"reward": (rewards, 1.0)}
    named = {}
    for name, pair in given.items():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise InferKitError(f"Reward {name!r} is {pair!r}; expected (reward, weight).")
        reward, weight = pair
        if isinstance(reward, str | PathLike):
            reward = PortableReward.from_pretrained(reward)  # type: ignore[arg-type]
        named[name] = (reward, weight)
    return named


def _labels(model: Any, kind: Kind, tokenizer: Any, whose: str) -> Labels:
    """What a model's columns mean."""
    if kind == "classification":
        return labels_of(model)
    if tokenizer is None:
        path = _path(model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path) if path else None
        except (OSError, ValueError):
            tokenizer = None
        if tokenizer is None:
            raise InferKitError(
                f"No tokenizer is known for {whose}, so nothing says what its ids mean.",
                hint="Give tokenizer= for the base, and (model, tokenizer) for other models.",
            )
    return labels_of(tokenizer)


def _plain(name: str, model: Any, weight: float, base: Any, labels: Labels) -> Part:
    """A plain model as a part, its vocabulary compared with the base's."""
    kind = kind_of(base)
    if model is base:
        return Part(name, model, weight, path=_path(model))
    tokenizer = None
    if isinstance(model, Sequence):
        if len(model) != 2:
            raise InferKitError(f"{name} is {model!r}; expected a model or (model, tokenizer).")
        model, tokenizer = model
    if kind_of(model, name) != kind:
        raise InferKitError(f"{name} is a model for {kind_of(model)}, the base one for {kind}.")
    check_same_labels(_labels(model, kind, tokenizer, name), labels)
    return Part(name, model, weight, path=_path(model))


def _path(model: Any) -> str | None:
    return str(getattr(model, "name_or_path", "") or "") or None


def _with_id_map(
    base: Any,
    named: Mapping[str, tuple[Any, float]],
    implicit: Any,
    beta: float,
    kind: Kind,
    labels: Labels,
    id_map: Mapping[int, int],
) -> ComposedClassifier:
    if kind != "classification" or implicit is not None or len(named) != 1:
        raise InferKitError(
            "id_map is for a classifier and one reward.",
            hint="Language models of other tokenizers go together over bytes: over_bytes.",
        )
    ((reward, weight),) = named.values()
    if not id_map:
        raise InferKitError("id_map is empty: the reward and the base share no class.")
    if isinstance(reward, PortableReward) and reward.config.kind != kind:
        reward.check_base(labels, kind)
    if not isinstance(reward, PortableReward) and kind_of(reward, "The reward") != kind:
        raise InferKitError(f"The reward is a model for causal-lm, the base one for {kind}.")
    model = reward.scorer if isinstance(reward, PortableReward) else reward
    theirs = len(reward.labels) if isinstance(reward, PortableReward) else columns_of(model)
    for mine, other in id_map.items():
        whole = isinstance(mine, int) and isinstance(other, int)
        if (
            not whole
            or not 0 <= mine < len(labels)
            or (theirs is not None and not 0 <= other < theirs)
        ):
            raise InferKitError(
                f"id_map has {mine}: {other}; the base has {len(labels)} classes, the reward "
                f"{theirs}."
            )
    tilt = Tilt(model, check_strength(weight, "The reward's weight"))
    return ComposedClassifier(base, [tilt], beta, len(labels), id_map)
