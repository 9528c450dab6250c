"""Rewards as a method on chats: `Rewarded`."""

from collections.abc import Sequence
from typing import Any

from infer_kit.backends import backend_for
from infer_kit.chats import Chat, question_of
from infer_kit.errors import InferKitError
from infer_kit.methods.recipe import WeightedRecipe
from infer_kit.reward.compose import compose
from infer_kit.reward.composed_lm import ComposedLM
from infer_kit.streams import Group, Stream


class Rewarded(WeightedRecipe):
    r"""A base tilted by a reward, $\log \pi = z_B + \beta r$, answering chats.

    One stream a model, all reading the same prompt; the same law as `compose`, with traces, sweeps
    of β and budgets (`beta="kl:0.1"`). Source: Chijiwa et al., ICML 2025, arXiv 2502.12776; with
    `tuned` and `untuned`, EFT and proxy tuning.
    """

    knob = "beta"

    def __init__(
        self,
        model: Any,
        processor: Any,
        reward: Any = None,
        tuned: Any = None,
        untuned: Any = None,
        tuned_processor: Any = None,
        untuned_processor: Any = None,
        beta: float | str | None = None,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args:
        model, processor: the base, a causal language model, and its tokenizer.
        reward: a `PortableReward`, or its folder.
        tuned, untuned: two models whose difference is the reward, and their tokenizers if they are
            not the base's.
        beta: β; None for what the reward was trained with, else 1. Or a budget.
        trace, chat_template, mode: as for `RED`.

        Raises:
            InferKitError: there is no reward, or one of another vocabulary.
        """
        if (tuned is None) != (untuned is None):
            raise InferKitError("tuned and untuned go together: their difference is the reward.")
        tokenizer = getattr(processor, "tokenizer", processor)
        pairs = ((tuned, tuned_processor), (untuned, untuned_processor))
        implicit = None if tuned is None else tuple((m, t or tokenizer) for m, t in pairs)
        number = None if isinstance(beta, str) else beta
        composed = compose(model, reward, number, implicit=implicit, tokenizer=tokenizer)  # type: ignore[arg-type]
        if not isinstance(composed, ComposedLM):
            raise InferKitError("Classifiers answer no chats; compose() makes one of a classifier.")
        self.beta = composed.beta if beta is None else beta
        self._composed, self.trace = composed, trace
        self._initial_weights()  # raises for a weight that cannot be
        self.backend = backend_for(model, processor, chat_template, mode)
        for other in list(composed.members)[1:]:
            self.backend.add_model(other, processor)

    def stream_weights(self, value: float) -> list[float]:
        return self._composed.weights_at(value)

    def groups(self, chats: Sequence[Chat], memory: Any = None) -> list[Group]:
        """Stream "base", then one of each reward."""
        members = list(self._composed.members)
        names = [self._composed.name_of(member) for member in members]
        groups = []
        for b, chat in enumerate(chats):
            question_of(chat, b)
            context = self.backend.render(chat, b)
            parts = zip(self._initial_weights(), names, members, strict=True)
            groups.append(Group(tuple(Stream(context, w, name, m) for w, name, m in parts)))
        return groups
