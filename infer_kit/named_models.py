"""Models by what users call them: bundled ones, folders, names on the hub."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer_kit.backends import is_vllm
from infer_kit.errors import InferKitError
from infer_kit.methods.prompts import Prompts
from infer_kit.processors import load_processor
from infer_kit.vocab.sources import BUNDLED, is_bundled

_ORIGIN = ("revision", "trust_remote_code")  # arguments of config, processor and weights alike


@dataclass(frozen=True)
class NamedModel:
    """A loaded model.

    Attributes:
        model: of transformers, in evaluation mode; or an engine of vLLM's.
        processor: the model's own; of a text model the tokenizer.
        prompts: of rationales, where the model needs its own; None for the default ones.
    """

    model: Any
    processor: Any
    prompts: Prompts | None = None


def load_model(
    name: str,
    backend: str = "transformers",
    device: str | None = None,
    processor_arguments: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> NamedModel:
    """Load a model and its processor.

    Args:
        name: a bundled model ("demo", "demo-icl", "demo-text-a", "demo-text-b"), a folder, or a
            name on the hub.
        backend: "transformers" or "vllm".
        device: of transformers: "cpu", "cuda", "cuda:1", …; None takes a GPU where there is one.
        processor_arguments: of the processor's `from_pretrained`: `{"do_pan_and_scan": True}`.
        arguments: of the model's `from_pretrained`, or of vLLM's engine.

    Raises:
        InferKitError: there is no such model; or vLLM is not installed.
    """
    where = folder_of(name)
    if backend == "vllm":
        return _on_vllm(name, where, arguments, processor_arguments or {})
    if backend != "transformers":
        raise InferKitError(f"Unknown backend {backend!r}: use transformers or vllm.")
    import torch
    import transformers

    # the same code and revision for the config, the processor and the weights
    origin = {k: v for k, v in arguments.items() if k in _ORIGIN}
    config = config_of(name, where, **origin)
    pictures = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind = (
        transformers.AutoModelForImageTextToText if pictures else transformers.AutoModelForCausalLM
    )
    if name in BUNDLED and where != name:
        arguments = {"dtype": torch.float32, **arguments}
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = kind.from_pretrained(where, **arguments).to(chosen).eval()
    except (OSError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise InferKitError(
            f"The model {name!r} cannot be loaded on {chosen!r}: {_first(error)}"
        ) from error
    processor = _processor_of(where, pictures, processor_arguments or {}, origin)
    return NamedModel(model, processor, _prompts_of(name, where))


def load_beside(model: Any, name: str) -> NamedModel:
    """Another model on the device and in the dtype of a loaded one; see `load_model`.

    Raises:
        InferKitError: there is none; or the loaded one is an engine of vLLM's.
    """
    if is_vllm(model):
        raise InferKitError(
            f"{name!r} cannot be loaded beside an engine of vLLM's.",
            hint="Several models are members of one composite there: docs/vllm.md.",
        )
    return load_model(name, device=str(model.device), dtype=model.dtype)


def folder_of(name: str) -> str:
    """The folder of a bundled model, see `is_bundled`; else the name."""
    if is_bundled(name):
        return str(Path(__file__).parent / BUNDLED[name])
    return name


def _on_vllm(
    name: str, where: str, arguments: Mapping[str, Any], of_processor: Mapping[str, Any]
) -> NamedModel:
    import transformers

    from infer_kit.vllm import CoupledLLM

    origin = {k: v for k, v in arguments.items() if k in _ORIGIN}
    config = config_of(name, where, **origin)
    pictures = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    model = CoupledLLM(where, **arguments)
    processor = _processor_of(where, pictures, of_processor, origin)
    return NamedModel(model, processor, _prompts_of(name, where))


def config_of(name: str, where: str, **origin: Any) -> Any:
    """The config of a model.

    Args:
        name: for messages. where: see `folder_of`. origin: `revision`, `trust_remote_code`.

    Raises:
        InferKitError: there is no such model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(where, **origin)
    except (OSError, ValueError) as error:
        raise InferKitError(
            f"No model at {name!r}: {_first(error)}{_nearest(name)}",
            hint=f"Give a folder with config.json, a hub name, or one of {', '.join(BUNDLED)}.",
        ) from error


def _processor_of(
    where: str, pictures: bool, arguments: Mapping[str, Any], origin: Mapping[str, Any]
) -> Any:
    from transformers import AutoTokenizer

    load = load_processor if pictures else AutoTokenizer.from_pretrained
    plain = load(where, **origin)
    # transformers keeps what it does not know, and nothing comes of it
    parts = [plain, *(getattr(plain, name, None) for name in ("image_processor", "tokenizer"))]
    for name in arguments:
        if not any(hasattr(part, name) for part in parts):
            raise InferKitError(f"The processor of {where!r} has no setting {name!r}.")
    return load(where, **origin, **arguments) if arguments else plain


def _prompts_of(name: str, where: str) -> Prompts | None:
    if name == "demo" and where != name:
        from infer_kit.demo import PROMPTS

        return PROMPTS
    return None


def _nearest(name: str) -> str:
    """The bundled model that may be meant."""
    close = difflib.get_close_matches(name, BUNDLED, n=1)
    return f" Did you mean {close[0]!r}?" if close and close[0] != name else ""


def _first(error: Exception) -> str:
    """The first line of what a library said."""
    return (str(error).splitlines() or [repr(error)])[0]
