"""What every method has: it turns chats into groups, and a backend decodes them."""

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from infer_kit.backends import Answers, Backend
from infer_kit.chats import Chat, as_chats, question_of
from infer_kit.errors import InferKitError
from infer_kit.methods.sweep import Sweep, candidate_lists, joined_scores, same_text
from infer_kit.pool import KLBudgetWeights
from infer_kit.streams import Group
from infer_kit.trace import checked_depth


@dataclass(frozen=True)
class MethodOutput:
    """The answers to one chat or to a list of chats.

    For one chat with one returned sequence, `text` and `trace` are single items; otherwise lists,
    `num_return_sequences` entries a chat.

    Attributes:
        text: str, the answer.
        trace: `Trace`, each stream's part in each token; None with `trace=False`.
        sequences: `[R, prompt + new]` ids, the primary stream's padded prompt first.
        tokens: the new ids of each sequence, its end token included, no padding.
        engines: how the streams were run ("fused" or "serial").
        output: the backend's output: `scores`, `logits`, `sequences_scores` of the pooled
            distribution where they were asked for.
    """

    text: Any
    trace: Any = field(repr=False)
    sequences: Any = field(repr=False)
    tokens: list[list[int]] = field(repr=False)
    engines: tuple[str, ...]
    output: Any = field(repr=False)

    @classmethod
    def of(cls, answers: Answers, single: bool, **more: Any) -> Any:
        """From a backend's answers; `single`: there was one chat, not a list."""
        one = single and len(answers.texts) == 1
        traces = answers.traces
        return cls(
            text=answers.texts[0] if one else answers.texts,
            trace=traces[0] if one and traces else traces,
            sequences=answers.output.sequences,
            tokens=answers.tokens,
            engines=answers.engines,
            output=answers.output,
            **more,
        )


class Recipe(ABC):
    """A method: `groups` says which streams read what, and with which weights.

    Attributes:
        backend: what runs the groups.
        pool: "product" or "mixture".
        normalize: whether each group's weights are divided by their sum.
        plausibility: β of the plausibility cut-off, 0 for none.
        trace: whether each stream's part in each token is recorded; a number n: with n candidates a
            stream (see `Trace`).
    """

    backend: Backend
    pool: str = "product"
    normalize: bool = False
    plausibility: float = 0.0
    _trace: bool | int = True
    _watch: Callable[[Sequence[Group]], None] | None = None  # is told what is decoded

    @property
    def trace(self) -> bool | int:
        return self._trace

    @trace.setter
    def trace(self, value: bool | int) -> None:
        checked_depth(value)
        self._trace = value

    @abstractmethod
    def groups(self, chats: Sequence[Chat], memory: Any = None) -> list[Group]:
        """The streams of each chat.

        Args:
            chats: checked, see `infer_kit.chats.as_chats`.
            memory: for encoded images (`Backend.new_memory`).
        """
        ...

    def group(self, messages: Any, **inputs: Any) -> Group:
        """The streams of one chat, to compose with those of another method.

        `a.group(chat).replace("image", b.group(chat))` puts the streams of `b` in the place of one
        of `a`'s; `run` decodes the result.
        """
        self._check_fixed_weights()
        chats, single = as_chats(messages)
        if not single:
            raise InferKitError(f"group takes one chat, got {len(chats)}.")
        memory = self._call_memory()
        group = self.groups(chats, memory, **inputs)[0]
        model = self.backend.model  # named, since another method's backend may run it
        streams = tuple(replace(s, model=s.model or model) for s in group.streams)
        return replace(group, streams=streams, memories=(memory,))

    def generate(self, messages: Any, **generate_kwargs: Any) -> MethodOutput:
        """Answer one chat, or a list of chats together.

        Args:
            messages: a chat (list of `{"role", "content"}`, images as content parts
                `{"type": "image", "image": <PIL image, path or URL>}`), or a list of chats. The
                last turn is the question.
            **generate_kwargs: `GenerationMixin.generate`'s.

        Raises:
            InferKitError: before any forward pass, naming the prompt that cannot work.
        """
        return self._answer(messages, generate_kwargs)

    def run(self, groups: Sequence[Group], **generate_kwargs: Any) -> MethodOutput:
        """Decode groups of your own, with this method's pool and cut-off.

        Args:
            groups: as `group` makes them, perhaps composed of several methods'.

        Raises:
            InferKitError: this method's weights change with the step, and those of groups cannot.
        """
        self._check_fixed_weights()
        self.backend.check(len(groups), **generate_kwargs)
        memory = self.backend.new_memory()
        for group in groups:
            for encoded in group.memories:
                memory.update(encoded)
        answers = self._decode(groups, memory, generate_kwargs)
        return MethodOutput.of(answers, single=len(groups) == 1)

    def _call_memory(self) -> Any:
        """Where a call keeps encoded images."""
        return self.backend.new_memory()

    def _check_fixed_weights(self) -> None:
        if self._step_weights() is not None:
            raise InferKitError(
                f"The weights of this {type(self).__name__} are set at every step, for its own "
                "streams; groups have weights that are numbers.",
                hint="Give the weight as a number to compose groups.",
            )

    def _clean(self, text: Any, what: str) -> str:
        """A user's text for a prompt, without special tokens; `what` names it in messages."""
        if not isinstance(text, str):
            raise InferKitError(f"{what} is a {type(text).__name__}, not a text.")
        clean = self.backend.clean(text)
        if clean != text:
            warnings.warn(
                f"Special tokens were taken out of {what[0].lower() + what[1:]}: they would end "
                "the turn or stand for an image.",
                stacklevel=5,
            )
        if not clean.strip():
            warnings.warn(f"{what} is empty.", stacklevel=5)
        return clean

    def _answer(self, messages: Any, generate_kwargs: dict[str, Any], **inputs: Any) -> Any:
        chats, single = as_chats(messages)
        self.backend.check(len(chats), **generate_kwargs)
        memory = self.backend.new_memory()
        groups = self.groups(chats, memory, **inputs)
        if len(groups) != len(chats):
            raise InferKitError(
                f"{type(self).__name__}.groups made {len(groups)} groups for {len(chats)} chats."
            )
        return MethodOutput.of(self._decode(groups, memory, generate_kwargs), single)

    def _decode(
        self,
        groups: Sequence[Group],
        memory: Any,
        generate_kwargs: dict[str, Any],
    ) -> Answers:
        if self._watch is not None:
            self._watch(groups)
        return self.backend.generate(
            groups,
            pool=self.pool,
            normalize=self.normalize,
            weights=self._step_weights(),
            plausibility=self.plausibility,
            trace=self.trace,
            memory=memory,
            **generate_kwargs,
        )

    def _step_weights(self) -> Any:
        """A function of the step that gives the weights, or None for those of the groups."""
        return None


