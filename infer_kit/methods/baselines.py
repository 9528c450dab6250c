"""What methods are compared with: the model as it is, and chain of thought in one context."""

from collections.abc import Sequence
from typing import Any

from infer_kit.backends import backend_for
from infer_kit.chats import Chat, as_chats, question_of, with_prompt
from infer_kit.methods.prompts import Prompts
from infer_kit.methods.recipe import Recipe
from infer_kit.methods.red import RED, REDOutput
from infer_kit.streams import Group, Stream


class Direct(Recipe):
    """The model as it is: one stream, which is `model.generate()` on the same prompt."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args:
        model, processor: a transformers model and its own processor.
        trace, chat_template, mode: as for `RED`.
        """
        self.trace = trace
        self.backend = backend_for(model, processor, chat_template, mode)

    def groups(self, chats: Sequence[Chat], memory: Any = None) -> list[Group]:
        groups = []
        for b, chat in enumerate(chats):
            question_of(chat, b)
            groups.append(Group((Stream(self.backend.render(chat, b), 1.0, "prompt"),)))
        return groups


class ChainOfThought(Recipe):
    """The usual chain of thought: image, rationale and question in one context.

    The model writes a rationale, as in step 1 of `RED`, and then reads it together with the image.
    What RED is compared with in its paper (arXiv 2507.07685, §4).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        kind: str = "cot",
        prompts: Prompts | None = None,
        rationale_generation: dict[str, Any] | None = None,
        trace: bool | int = True,
        chat_template: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Args: as for `RED`."""
        self._red = RED(
            model,
            processor,
            kind=kind,
            prompts=prompts,
            rationale_generation=rationale_generation,
            chat_template=chat_template,
            mode=mode,
        )
        self.trace = trace
        self.backend = self._red.backend

    def rationales(self, messages: Any) -> str | list[str]:
        """What the model writes about image and question, as `RED.rationales`."""
        return self._red.rationales(messages)

    @property
    def rationale_settings(self) -> tuple[Prompts, dict[str, Any]]:
        """See `RED.rationale_settings`."""
        return self._red.rationale_settings

    def generate(
        self, messages: Any, rationale: str | Sequence[str] | None = None, **generate_kwargs: Any
    ) -> REDOutput:
        """Answer one chat, or a list of chats together.

        Args:
            messages: see `Recipe.generate`.
            rationale: a text of your own for each chat, in place of the model's.
        """
        chats, single = as_chats(messages)
        self.backend.check(len(chats), **generate_kwargs)
        memory = self.backend.new_memory()
        texts = self._red.rationales_of(chats, memory, rationale)
        groups = self._groups(chats, texts)
        answers = self._decode(groups, memory, generate_kwargs)
        return REDOutput.of(answers, single, rationale=texts[0] if single else texts)

    def groups(
        self,
        chats: Sequence[Chat],
        memory: Any = None,
        rationale: str | Sequence[str] | None = None,
    ) -> list[Group]:
        """One stream, "image and rationale"."""
        return self._groups(chats, self._red.rationales_of(chats, memory, rationale))

    def _groups(self, chats: Sequence[Chat], texts: Sequence[str]) -> list[Group]:
        groups = []
        for b, (chat, text) in enumerate(zip(chats, texts, strict=True)):
            shown = with_prompt(chat, *self._red.prompts.around("rationale_context", text))
            context = self.backend.render(shown, b)
            groups.append(Group((Stream(context, 1.0, "image and rationale"),)))
        return groups
