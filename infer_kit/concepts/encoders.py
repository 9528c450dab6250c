"""Encoders: what turns images and phrases into features of one space."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from infer_kit.dual_encoder import DualEncoder
from infer_kit.errors import InferKitError, MissingExtra
from infer_kit.images import open_image
from infer_kit.named_models import folder_of

_MANY = 1000  # items from which on encoding has a progress bar


@runtime_checkable
class Encoder(Protocol):
    """A CLIP-like model. An object of one's own needs these and nothing else.

    Attributes:
        name: tells it from others, in a bank's file and in messages.
        dim: d. logit_scale: s of p = softmax(s · T z), 100 in published CLIP models.
    """

    name: str
    dim: int
    logit_scale: float

    def encode_image(self, pictures: Sequence[Any]) -> Tensor:
        """`[N, d]` features of PIL images, of any length."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """`[N, d]` features of texts, of any length, by the encoder's own tokenizer."""
        ...


class TransformersEncoder:
    """CLIP, SigLIP and their like, of transformers.

    SigLIP's bias is the same for every class, so that it does not change a softmax over classes.

    Raises:
        InferKitError: the model has no image and text features, or no logit scale.
    """

    def __init__(self, model: Any, processor: Any, name: str | None = None) -> None:
        self._dual = DualEncoder(model, processor)
        self.name = name or str(getattr(model.config, "name_or_path", "")) or type(model).__name__
        if not isinstance(getattr(model, "logit_scale", None), Tensor):
            raise InferKitError(
                f"{type(model).__name__} has no logit_scale; expected a CLIP or SigLIP model."
            )
        self.logit_scale = float(model.logit_scale.detach().float().exp().reshape(()))
        self.dim = int(self._dual.texts(["a"]).shape[1])

    def encode_image(self, pictures: Sequence[Any]) -> Tensor:
        return self._dual.images(pictures)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self._dual.texts(texts)


class OpenCLIPEncoder:
    """A model of open_clip, which is not installed with this package and needs torchvision.

    Args:
        architecture: open_clip's name ("ViT-B-32"), or "local-dir:FOLDER" for a folder with
            open_clip_config.json and weights.
        weights: the file of its weights; None for those of the folder.
        device: None takes a GPU where there is one.
    """

    def __init__(
        self, architecture: str, weights: str | Path | None = None, device: str | None = None
    ) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise MissingExtra(
                f"open_clip cannot be imported: {error}",
                hint="pip install open_clip_torch, with a torchvision that fits your torch.",
            ) from error
        if weights is None and not architecture.startswith("local-dir:"):
            raise InferKitError(
                f"No weights for {architecture!r}.",
                hint="Give weights=FILE, or architecture='local-dir:FOLDER'.",
            )
        if weights is not None and architecture.startswith("local-dir:"):
            raise InferKitError(f"{architecture!r} has weights of its own; weights is not used.")
        if weights is not None and not Path(weights).is_file():
            raise InferKitError(f"No weights at {str(weights)!r}: there is no such file.")
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        pretrained = None if weights is None else str(weights)
        try:  # this one refuses a folder without weights
            model, transform = open_clip.create_model_from_pretrained(
                architecture, pretrained=pretrained, device=self._device
            )
            self._tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # of many kinds
            said = (str(error).splitlines() or [repr(error)])[0]
            raise InferKitError(
                f"open_clip cannot load {architecture!r}"
                f"{'' if pretrained is None else f' with {pretrained!r}'}: {said}"
            ) from error
        self._model, self._transform = model.eval(), transform
        self.name = architecture if weights is None else f"{architecture}:{Path(weights).name}"
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.dim = int(self.encode_text(["a"]).shape[1])

    @torch.no_grad()
    def encode_image(self, pictures: Sequence[Any]) -> Tensor:
        pixels = torch.stack([self._transform(picture) for picture in pictures])
        features: Tensor = self._model.encode_image(pixels.to(self._device))
        return features.float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        features: Tensor = self._model.encode_text(self._tokenizer(list(texts)).to(self._device))
        return features.float()


