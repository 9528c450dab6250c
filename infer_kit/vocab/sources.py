"""Tokenizers by what users call them: files, folders, bundled models, names on the hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from infer_kit.errors import InferKitError
from infer_kit.vocab.vocabulary import Vocabulary

BUNDLED = {
    "demo": "demo/model",
    "demo-icl": "demo/icl/model",
    "demo-clip": "demo/clip/model",
    "demo-text-a": "demo/text/model/a",
    "demo-text-b": "demo/text/model/b",
}
"""Models that ship with the package, by name; folders below it."""


def is_bundled(name: str) -> bool:
    """Whether a name is that of a bundled model, and not of a folder with a model or tokenizer."""
    return name in BUNDLED and not any(
        (Path(name) / file).is_file() for file in ("config.json", "tokenizer.json")
    )


def load_tokenizer(name: str) -> tuple[Vocabulary, Any]:
    """Vocabulary, and transformers tokenizer if there is one, of what a user names.

    Args:
        name: a file (`.tiktoken`, `.bpe`, SentencePiece's `.model`, `tokenizer.json`), a model
            folder, a bundled model, or a name on the hub.

    Raises:
        InferKitError: there is nothing, or it cannot be spelled as bytes.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix in (".tiktoken", ".bpe"):
            return Vocabulary.from_tiktoken(path), None
        if path.suffix == ".model":
            return Vocabulary.from_sentencepiece(path), None
        try:
            core = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exceptions
            raise InferKitError(
                f"{name!r} is no tokenizer file: {error}",
                hint="Known are .tiktoken, .bpe, SentencePiece's .model, and tokenizer.json.",
            ) from error
        return Vocabulary.from_hf(core, name=path.name), None
    if is_bundled(name):
        path = Path(__file__).parents[1] / BUNDLED[name]
    from transformers import AutoTokenizer

    where = str(path) if path.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InferKitError(
            f"No tokenizer at {name!r}: {str(error).splitlines()[0] if str(error) else error!r}",
            hint="Give a model folder, a hub name, or a tokenizer file (.tiktoken, .bpe, .model, "
            f".json); bundled are {', '.join(BUNDLED)}.",
        ) from error
    return Vocabulary.from_hf(tokenizer, _described_model(where), name=name), tokenizer


def _described_model(where: str) -> Any:
    """What a model's files say of its rows and its end, without its weights; None if nothing."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(where).get_text_config()
    except (OSError, ValueError, KeyError):
        return None
    try:
        generation = GenerationConfig.from_pretrained(where)
    except (OSError, ValueError):
        generation = None
    rows = getattr(config, "vocab_size", None)
    head = None if rows is None else SimpleNamespace(weight=SimpleNamespace(shape=(rows,)))
    return SimpleNamespace(
        get_output_embeddings=lambda: head,
        get_input_embeddings=lambda: head,
        generation_config=generation,
        name_or_path=where,
    )
