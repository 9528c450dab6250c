"""Opening what users give as an image."""

from pathlib import Path
from typing import Any

from PIL import Image

from infer_kit.errors import InferKitError

_LONGEST_PATH = 1000  # a longer text is a base64-encoded picture


def open_image(source: Any, where: str) -> Image.Image:
    """A PIL image, upright and RGB.

    Args:
        source: a PIL image, a path, a URL, or a base64-encoded picture.
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
        opened: Image.Image = load_image(source if isinstance(source, Image.Image) else str(source))
    except Exception as error:
        named = repr(source) if isinstance(source, str) else f"<{type(source).__name__}>"
        raise InferKitError(f"{where}: image {named} cannot be read: {error}") from error
    return opened


def _check_file(source: Any, where: str) -> None:
    """A path must be a file; URLs and encoded pictures are no paths."""
    encoded = isinstance(source, str) and (
        source.startswith(("http://", "https://", "data:")) or len(source) > _LONGEST_PATH
    )
    if isinstance(source, Image.Image) or encoded or Path(source).is_file():
        return
    problem = "it is a folder" if Path(source).is_dir() else "there is no such file"
    raise InferKitError(f"{where}: image {str(source)!r} cannot be read: {problem}.")
