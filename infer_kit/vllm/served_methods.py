"""A chat completion that names a method, as the group of streams that answers it."""

import asyncio
import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams

from infer_kit.chats import Chat, as_chats
from infer_kit.errors import InferKitError
from infer_kit.methods.recipe import Recipe
from infer_kit.streams import Group, Stream
from infer_kit.vllm.backend import VllmBackend
from infer_kit.vllm.client import INPUTS, SERVED, check_settings_of, unpacked
from infer_kit.vllm.description import LARGEST_WEIGHT, MODES
from infer_kit.vllm.engines import Job, ThreadedEngine

_KEPT_POOLS = 8  # fitted pools of demonstrations
_FLAGS = ("normalize",)
_RECORD = {"question", "answer", "image", "images"}
_OF_INPUT = (TypeError, AttributeError, KeyError, OverflowError)

Fetch = Callable[[str], Any]


@dataclass(frozen=True)
class Answering:
    """What answers a request.

    Attributes:
        recipe: the method, or None for a group of the client's own. group: its streams.
        rationale: what RED read, or None.
        mode, plausibility: of a group of the client's own.
    """

    recipe: Recipe | None
    group: Group
    rationale: str | None = None
    mode: str = "product"
    plausibility: float = 0.0


class ServedMethods:
    """Turns requests into groups, in threads: methods may ask the engine themselves."""

    def __init__(self, backend: VllmBackend, fetch: Fetch, threads: int = 8) -> None:
        """Args:
        backend: of the served engine; each request gets a copy with an engine handle of its own.
        fetch: opens an image by its URL, by the server's rules.
        threads: requests that are prepared at a time.
        """
        self.backend = backend
        self.fetch = fetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infer_kit")
        self._fitted: OrderedDict[str, Any] = OrderedDict()
        self._fitting = threading.Lock()

    async def answering(
        self, messages: list[Any], xargs: Mapping[str, Any], engine: Any
    ) -> Answering:
        """The group that answers a chat.

        Args:
            messages: as the OpenAI API has them. xargs: of the request: `method` and its settings,
                or `group`.
            engine: the `AsyncLLM` that methods may ask.

        Raises:
            InferKitError: for anything that cannot be, naming it.
        """
        loop = asyncio.get_running_loop()
        handle = ThreadedEngine(engine, loop)
        backend = copy.copy(self.backend)
        backend.engine = handle
        call = loop.run_in_executor(self._pool, self._prepare, messages, dict(xargs), backend)
        try:
            return await call
        except asyncio.CancelledError:
            handle.cancel()
            raise
        except _OF_INPUT as error:  # of a value that a method takes for what it is not
            raise InferKitError(f"The request cannot be read: {error}") from error

    def job(self, answering: Answering, params: SamplingParams) -> Job:
        """The requests of an answer with its client's sampling parameters.

        Raises:
            InferKitError: see `VllmBackend.jobs`; n > 1 where images are in several streams.
        """
        recipe = answering.recipe
        one = params.clone()
        one.n = 1
        (plan,) = self.backend.jobs(
            [answering.group],
            pool=answering.mode if recipe is None else recipe.pool,
            normalize=False if recipe is None else recipe.normalize,
            weights=None if recipe is None else recipe._step_weights(),
            trace=False,
            limits=None,
            plausibility=answering.plausibility if recipe is None else recipe.plausibility,
            kwargs={"sampling_params": one},
        )
        requests = plan.job.requests
        if params.n > 1:
            if len(requests) > 1:
                raise InferKitError(
                    f"n={params.n}, but images are in several streams of the group.",
                    hint="Send the request n times.",
                )
            requests[0][1].n = params.n
        requests[0][1].output_kind = params.output_kind
        return plan.job

    def _prepare(
        self, messages: list[Any], xargs: dict[str, Any], backend: VllmBackend
    ) -> Answering:
        chat = self._chat(messages)
        if "group" in xargs:
            return self._explicit(chat, xargs, backend)
        method = xargs.pop("method")
        if not isinstance(method, str):
            raise InferKitError(f"method is a text, got a {type(method).__name__}.")
        check_settings_of(method, xargs)
        given = {name: unpacked(name, value) for name, value in xargs.items()}
        for name in _FLAGS:
            if name in given:
                given[name] = bool(given[name])
        inputs = {n: given.pop(n) for n in INPUTS.get(method, ()) if n in given}
        if method == "parallel_icl":
            recipe = self._fitted_pool(inputs.pop("demonstrations", None), given, backend)
        else:
            recipe = _recipe(method, given, backend)
        if "negative" in inputs:
            inputs["negative"] = self._chat(inputs["negative"])
        if method == "red":
            given_text = inputs.get("rationale")
            (group,), texts = recipe._groups([chat], None, given_text, None)
            return Answering(recipe, group, texts[0] if texts else None)
        return Answering(recipe, recipe.groups([chat], None, **inputs)[0])

    def _fitted_pool(self, demonstrations: Any, given: dict[str, Any], backend: VllmBackend) -> Any:
        """A pool of demonstrations, fitted once while it is in use."""
        if not isinstance(demonstrations, list) or not demonstrations:
            raise InferKitError("parallel_icl needs demonstrations: a JSON list, not empty.")
        key = json.dumps([demonstrations, given], sort_keys=True)
        with self._fitting:
            fitted = self._fitted.get(key)
            if fitted is None:
                records = [self._record(record) for record in demonstrations]
                fitted = _recipe("parallel_icl", given, backend).fit(records)
                self._fitted[key] = fitted
                while len(self._fitted) > _KEPT_POOLS:
                    self._fitted.popitem(last=False)
            self._fitted.move_to_end(key)
        recipe = copy.copy(fitted)
        recipe.backend = backend
        return recipe

    def _record(self, record: Any) -> Any:
        """A demonstration with its images opened by the server's rules, and by no other way."""
        if not isinstance(record, Mapping) or set(record) - _RECORD:
            raise InferKitError(f"A demonstration is an object of {sorted(_RECORD)}.")
        out = dict(record)
        if "image" in out:
            out["image"] = self._image(out["image"])
        if "images" in out:
            if not isinstance(out["images"], list):
                raise InferKitError("The images of a demonstration are a list of URLs.")
            out["images"] = [self._image(url) for url in out["images"]]
        return out

    def _image(self, url: Any) -> Any:
        if not isinstance(url, str):
            raise InferKitError(f"An image is a URL, got a {type(url).__name__}.")
        return self.fetch(url)

    def _explicit(self, chat: Chat, xargs: dict[str, Any], backend: VllmBackend) -> Answering:
        """A group of chats with weights of the client's own."""
        if len(xargs) > 1:
            raise InferKitError(f"{sorted(set(xargs) - {'group'})} beside group: give one of them.")
        try:
            value = json.loads(xargs["group"])
        except (TypeError, ValueError, RecursionError) as error:
            raise InferKitError(f"group is not JSON: {error}.") from error
        members = value.get("members") if isinstance(value, Mapping) else None
        if not isinstance(members, list) or not members:
            raise InferKitError("group is an object with a list of members, not empty.")
        known = {"weight", "mode", "members", "plausibility"}
        if set(value) - known:
            raise InferKitError(f"group has unknown keys {sorted(set(value) - known)}.")
        streams = [Stream(backend.render(chat, 0), _weight(value), "messages")]
        for k, member in enumerate(value["members"]):
            if not isinstance(member, Mapping) or set(member) - {"messages", "weight"}:
                raise InferKitError(f"Member {k} has messages and a weight, and nothing else.")
            other = self._chat(member.get("messages"))
            streams.append(Stream(backend.render(other, k + 1), _weight(member), f"member {k}"))
        mode, cutoff = value.get("mode", "product"), value.get("plausibility", 0.0)
        if mode not in MODES:
            raise InferKitError(f"mode is one of {list(MODES)}, got {mode!r}.")
        if not isinstance(cutoff, int | float) or isinstance(cutoff, bool):
            raise InferKitError(f"plausibility is a number, got {cutoff!r}.")
        return Answering(None, Group(tuple(streams)), None, mode, float(cutoff))

    def _chat(self, messages: Any) -> Chat:
        """A chat of the OpenAI API with its images opened."""
        if not isinstance(messages, list) or not messages:
            raise InferKitError("messages is a list, not empty.")
        turns = []
        for message in messages:
            content = message.get("content") if isinstance(message, Mapping) else None
            if content is None:
                raise InferKitError("A message has a role and a content.")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            role = message.get("role")
            if not isinstance(role, str) or not isinstance(parts, list):
                raise InferKitError("A message has a role, and a content: a text or parts.")
            turns.append({"role": role, "content": [self._part(part) for part in parts]})
        (chat,), _ = as_chats(turns)
        return chat

    def _part(self, part: Any) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            return {"type": "text", "text": part.get("text")}
        if kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, Mapping) else url
            return {"type": "image", "image": self._image(url)}
        raise InferKitError(f"Content parts are of type 'text' or 'image_url', got {kind!r}.")


def _recipe(method: str, given: dict[str, Any], backend: VllmBackend) -> Any:
    """The method on the served engine."""
    import infer_kit

    settings = dict(given)
    if "rationale_tokens" in settings:
        settings["rationale_generation"] = {"max_new_tokens": settings.pop("rationale_tokens")}
    try:
        return getattr(infer_kit, SERVED[method])(backend, None, trace=False, **settings)
    except TypeError as error:
        raise InferKitError(f"{method}: {error}") from error


def _weight(value: Mapping[str, Any]) -> float:
    weight = value.get("weight", 1.0)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not abs(weight) <= LARGEST_WEIGHT:
        raise InferKitError(f"A weight is a number of at most {LARGEST_WEIGHT:g}.")
    return float(weight)
