"""The file of a ticket: safetensors with packed mask bits.

Tensors, by the name of the masked weight:

    NAME          uint8, the packed mask bits of the searched positions, in flat order
    NAME#redrawn  uint8, of IteRand: a packed bit for each kept weight, whether it was drawn anew
    NAME#gens     uint8, of IteRand: deflated little-endian numbers of those events, uint8 if all
                  are below 256, else uint16 or uint32

and every parameter and buffer that is not masked under its own name, unless it holds one number
throughout. The metadata has the versions of format and random numbers, and what `Spec` says.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from infer_kit.errors import InferKitError
from infer_kit.training.tickets.contents import CHECKSUM_LENGTH, Contents
from infer_kit.training.tickets.freeze import LOCKED, SEARCHED
from infer_kit.training.tickets.rng import RNG_VERSION
from infer_kit.training.tickets.size import TicketSize
from infer_kit.training.tickets.spec import Spec

FORMAT = 1
_REDRAWN, _GENS = "#redrawn", "#gens"
_ATTENTION = "attn_implementation"
_WIDTHS = (np.uint8, np.uint16, np.uint32)


def write(path: str | Path, contents: Contents) -> None:
    """All of the file or nothing, also when the process ends in between.

    Raises:
        InferKitError: there is no such folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InferKitError(f"{str(path)!r} is a folder; a ticket is one file.")
    if not path.parent.is_dir():
        raise InferKitError(f"There is no folder {str(path.parent)!r} to write {path.name!r} to.")
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(to_bytes(contents))
    os.replace(fresh, path)


def to_bytes(contents: Contents) -> bytes:
    """The file."""
    return save(_tensors(contents), metadata=_metadata(contents))


def _metadata(contents: Contents) -> dict[str, str]:
    said = {
        "format": f"ticket {FORMAT}, rng {RNG_VERSION}",
        "spec": contents.spec.to_json(),
        "model": contents.architecture,
        "dtype": _short(contents.dtype),
        "sum": contents.checksum,
    }
    for name, value in (("constants", contents.constants), ("config", contents.config)):
        if value:
            said[name] = json.dumps(value, separators=(",", ":"))
    return said


def _tensors(contents: Contents) -> dict[str, Tensor]:
    frozen = contents.spec.frozen()
    out = dict(contents.raw)
    for name, kept in contents.kept.items():
        searched = _searched(frozen[name])
        out[name] = _packed(kept if searched is None else kept[searched])
        if contents.gens is None:
            continue
        gens = contents.gens[name][kept]
        out[name + _REDRAWN] = _packed(gens > 0)
        out[name + _GENS] = _deflated(gens[gens > 0])
    return out


def read(path: str | Path) -> Contents:
    """Read a file back.

    Raises:
        InferKitError: no such file, a truncated one, one that is no ticket, another version.
    """
    if not Path(path).is_file():
        raise InferKitError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InferKitError(
            f"{str(path)!r} is no whole safetensors file: {error}",
            "It was cut short or is of another kind; copy it again.",
        ) from error
    _check_version(path, said)
    try:
        return _contents(said, tensors)
    except (KeyError, ValueError, TypeError, AttributeError, zlib.error) as error:
        if isinstance(error, InferKitError):
            raise
        raise InferKitError(
            f"{str(path)!r} is damaged: {type(error).__name__} {error}.", "Copy it again."
        ) from error


def _check_version(path: str | Path, said: dict[str, str]) -> None:
    if "format" not in said or "spec" not in said:
        raise InferKitError(
            f"{str(path)!r} is a safetensors file, but no ticket.", "Ticket.save writes them."
        )
    expected = f"ticket {FORMAT}, rng {RNG_VERSION}"
    if said["format"] != expected:
        raise InferKitError(
            f"{str(path)!r} has the versions ({said['format']}); this infer_kit reads "
            f"({expected}). Under other random numbers the same seed is another network.",
            "Read it with the version of infer_kit that wrote it.",
        )


