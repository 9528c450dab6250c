"""Methods answer samples: chats for recipes, chats or texts for ensembles of unlike tokenizers."""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from infer_kit.errors import InferKitError
from infer_kit.evaluation.samples import Sample, Shot
from infer_kit.methods.named import (
    CLASSES,
    MODELS,
    build,
    canonical,
    checked_options,
    class_of,
    did_you_mean,
    option_value,
    options_of,
)
from infer_kit.methods.parallel_icl import ParallelICL
from infer_kit.methods.prompts import KINDS, Prompts
from infer_kit.methods.recipe import Recipe, parse_weight
from infer_kit.named_models import NamedModel, load_beside

PLAIN = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {% endif %}"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '\n\n' }}{% elif not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
)
"""A chat template of bare texts, for models that were never taught one."""

ENSEMBLES = ("ensemble", "reduced")
"""Methods over symbols: `Ensemble` (its other members in `others`) and `ReducedLM`."""

SCORING = ("direct", *ENSEMBLES)
"""Methods that score texts, `direct` with one model over bytes."""

METHODS = (*CLASSES, *ENSEMBLES)
"""What `--method` takes."""


Rationales = dict[str, dict[str, tuple[str, float]]]
"""By what asked for them, then by the sample's id: the text, and the seconds it took."""


@dataclass(frozen=True)
class Answer:
    """What a method wrote.

    Attributes:
        text: the answer. rationale: that it was given with, or None.
        tokens: how many new ones the answer has; of an ensemble its bytes.
        trace: plain data, or None.
        seconds: that a shared rationale took when it was written.
    """

    text: str
    rationale: str | None
    tokens: int
    trace: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Score:
    """The log-probability of a text, in nats: equal bounds where it is exact."""

    low: float
    high: float


class Answerer(Protocol):
    """Answers samples, a batch at a time."""

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        """An answer for each."""
        ...


class Scorer(Protocol):
    """Scores texts, a batch at a time."""

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """The log-probability of each one's passage."""
        ...


@dataclass(frozen=True)
class Asking:
    """How samples become prompts.

    Attributes:
        instruction: after every question. system: a turn before all others.
        shots: demonstrations for all samples. chat_template: Jinja, "plain", or None.
        generation: keywords of `generate`. trace: whether answers have one.
        pictured: the id of a sample with a picture, if there is one.
    """

    instruction: str
    system: str | None
    shots: tuple[Shot, ...]
    chat_template: str | None
    generation: Mapping[str, Any]
    trace: bool
    pictured: str | None = None


def check_method(name: str, options: Mapping[str, Any]) -> str:
    """The method's name as `METHODS` spells it; raises for it, and for options it has not."""
    plain = name.lower().replace("-", "_")
    if plain in ENSEMBLES:
        known = known_options(plain)
        for key in options:
            if key not in known:
                raise InferKitError(
                    f"The method {name!r} has no option {key!r}.{did_you_mean(key, known)}"
                )
        if plain == "ensemble" and not options.get("others"):
            raise InferKitError(
                "An ensemble needs other models.", hint="Give --set others=B, or others=B+C."
            )
        _check_folders(plain, options)
        return plain
    if plain not in METHODS:
        raise InferKitError(f"Unknown method {name!r}.{did_you_mean(plain, METHODS)}")
    checked_options(plain, options)
    knob = str(getattr(class_of(plain), "knob", ""))
    if options.get(knob) is not None:
        parse_weight(option_value(options[knob]), knob)
    _check_folders(plain, options)
    return canonical(plain)


def _check_folders(method: str, options: Mapping[str, Any]) -> None:
    """Raise where a reward is no folder."""
    for name in named_models_of(method, options).get("reward", ()):
        if not Path(name).is_dir():
            raise InferKitError(f"There is no folder {name!r} with a reward.")


def known_options(method: str) -> list[str]:
    """The options of a method of `METHODS`."""
    return _ensemble_options(method) if method in ENSEMBLES else options_of(method)


