"""Methods by name, for command lines: `build("red", model, processor, {"weight": "0.5"})`."""

import difflib
import importlib
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infer_kit.errors import InferKitError
from infer_kit.methods.prompts import Prompts

if TYPE_CHECKING:
    from infer_kit.methods.recipe import Recipe

CLASSES = {
    "direct": "infer_kit.methods.baselines:Direct",
    "cot": "infer_kit.methods.baselines:ChainOfThought",
    "red": "infer_kit.methods.red:RED",
    "parallel_icl": "infer_kit.methods.parallel_icl:ParallelICL",
    "vcd": "infer_kit.methods.contrastive:VCD",
    "icd": "infer_kit.methods.contrastive:ICD",
    "cfg": "infer_kit.methods.contrastive:CFG",
    "context_aware": "infer_kit.methods.contrastive:ContextAware",
    "contrastive_decoding": "infer_kit.methods.contrastive:ContrastiveDecoding",
    "reward": "infer_kit.reward.recipe:Rewarded",
}
"""The methods that turn chats into groups, by their names on command lines."""

_GIVEN = {"model", "processor", "expert", "prompts", "trace"}
MODELS: dict[str, tuple[str, ...]] = {
    "contrastive_decoding": ("amateur",),
    "reward": ("tuned", "untuned"),
}
"""Options of methods that are further models, by their names."""


def build(
    name: str,
    model: Any,
    processor: Any,
    options: Mapping[str, Any] | None = None,
    prompts: Prompts | None = None,
    trace: bool | int = True,
) -> "Recipe":
    """A method with its options.

    Args:
        name: one of `CLASSES`.
        model, processor: see `infer_kit.named_models.load_model`.
        options: the constructor's arguments by name; texts as `option_value` reads them.
            Models (`amateur`, `tuned`, `untuned`) may be names, see `load_beside`.
        prompts: of rationales, for the methods that write some.
        trace: see `Recipe`.

    Raises:
        InferKitError: there is no such method or option; names the nearest.
    """
    kind = class_of(name)
    given = checked_options(name, options or {})
    parameters = inspect.signature(kind).parameters
    if prompts is not None and "prompts" in parameters:
        given = {"prompts": prompts, **given}
    for key in MODELS.get(canonical(name), ()):
        if isinstance(given.get(key), str):
            from infer_kit.named_models import load_beside

            other = load_beside(model, given[key])
            given |= {key: other.model, f"{key}_processor": other.processor}
    first = next(iter(parameters))  # the model, whatever it is called
    missing = [n for n in MODELS.get(canonical(name), ()) if n not in given]
    if any(parameters[n].default is inspect.Parameter.empty for n in missing):
        raise InferKitError(
            f"The method {name!r} needs {missing[0]}.", hint=f"Give {missing[0]}=FOLDER."
        )
    return kind(**{first: model}, processor=processor, trace=trace, **given)


def canonical(name: str) -> str:
    """The name as `CLASSES` spells it.

    Raises:
        InferKitError: there is no such method.
    """
    plain = name.lower().replace("-", "_")
    if plain in CLASSES:
        return plain
    raise InferKitError(f"Unknown method {name!r}.{did_you_mean(plain, CLASSES)}")


def class_of(name: str) -> Any:
    """The class of a method by name; raises as `canonical` does."""
    module, attribute = CLASSES[canonical(name)].split(":")
    return getattr(importlib.import_module(module), attribute)


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method with their values read.

    Raises:
        InferKitError: the method has no such option.
    """
    known = options_of(name)
    for key in options:
        if key not in known:
            raise InferKitError(
                f"The method {name!r} has no option {key!r}.{did_you_mean(key, known)}"
            )
    return {key: option_value(value) for key, value in options.items()}


def options_of(name: str) -> list[str]:
    """The options of a method; raises as `canonical` does."""
    return sorted(set(inspect.signature(class_of(name)).parameters) - _GIVEN)


def option_value(value: Any) -> Any:
    """A text as the JSON value that it spells (0.5, true, null, [1, 2], {...}), else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def parse_options(pairs: list[str], flag: str = "--set") -> dict[str, Any]:
    """`["alpha=1", "kind=ccot"]` as a dictionary, values as `option_value` reads them.

    Raises:
        InferKitError: one is not `key=value`, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InferKitError(f"{flag} takes key=value, got {pair!r}.")
        if key.strip() in found:
            raise InferKitError(f"{flag} {key.strip()}= is given twice.")
        found[key.strip()] = option_value(value)
    return found


def did_you_mean(name: str, known: Any) -> str:
    """The end of a message: the nearest known name, and all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    nearest = f" Did you mean {close[0]!r}?" if close else ""
    return f"{nearest} There are {', '.join(known)}."
