"""Demonstrations of in-context learning, and the features that group and compare them."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from infer_kit.backends import Backend
from infer_kit.chats import Chat, as_chats
from infer_kit.errors import InferKitError

_RECORD = ("question", "answer", "image", "images")


@dataclass(frozen=True)
class Demonstration:
    """An answered question.

    Attributes:
        chat: its turns; the last one is the assistant's answer, the one before it the question.
    """

    chat: Chat

    @property
    def pictures(self) -> list[Any]:
        """Its images, as the user gave them."""
        return pictures_of(self.chat)

    @property
    def question(self) -> str:
        """The text of the user's last turn."""
        return _text(self.chat[-2])

    @property
    def answer(self) -> str:
        """The text of the assistant's last turn."""
        return _text(self.chat[-1])


def as_demonstrations(given: Any) -> list[Demonstration]:
    """What a user passes to `fit`, checked.

    Args:
        given: a list of chats that end with the assistant's answer, or of mappings with "question",
            "answer" and, if there are any, "image" or "images".

    Raises:
        InferKitError: there is none, or one lacks an answer; names it.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise InferKitError(
            f"Expected a list of demonstrations, got a {type(given).__name__}.", hint=_HINT
        )
    if not len(given):
        raise InferKitError(
            "No demonstrations: the list is empty.",
            hint="Without demonstrations there is nothing to learn from; call generate() itself.",
        )
    return [_demonstration(item, n) for n, item in enumerate(given)]


_HINT = (
    'A demonstration is {"image": ..., "question": "...", "answer": "..."}, or a chat that ends '
    "with the assistant's answer."
)


def _demonstration(item: Any, n: int) -> Demonstration:
    where = f"Demonstration {n}"
    if isinstance(item, Demonstration):
        return item
    if isinstance(item, Mapping):
        item = _chat_of_record(item, where)
    if not isinstance(item, Sequence) or isinstance(item, str) or not len(item):
        raise InferKitError(f"{where} is a {type(item).__name__}.", hint=_HINT)
    try:
        (chat,), _ = as_chats(item)
    except (InferKitError, ValueError) as error:
        raise InferKitError(f"{where}: {error}", hint=_HINT) from error
    roles = [turn["role"] for turn in chat]
    if roles[-1] != "assistant" or not _text(chat[-1]).strip():
        raise InferKitError(f"{where} has no answer: it ends with {roles[-1]!r}.", hint=_HINT)
    if len(chat) < 2 or roles[-2] != "user":
        raise InferKitError(f"{where} has no question before its answer.", hint=_HINT)
    if "system" in roles:
        raise InferKitError(
            f"{where} has a system turn.", hint="Pass ParallelICL(..., system='...'), once for all."
        )
    return Demonstration(chat)


def _chat_of_record(record: Mapping[str, Any], where: str) -> Chat:
    unknown = [key for key in record if key not in _RECORD]
    if unknown:
        raise InferKitError(f"{where} has unknown fields {unknown}.", hint=_HINT)
    for key in ("question", "answer"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise InferKitError(f"{where} has no {key}: got {record.get(key)!r}.", hint=_HINT)
    one, several = record.get("image"), record.get("images")
    if one is not None and several is not None:
        raise InferKitError(f"{where} has both 'image' and 'images'; give one of them.")
    images = [one] if one is not None else list(several or ())
    content = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": record["question"]})
    answer = [{"type": "text", "text": record["answer"]}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def pictures_of(chat: Chat) -> list[Any]:
    """The images of a chat, opened (`load_images`) or as the user gave them."""
    parts = [part for turn in chat for part in turn["content"] if part["type"] == "image"]
    keys = ("image", "url", "path", "base64")
    return [next((p[k] for k in keys if p.get(k) is not None), None) for p in parts]


def question_key(pictures: Sequence[Any], question: str) -> str:
    """Equal for equal pictures and questions: tells a query that is itself a demonstration."""
    digest = hashlib.blake2b(" ".join(question.split()).casefold().encode(), digest_size=16)
    for picture in pictures:
        rgb = picture.convert("RGB")
        digest.update(f"{rgb.size}".encode() + rgb.tobytes())
    return digest.hexdigest()


def _text(turn: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


class Encoder(Protocol):
    """Makes features of pictures and texts; rows of both are comparable by cosine."""

    def images(self, pictures: Sequence[Any], memory: Any) -> Tensor:
        """`[N, D]` float32 features of opened pictures."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """`[N, D']` float32 features of texts."""
        ...


class OwnEncoder:
    """The model's own vision encoder and token embeddings: no second model is needed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def images(self, pictures: Sequence[Any], memory: Any) -> Tensor:
        return self._backend.image_features(pictures, memory)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self._backend.text_features(texts)


