"""Which backend runs the groups of a method, by what the user passed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infer_kit.errors import InferKitError
from infer_kit.streams import Group
from infer_kit.trace import Trace


@dataclass(frozen=True)
class Answers:
    """What a backend returns for a list of groups; `num_return_sequences` entries a group.

    Attributes:
        texts: the new text of each sequence, without special tokens.
        tokens: the new token ids of each, the end token included, no padding.
        ended: whether each closed with an end token.
        cut: whether each stopped at its limit of new tokens, without one.
        traces: each stream's part in each token, or None where it was not asked for.
        engines: how the streams were run, one name a model ("fused", "serial").
        output: the backend's own output object.
    """

    texts: list[str]
    tokens: list[list[int]]
    ended: list[bool]
    cut: list[bool]
    traces: list[Trace] | None
    engines: tuple[str, ...]
    output: Any


class MadeBackend:
    """Base of backends that stand where a model is expected: a server makes one for all methods."""


class Backend(Protocol):
    """Runs groups of streams. One a model and processor.

    Attributes:
        model: what reads the streams that name no other.
    """

    model: Any

    def check(self, requests: int = 1, /, **generate_kwargs: Any) -> None:
        """Raise for generate arguments that cannot work, before anything is run."""
        ...

    def render(self, chat: list[dict[str, Any]], request: int, answer: bool = True) -> Any:
        """A chat as the context of a stream; raises `InferKitError` naming the request.

        `answer=False` leaves out the start of an answer: the chat will go on (`prefix`).
        """
        ...

    def why_whole(self, earlier_images: int, later_images: int) -> str | None:
        """Why a chat cannot be read in two passes, or None where it can.

        Args:
            earlier_images, later_images: how many pictures are in its beginning, and in the rest.
        """
        ...

    def prefix(self, context: Any, memory: Any, read: bool = True) -> Any:
        """The rendered beginning of chats, read once; or not, with texts and images prepared.

        None where it is not read and the images cannot be prepared apart from later ones.
        """
        ...

    def follow(
        self,
        prefixes: Sequence[Any],
        beginnings: Sequence[list[dict[str, Any]]],
        chat: list[dict[str, Any]],
        request: int,
    ) -> list[Any]:
        """Contexts that go on with `chat`, each from the prefix of one of `beginnings`.

        Raises:
            CannotContinue: a beginning and the chat do not join to what they are as one chat.
        """
        ...

    def is_banked(self, context: Any) -> bool:
        """Whether a context goes on from a prefix that was read."""
        ...

    def image_features(self, pictures: Sequence[Any], memory: Any) -> Any:
        """`[N, D]` float32 features of pictures, by the model's own vision encoder."""
        ...

    def text_features(self, texts: Sequence[str]) -> Any:
        """`[N, D]` float32 features of texts: the mean of the model's own token embeddings."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What tells the model from others, for JSON."""
        ...

    def is_same(self, fingerprint: dict[str, Any]) -> bool:
        """Whether it is this model's, whatever the dtype and the device."""
        ...

    def count(self, chat: list[dict[str, Any]]) -> int:
        """Tokens of a chat, however long."""
        ...

    def limit(self) -> int | None:
        """Tokens that the model takes, or None where it does not say."""
        ...

    def prompt_ids(self, context: Any) -> list[int]:
        """Token ids of a context, images as the model's placeholders."""
        ...

    def decoded(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens and all."""
        ...

    def has_images(self, context: Any) -> bool:
        """Whether the context shows images that it brings along (not those of a prefix)."""
        ...

    def noised(self, context: Any, step: int, seed: int) -> Any:
        """The context with noise on its images, see `infer_kit.engine.image_noise`."""
        ...

    def unconditional(self, context: Any) -> Any:
        """What is left of a context when nothing is said: its last token."""
        ...

    def add_model(self, model: Any, processor: Any) -> None:
        """Another model that will run beside this backend's; raises unless it has its tokens."""
        ...

    def room(self, context: Any) -> int | None:
        """Tokens that the model takes after the context, or None where it does not say."""
        ...

    def clean(self, text: str) -> str:
        """Text without the strings of special tokens, safe to put into a prompt."""
        ...

    def new_memory(self) -> Any:
        """A memory for encoded images, to be shared by several `generate` calls."""
        ...

    def generate(
        self,
        groups: Sequence[Group],
        pool: Any = "product",
        normalize: bool = False,
        weights: Any = None,
        trace: bool | int = False,
        memory: Any = None,
        limits: Sequence[int] | None = None,
        plausibility: float = 0.0,
        **generate_kwargs: Any,
    ) -> Answers:
        """Write an answer for each group.

        Args:
            groups: the streams of each request.
            pool: "product", "mixture" or a function.
            normalize: divide each group's weights by their sum.
            weights: a function of the step, in place of the streams' own weights.
            trace: also record each stream's part in each token; a number n: and the n best tokens
                of each stream, for other choices to be made from.
            memory: see `new_memory`.
            limits: most new tokens of each group, in place of `max_new_tokens`.
            plausibility: β of the cut-off, taken on the groups' experts; 0 for none.
            **generate_kwargs: `GenerationMixin.generate`'s.
        """
        ...

    def score(
        self,
        groups: Sequence[Group],
        chats: Sequence[list[dict[str, Any]]],
        candidates: Sequence[Sequence[str]],
        tables: Sequence[Sequence[Sequence[float]]],
        pool: Any = "product",
        normalize: bool = False,
        memory: Any = None,
    ) -> Any:
        """log π of given answers under several sets of weights, from one pass a stream.

        An answer is scored as the chat template writes it, its end token included. There is no
        cut-off: it would exclude what was asked to be compared.

        Args:
            chats: that the groups answer. candidates: texts for each. tables: `[W][B][K]` weights.

        Returns:
            `[W, B, C]` floats, natural logarithms; −inf where a group has fewer than C.
        """
        ...


def is_vllm(model: Any) -> bool:
    """Whether it is an engine of vLLM's, which is not imported to find out."""
    return any(kind.__module__.startswith("vllm.") for kind in type(model).__mro__)


def backend_for(
    model: Any, processor: Any, chat_template: str | None = None, mode: str = "auto"
) -> Backend:
    """The backend for a model.

    Args:
        model: a transformers model, or a `vllm.LLM` that was started for groups. processor: the
            model's own.
        chat_template: a Jinja template, where the processor has none.
        mode: "fused", "serial" or "auto", see `CoupledLM`; of no meaning to vLLM.

    Raises:
        InferKitError: the model is of a kind that no backend runs, or an engine of vLLM without the
            plug-ins of groups.
    """
    from transformers import PreTrainedModel

    if isinstance(model, MadeBackend):
        return model  # type: ignore[return-value]
    if isinstance(model, PreTrainedModel):
        from infer_kit.engine.backend import TransformersBackend

        return TransformersBackend(model, processor, chat_template, mode)
    if is_vllm(model):
        from infer_kit.vllm.offline import backend_of

        return backend_of(model, processor, chat_template)
    hint = None
    if hasattr(model, "get_base_model"):
        hint = "For a PEFT model pass model.get_base_model(): the adapters are inside it."
    raise InferKitError(
        f"Expected a transformers model or a vllm.LLM, got {type(model).__module__}."
        f"{type(model).__name__}.",
        hint=hint,
    )
