"""A language model's head apart from its body."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from infer_kit.errors import InferKitError

_HINT = 'Leave chunk out, and choose another base_cache than "hidden".'


Autocast = Callable[[], AbstractContextManager[Any]]


class LanguageHead:
    """A model's own map of last hidden states `[..., d]` to logits `[..., columns]`.

    Bias, soft-cap (Gemma) and scale (Cohere, Granite) are those of the model. `check` compares it
    with logits that the model gave itself, since an architecture may do more than is known here.
    """

    def __init__(self, model: Any, whose: str, autocast: Autocast = nullcontext) -> None:
        """Args:
        model: a causal language model. whose: "base" or "reward", for messages.
        autocast: gives the context of mixed precision that the model's own forward runs in.
        """
        self._whose, self._name, self._autocast = whose, type(model).__name__, autocast
        self._module = model.get_output_embeddings()
        if self._module is None:
            raise InferKitError(
                f"The {whose} ({self._name}) does not say which of its layers is the head, so its "
                "hidden states cannot be told from its scores.",
                hint=_HINT,
            )
        config = model.config.get_text_config(decoder=True)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._times = getattr(config, "logit_scale", None)
        self._over = getattr(config, "logits_scaling", None)
        self._checked = False

    def __call__(self, hidden: Tensor) -> Tensor:
        # Accelerate puts mixed precision into the model's forward, which this is not a part of.
        with self._autocast():
            return self._scores(hidden)

    def _scores(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self._module(hidden)
        if self._times is not None:
            scores = scores * self._times
        if self._over is not None:
            scores = scores / self._over
        if self._cap is not None:
            scores = torch.tanh(scores / self._cap) * self._cap
        return scores

    @contextmanager
    def taps(self) -> Iterator["Tapped"]:
        """Within it, forwards of the model keep their last hidden states.

        The model itself then makes the scores of the first position alone: enough to check the
        head, and little beside those of a whole text.
        """
        tapped = Tapped()

        def keep(module: object, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
            tapped.states.append(given[0])
            return (given[0][:, :1], *given[1:])

        handle = self._module.register_forward_pre_hook(keep)
        try:
            yield tapped
        finally:
            handle.remove()

    def check(self, tapped: "Tapped", logits: Tensor) -> Tensor:
        """The hidden states `[B, T, d]` of a forward that gave these logits `[B, 1, columns]`.

        Raises:
            InferKitError: the head does not make the model's own logits of them.
        """
        if len(tapped.states) != 1 or tapped.states[0].ndim != 3:
            raise InferKitError(
                f"The {self._whose} ({self._name}) does not run its head once on its hidden "
                "states [batch, tokens, d].",
                hint=_HINT,
            )
        hidden = tapped.states[0]
        if self._checked:
            return hidden
        with torch.no_grad():
            own, ours = logits.detach().float(), self(hidden[:, :1])
        # The same layers on the same numbers: at most the last operation may round otherwise.
        eps = max(torch.finfo(hidden.dtype).eps, torch.finfo(ours.dtype).eps)
        ours, bound = ours.float(), 4 * eps * float(own.abs().max())
        if own.shape != ours.shape or not float((own - ours).abs().max()) <= bound:
            raise InferKitError(
                f"The {self._whose} ({self._name}) does more to its logits than its head, a scale "
                "and a soft-cap, so they cannot be made from its hidden states here.",
                hint=_HINT,
            )
        self._checked = True
        return hidden


class Tapped:
    """Last hidden states of the forwards run so far."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
