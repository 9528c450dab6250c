"""Features by which demonstrations are grouped, and compared with queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from infer_kit.backends import Backend
from infer_kit.dual_encoder import DualEncoder
from infer_kit.errors import InferKitError
from infer_kit.methods.demonstrations import Demonstration


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


def demonstration_features(
    encoder: Encoder, demonstrations: Sequence[Demonstration], memory: Any
) -> tuple[Tensor, int]:
    """`[N, D]` of pictures and "question answer", and how many of the D are of pictures."""
    texts = [f"{demo.question} {demo.answer}" for demo in demonstrations]
    table = feature_table(encoder, [demo.pictures for demo in demonstrations], texts, memory)
    text_width = feature_table(encoder, [[]], [demonstrations[0].question]).shape[1]
    return table, table.shape[1] - text_width


def query_features(
    encoder: Encoder,
    pictures: Sequence[Sequence[Any]],
    questions: Sequence[str],
    memory: Any,
    like: Tensor,
    image_width: int,
) -> Tensor:
    """`[Q, D]` of the queries' pictures and questions, comparable with those of demonstrations.

    Args:
        like: `[N, D]` of the demonstrations. image_width: see `demonstration_features`.
    """
    table = feature_table(encoder, pictures, questions, memory, image_width)
    if table.shape[1] != like.shape[1]:
        raise InferKitError(
            f"The encoder's features of the queries have {table.shape[1]} numbers, those of the "
            f"demonstrations {like.shape[1]}: it is another encoder."
        )
    return table


def given_features(given: Any, rows: int, like: Tensor | None = None) -> Tensor:
    """A user's own features as unit rows `[rows, D]` float32, checked.

    Args:
        like: `[N, D]` of the demonstrations, where these are the queries'.
    """
    try:
        table = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InferKitError(f"features are not a table of numbers: {error}") from error
    if like is not None and table.dim() == 1:
        table = table[None]
    fits = table.dim() == 2 and len(table) == rows and bool(table.isfinite().all())
    if like is None and not fits:
        raise InferKitError(
            f"features have shape {list(table.shape)}; expected [{rows}, D] finite numbers, one "
            "row a demonstration."
        )
    if like is not None and not (fits and table.shape[1] == like.shape[1]):
        raise InferKitError(
            f"features of the queries have shape {list(table.shape)}; expected "
            f"{[rows, like.shape[1]]} finite numbers, as those of the demonstrations."
        )
    return _unit(table)


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
