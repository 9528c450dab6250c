"""Folders of models that are to be members of a composite: what they hold, before loading."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from infer_kit.errors import InferKitError, VocabularyMismatch

Folder = str | PathLike[str]

OVER_BYTES = (
    "Models with other tokens go together over bytes: infer_kit.Ensemble([(model, tokenizer), …])."
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def check_tokens(folders: Sequence[str], configs: Mapping[str, Any]) -> None:
    """Raise unless the heads have one size, or the tokenizers say that shared ids mean the same."""
    from infer_kit.engine.arguments import common_vocabulary_size

    known = [folder for folder in folders if _has_tokenizer(folder)]
    sizes = {folder: int(configs[folder].vocab_size) for folder in folders}
    if len(known) < len(folders) and len(set(sizes.values())) > 1:
        lacking = next(folder for folder in folders if folder not in known)
        raise VocabularyMismatch(
            f"The models have heads of {', '.join(map(str, sizes.values()))} rows, and {lacking} "
            "has no tokenizer that says which rows are padding.",
            hint=f"Save its tokenizer there. {OVER_BYTES}",
        )
    alike = {_digest(folder) for folder in known}
    if len(known) < 2 or (len(alike) == 1 and len(set(sizes.values())) == 1):
        return
    heads: Any = [SimpleNamespace(config=configs[folder]) for folder in known]
    try:
        common_vocabulary_size(heads, [tokenizer_of(folder) for folder in known])
    except VocabularyMismatch as error:
        raise VocabularyMismatch(str(error), hint=OVER_BYTES) from error


def config_of(folder: str) -> Any:
    """The config of a causal language model of text, without quantised weights."""
    from transformers import AutoConfig

    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise InferKitError(f"{folder} holds no model: there is no config.json.")
    config = AutoConfig.from_pretrained(folder)
    what = None
    if config.is_encoder_decoder:
        what = "an encoder-decoder"
    elif config.get_text_config(decoder=True) is not config:
        what = "a model with images or other inputs beside text"
    elif getattr(config, "quantization_config", None):
        what = "quantised; every member is read in the engine's dtype"
    if what is not None:
        raise InferKitError(
            f"{folder} ({config.model_type}) is {what}, and cannot be in a composite."
        )
    return config


def member_folder(folder: Folder) -> str:
    """The full path of a folder with a model that can be a member."""
    if not Path(folder).is_dir():
        raise InferKitError(
            f"{folder} is no folder.", hint="Members are folders that save_pretrained wrote."
        )
    config_of(absolute(folder))
    return absolute(folder)


def _has_tokenizer(folder: str) -> bool:
    return not Path(folder).is_dir() or any((Path(folder) / n).is_file() for n in _TOKENIZER_FILES)


def _digest(folder: str) -> bytes | str:
    """Equal for folders whose tokenizers are one file, byte by byte; else the folder itself."""
    file = Path(folder) / "tokenizer.json"
    return file.read_bytes() if file.is_file() else folder


def tokenizer_of(folder: str, without: str = "") -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InferKitError(
            f"{folder} has no tokenizer that can be loaded{', so ' if without else ''}{without}.",
            hint="Save it there: tokenizer.save_pretrained(folder).",
        ) from error


def absolute(folder: Folder) -> str:
    """A folder's full path; names on the hub as they are."""
    return str(Path(folder).resolve()) if Path(folder).is_dir() else str(folder)