@dataclass(frozen=True)
class KLBudget:
    """A weight that sets itself: as large as keeps π within `nats` of the base, at every token."""

    nats: float


def parse_weight(value: Any, name: str = "weight") -> float | KLBudget:
    """A finite number, or "kl:0.1": a budget of 0.1 nats a token.

    Raises:
        InferKitError: it is neither.
    """
    if isinstance(value, str):
        kind, _, nats = value.partition(":")
        try:
            budget = float(nats)
        except ValueError:
            budget = math.nan
        if kind != "kl" or not (math.isfinite(budget) and budget > 0):
            raise InferKitError(
                f"{name}={value!r} is neither a number nor a budget.",
                hint=f"{name}='kl:0.1' spends 0.1 nats a token: KL(π ‖ base) = 0.1.",
            )
        return KLBudget(budget)
    if not is_number(value):
        raise InferKitError(f"{name} must be a finite number or 'kl:<nats>', got {value!r}.")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


class WeightedRecipe(Recipe):
    r"""A method with one knob s, in which the weights of its streams are affine: $w = w_0 + s d$.

    Attributes:
        knob: the name of the argument that is s. neutral: where the method does nothing.
    """

    knob: ClassVar[str] = "weight"
    neutral: ClassVar[float] = 0.0

    @abstractmethod
    def stream_weights(self, value: float) -> list[float]:
        """The weights of all streams at a value of the knob."""
        ...

    @property
    def setting(self) -> float | KLBudget:
        """The knob's value in force."""
        return parse_weight(getattr(self, self.knob), self.knob)

    def _initial_weights(self) -> list[float]:
        """The groups' weights; with a budget, those of a stream that has none are set later."""
        setting = self.setting
        value = self.neutral + 1 if isinstance(setting, KLBudget) else setting
        return self.stream_weights(value)

    def _step_weights(self) -> Any:
        setting = self.setting
        if not isinstance(setting, KLBudget):
            return None
        base = self.stream_weights(self.neutral)
        further = self.stream_weights(self.neutral + 1)
        direction = [b - a for a, b in zip(base, further, strict=True)]
        return KLBudgetWeights(setting.nats, tuple(base), tuple(direction))

    def sweep(
        self,
        messages: Any,
        answers: Sequence[str],
        weights: Sequence[float],
        candidates: Sequence[str] | Sequence[Sequence[str]] | None = None,
        correct: Callable[[str, str], bool] = same_text,
        batch_size: int = 8,
        progress: bool = True,
        **generate_kwargs: Any,
    ) -> Sweep:
        r"""Answer requests at several values of the knob, and count right answers.

        Every prompt is read once (with mode="serial" once a weight). With candidates one pass gives
        each stream's log-probabilities, from which $\log \pi_w(c)$ of every candidate follows for
        every weight, its end token included and without a cut-off; the likeliest is the answer.
        Without, an answer is written at each weight, all weights as one batch.

        Args:
            messages: a list of chats.
            answers: the true answer of each.
            weights: values of the knob.
            candidates: the answers to choose from, for all chats or for each; None: free text.
            correct: takes an answer and the true one.
            batch_size: chats at a time.
            progress: show a bar.
            **generate_kwargs: of `generate`: the method's own inputs, one for each chat
                (`rationale=[...]`, `context=[...]`, `negative=`); for free text, transformers' too.

        Raises:
            InferKitError: lengths differ, a weight is not a finite number, or a true answer is not
                among the candidates.
        """
        chats, _ = as_chats(messages)
        for b, chat in enumerate(chats):
            question_of(chat, b)
        if isinstance(answers, str) or not all(isinstance(a, str) for a in answers):
            raise InferKitError(f"answers must be a list of texts, got {answers!r}.")
        if len(answers) != len(chats):
            raise InferKitError(f"Got {len(answers)} answers for {len(chats)} chats.")
        self._check_values(weights)
        texts = None if candidates is None else candidate_lists(candidates, answers)
        own = set(inspect.signature(self.groups).parameters) - {"chats", "memory"}
        inputs = {name: generate_kwargs.pop(name) for name in own & generate_kwargs.keys()}
        if texts is not None and generate_kwargs:
            raise InferKitError(
                f"Candidates are scored, not generated: {sorted(generate_kwargs)} have no effect."
            )
        config = generate_kwargs.get("generation_config")
        returned = generate_kwargs.get(
            "num_return_sequences", getattr(config, "num_return_sequences", None)
        )
        if returned not in (None, 1):
            raise InferKitError("A sweep takes one answer a request: num_return_sequences=1.")
        self.backend.check(len(chats), **generate_kwargs)
        further = {n: _one_each(n, value, len(chats)) for n, value in inputs.items()}
        predictions: list[list[str]] = [[] for _ in weights]
        scores: list[Any] = []
        for start in tqdm(range(0, len(chats), batch_size), disable=not progress, desc="sweep"):
            part = slice(start, start + batch_size)
            memory = self.backend.new_memory()
            mine = {n: v[part] if isinstance(v, list) else v for n, v in further.items()}
            groups = self._full_groups(chats[part], memory, mine)
            tables = [[self.stream_weights(float(w))] * len(groups) for w in weights]
            if texts is not None:
                score = self.backend.score(
                    groups,
                    chats[part],
                    texts[part],
                    tables,
                    pool=self.pool,
                    normalize=self.normalize,
                    memory=memory,
                )
                scores.append(score.numpy())
                for w, best in enumerate(score.argmax(-1).tolist()):
                    pairs = zip(best, texts[part], strict=True)
                    predictions[w] += [several[c] for c, several in pairs]
                continue
            every = [g.reweighted(table[0]) for table in tables for g in groups]
            answered = self.backend.generate(
                every,
                pool=self.pool,
                normalize=self.normalize,
                plausibility=self.plausibility,
                memory=memory,
                **generate_kwargs,
            )
            if len(answered.texts) != len(every):
                raise InferKitError(
                    f"A sweep takes one answer a request, got {len(answered.texts)} for "
                    f"{len(every)}: set num_return_sequences=1."
                )
            for w in range(len(weights)):
                predictions[w] += answered.texts[w * len(groups) : (w + 1) * len(groups)]
        right = [
            [correct(text, answer) for text, answer in zip(row, answers, strict=True)]
            for row in predictions
        ]
        return Sweep(
            method=type(self).__name__,
            knob=self.knob,
            weights=tuple(float(w) for w in weights),
            predictions=tuple(tuple(row) for row in predictions),
            correct=np.array(right),
            answers=tuple(answers),
            scores=joined_scores(scores) if scores else None,
            candidates=None if texts is None else tuple(tuple(several) for several in texts),
        )

    def _check_values(self, values: Sequence[float]) -> None:
        """Raise for values of the knob that no group could be decoded with."""
        if isinstance(values, str) or not len(values) or not all(map(is_number, values)):
            raise InferKitError(f"weights must be finite numbers, got {values!r}.")
        for value in values:
            weights = self.stream_weights(float(value))
            if not any(weights):
                raise InferKitError(f"At {self.knob}={value:g} every stream has weight 0.")
            if self.normalize and abs(sum(weights)) < 1e-12:
                raise InferKitError(
                    f"At {self.knob}={value:g} the weights sum to 0: cannot be normalised."
                )

    def _full_groups(
        self, chats: Sequence[Chat], memory: Any, inputs: dict[str, Any]
    ) -> list[Group]:
        """Groups with all their streams, whatever the knob's value is now."""
        return self.groups(chats, memory, **inputs)


def _one_each(name: str, value: Any, chats: int) -> Any:
    """An input of `groups` as a list with one item a chat, or as it is where it is for all."""
    several = isinstance(value, list | tuple) and not (value and isinstance(value[0], Mapping))
    if several and len(value) == chats:
        return list(value)
    if several and not (name == "negative" and len(value) == 1):
        raise InferKitError(f"Got {len(value)} items of {name!r} for {chats} chats.")
    return tuple(value) if isinstance(value, list) else value