def encoder_for(given: Any, device: str | None = None) -> Encoder:
    """The encoder that a user names or passes.

    Args:
        given: "demo-clip", which ships; the folder or hub name of a CLIP or SigLIP model of
            transformers; a folder with open_clip_config.json; a pair (model, processor); or an
            object with the attributes and methods of `Encoder`.
        device: of a model that is loaded here; None takes a GPU where there is one.

    Raises:
        InferKitError: it is none of these.
    """
    if isinstance(given, str | Path):
        where = folder_of(str(given))
        if (Path(where) / "open_clip_config.json").is_file():
            return OpenCLIPEncoder(f"local-dir:{where}", device=device)
        dual = DualEncoder.from_pretrained(where)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = dual.model.to(chosen)
        if model.device.type == "cpu":  # where half precision is slow
            model = model.float()
        return TransformersEncoder(model, dual.processor, str(given))
    if isinstance(given, tuple) and len(given) == 2:
        return TransformersEncoder(*given)
    if isinstance(given, Encoder):
        return given
    raise InferKitError(
        f"encoder is a {type(given).__name__}; expected the folder or name of a CLIP or SigLIP "
        "model, a pair (model, processor), or an object with name, dim, logit_scale, encode_image "
        "and encode_text."
    )


def text_features(
    encoder: Encoder, texts: Sequence[str], batch_size: int = 256, bar: bool = True
) -> Tensor:
    """Unit features `[N, d]` of texts, float32 on the CPU, in batches of texts of like length.

    Raises:
        InferKitError: a feature is not finite, or 0; or the encoder gives no `[N, d]`.
    """
    if isinstance(texts, str):
        raise InferKitError(f"Expected a list of texts, got one: {texts[:60]!r}.")
    _check_batch_size(batch_size)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # little is padded then
    out = torch.empty(len(texts), encoder.dim)
    shown = bar and len(texts) >= _MANY
    with tqdm(total=len(texts), desc="encoding phrases", disable=not shown) as progress:
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            features = _table(encoder, encoder.encode_text([texts[n] for n in at]), len(at))
            out[at] = unit(features, [repr(texts[n]) for n in at])
            progress.update(len(at))
    return out


def image_features(encoder: Encoder, images: Sequence[Any], batch_size: int = 64) -> Tensor:
    """Unit features `[B, d]` of images (PIL images, paths or URLs), float32 on the CPU.

    Raises:
        InferKitError: an image cannot be read; names it by number. Or see `text_features`.
    """
    if isinstance(images, str) or not isinstance(images, Sequence):
        raise InferKitError(f"Expected a list of images, got a {type(images).__name__}.")
    _check_batch_size(batch_size)
    out = torch.empty(len(images), encoder.dim)
    shown = len(images) >= _MANY
    with tqdm(total=len(images), desc="encoding images", disable=not shown) as progress:
        for start in range(0, len(images), batch_size):
            some = range(start, min(start + batch_size, len(images)))
            opened = [open_image(images[n], f"Image {n}") for n in some]
            features = _table(encoder, encoder.encode_image(opened), len(some))
            out[some.start : some.stop] = unit(features, [f"image {n}" for n in some])
            progress.update(len(some))
    return out


def _table(encoder: Encoder, features: Any, n: int) -> Tensor:
    """What an encoder gave for n items; one of a user's own may give anything."""
    shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if shape != [n, encoder.dim]:
        raise InferKitError(
            f"The encoder {encoder.name!r} gave {shape} for {n} items; expected a tensor "
            f"[{n}, {encoder.dim}]."
        )
    return features


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InferKitError(f"batch_size is a number from 1 on, got {batch_size}.")


def unit(features: Tensor, names: Sequence[str]) -> Tensor:
    """Rows of length 1, float32 on the CPU; rows that have none are refused by name."""
    features = features.detach().float().cpu()
    length = features.norm(dim=-1, keepdim=True)
    fine = (length.isfinite() & (length > 0))[:, 0]
    if not bool(fine.all()):
        bad = names[int((~fine).nonzero()[0, 0])]
        raise InferKitError(f"The encoder's feature of {bad} is 0 or not finite.")
    return features / length
