"""What every method has: it turns chats into groups, and a backend decodes them."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from infer_kit.backends import Answers, Backend
from infer_kit.chats import Chat, as_chats
from infer_kit.errors import InferKitError
from infer_kit.pool import kl_budget_weights
from infer_kit.streams import Group


@dataclass(frozen=True)
class MethodOutput:
    """The answers to one chat or to a list of chats.

    For one chat with one returned sequence, `text` and `trace` are single items; otherwise lists,
    `num_return_sequences` entries a chat.

    Attributes:
        text: str, the answer.
        trace: `Trace`, each stream's part in each token; None with `trace=False`.
        sequences: `[R, prompt + new]` ids, the primary stream's padded prompt first.
        engines: how the streams were run ("fused" or "serial").
        output: the backend's output: `scores`, `logits`, `sequences_scores` of the pooled
            distribution where they were asked for.
    """

    text: Any
    trace: Any = field(repr=False)
    sequences: Any = field(repr=False)
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
        trace: whether each stream's part in each token is recorded.
    """

    backend: Backend
    pool: str = "product"
    normalize: bool = False
    plausibility: float = 0.0
    trace: bool = True

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
        chats, single = as_chats(messages)
        if not single:
            raise InferKitError(f"group takes one chat, got {len(chats)}.")
        return self.groups(chats, self.backend.new_memory(), **inputs)[0]

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
        """
        self.backend.check(len(groups), **generate_kwargs)
        answers = self._decode(groups, None, generate_kwargs, own_weights=True)
        return MethodOutput.of(answers, single=len(groups) == 1)

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
        return MethodOutput.of(self._decode(groups, memory, generate_kwargs), single)

    def _decode(
        self,
        groups: Sequence[Group],
        memory: Any,
        generate_kwargs: dict[str, Any],
        own_weights: bool = False,
    ) -> Answers:
        """`own_weights`: the groups' weights hold, whatever this method would set at each step."""
        return self.backend.generate(
            groups,
            pool=self.pool,
            normalize=self.normalize,
            weights=None if own_weights else self._step_weights(),
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
        return kl_budget_weights(setting.nats, base, direction)