def named_models_of(method: str, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Options that name further models or rewards, each a list of names."""
    if method == "ensemble":
        return {"others": str(options["others"]).split("+")}
    keys = (*MODELS.get(method, ()), *(("reward",) if method == "reward" else ()))
    return {key: [options[key]] for key in keys if isinstance(options.get(key), str)}


def check_samples(method: str, samples: Sequence[Sample], shots: Sequence[Shot]) -> None:
    """Raise unless the samples have what a method reads.

    Raises:
        InferKitError: a sample lacks demonstrations, a context, or a picture; names it.
    """

    def first(lacks: Callable[[Sample], bool]) -> Sample | None:
        return next(filter(lacks, samples), None)

    own = first(lambda sample: bool(sample.shots))
    if own is not None and shots:
        raise InferKitError(
            f"Sample {own.id!r} has demonstrations of its own, and --demonstrations are given too."
        )
    lacking = first(lambda sample: not sample.shots)
    if method == "parallel_icl" and not shots and lacking is not None:
        raise InferKitError(
            f"Parallel-ICL needs demonstrations, and sample {lacking.id!r} has none of its own.",
            hint="Give --demonstrations FILE.jsonl.",
        )
    lacking = first(lambda sample: sample.context is None)
    if method == "context_aware" and lacking is not None:
        raise InferKitError(
            f"Sample {lacking.id!r} has no context, which context_aware contrasts with."
        )
    lacking = first(lambda sample: not sample.images)
    if method == "vcd" and lacking is not None:
        raise InferKitError(f"Sample {lacking.id!r} has no image, which vcd contrasts with noise.")
    pictured = first(lambda sample: bool(sample.pictures))
    if method in ENSEMBLES and pictured is not None:
        raise InferKitError(f"Sample {pictured.id!r} has a picture; {method} reads text.")


def answerer_for(
    method: str,
    loaded: NamedModel,
    options: Mapping[str, Any],
    asking: Asking,
    rationales: Rationales | None = None,
) -> Answerer:
    """What answers with a method of `METHODS`, already checked.

    Args:
        rationales: that were written for other weights, and are not written again.
    """
    if method in ENSEMBLES:
        return _OverSymbols(method, loaded, options, asking)
    pictured = asking.pictured
    if pictured is not None and getattr(loaded.processor, "image_processor", None) is None:
        raise InferKitError(
            f"Sample {pictured!r} has a picture, and the model takes none.",
            hint="Its processor has no image processor; take a vision-language model.",
        )
    template = PLAIN if asking.chat_template == "plain" else asking.chat_template
    if template is not None:
        options = {**options, "chat_template": template}
    prompts, options = _prompts(method, loaded, options, asking.instruction)
    recipe = build(method, loaded.model, loaded.processor, options, prompts, trace=asking.trace)
    recipe.backend.check(1, **asking.generation)
    if isinstance(recipe, ParallelICL):
        if asking.system is not None:
            recipe.system = asking.system
        return _OfDemonstrations(recipe, asking)
    return _OfChats(recipe, asking, rationales)


def scorer_for(
    method: str, loaded: NamedModel, options: Mapping[str, Any], asking: Asking
) -> Scorer:
    """What scores with a method of `SCORING`; of `direct`, the model over bytes."""
    if method == "direct":
        method, options = "reduced", {}
    return _OverSymbols(method, loaded, options, asking)


def _prompts(
    method: str, loaded: NamedModel, options: Mapping[str, Any], instruction: str
) -> tuple[Prompts | None, Mapping[str, Any]]:
    """The prompts of a method with rationales, with the instruction, and its other options."""
    if "prompts" not in inspect.signature(class_of(method)).parameters:
        return None, options
    own = loaded.prompts
    kind = options.get("kind", "cot")
    if own is None and kind in KINDS:  # else the method says what is wrong
        own, options = KINDS[kind], {k: v for k, v in options.items() if k != "kind"}
    return None if own is None else own.with_instruction(instruction), options


class _OfChats:
    """A recipe, one chat a sample; demonstrations are turns of it."""

    def __init__(
        self, recipe: Recipe, asking: Asking, rationales: Rationales | None = None
    ) -> None:
        self.recipe, self.asking = recipe, asking
        self.rationales = rationales
        self.inputs = inspect.signature(type(recipe).groups).parameters
        # where there are rationales the instruction is in the prompts, see `_prompts`
        self.instructs_itself = "rationale" in self.inputs

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        asking = self.asking
        chats = [
            s.chat(
                asking.instruction,
                asking.shots,
                asking.system,
                instructed=not self.instructs_itself,
            )
            for s in samples
        ]
        more: dict[str, Any] = {}
        shared = self._shared_rationales(samples, chats)
        if shared is not None:
            more["rationale"] = [text for text, _ in shared]
        if "context" in self.inputs:
            more["context"] = [sample.context for sample in samples]
        answers = _answers(self.recipe.generate(chats, **more, **asking.generation))
        if shared is None:
            return answers
        pairs = zip(answers, shared, strict=True)
        return [replace(answer, seconds=seconds) for answer, (_, seconds) in pairs]

    def _shared_rationales(
        self, samples: Sequence[Sample], chats: Sequence[Any]
    ) -> list[tuple[str, float]] | None:
        """Those written before in the same way; None where there are none to share."""
        if "rationale" not in self.inputs or self.rationales is None:
            return None
        recipe: Any = self.recipe
        prompts, generation = recipe.rationale_settings
        if getattr(recipe, "weight", None) == 0 or generation.get("do_sample", True):
            return None  # none are read; or drawing them is part of the batch's randomness
        key = repr((prompts, sorted(generation.items())))
        known = self.rationales.setdefault(key, {})
        shared = [known.get(sample.id) for sample in samples]
        if None not in shared:
            return [each for each in shared if each is not None]
        started = time.perf_counter()
        texts = recipe.rationales(list(chats))
        seconds = (time.perf_counter() - started) / len(samples)
        known |= {s.id: (text, seconds) for s, text in zip(samples, texts, strict=True)}
        return [(text, 0.0) for text in texts]  # their time is in this call's


class _OfDemonstrations:
    """Parallel-ICL: fitted once, or for each sample that has demonstrations of its own."""

    def __init__(self, recipe: ParallelICL, asking: Asking) -> None:
        self.recipe, self.asking = recipe, asking
        self._fitted = False

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        asking = self.asking
        if asking.shots:
            if not self._fitted:
                self.recipe.fit([shot.turns(asking.instruction) for shot in asking.shots])
                self._fitted = True
            chats = [sample.chat(asking.instruction) for sample in samples]
            return _answers(self.recipe.generate(chats, **asking.generation))
        groups = []
        for sample in samples:
            self.recipe.fit([shot.turns(asking.instruction) for shot in sample.shots])
            alone = replace(sample, shots=())  # which the method has read
            groups.append(self.recipe.group(alone.chat(asking.instruction)))
        return _answers(self.recipe.run(groups, **asking.generation))


class _OverSymbols:
    """An ensemble over bytes or tokens, or one model over bytes."""

    def __init__(
        self, method: str, loaded: NamedModel, options: Mapping[str, Any], asking: Asking
    ) -> None:
        self.asking = asking
        self.ensemble = _ensemble(method, loaded, options)
        if asking.chat_template not in (None, "plain"):
            raise InferKitError(
                f"Every member of the method {method!r} has a chat template of its own.",
                hint="--chat-template plain asks with bare texts.",
            )

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        asking = self.asking
        chats: list[Any] = [
            s.chat(asking.instruction, asking.shots, asking.system) for s in samples
        ]
        if asking.chat_template == "plain":
            chats = [_bare(chat) for chat in chats]
        out = self.ensemble.generate(chats, **asking.generation)
        texts = [out.text] if isinstance(out.text, str) else out.text
        return [Answer(text.strip(), None, len(text.encode())) for text in texts]

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return _scores_by(self.ensemble, samples)


def _ensemble(method: str, loaded: NamedModel, options: Mapping[str, Any]) -> Any:
    from infer_kit.vocab.ensemble import Ensemble, ReducedLM

    given = dict(options)
    if method == "reduced":
        return ReducedLM(loaded.model, loaded.processor, **given)
    others = [load_beside(loaded.model, name) for name in str(given.pop("others")).split("+")]
    members = [(m.model, m.processor) for m in (loaded, *others)]
    return Ensemble(members, **given)


def _ensemble_options(method: str) -> list[str]:
    from infer_kit.vocab.ensemble import Ensemble

    known = set(inspect.signature(Ensemble).parameters) - {"members"}
    if method == "ensemble":
        return sorted(known | {"others"})
    return sorted(known - {"weights", "pool", "switching_rate"})


def _scores_by(ensemble: Any, samples: Sequence[Sample]) -> list[Score]:
    passages = [sample.passage for sample in samples]
    scores = [Score(s.low, s.high) for s in ensemble.logprob(passages)]
    for sample, score in zip(samples, scores, strict=True):
        if not math.isfinite(score.low):
            raise InferKitError(f"The text of sample {sample.id!r} has probability 0.")
    return scores


def _answers(out: Any) -> list[Answer]:
    """Of a `MethodOutput` for a list of chats, one answer each."""
    texts = [out.text] if isinstance(out.text, str) else out.text
    rationales = getattr(out, "rationale", None)
    if rationales is None or isinstance(rationales, str):
        rationales = [rationales] * len(texts)
    traces = out.trace if isinstance(out.trace, list) else [out.trace] * len(texts)
    return [
        Answer(text.strip(), rationale, len(ids), None if trace is None else trace.to_dict())
        for text, rationale, ids, trace in zip(texts, rationales, out.tokens, traces, strict=True)
    ]


def _bare(chat: Sequence[Mapping[str, Any]]) -> str:
    """What `PLAIN` writes, the start of the answer included."""
    pieces = []
    for turn in chat:
        text = "".join(part["text"] for part in turn["content"])
        pieces.append(f" {text}\n\n" if turn["role"] == "assistant" else f"{text}\n")
    return "".join(pieces).rstrip("\n") + "\n"