class DualEncoder:
    """A CLIP-like model of transformers (CLIP, SigLIP): image and text features of one space."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise InferKitError(
                f"{type(model).__name__} has no image and text features; expected a CLIP or SigLIP "
                "model."
            )

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "DualEncoder":
        """Load model and processor by path or name."""
        from transformers import AutoModel

        from infer_kit.processors import load_processor

        return cls(AutoModel.from_pretrained(name).eval(), load_processor(name))

    @torch.no_grad()
    def images(self, pictures: Sequence[Any], memory: Any) -> Tensor:
        inputs = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        return _pooled(self.model.get_image_features(**inputs.to(self.model.device)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        # SigLIP was trained on texts padded to its full length.
        length = self.model.config.text_config.max_position_embeddings
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        whole = self.processor.tokenizer(list(texts))["input_ids"]
        if (longest := max(map(len, whole))) > length:
            warnings.warn(
                f"{type(self.model).__name__} reads {length} tokens; the longest text has "
                f"{longest}, and its feature is that of its beginning.",
                stacklevel=2,
            )
        inputs = self.processor.tokenizer(
            list(texts),
            padding=padding,
            padding_side="right",  # a causal text encoder then reads the same in any batch
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return _pooled(self.model.get_text_features(**inputs.to(self.model.device)))


class TextEncoder:
    """Texts alone, by the model's own token embeddings."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def images(self, pictures: Sequence[Any], memory: Any) -> Tensor:
        return torch.zeros(len(pictures), 0)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self._backend.text_features(texts)


def encoder_for(encoder: Any, backend: Backend) -> Encoder:
    """The encoder that a user asked for.

    Args:
        encoder: None (the model's own vision encoder), "text", the path or name of a CLIP or SigLIP
            model, a pair (model, processor), or an object with `images` and `texts`.
    """
    if encoder is None:
        return OwnEncoder(backend)
    if encoder == "text":
        return TextEncoder(backend)
    if isinstance(encoder, str | Path):
        return DualEncoder.from_pretrained(encoder)
    if isinstance(encoder, tuple) and len(encoder) == 2:
        return DualEncoder(*encoder)
    if hasattr(encoder, "images") and hasattr(encoder, "texts"):
        return encoder
    raise InferKitError(
        f"encoder is a {type(encoder).__name__}; expected None, 'text', the path of a CLIP or "
        "SigLIP model, or (model, processor)."
    )


def feature_table(
    encoder: Encoder,
    pictures: Sequence[Sequence[Any]],
    texts: Sequence[str],
    memory: Any = None,
    image_width: int | None = None,
) -> Tensor:
    r"""Features by which demonstrations and queries are compared.

    The unit image feature (mean over the item's pictures) and the unit text feature side by side,
    so that a dot product is $\cos_{image} + \cos_{text}$ in [−2, 2] (Yamaguchi et al., CVPR 2026).
    An item without pictures has zeros there.

    Args:
        pictures: of each item, opened. texts: of each item.
        memory: for encoded images.
        image_width: size of the image feature in the table that this one is compared with; None
            where this is the first.

    Returns:
        `[N, D]` float32 on the CPU.
    """
    text = _unit(encoder.texts(texts).cpu())
    flat = [picture for several in pictures for picture in several]
    if image_width == 0 or not flat:
        return torch.cat([torch.zeros(len(text), image_width or 0), text], dim=1)
    encoded = _unit(encoder.images(flat, memory).float().cpu())
    image = torch.zeros(len(pictures), encoded.shape[1])
    done = 0
    for n, several in enumerate(pictures):
        if several:
            image[n] = encoded[done : done + len(several)].mean(0)
            done += len(several)
    return torch.cat([_unit(image), text], dim=1)


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _pooled(output: Any) -> Tensor:
    """Features as a tensor; newer transformers wrap them."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()
