r"""The contrastive family: a full context against a degraded one.

All are products with signed weights, $\pi \propto p_0^{1+\alpha} / p_1^{\alpha}$, and differ in
what the second stream reads. Tokens that stream 0 finds implausible are cut off before everything
else (`infer_kit.pool.plausible`), since a contrast says nothing where both probabilities are tiny.
Greedy search, sampling, beams and everything else of `generate` work for all of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infer_kit.backends import backend_for
from infer_kit.chats import Chat, as_chats, question_of, with_prompt
from infer_kit.engine.image_noise import check_noise
from infer_kit.errors import InferKitError
from infer_kit.methods.recipe import (
    KLBudget,
    MethodOutput,
    WeightedRecipe,
    is_number,
    parse_weight,
)
from infer_kit.streams import Group, Stream

DISTURBANCE = (
    "You glanced at the image for a moment only, and you mix up what you saw. Be vague and guess."
)


class Contrast(WeightedRecipe):
    """What the contrastive methods share: their arguments, and the weights (1 + α, −α)."""

    knob = "alpha"

    def __init__(
        self,
        model: Any,
        processor: Any,
        alpha: float | str,
        beta: float,
        trace: bool | int,
        chat_template: str | None,
        mode: str,
    ) -> None:
        if not is_number(beta) or not 0 <= beta <= 1:
            raise InferKitError(f"beta is the plausibility cut-off, from 0 to 1; got {beta!r}.")
        setattr(self, self.knob, alpha)
        self.plausibility = float(beta)
        self.trace = trace
        self._initial_weights()  # raises for a weight that cannot be
        self.backend = backend_for(model, processor, chat_template, mode)

    def stream_weights(self, value: float) -> list[float]:
        return [1 + value, -value]

    def _group(self, contexts: Sequence[Any], names: Sequence[str]) -> Group:
        """The weighted streams; the first is primary and expert."""
        parts = zip(contexts, self._initial_weights(), names, strict=True)
        return Group(tuple(Stream(context, w, name) for context, w, name in parts))


class VCD(Contrast):
    r"""Visual contrastive decoding: the image against the same image under noise.

    $\pi \propto p(y \mid x, q)^{1+\alpha} / p(y \mid \tilde x, q)^{\alpha}$. Leng et al., CVPR
    2024, arXiv 2311.16922. Differs from the published code, which patches sampling alone: greedy
    search contrasts too. Every image is encoded twice, clean and noised, however long the answer.
    """

    alpha: float | str

    def __init__(
        self,
        model: Any,
        processor: Any,
        alpha: float | str = 1.0,
        beta: float = 0.1,
        noise_step: int = 500,
        seed: int = 0,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args:
        model, processor: a transformers vision-language model and its processor.
        alpha: α, how much the noised image counts; 0 is the plain model (with beta=0). Or a budget
            "kl:0.1": nats a token by which π may leave the plain model.
        beta: the cut-off; 0 is off, 1 leaves stream 0's best token alone.
        noise_step: of 1000 diffusion steps, see `infer_kit.engine.image_noise.add_noise`.
        seed: of the noise.
        trace: record each stream's part in each token; a number: with so many candidates.
        chat_template: a Jinja template, where the processor has none.
        mode: "fused", "serial" or "auto", see `CoupledLM`.

        Raises:
            InferKitError: an argument cannot be; names it.
        """
        check_noise(noise_step, seed)
        self.noise_step, self.seed = noise_step, seed
        super().__init__(model, processor, alpha, beta, trace, chat_template, mode)

    def groups(self, chats: Sequence[Chat], memory: Any = None) -> list[Group]:
        groups = []
        for b, chat in enumerate(chats):
            question_of(chat, b)
            context = self.backend.render(chat, b)
            if not self.backend.has_images(context):
                raise InferKitError(f"Prompt {b} has no image: VCD contrasts it with a noised one.")
            groups.append(self._contrasted(Group((Stream(context, 1.0, "image"),))))
        return groups

    def contrast(self, group: Group) -> Group:
        """Another method's group with every stream that brings images contrasted.

        Images in the prefix of a context (the demonstrations of a bank) stay clean.

        Raises:
            InferKitError: α is a budget (it is solved for one method's own streams), or no stream
                brings images.
        """
        if isinstance(self.setting, KLBudget):
            raise InferKitError(
                f"alpha={self.alpha!r} is solved for VCD's own two streams; to contrast those of "
                "another method, alpha must be a number."
            )
        contrasted = self._contrasted(group)
        if len(contrasted.streams) == len(group.streams):
            raise InferKitError("No stream of the group brings images to contrast.")
        return contrasted

    def _contrasted(self, group: Group) -> Group:
        for k in reversed(range(len(group.streams))):
            stream = group.streams[k]
            if self.backend.has_images(stream.context):
                noised = self.backend.noised(stream.context, self.noise_step, self.seed)
                names = (stream.name, f"{stream.name}, noised")
                pair = self._group((stream.context, noised), names)
                models = tuple(replace(s, model=stream.model) for s in pair.streams)
                group = group.replace(k, Group(models))
        return group


