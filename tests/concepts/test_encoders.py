"""Encoders: features of CLIP and SigLIP models, and what may stand in their place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.encoders import (
    OpenCLIPEncoder,
    TransformersEncoder,
    encoder_for,
    image_features,
    text_features,
    unit,
)
from infer_kit.errors import InferKitError, MissingExtra
from tests.concepts.worlds import WordEncoder
from tests.methods.conftest import picture
from tests.tiny.dual import save_dual_encoder

TEXTS = ["a dog", "a red ball on the beach", "cat", "the other one, longer"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual_encoder(request.param, tmp_path_factory.mktemp(request.param))


def own(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def test_features_are_the_models_own(folder: Path) -> None:
    encoder = encoder_for(folder)
    model, processor = own(folder)
    assert encoder.name == str(folder) and isinstance(encoder, TransformersEncoder)
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    pixels = processor.image_processor(images=[picture(0)], return_tensors="pt")
    seen = model.get_image_features(**pixels)
    seen = seen if isinstance(seen, Tensor) else seen.pooler_output
    found = image_features(encoder, [picture(0)])
    torch.testing.assert_close(found, seen / seen.norm())
    length = model.config.text_config.max_position_embeddings
    padding = "max_length" if "siglip" in model.config.model_type else False
    for text in TEXTS:
        ids = processor.tokenizer(
            [text], padding=padding, padding_side="right", max_length=length, return_tensors="pt"
        )
        read = model.get_text_features(**ids)
        read = read if isinstance(read, Tensor) else read.pooler_output
        torch.testing.assert_close(text_features(encoder, [text]), read / read.norm())
    assert encoder.dim == found.shape[1] == read.shape[1]


def test_batches_are_one_by_one(folder: Path) -> None:
    encoder = encoder_for(folder)
    texts = text_features(encoder, TEXTS, batch_size=3)  # batched by length, not in this order
    pictures = [picture(n) for n in range(5)]
    images = image_features(encoder, pictures, batch_size=2)
    for n, text in enumerate(TEXTS):
        torch.testing.assert_close(texts[n], text_features(encoder, [text])[0], atol=1e-5, rtol=0)
    for n, one in enumerate(pictures):
        torch.testing.assert_close(images[n], image_features(encoder, [one])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    assert texts.dtype == images.dtype == torch.float32


def test_a_pair_and_half_precision(folder: Path) -> None:
    model, processor = own(folder)
    exact = encoder_for((model, processor))
    coarse = encoder_for((model.bfloat16(), processor))
    for a, b in (
        (text_features(encoder_for(folder), TEXTS), text_features(coarse, TEXTS)),
        (image_features(encoder_for(folder), [picture(3)]), image_features(coarse, [picture(3)])),
    ):
        assert b.dtype == torch.float32
        assert float((a * b).sum(1).min()) > 0.99
    assert exact.logit_scale == pytest.approx(coarse.logit_scale, rel=0.01)


def test_a_whole_bottleneck(folder: Path) -> None:
    phrases = ["dog", "red ball", "beach", "horse", "cone"]
    bank = ConceptBank.build(phrases, folder)
    model = ZeroShotCBM(folder, bank, ["one", "two"], alpha=1e-4)
    found = model.explain([picture(0), picture(1)])
    assert all(one.gap is not None and one.gap <= 1e-9 for one in found)
    kind: Any = "siglip" if "siglip" in folder.name else "clip"
    twin = save_dual_encoder(kind, folder.with_name(f"{folder.name}-twin"), seed=3)
    foreign = ConceptBank.build(phrases, twin)
    with pytest.raises(InferKitError, match="another encoder or prompt"):
        ZeroShotCBM(folder, foreign, ["one", "two"])


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    encoder = WordEncoder()
    encoder.encode_image = lambda pictures: torch.stack(  # type: ignore[method-assign]
        [torch.tensor((*p.getpixel((0, 0)), 1), dtype=torch.float32) for p in pictures]
    )
    encoder.dim = 4
    colour = Image.new("RGB", (3, 3), (9, 60, 200))
    path = tmp_path / "with space.png"
    colour.save(path)
    expected = torch.tensor([9.0, 60, 200, 1])
    for given in (colour, path, str(path), colour.convert("RGBA"), colour.quantize(4)):
        torch.testing.assert_close(
            image_features(encoder, [given])[0], expected / expected.norm(), atol=2e-2, rtol=0
        )
    gray = image_features(encoder, [Image.new("L", (3, 3), 50)])[0]
    assert gray[0] == gray[1] == gray[2]


@pytest.mark.parametrize(
    "given, message",
    [
        ("none.png", r"Image 1: image 'none\.png' cannot be read: there is no such file"),
        (Path("."), r"Image 1: image '\.' cannot be read: it is a folder"),
        (np.zeros((4, 4, 3)), "Image 1: an image is a ndarray; expected a PIL image"),
        (None, "Image 1: an image is a NoneType"),
    ],
)
def test_pictures_that_cannot_be_read(given: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        image_features(WordEncoder(), [Image.new("RGB", (2, 2)), given])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n no picture")
    with pytest.raises(InferKitError, match=r"Image 0: image '.*broken\.png' cannot be read"):
        image_features(WordEncoder(), [str(tmp_path / "broken.png")])


def test_rows_without_a_direction_are_refused() -> None:
    for bad in (torch.zeros(2, 3), torch.full((2, 3), float("nan"))):
        with pytest.raises(InferKitError, match="The encoder's feature of 'b' is 0 or not finite"):
            unit(torch.stack([torch.ones(3), bad[1]]), ["'a'", "'b'"])


@pytest.mark.parametrize(
    "made, shown",
    [
        (lambda whole: whole[:1], r"\[1, 48\] for 4 items"),  # would do for all
        (lambda whole: torch.cat([whole, whole], 1), r"\[4, 96\] for 4 items"),
        (lambda whole: whole[0], r"\[48\] for 4 items"),
        (lambda whole: whole.numpy(), "ndarray for 4 items"),
    ],
)
def test_features_that_are_no_table(made: Any, shown: str) -> None:
    class Own(WordEncoder):
        def encode_text(self, texts: Any) -> Any:
            return made(super().encode_text(texts))

        def encode_image(self, pictures: Any) -> Any:
            return made(super().encode_image(pictures))

    with pytest.raises(InferKitError, match=rf"'words' gave {shown}; expected a tensor \[4, 48\]"):
        text_features(Own(), TEXTS)
    with pytest.raises(InferKitError, match=rf"'words' gave {shown}; expected a tensor \[4, 48\]"):
        image_features(Own(), [Image.new("RGB", (2, 2))] * 4)


def test_one_in_the_place_of_a_list() -> None:
    with pytest.raises(InferKitError, match=r"Expected a list of texts, got one: 'a dog'\."):
        text_features(WordEncoder(), "a dog")
    for given, kind in ((Image.new("RGB", (2, 2)), "Image"), ("dog.png", "str")):
        with pytest.raises(InferKitError, match=rf"Expected a list of images, got a {kind}\."):
            image_features(WordEncoder(), given)  # type: ignore[arg-type]


def test_no_texts_and_no_images() -> None:
    assert text_features(WordEncoder(), []).shape == image_features(WordEncoder(), []).shape
    assert text_features(WordEncoder(), []).shape == (0, 48)


@pytest.mark.parametrize(
    "given, message",
    [
        (7, "encoder is a int; expected the folder or name"),
        ((1, 2, 3), "encoder is a tuple; expected the folder or name"),
        (SimpleNamespace(name="x", dim=3), "encoder is a SimpleNamespace"),
        ("no/such/folder", "No encoder at 'no/such/folder'"),
        ((SimpleNamespace(), None), "SimpleNamespace has no image and text features"),
    ],
)
def test_no_encoders(given: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        encoder_for(given)


def test_a_model_without_a_scale(folder: Path) -> None:
    model, processor = own(folder)
    del model.logit_scale
    with pytest.raises(InferKitError, match="has no logit_scale; expected a CLIP or SigLIP"):
        encoder_for((model, processor))


def test_the_bundled_one_is_single_precision_on_a_cpu() -> None:
    encoder = encoder_for("demo-clip")
    assert encoder.name == "demo-clip" and encoder.dim == 64
    assert encoder._dual.model.dtype == torch.float32  # type: ignore[attr-defined]


def test_a_tokenizer_that_asks_for_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's, which needs sentencepiece and protobuf."""

    def asks(name: str) -> None:
        raise ImportError("\nSiglipTokenizer requires the protobuf library")

    monkeypatch.setattr("infer_kit.processors.load_processor", asks)
    with pytest.raises(MissingExtra, match="SiglipTokenizer requires the protobuf") as error:
        encoder_for(folder)
    assert error.value.hint == "pip install sentencepiece protobuf"


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match="open_clip cannot be imported") as error:
        OpenCLIPEncoder("ViT-B-32", "weights.pt")
    assert "open_clip_torch" in str(error.value.hint)


