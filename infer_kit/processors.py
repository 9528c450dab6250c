"""Loading a model's processor, with a word on what commonly stands in the way."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError

TORCHVISION_FIX = "pip uninstall -y torchvision torchaudio torchcodec"


def load_processor(name: str | Path, **arguments: Any) -> Any:
    """`AutoProcessor.from_pretrained`, with its arguments.

    Raises:
        InferKitError: it failed, and a torchvision that does not fit torch is why.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, **arguments)
    except Exception as error:
        problem = torchvision_problem()
        if problem is None:
            raise
        raise InferKitError(f"No processor from {name}: {problem}", hint=TORCHVISION_FIX) from error


def torchvision_problem() -> str | None:
    """What is wrong with an installed torchvision, or None.

    A CUDA build of torchvision beside a CPU build of torch cannot be imported, but transformers
    only looks whether it is there, and then every image processor fails.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return (
            f"torchvision is installed but cannot be imported ({error}), so transformers loads no "
            "image processor. infer_kit does not need torchvision."
        )
    return None