class ICD(Contrast):
    r"""Instruction contrastive decoding: the question against the question after a disturbance.

    $\pi \propto p(y \mid x, q)^{1+\alpha} / p(y \mid x, d, q)^{\alpha}$. Wang et al., ACL Findings
    2024, arXiv 2403.18715. The text of the disturbance is this project's own. With `noise_step` a
    third stream reads the noised image, weights (2 + 2α, −α, −α) as in the published scripts; then
    α = 0 is not the plain model, but twice as sharp.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        alpha: float | str = 1.0,
        beta: float = 0.1,
        disturbance: str = DISTURBANCE,
        noise_step: int | None = None,
        seed: int = 0,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args: as for `VCD`, and
        disturbance: d, the text before the question in the second stream.
        noise_step: also contrast with the noised image.
        """
        if not isinstance(disturbance, str) or not disturbance.strip():
            raise InferKitError(f"disturbance is a text, not empty; got {disturbance!r}.")
        if noise_step is not None:
            check_noise(noise_step, seed)
        self.disturbance, self.noise_step, self.seed = disturbance, noise_step, seed
        super().__init__(model, processor, alpha, beta, trace, chat_template, mode)

    def stream_weights(self, value: float) -> list[float]:
        if self.noise_step is None:
            return [1 + value, -value]
        return [2 + 2 * value, -value, -value]

    def groups(self, chats: Sequence[Chat], memory: Any = None) -> list[Group]:
        groups = []
        for b, chat in enumerate(chats):
            question_of(chat, b)
            disturbed = with_prompt(chat, f"{self.disturbance}\n", "")
            contexts = [self.backend.render(c, b) for c in (chat, disturbed)]
            names = ["instruction", "disturbed instruction"]
            if self.noise_step is not None:
                if not self.backend.has_images(contexts[0]):
                    raise InferKitError(f"Prompt {b} has no image to noise.")
                contexts.append(self.backend.noised(contexts[0], self.noise_step, self.seed))
                names.append("noised image")
            groups.append(self._group(contexts, names))
        return groups