def _contents(said: dict[str, str], tensors: dict[str, Tensor]) -> Contents:
    spec = Spec.from_json(said["spec"])
    frozen = spec.frozen()
    kept, gens = {}, {}
    for name, tensor in spec.tensors.items():
        searched = _searched(frozen[name])
        count = tensor.size if searched is None else int(searched.sum())
        bits = _unpacked(tensors.pop(name), count, name)
        if searched is None:
            kept[name] = bits.view(tensor.shape)
        else:
            kept[name] = frozen[name] == LOCKED  # type: ignore[assignment]
            kept[name][searched] = bits
        if name + _REDRAWN in tensors:
            ones = int(kept[name].sum())
            redrawn = _unpacked(tensors.pop(name + _REDRAWN), ones, name + _REDRAWN)
            values = torch.zeros(ones, dtype=torch.int32)
            values[redrawn] = _inflated(tensors.pop(name + _GENS), int(redrawn.sum()), name)
            gens[name] = torch.zeros(tensor.shape, dtype=torch.int32)
            gens[name][kept[name]] = values
    return Contents(
        spec=spec,
        dtype=getattr(torch, said["dtype"]),
        kept=kept,
        gens=gens or None,
        raw=tensors,
        constants=json.loads(said.get("constants", "{}")),
        architecture=said["model"],
        config=json.loads(said["config"]) if "config" in said else None,
        checksum=said["sum"],
    )


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """The config of a model of transformers, and the attention that it runs with."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict"):
        return None
    said: dict[str, Any] = config.to_diff_dict()
    return said | {_ATTENTION: getattr(config, "_attn_implementation", None)}


def build(contents: Contents) -> nn.Module:
    """A model of transformers from the config in the file, with any weights.

    Raises:
        InferKitError: the ticket is of another kind of model.
    """
    import transformers

    cls = getattr(transformers, contents.architecture, None)
    if cls is None or contents.config is None:
        raise InferKitError(
            f"The file of the ticket does not say how to build a {contents.architecture}.",
            f"Build it and use ticket.apply({contents.architecture}(...)).",
        )
    said = dict(contents.config)
    attention = said.pop(_ATTENTION, None)
    config = cls.config_class.from_dict(said)
    # Not cast afterwards, which would round buffers that the model keeps in float32.
    made = cls._from_config(config, dtype=contents.dtype, attn_implementation=attention)
    model = made.eval()
    assert isinstance(model, nn.Module)
    return model


def size(contents: Contents) -> TicketSize:
    """The bits of the file that `write` would make."""
    tensors = _tensors(contents)
    bits = {name: 8 * t.numel() * t.element_size() for name, t in tensors.items()}
    masked = contents.spec.tensors
    mask_bits = sum(bits[name] for name in masked)
    generation_bits = sum(bits.get(name + end, 0) for name in masked for end in (_REDRAWN, _GENS))
    raw_bits = sum(bits[name] for name in contents.raw)
    weights = sum(tensor.size for tensor in masked.values())
    freeze = contents.spec.freeze
    counts = freeze.counts(contents.spec.shapes()).values() if freeze else ()
    # A search has no checksum yet; it will be as long as this.
    metadata = _metadata(contents) | {"sum": "0" * CHECKSUM_LENGTH}
    return TicketSize(
        weights=weights,
        searched=weights - sum(mask.pruned + mask.locked for mask in counts),
        kept=sum(int(m.sum()) for m in contents.kept.values()),
        mask_bits=mask_bits,
        generation_bits=generation_bits,
        raw_bits=raw_bits,
        header_bits=8 * len(save(tensors, metadata=metadata))
        - mask_bits
        - generation_bits
        - raw_bits,
        dense_bits=8 * contents.dtype.itemsize * weights + raw_bits,
    )


def _searched(frozen: Tensor | None) -> Tensor | None:
    return None if frozen is None else frozen == SEARCHED


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy().reshape(-1)))


def _unpacked(packed: Tensor, count: int, name: str) -> Tensor:
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise InferKitError(
            f"The file is damaged: {name!r} has {packed.numel()} bytes for {count} bits.",
            "Copy it again.",
        )
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool))


def _deflated(gens: Tensor) -> Tensor:
    top = int(gens.max()) if gens.numel() else 0
    width = next(w for w in _WIDTHS if top <= np.iinfo(w).max)
    raw = gens.numpy().astype(np.dtype(width).newbyteorder("<")).tobytes()
    return torch.frombuffer(bytearray(zlib.compress(raw, 9)), dtype=torch.uint8)


def _inflated(packed: Tensor, count: int, name: str) -> Tensor:
    raw = zlib.decompress(packed.numpy().tobytes())
    width = {w().itemsize: w for w in _WIDTHS}.get(len(raw) // max(count, 1))
    if count == 0:
        return torch.zeros(0, dtype=torch.int32)
    if width is None or len(raw) != count * width().itemsize:
        raise InferKitError(
            f"The file is damaged: {name!r} has {len(raw)} bytes for {count} generations.",
            "Copy it again.",
        )
    read = np.frombuffer(raw, np.dtype(width).newbyteorder("<")).astype(np.int32)
    return torch.from_numpy(read)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
