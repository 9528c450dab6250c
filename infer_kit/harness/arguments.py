"""What `--model_args` says, checked before anything is loaded; needs no harness."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infer_kit.errors import InferKitError
from infer_kit.methods.named import did_you_mean
from infer_kit.named_models import folder_of
from infer_kit.reward.portable import CONFIG, check_strength

LEARNT = ("bayes", "fixed_share", "entropy")
"""Weights that follow from the text, see `Ensemble`."""

POOLED = (
    *("ensemble", "vocabulary", "weights", "pool", "eps", "mode", "switching_rate", "healing"),
    "bytes_per_token",
)
"""Arguments of models over bytes."""

COMPOSED = ("reward", "beta", "tuned", "untuned")
"""Arguments of a base with rewards."""

_RUNTIME = {"batch_size", "max_batch_size", "device"}  # change no figure but by rounding
_PACKAGES = ("infer-kit", "torch", "transformers")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for an argument that nothing would read; names the nearest."""
    names = sorted(known)
    for name in given:
        if name not in names:
            raise InferKitError(
                f"--model_args has no argument {name!r}.{did_you_mean(name, names)}"
            )


def split_names(value: Any, what: str) -> list[str]:
    """`A+B` or `A;B` as names; a folder whose own name has such a sign is one name."""
    if isinstance(value, list | tuple):
        names = [str(name) for name in value]
    elif Path(str(value)).is_dir():
        names = [str(value)]
    else:
        text = str(value)
        names = text.split(";") if ";" in text else text.split("+")
    names = [name.strip() for name in names]
    if not all(names):
        raise InferKitError(f"{what}={value!r} has an empty name.", hint="Write A+B, or 'A;B'.")
    return names


def parse_weights(value: Any, members: int) -> list[float] | str | None:
    """`0.5+0.5`, a list, or the name of a rule.

    Raises:
        InferKitError: an unknown rule, or not one finite number a member.
    """
    if value is None:
        return None
    if isinstance(value, str) and value in LEARNT:
        return value
    parts = value if isinstance(value, list | tuple) else split_names(value, "weights")
    try:
        weights = [float(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise InferKitError(
            f"weights={value!r} are no numbers.{did_you_mean(str(value), LEARNT)}",
            hint="Write weights=0.5+0.5, one a member, or weights=bayes.",
        ) from error
    if not all(map(math.isfinite, weights)):
        raise InferKitError(f"weights={value!r}: they must be finite.")
    if len(weights) != members:
        raise InferKitError(f"Got {len(weights)} weights for {members} models: {value!r}.")
    return weights


def number(value: Any, name: str, default: float) -> float:
    """A finite number that an argument gives."""
    return default if value is None else check_strength(value, name)


def check_model(name: Any, what: str, **loading: Any) -> str:
    """The folder or hub name of a model, whose config can be read.

    Args:
        loading: of `from_pretrained`, where the config is looked for: revision, subfolder, ...

    Raises:
        InferKitError: there is none; says which argument named it.
    """
    from transformers import AutoConfig

    if not isinstance(name, str) or not name:
        raise InferKitError(f"{what}= needs a folder or a name on the hub, got {name!r}.")
    where = folder_of(name)
    try:
        AutoConfig.from_pretrained(where, **loading)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [repr(error)])[0]
        raise InferKitError(
            f"{what}={name}: there is no such model. {first}",
            hint="Give a folder with config.json, a name on the hub, or a bundled model: "
            "demo-text-a, demo-text-b.",
        ) from error
    return where


def check_reward(folder: Any) -> str:
    """A folder that `PortableReward.save_pretrained` wrote."""
    if not Path(str(folder)).is_dir():
        raise InferKitError(f"reward={folder}: there is no such folder.")
    if not (Path(str(folder)) / CONFIG).is_file():
        raise InferKitError(
            f"reward={folder} is no reward: it has no {CONFIG}.",
            hint="A reward is what PortableReward.save_pretrained or trainer.save_reward wrote; "
            "a plain model that is to tilt the base is tuned=…,untuned=….",
        )
    return str(folder)


def configuration_hash(model: str, model_args: Mapping[str, Any] | None) -> str:
    """12 hex digits that tell one evaluated model from another.

    Of the model's name, all its arguments but batch size and device, the versions of this package,
    torch and transformers, and size and time of all files in every folder that an argument names,
    and in its subfolders, but for hidden ones: weights trained anew in the same folder are another
    model.
    """
    arguments = {k: v for k, v in (model_args or {}).items() if k not in _RUNTIME}
    named = sorted({name for value in arguments.values() for name in _folders(value)})
    files = {name: _files(folder_of(name)) for name in named}
    versions = [version(package) for package in _PACKAGES]
    told = json.dumps([model, arguments, versions, files], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _files(folder: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the files of a folder and those below it; links are followed."""
    found, seen = [], set()
    for where, below, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(where))
        below[:] = [
            name
            for name in below
            if not name.startswith(".") and os.path.realpath(Path(where, name)) not in seen
        ]
        for file in (Path(where, name) for name in names if not name.startswith(".")):
            if file.is_file():
                told = file.stat()
                found.append((str(file.relative_to(folder)), told.st_size, told.st_mtime_ns))
    return sorted(found)


def _folders(value: Any) -> list[str]:
    if not isinstance(value, str | list | tuple) or not value:
        return []
    names = [str(value)] if Path(str(value)).is_dir() else str(value).replace("+", ";").split(";")
    if isinstance(value, list | tuple):
        names = [str(name) for name in value]
    return [name.strip() for name in names if Path(folder_of(name.strip())).is_dir() and name]