class CFG(Contrast):
    r"""Classifier-free guidance: the prompt against none, or against a negative prompt.

    $\log \pi = \gamma \log p(y \mid c) + (1 - \gamma) \log p(y \mid \bar c)$ up to a constant.
    Sanchez et al., ICML 2024, arXiv 2306.17806. Equal to transformers' `guidance_scale` on text
    (greedy); unlike it, right under beams, prompt lookup and with images.
    """

    knob = "scale"
    neutral = 1.0

    def __init__(
        self,
        model: Any,
        processor: Any,
        scale: float | str = 1.5,
        beta: float = 0.0,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args: as for `VCD`, and
        scale: γ; 1 is the plain model.
        """
        super().__init__(model, processor, scale, beta, trace, chat_template, mode)

    def stream_weights(self, value: float) -> list[float]:
        return [value, 1 - value]

    def generate(self, messages: Any, negative: Any = None, **generate_kwargs: Any) -> MethodOutput:
        """Answer one chat, or a list of chats together.

        Args:
            messages: see `Recipe.generate`.
            negative: the chat to move away from, with images of its own or none: one for all, or
                one for each chat. None: the chat without its images; where it has none, the last
                token of the prompt alone (transformers' convention).
        """
        return self._answer(messages, generate_kwargs, negative=negative)

    def groups(
        self, chats: Sequence[Chat], memory: Any = None, negative: Any = None
    ) -> list[Group]:
        negatives = None if negative is None else as_chats(negative)[0]
        if negatives is not None and len(negatives) not in (1, len(chats)):
            raise InferKitError(f"Got {len(negatives)} negative chats for {len(chats)} prompts.")
        groups = []
        for b, chat in enumerate(chats):
            question_of(chat, b)
            context = self.backend.render(chat, b)
            if negatives is not None:
                other = self.backend.render(negatives[b % len(negatives)], b)
            elif self.backend.has_images(context):
                other = self.backend.render(with_prompt(chat, "", "", images=False), b)
            else:
                other = self.backend.unconditional(context)
            groups.append(self._group((context, other), ("prompt", "negative")))
        return groups


class ContextAware(Contrast):
    r"""Context-aware decoding: with a document against without it.

    $\pi \propto p(y \mid c, q)^{1+\alpha} / p(y \mid q)^{\alpha}$. Shi et al., NAACL 2024, arXiv
    2305.14739: α = 0.5, or 1 where the document contradicts what the model knows.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        alpha: float | str = 0.5,
        beta: float = 0.0,
        template: str = "{context}\n\n",
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args: as for `VCD`, and
        template: what stands before the question, with the field `{context}`.
        """
        if not isinstance(template, str) or template.count("{context}") != 1:
            raise InferKitError(f"template must have the field {{context}} once: {template!r}.")
        self.template = template
        super().__init__(model, processor, alpha, beta, trace, chat_template, mode)

    def generate(
        self, messages: Any, context: str | Sequence[str] | None = None, **generate_kwargs: Any
    ) -> MethodOutput:
        """Answer one chat, or a list of chats together.

        Args:
            messages: see `Recipe.generate`; without the documents.
            context: the document, one for each chat.
        """
        return self._answer(messages, generate_kwargs, context=context)

    def groups(
        self,
        chats: Sequence[Chat],
        memory: Any = None,
        context: str | Sequence[str] | None = None,
    ) -> list[Group]:
        if not isinstance(context, Sequence):
            raise InferKitError(
                f"context={context!r}: the document is a text, or a list with one for each chat."
            )
        documents = [context] if isinstance(context, str) else list(context)
        if len(documents) != len(chats):
            raise InferKitError(f"Got {len(documents)} contexts for {len(chats)} prompts.")
        groups = []
        for b, (chat, document) in enumerate(zip(chats, documents, strict=True)):
            question_of(chat, b)
            text = self._clean(document, f"The context of prompt {b}")
            full = with_prompt(chat, self.template.replace("{context}", text), "")
            contexts = [self.backend.render(c, b) for c in (full, chat)]
            groups.append(self._group(contexts, ("with context", "without")))
        return groups


class ContrastiveDecoding(Contrast):
    r"""A strong model against a weak one of the same vocabulary.

    $\pi \propto p_{expert} / p_{amateur}$ (Li et al., ACL 2023, arXiv 2210.15097), or with a
    strength β', $\pi \propto p_{expert}^{1+\beta'} / p_{amateur}^{\beta'}$ (O'Brien and Lewis,
    2023, arXiv 2309.09117; there 0.5).
    """

    knob = "strength"
    strength: float | str | None

    def __init__(
        self,
        expert: Any,
        amateur: Any,
        processor: Any,
        strength: float | str | None = None,
        beta: float = 0.1,
        temperature: float = 1.0,
        amateur_processor: Any = None,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args: as for `VCD`, and
        expert, amateur: two transformers models with the same tokens.
        processor: the expert's; `amateur_processor`: the amateur's, where it differs (padded heads
            of unequal size, other image sizes).
        strength: β' of the second form, or a budget; None for the first form.
        temperature: τ of the amateur, whose logits are divided by it: 0.5 for GPT-2, 1 for OPT in
            the paper. Traces show its log-probabilities at 1 and the weight −1/τ.
        """
        if expert is amateur:
            raise InferKitError(
                "expert and amateur are the same model: they cancel out.",
                hint="Pass a weaker model of the same vocabulary as amateur.",
            )
        if not is_number(temperature) or temperature <= 0:
            raise InferKitError(
                f"temperature must be a positive finite number, got {temperature!r}."
            )
        self.temperature = temperature
        super().__init__(expert, processor, strength, beta, trace, chat_template, mode)  # type: ignore[arg-type]
        theirs = processor if amateur_processor is None else amateur_processor
        self._amateur_backend = backend_for(amateur, theirs, chat_template, mode)
        self._amateur = amateur
        self.backend.add_model(amateur, theirs)

    @property
    def setting(self) -> float | KLBudget | None:  # type: ignore[override]
        """β', a budget, or None."""
        return None if self.strength is None else parse_weight(self.strength, "strength")

    def _initial_weights(self) -> list[float]:
        if self.strength is None:
            return [1.0, -1.0 / self.temperature]
        return super()._initial_weights()

    def stream_weights(self, value: float) -> list[float]:
        return [1 + value, -value / self.temperature]

    def groups(self, chats: Sequence[Chat], memory: Any = None) -> list[Group]:
        groups = []
        for b, chat in enumerate(chats):
            question_of(chat, b)
            contexts = [
                backend.render(chat, b) for backend in (self.backend, self._amateur_backend)
            ]
            expert, amateur = self._group(contexts, ("expert", "amateur")).streams
            groups.append(Group((expert, replace(amateur, model=self._amateur))))
        return groups
