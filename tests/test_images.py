"""Opening what users give as an image."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infer_kit.errors import InferKitError
from infer_kit.images import open_image

COLOUR = (9, 60, 200)


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_the_same_picture_however_it_is_given(tmp_path: Path) -> None:
    picture = noise()
    path = tmp_path / "a picture, with #?%20.png"
    picture.save(path)
    text = encoded(picture)
    assert len(text) > 1000
    for given in (picture, path, str(path), text, f"data:image/png;base64,{text}"):
        opened = open_image(given, "Image 0")
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes(mode: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3), COLOUR).convert(mode)
    assert open_image(picture, "Image 0").size == (4, 3)
    pixel = open_image(picture, "Image 0").getpixel((0, 0))
    if mode in ("L", "1", "LA"):
        assert len(set(pixel)) == 1
    else:
        assert np.abs(np.array(pixel) - COLOUR).max() < 10, pixel


@pytest.mark.parametrize("kind", ["image", "png", "tiff"])
def test_sixteen_bits_keep_their_greys(kind: str, tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    picture: Any = Image.fromarray(grey)
    if kind != "image":
        picture.save(tmp_path / f"grey.{kind}")
        picture = tmp_path / f"grey.{kind}"
    opened = np.asarray(open_image(picture, "Image 0"))
    assert np.array_equal(opened, np.repeat((grey >> 8)[..., None], 3, 2))


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = picture.getexif()
    exif[0x112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg", "Image 0").size == (2, 4)


@pytest.mark.parametrize("given", ["none.png", "none", "", "x" * 400, "a\0b", Path("no/where.jpg")])
def test_no_such_file(given: Any) -> None:
    with pytest.raises(InferKitError, match=r"^Prompt 2: image .* there is no such file\.$"):
        open_image(given, "Prompt 2")


def test_a_folder(tmp_path: Path) -> None:
    for given in (tmp_path, str(tmp_path)):
        with pytest.raises(InferKitError, match="Prompt 2: image .*: it is a folder"):
            open_image(given, "Prompt 2")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("a text")
    noise().save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    for name in ("empty.png", "text.png", "half.jpg"):
        for given in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(InferKitError, match=rf"Image 3: image '.*{name}' cannot be read"):
                open_image(given, "Image 3")


def test_a_long_text_that_is_no_picture_is_not_printed_whole() -> None:
    with pytest.raises(InferKitError, match=r"Image 0: image 'a long .* cannot be read") as error:
        open_image("a long text " * 200, "Image 0")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("given", [None, 3, b"bytes", np.zeros((4, 4, 3)), ["a.png"]])
def test_no_image_at_all(given: Any) -> None:
    with pytest.raises(InferKitError, match=f"Image 0: an image is a {type(given).__name__}; ex"):
        open_image(given, "Image 0")


def test_numbers_without_a_range() -> None:
    for kind in (np.float32, np.int32):
        picture = Image.fromarray(np.ones((4, 4), dtype=kind))
        with pytest.raises(InferKitError, match=r"its mode is '[FI]', which has no range"):
            open_image(picture, "Image 0")
