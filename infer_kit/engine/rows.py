"""Chats to unpadded rows, by the model's own processor and chat template."""

import re
from typing import Any

from transformers import PreTrainedModel

from infer_kit.chats import Chat
from infer_kit.errors import CannotContinue, InferKitError

_BEGINNINGS = 64  # rendered beginnings that are kept: the chunks of a pool or two


class RowMaker:
    """Renders chats with one processor (or tokenizer) for one model."""

    def __init__(
        self, processor: Any, model: PreTrainedModel, chat_template: str | None = None
    ) -> None:
        """Args:
        processor: the model's own processor, or its tokenizer if it reads text only.
        model: the model that reads the rows.
        chat_template: a Jinja template, where the processor has none or another is wanted.

        Raises:
            InferKitError: there is no chat template, or the processor belongs to another model.
        """
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._takes_images = getattr(processor, "image_processor", None) is not None
        self._template = chat_template
        self._beginnings: dict[int, tuple[Chat, str, list[int]]] = {}
        own = getattr(processor, "chat_template", None) or getattr(
            self.tokenizer, "chat_template", None
        )
        if chat_template is None and own is None:
            raise InferKitError(
                f"{type(processor).__name__} has no chat template, and none was given.",
                hint="Pass chat_template='...' (Jinja), as the model's card describes it.",
            )
        self._template = chat_template or (
            None if getattr(processor, "chat_template", None) else own
        )
        _check_same_model(processor, self.tokenizer, model)

    def row(self, chat: Chat, request: int, answer: bool = True) -> dict[str, Any]:
        """What the processor returns for the chat and the start of the assistant's answer.

        Args:
            chat: with loaded images (`load_images`).
            request: named in errors.
            answer: False leaves out the start of an answer: the chat will go on.

        Raises:
            InferKitError: images and placeholders differ in number, or the processor refuses.
        """
        images = sum(part["type"] == "image" for turn in chat for part in turn["content"])
        self._check_placeholders(chat, images, request)
        return dict(
            self._rendered(
                chat, request, answer, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )

    def text(self, chat: Chat, request: int, answer: bool = True) -> tuple[str, bool]:
        """The chat as the template writes it, and whether special tokens are added to that.

        For processors other than transformers', which expand image placeholders themselves.

        Args: as for `row`.
        """
        images = sum(part["type"] == "image" for turn in chat for part in turn["content"])
        self._check_placeholders(chat, images, request)
        text = self._rendered(chat, request, answer, tokenize=False)
        return text, self._adds_special(text)

    def continuation(self, beginning: Chat, chat: Chat, request: int) -> str:
        """The text that follows `beginning` where `chat` comes after it, and the answer's start.

        Raises:
            CannotContinue: the template writes the beginning otherwise where a chat follows, or the
                tokenizer joins tokens across the boundary.
        """
        whole = self._rendered([*beginning, *chat], request, True, tokenize=False)
        before, before_ids = self._begun(beginning, request)
        after = whole.removeprefix(before)
        if len(after) + len(before) != len(whole):
            raise CannotContinue("the chat template writes demonstrations otherwise before a query")
        if self._ids(whole, self._adds_special(whole)) != [*before_ids, *self._ids(after, False)]:
            raise CannotContinue("the tokenizer joins the last demonstration and the query")
        return after

    def _begun(self, beginning: Chat, request: int) -> tuple[str, list[int]]:
        """Text and ids of a beginning; of the same list object they are kept for the next query."""
        kept = self._beginnings.get(id(beginning))
        if kept is None:
            text = self._rendered(beginning, request, False, tokenize=False)
            kept = (beginning, text, self._ids(text, self._adds_special(text)))
            self._beginnings[id(beginning)] = kept  # with the list, so that its id stays its own
            if len(self._beginnings) > _BEGINNINGS:
                del self._beginnings[next(iter(self._beginnings))]
        return kept[1], kept[2]

    def _adds_special(self, text: str) -> bool:
        """As apply_chat_template: a processor adds the special tokens that the template lacks."""
        bos = self.tokenizer.bos_token
        return self._takes_images and not (bos is not None and text.startswith(bos))

    def answer_ids(self, chat: Chat, text: str, ends: set[int]) -> list[int]:
        """Ids that the model writes where it answers `chat` with `text`, its end token included.

        By the template, which may put a space before the answer; where it writes the chat otherwise
        once it is answered, the text's own ids and the tokenizer's end token.
        """
        part = [{"type": "text", "text": text}]
        answered = [*chat, {"role": "assistant", "content": part}]
        before = self._rendered(chat, 0, True, tokenize=False)
        whole = self._rendered(answered, 0, False, tokenize=False)
        end = self.tokenizer.eos_token_id
        if whole.startswith(before):
            ids = self._ids(whole.removeprefix(before), False)
        else:
            ids = self._ids(text, False)
        closed = [place for place, token in enumerate(ids) if token in ends]
        if closed:
            return ids[: closed[0] + 1]
        return [*ids, end] if end in ends else ids

    def continued_row(self, text: str, chat: Chat, request: int) -> dict[str, Any]:
        """What the processor returns for a `continuation` and the images of its chat alone."""
        images = [p["image"] for turn in chat for p in turn["content"] if p["type"] == "image"]
        self._check_placeholders(chat, len(images), request)
        call: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        if not self._takes_images:
            return dict(self.tokenizer([text], **call))
        if images:
            call["images"] = [images]
        return dict(self.processor(text=[text], **call))

    def _ids(self, text: str, special: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def _rendered(self, chat: Chat, request: int, answer: bool, **options: Any) -> Any:
        if self._template is not None:
            options["chat_template"] = self._template
        conversation = chat if self._takes_images else _plain_content(chat)
        try:
            return self.processor.apply_chat_template(
                conversation, add_generation_prompt=answer, **options
            )
        except Exception as error:
            raise InferKitError(
                f"Prompt {request}: {type(self.processor).__name__} cannot render the chat: {error}"
            ) from error

    def without_special_tokens(self, text: str) -> str:
        """Text with the strings of special tokens (turn markers, image placeholders) taken out."""
        tokens = set(self.tokenizer.all_special_tokens) | set(self._image_tokens())
        tokens |= {str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        tokens.discard("")
        if not tokens:
            return text
        pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
        while (stripped := re.sub(pattern, "", text)) != text:  # removal can form another one
            text = stripped
        return text

    def _image_tokens(self) -> list[str]:
        names = ("image_token", "boi_token")
        return [t for name in names if isinstance(t := getattr(self.processor, name, None), str)]

    def _check_placeholders(self, chat: Chat, images: int, request: int) -> None:
        if images and not self._takes_images:
            raise InferKitError(
                f"Prompt {request} has {images} image(s), but {type(self.processor).__name__} "
                "takes text only.",
                hint="Pass the model's processor (AutoProcessor), not its tokenizer.",
            )
        texts = [part["text"] for t in chat for part in t["content"] if part["type"] == "text"]
        written = sum(text.count(token) for text in texts for token in self._image_tokens())
        if written:
            raise InferKitError(
                f"Prompt {request} contains {images + written} image placeholder(s) but {images} "
                "image(s) were given.",
                hint="Give images as content parts; the chat template writes the placeholders.",
            )


def _check_same_model(processor: Any, tokenizer: Any, model: PreTrainedModel) -> None:
    """Raise where the processor's ids cannot be the model's."""
    names = f"{type(processor).__name__} and {type(model).__name__}"
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InferKitError(
            f"{names} do not belong together: the tokenizer has {len(tokenizer)} tokens, the model "
            f"{rows}."
        )
    theirs = getattr(processor, "image_token_id", None)
    ours = getattr(model.config, "image_token_id", None)
    if None not in (theirs, ours) and theirs != ours:
        raise InferKitError(
            f"{names} do not belong together: the image placeholder is token {theirs} for the "
            f"processor and {ours} for the model."
        )


def _plain_content(chat: Chat) -> list[dict[str, Any]]:
    """Tokenizers' templates expect a string as content."""
    return [
        {**turn, "content": "\n".join(part["text"] for part in turn["content"])} for turn in chat
    ]