def test_what_is_asked_of_open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a stand-in: open_clip itself needs torchvision."""
    asked: list[Any] = []

    class Model:
        logit_scale = torch.tensor(2.0)

        def eval(self) -> Model:
            return self

        def encode_image(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)[:, :4].double()

        def encode_text(self, ids: Tensor) -> Tensor:
            return ids.double() + 1

    def create(name: str, pretrained: str | None, device: str) -> tuple[Any, Any]:
        if name == "ViT-Z":
            raise RuntimeError("Model config for 'ViT-Z' not found.\nThere are many.")
        asked.append((name, pretrained, device))
        return Model(), lambda p: torch.tensor(np.array(p), dtype=torch.float32)

    stand_in = SimpleNamespace(
        create_model_from_pretrained=create,
        get_tokenizer=lambda name: lambda texts: torch.tensor([[len(t)] * 4 for t in texts]),
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "w.pt").write_bytes(b"")
    local = encoder_for(tmp_path, device="cpu")
    named = OpenCLIPEncoder("ViT-B-32", tmp_path / "w.pt", device="cpu")
    assert asked == [
        (f"local-dir:{tmp_path}", None, "cpu"),
        ("ViT-B-32", str(tmp_path / "w.pt"), "cpu"),
    ]
    assert named.name == "ViT-B-32:w.pt" and named.dim == 4
    assert local.logit_scale == pytest.approx(np.exp(2.0))
    assert image_features(local, [picture(0)]).shape == (1, 4)
    assert text_features(local, ["a", "bb"]).dtype == torch.float32
    with pytest.raises(InferKitError, match=r"No weights for 'ViT-B-32'\."):
        OpenCLIPEncoder("ViT-B-32")
    with pytest.raises(InferKitError, match=r"No weights at '.*x\.pt': there is no such file"):
        OpenCLIPEncoder("ViT-B-32", tmp_path / "x.pt")
    with pytest.raises(InferKitError, match="has weights of its own; weights is not used"):
        OpenCLIPEncoder("local-dir:folder", tmp_path / "w.pt")
    with pytest.raises(
        InferKitError, match=r"cannot load 'ViT-Z' with '.*w\.pt': Model config .* not found\.$"
    ):
        OpenCLIPEncoder("ViT-Z", tmp_path / "w.pt")


def test_unreadable_images_and_bad_features_are_named_in_any_batch() -> None:
    fine = Image.new("RGB", (2, 2))
    with pytest.raises(InferKitError, match=r"Image 3: image 'none\.png' cannot be read"):
        image_features(WordEncoder(), [fine, fine, fine, "none.png"], batch_size=2)

    class Blind(WordEncoder):
        def encode_text(self, texts: Any) -> Tensor:
            return super().encode_text(texts) * torch.tensor([[float(t != "cat")] for t in texts])

        def encode_image(self, pictures: Any) -> Tensor:
            seen = super().encode_image(pictures)
            return seen * torch.tensor([[float(p.size != (3, 3))] for p in pictures])

    with pytest.raises(InferKitError, match="feature of 'cat' is 0 or not finite"):
        text_features(Blind(), TEXTS, batch_size=2)
    with pytest.raises(InferKitError, match="feature of image 3 is 0 or not finite"):
        image_features(Blind(), [fine, fine, fine, Image.new("RGB", (3, 3))], batch_size=2)
