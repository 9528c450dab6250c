"""What a frozen base says at every label of a data set, kept on disk so that it runs only once."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from infer_kit.errors import InferKitError
from infer_kit.training.indexed_data import tensor_bytes

_FACTS, _PROGRESS = "cache.json", "progress.json"
_FORMAT = 1
_FLUSH_EVERY = 64
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Where a model came from, dtypes (tensors tell them), and what a trainer or a tokenizer sets.
_NO_ARITHMETIC = frozenset(
    {
        "_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype",
        "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
    }
)  # fmt: skip
_WRAPPERS = ("base_layer", "token_adapter", "original_module")
_NAMES = {
    "kind": "kind of cache",
    "vocab_size": "vocabulary size",
    "dtype": "dtype",
    "dataset": "data set",
    "base": "base",
    "topk": "topk",
    "examples": "number of examples",
    "format": "format of the files",
}


@dataclass(frozen=True)
class CacheKey:
    """What a cache is good for; it is used for nothing else.

    Attributes:
        kind: "full", "hidden" or "topk". vocab_size: V. topk: k, or 0.
        dtype: of the base's arithmetic, of "hidden" the states' own. base: `base_sha256` of it.
        dataset: hash of all collated examples. examples: how many there are.
    """

    kind: str
    vocab_size: int
    topk: int
    dtype: str
    base: str
    dataset: str
    examples: int
    format: int = _FORMAT


def base_sha256(model: Any, leave_out: Callable[[str], bool] = lambda name: False) -> str:
    """Hash of a model's class, config, and names, shapes, dtypes and bytes of its tensors.

    Args:
        leave_out: names of tensors that have no part in it, such as an adapter's.
    """
    sha = hashlib.sha256(type(model).__name__.encode())
    sha.update(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    tensors = {
        _unwrapped(name): tensor
        for name, tensor in model.state_dict().items()
        if not leave_out(name)
    }
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def _unwrapped(name: str) -> str:
    """The name of a base's tensor as it was before PEFT put an adapter around its layer."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _settings(model: Any) -> dict[str, Any]:
    """What a model's config says of its arithmetic (rope, scales, soft-caps are no tensors)."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict"):
        return {}
    leave_out = _NO_ARITHMETIC
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        # Classifiers of texts read the last token that is not padding.
        leave_out = leave_out - {"pad_token_id"}
    return dict(_without(config.to_diff_dict(), leave_out))


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {str(k): _without(v, names) for k, v in value.items() if k not in names}
    return value


class BaseCache:
    """Memory-mapped rows, one for each label, in the order of the data set.

    Attributes:
        key: what they were made with. folder: where the files are.
    """

    def __init__(self, folder: str | Path, key: CacheKey, counts: np.ndarray, width: int) -> None:
        """Opens the cache of a folder, or begins one there.

        Args:
            counts: `[N]` labels of each example. width: d of the hidden states.

        Raises:
            InferKitError: the folder holds a cache made with something else; says with what.
        """
        self.key, self.folder = key, Path(folder)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        facts = self.folder / _FACTS
        begun = facts.exists()
        if begun:
            self._check(_read(facts))
        elif (self.folder / _PROGRESS).exists():
            raise _damaged(f"{facts} is missing, so nothing tells what the cache was made with.")
        self.folder.mkdir(parents=True, exist_ok=True)
        total = max(int(self._starts[-1]), 1)
        self._arrays = {
            name: self._open(name, dtype, (total, *shape), begun)
            for name, (dtype, shape) in _layout(key, width).items()
        }
        if not begun:
            _write(facts, asdict(key))

    def _check(self, found: dict[str, Any]) -> None:
        wanted = asdict(self.key)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if not differing:
            return
        told = [
            f"another {_NAMES[name]}"
            if name in ("dataset", "base")
            else f"another {_NAMES[name]} ({found.get(name)} there, {wanted[name]} here)"
            for name in differing
        ]
        raise InferKitError(
            f"The cache in {self.folder} was made with {' and '.join(told)}.",
            hint="Give another cache_dir, or delete that folder.",
        )

    def _open(self, name: str, dtype: str, shape: tuple[int, ...], begun: bool) -> np.memmap:
        path = self.folder / f"{name}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if begun and not path.exists():  # a new one would be zeros
            raise _damaged(f"{path} is missing.")
        if path.exists() and path.stat().st_size != size:
            raise _damaged(f"{path} has {path.stat().st_size:,} bytes; expected {size:,}.")
        mode = "r+" if path.exists() else "w+"
        return np.memmap(path, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload]

    @property
    def done(self) -> int:
        """Examples, from the first, whose rows are written."""
        progress = self.folder / _PROGRESS
        if not progress.exists():
            return 0
        done, most = _read(progress).get("examples"), self.key.examples
        if isinstance(done, bool) or not isinstance(done, int) or not 0 <= done <= most:
            raise _damaged(f"{progress} says that {done!r} of {most} examples are written.")
        return done

    @property
    def complete(self) -> bool:
        return self.done == self.key.examples

    def build(self, rows: Callable[[list[int]], dict[str, Tensor]], batch_size: int) -> None:
        """Writes what is missing; can be interrupted and called again.

        Args:
            rows: indices of examples to their rows, as `layout` names them.
        """
        done = start = self.done
        try:
            bar = tqdm(range(start, self.key.examples, batch_size), desc="Base cache", unit="batch")
            for first in bar:
                last = min(first + batch_size, self.key.examples)
                self._put(first, last, rows(list(range(first, last))))
                done = last
                if (done - start) // batch_size % _FLUSH_EVERY == 0:
                    self._flush(done)
        finally:
            self._flush(done)  # what was made is kept, whatever stopped the rest

    def _put(self, first: int, last: int, made: dict[str, Tensor]) -> None:
        begin, end = int(self._starts[first]), int(self._starts[last])
        for name, values in made.items():
            if len(values) != end - begin:
                raise InferKitError(
                    f"Examples {first} to {last - 1} have {end - begin} labels one by one and "
                    f"{len(values)} as a batch.",
                    hint='The collator leaves tokens out of batches: base_cache="none".',
                )
            if name == "hidden":
                values = values.contiguous().view(_BITS[values.element_size()])
            self._arrays[name][begin:end] = values.cpu().numpy()

    def _flush(self, done: int) -> None:
        for array in self._arrays.values():
            array.flush()
        _write(self.folder / _PROGRESS, {"examples": done})

    def rows(self, examples: Tensor, dtype: torch.dtype, labels: int) -> dict[str, Tensor]:
        """Rows of these examples, one example after another.

        Args:
            examples: `[b]` indices. dtype: of hidden states. labels: how many the batch has.
        """
        places = np.concatenate(
            [np.arange(self._starts[n], self._starts[n + 1]) for n in examples.tolist()]
        )
        if len(places) != labels:
            raise InferKitError(
                f"A batch has {labels} labels; the cache has {len(places)} for its examples.",
                hint='The collator changes from batch to batch: base_cache="none".',
            )
        found = {
            name: torch.from_numpy(np.ascontiguousarray(array[places]))
            for name, array in self._arrays.items()
        }
        if "hidden" in found:
            found["hidden"] = found["hidden"].view(dtype)
        return found


def _layout(key: CacheKey, width: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Files of a cache: dtype and the shape of a row. Hidden states are kept as their bits."""
    if key.kind == "full":
        return {"logprobs": ("float32", (key.vocab_size,))}
    if key.kind == "topk":
        head = (key.topk,)
        return {"ids": ("int32", head), "head": ("float16", head), "gold": ("float32", ())}
    return {"hidden": (f"int{8 * _itemsize(key.dtype)}", (width,))}


def _itemsize(dtype: str) -> int:
    kind: torch.dtype = getattr(torch, dtype.split()[0])
    return kind.itemsize


def _damaged(what: str) -> InferKitError:
    return InferKitError(what, hint="The cache is damaged: delete its folder.")


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise _damaged(f"{path} holds a {type(facts).__name__}; expected names and values.")
    return facts


def _write(path: Path, facts: dict[str, Any]) -> None:
    """All of it or nothing, also when the process ends in between."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(facts, indent=2))
    os.replace(fresh, path)
