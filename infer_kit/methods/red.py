r"""RED: rationale-enhanced decoding.

Source: Yamaguchi et al., "Rationale-Enhanced Decoding for Multi-modal Chain-of-Thought", CVPR 2026,
arXiv 2507.07685.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from infer_kit.backends import Answers, backend_for
from infer_kit.chats import Chat, as_chats, question_of, with_prompt
from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.methods.prompts import KINDS, Prompts
from infer_kit.methods.recipe import (
    KLBudget,
    MethodOutput,
    WeightedRecipe,
    is_number,
    parse_weight,
)
from infer_kit.streams import Group, Stream

INTERVENTIONS = ("own", "given", "shuffled", "empty")
_RATIONALE_TOKENS = 1024


@dataclass(frozen=True)
class REDOutput(MethodOutput):
    """The answers of RED, see `MethodOutput`.

    Attributes:
        rationale: str, the rationale, own or given; None where the weight is 0 and none was given.
            For a list of chats a list, one a chat.
    """

    rationale: Any


class RED(WeightedRecipe):
    r"""Answers drawn from $p(y \mid x, q) \cdot p(y \mid r, q)^\lambda / Z$, token by token.

    x is the image, q the question and r a rationale, either the model's own (step 1,
    $r \sim p(r \mid x, q)$) or the user's. The two contexts never meet: stream "image" reads image
    and question, stream "rationale" reads rationale and question. It is the maximiser of
    $E_\pi[\log p_r] - \frac1\lambda \mathrm{KL}(\pi \| p_x)$ (§3 of the paper).

    Differences from the published code: the question is put whole into the rationale request
    (there: its first line); the prompt texts are this project's own; weight 0 is exactly
    `model.generate()` on the same prompt, and asks for no rationale.

    Example:
        >>> red = RED(model, processor, weight=0.5)
        >>> red.generate([{"role": "user", "content": [
        ...     {"type": "image", "image": "cat.png"},
        ...     {"type": "text", "text": "What is the cat doing?"}]}], max_new_tokens=64).text
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        weight: float | str = 0.5,
        kind: str = "cot",
        normalize: bool = False,
        prompts: Prompts | None = None,
        image_weight: float = 1.0,
        rationale_generation: dict[str, Any] | None = None,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args:
        model: a transformers vision-language model (or a language model, for text alone).
        processor: the model's own processor.
        weight: λ, the weight of the rationale stream; 0.5 is the paper's for Qwen2.5-VL. Or a
            budget, "kl:0.1": nats a token by which the pool may depart from the image stream,
            KL(π ‖ p_x); λ is solved at every step, and is 100 where not even that spends it.
        kind: "cot", a reasoned description, or "ccot", a scene graph.
        normalize: divide both weights by their sum, so that temperature keeps its usual
            meaning under sampling; greedy answers do not change.
        prompts: texts of your own, in place of `kind`.
        image_weight: the weight of the image stream; 0 reads the rationale alone.
        rationale_generation: generate arguments of step 1, apart from the answer's. Default:
            greedy, at most 1024 tokens (the paper's), or what the model's context has room for.
        trace: record each stream's part in each token; a number: with so many candidates.
        chat_template: a Jinja template, where the processor has none.
        mode: how the streams run, see `CoupledLM`: "auto", "fused" or "serial".

        Raises:
            InferKitError: weights are not finite, the kind is unknown, or the processor's tokens
                are not the model's.
        """
        if isinstance(parse_weight(weight), KLBudget) and (normalize or image_weight != 1.0):
            raise InferKitError(
                f"weight={weight!r} solves λ for image_weight=1 and normalize=False only."
            )
        if prompts is not None and kind != "cot":
            raise InferKitError(f"kind={kind!r} and prompts= both choose texts; give one of them.")
        if prompts is None:
            if kind not in KINDS:
                raise InferKitError(f"Unknown kind {kind!r}: use one of {sorted(KINDS)}.")
            prompts = KINDS[kind]
        if not isinstance(prompts, Prompts):
            raise InferKitError(f"prompts is a {type(prompts).__name__}; expected `Prompts`.")
        self.weight = weight
        self.image_weight = image_weight
        self.normalize = normalize
        self.prompts = prompts
        self.trace = trace
        self._weights(1, None)  # raises for weights that cannot be
        self._rationale_generation = dict(rationale_generation or {})
        config = self._rationale_generation.get("generation_config")
        if config is None:
            self._rationale_generation.setdefault("do_sample", False)
        returned = self._rationale_generation.get(
            "num_return_sequences", getattr(config, "num_return_sequences", None)
        )
        if returned not in (None, 1):
            raise InferKitError("Each question has one rationale: num_return_sequences must be 1.")
        self.backend = backend_for(model, processor, chat_template, mode)
        self.backend.check(**self._rationale_generation)

    def generate(
        self,
        messages: Any,
        rationale: str | Sequence[str] | None = None,
        weight: float | Sequence[float] | None = None,
        **generate_kwargs: Any,
    ) -> REDOutput:
        """Answer one chat, or a list of chats together.

        Args:
            messages: a chat (list of `{"role", "content"}`, images as content parts
                `{"type": "image", "image": <PIL image, path or URL>}`), or a list of chats. The
                last turn is the question.
            rationale: a text of your own for each chat, in place of step 1.
            weight: λ for each chat, in place of the constructor's.
            **generate_kwargs: `GenerationMixin.generate`'s, for the answer; `streamer` streams it.

        Raises:
            InferKitError: before any forward pass, naming the prompt that cannot work.
        """
        return self._run(messages, rationale, weight, self.backend.new_memory(), generate_kwargs)

    def rationales(self, messages: Any) -> str | list[str]:
        """Step 1 alone: what the model writes about image and question."""
        chats, single = as_chats(messages)
        for b, chat in enumerate(chats):
            question_of(chat, b)
        texts = self._rationales(chats, range(len(chats)), self.backend.new_memory())
        return texts[0] if single else texts

    def intervene(
        self,
        messages: Any,
        kinds: Sequence[str] = ("own", "shuffled", "empty"),
        given: str | Sequence[str] | None = None,
        **generate_kwargs: Any,
    ) -> dict[str, REDOutput]:
        """Answer with several rationales, to see whether the rationale matters (paper, §5).

        The model's own rationales are written once and every image is encoded once.

        Args:
            messages: a list of chats (one is enough without "shuffled").
            kinds: of "own", "given" (needs `given`), "shuffled" (each chat gets the next one's
                own rationale) and "empty".
            given: a rationale for each chat.
            **generate_kwargs: for the answers.

        Returns:
            Kind to `REDOutput`.
        """
        chats, _ = as_chats(messages)
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        unknown = [kind for kind in kinds if kind not in INTERVENTIONS]
        if unknown:
            raise InferKitError(f"Unknown interventions {unknown}: use {list(INTERVENTIONS)}.")
        if "shuffled" in kinds and len(chats) < 2:
            raise InferKitError(
                "Shuffling rationales needs at least two chats, got 1.",
                hint="Leave it out: kinds=('own', 'empty').",
            )
        if ("given" in kinds) != (given is not None):
            raise InferKitError("The intervention 'given' and the argument given= go together.")
        texts: dict[str, Any] = {
            "given": self._given(given, len(chats)),
            "empty": [""] * len(chats),
        }
        self.backend.check(len(chats), **generate_kwargs)
        for b, chat in enumerate(chats):
            question_of(chat, b)
        memory = self.backend.new_memory()
        if {"own", "shuffled"} & set(kinds):
            own = self._rationales(chats, range(len(chats)), memory)
            texts |= {"own": own, "shuffled": [*own[1:], own[0]]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rationale.* empty.*")
            return {
                kind: self._run(messages, texts[kind], None, memory, dict(generate_kwargs))
                for kind in kinds
            }

    @property
    def _has_budget(self) -> bool:
        return isinstance(self.setting, KLBudget)

    def stream_weights(self, value: float) -> list[float]:
        return [self.image_weight, value]

    def groups(
        self,
        chats: Sequence[Chat],
        memory: Any = None,
        rationale: str | Sequence[str] | None = None,
        weight: float | Sequence[float] | None = None,
    ) -> list[Group]:
        """Stream "image" reads image and question, stream "rationale" rationale and question.

        Args:
            rationale, weight: see `generate`. Where λ is 0 and no rationale is given there is no
                stream "rationale".
        """
        return self._groups(chats, memory, rationale, weight)[0]

    def _full_groups(
        self, chats: Sequence[Chat], memory: Any, inputs: dict[str, Any]
    ) -> list[Group]:
        if "weight" in inputs:
            raise InferKitError("A sweep sets the weight itself.")
        return self.groups(chats, memory, **inputs, weight=None if self._has_budget else 1.0)

    def _groups(
        self, chats: Sequence[Chat], memory: Any, rationale: Any, weight: Any
    ) -> tuple[list[Group], list[str | None]]:
        """The groups, and the rationale of each."""
        weights = self._weights(len(chats), weight)
        given = self._given(rationale, len(chats))
        image_streams = [self._image_stream(chat, b) for b, chat in enumerate(chats)]
        texts: list[str | None] = list(given) if given else [None] * len(chats)
        if given is None:
            wanted = [b for b, w in enumerate(weights) if w != 0]
            written = self._rationales([chats[b] for b in wanted], wanted, memory)
            for b, own in zip(wanted, written, strict=True):
                texts[b] = own
        groups = []
        for b, (chat, image, text) in enumerate(zip(chats, image_streams, texts, strict=True)):
            streams = [image]
            if text is not None:
                streams.append(self._rationale_stream(chat, text, weights[b], b))
            groups.append(Group(tuple(streams)))
        return groups, texts

    def _image_stream(self, chat: Chat, request: int) -> Stream:
        question_of(chat, request)  # raises where there is none
        shown = with_prompt(chat, *self.prompts.around("image_context"))
        return Stream(self.backend.render(shown, request), self.image_weight, "image")

    def _rationale_stream(self, chat: Chat, rationale: str, weight: float, request: int) -> Stream:
        question_of(chat, request)
        around = self.prompts.around("rationale_context", rationale)
        shown = with_prompt(chat, *around, images=False)
        return Stream(self.backend.render(shown, request), weight, "rationale")

    def _run(
        self, messages: Any, rationale: Any, weight: Any, memory: Any, kwargs: dict[str, Any]
    ) -> REDOutput:
        chats, single = as_chats(messages)
        self.backend.check(len(chats), **kwargs)
        groups, texts = self._groups(chats, memory, rationale, weight)
        return _output(self._decode(groups, memory, kwargs), texts, single)

    @property
    def rationale_settings(self) -> tuple[Prompts, dict[str, Any]]:
        """What decides the model's own rationales: the prompts and the arguments of step 1."""
        return self.prompts, dict(self._rationale_generation)

    def rationales_of(self, chats: Sequence[Chat], memory: Any, given: Any = None) -> list[str]:
        """The rationale of each checked chat: the user's own, or step 1."""
        own = self._given(given, len(chats))
        return self._rationales(chats, range(len(chats)), memory) if own is None else own

    def _rationales(self, chats: Sequence[Chat], requests: Sequence[int], memory: Any) -> list[str]:
        """Step 1 for each chat; `requests` are their numbers in messages to the user."""
        if not chats:
            return []
        groups, rooms = [], []
        for b, chat in zip(requests, chats, strict=True):
            question_of(chat, b)
            request = with_prompt(chat, *self.prompts.around("rationale_request"))
            context = self.backend.render(request, b)
            groups.append(Group((Stream(context, 1.0, "image"),)))
            room = self.backend.room(context)
            if room == 0:
                raise PromptTooLong(
                    f"Prompt {b}: the rationale request fills the model's context; there is no "
                    "room for a rationale."
                )
            rooms.append(_RATIONALE_TOKENS if room is None else min(room, _RATIONALE_TOKENS))
        settings = self._rationale_generation
        own_limit = {"max_new_tokens", "max_length", "generation_config"} & settings.keys()
        answers = self.backend.generate(
            groups, memory=memory, limits=None if own_limit else rooms, **settings
        )
        texts = []
        for b, text, cut in zip(requests, answers.texts, answers.cut, strict=True):
            text = self.backend.clean(text).strip()
            if not text:
                warnings.warn(f"The rationale of prompt {b} is empty.", stacklevel=4)
            elif cut:
                warnings.warn(
                    f"The rationale of prompt {b} was cut at the length limit. Raise it with "
                    "rationale_generation={'max_new_tokens': ...}.",
                    stacklevel=4,
                )
            texts.append(text)
        return texts

    def _given(self, rationale: Any, chats: int) -> list[str] | None:
        if rationale is None:
            return None
        if isinstance(rationale, str):
            rationale = [rationale]
        if not isinstance(rationale, Sequence):
            raise InferKitError(
                f"rationale is a {type(rationale).__name__}; expected a text, or one for each chat."
            )
        texts = list(rationale)
        if len(texts) != chats:
            raise InferKitError(
                f"RED needs a rationale for every row: got {len(texts)} rationales for {chats} "
                "prompts."
            )
        return [self._clean(text, f"The rationale of prompt {b}") for b, text in enumerate(texts)]

    def _weights(self, chats: int, weight: Any) -> list[float]:
        """λ of each chat; with a budget, 1 for now."""
        if weight is not None and self._has_budget:
            raise InferKitError(f"weight={self.weight!r} sets λ; another cannot be given as well.")
        value: Any = (1.0 if self._has_budget else self.weight) if weight is None else weight
        if isinstance(value, Tensor):
            value = value.tolist()
        weights = [value] * chats if is_number(value) or isinstance(value, str) else value
        if not isinstance(weights, Sequence) or not all(is_number(w) for w in weights):
            raise InferKitError(
                f"Weights must be finite numbers, got weight={value!r}.",
                hint="The rationale alone is image_weight=0, weight=1.",
            )
        if not is_number(self.image_weight):
            raise InferKitError(
                f"Weights must be finite numbers, got image_weight={self.image_weight!r}."
            )
        if len(weights) != chats:
            raise InferKitError(
                f"RED needs one weight, or one for every row: got {len(weights)} weights for "
                f"{chats} prompts."
            )
        for b, w in enumerate(weights):
            if w == 0 and self.image_weight == 0:
                raise InferKitError(f"Both weights of prompt {b} are 0: no stream would be run.")
            if self.normalize and abs(w + self.image_weight) < 1e-12:
                raise InferKitError(f"The weights of prompt {b} sum to 0: cannot be normalised.")
        return [float(w) for w in weights]


def _output(answers: Answers, rationales: list[str | None], single: bool) -> REDOutput:
    traces = answers.traces
    if traces is not None:  # without a rationale its stream was not even made
        named = [{*trace.streams, *trace.idle} for trace in traces]
        traces = [
            trace if "rationale" in names else replace(trace, idle=(*trace.idle, "rationale"))
            for trace, names in zip(traces, named, strict=True)
        ]
    return REDOutput.of(
        replace(answers, traces=traces),
        single,
        rationale=rationales[0] if single else rationales,
    )
