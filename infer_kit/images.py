"""Opening what users give as an image."""

import os.path
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from infer_kit.errors import InferKitError

_LONGEST_PATH = 1000  # a longer text is a base64-encoded picture
_SHOWN = 200  # characters of what was given, or of what a library said of it


def open_image(source: Any, where: str) -> Image.Image:
    """A PIL image, upright and RGB.

    Args:
        source: a PIL image, a path, a URL, or a base64-encoded picture: as a "data:" URL, or in
            more than 1000 characters. Of grey files and images of 16 bits the upper 8 are taken.
        where: names the place in errors: "Prompt 2".

    Raises:
        InferKitError: it is none of these, or cannot be read.
    """
    from transformers.image_utils import load_image

    if not isinstance(source, Image.Image | str | Path):
        raise InferKitError(
            f"{where}: an image is a {type(source).__name__}; expected a PIL image, a path or a "
            "URL.",
            hint="PIL.Image.fromarray(array) makes one from pixels.",
        )
    _check_file(source, where)
    try:
        if not isinstance(source, Image.Image):
            source = Image.open(source) if os.path.isfile(source) else load_image(str(source))
        opened: Image.Image = load_image(_eight_bits(source))
    except Exception as error:
        given = repr(str(source)[:_SHOWN]) if isinstance(source, str | Path) else repr(source)
        raise InferKitError(
            f"{where}: image {given} cannot be read: {str(error)[:_SHOWN]}"
        ) from error
    return opened


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8: PIL itself makes all above 255 white."""
    if picture.mode.startswith("I;16"):
        upright = ImageOps.exif_transpose(picture)
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its mode is {picture.mode!r}, which has no range; make it 'L' or 'RGB' first."
        )
    return picture


def _check_file(source: Any, where: str) -> None:
    """A path must be a file; URLs and encoded pictures are no paths."""
    encoded = isinstance(source, str) and (
        source.startswith(("http://", "https://", "data:")) or len(source) > _LONGEST_PATH
    )
    if isinstance(source, Image.Image) or encoded or os.path.isfile(source):
        return
    problem = "it is a folder" if os.path.isdir(source) else "there is no such file"
    given = str(source)[:_SHOWN]
    raise InferKitError(f"{where}: image {given!r} cannot be read: {problem}.")
