"""vLLM's chat endpoint with methods: what it asks of the engine becomes a group of streams."""

import contextvars
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from infer_kit.errors import InferKitError
from infer_kit.vllm.description import KEY, Embedded, Member, parse
from infer_kit.vllm.engines import Job, stream
from infer_kit.vllm.jobs import WeightedInput, check_fits
from infer_kit.vllm.served_methods import Answering, ServedMethods

_answering: contextvars.ContextVar[Answering | None] = contextvars.ContextVar(
    "infer_kit_answering", default=None
)
_OURS = ("method", "group")


class GroupClient:
    """An `EngineClient` whose `generate` sends a group where the request is one."""

    def __init__(self, inner: Any, methods: ServedMethods) -> None:
        """Args: inner: vLLM's own client. methods: of the server."""
        self._inner = inner
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `EngineClient.generate`."""
        answering = _answering.get()
        if answering is None:
            self._check(prompt, sampling_params)
            return self._inner.generate(prompt, sampling_params, request_id, **options)
        params = sampling_params.clone()
        params.extra_args = None  # the method's settings, which have been read
        try:
            job = self._methods.job(answering, params)
        except InferKitError as error:
            raise refused(error) from error
        return self._stream(job, request_id, options)

    async def _stream(
        self, job: Job, request_id: str, options: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        async for output in stream(self._inner, job, request_id, **options):
            yield output

    def _check(self, prompt: Any, params: SamplingParams) -> None:
        """Refuse what a client says of groups and cannot be, before the engine ends it."""
        extra = params.extra_args or {}
        for name in _OURS:
            if name in extra:
                raise refused(InferKitError(f"{name!r} is for chat completions, one at a time."))
        if extra.get(KEY) is None:
            return
        config = self._inner.vllm_config
        try:
            group = parse(extra[KEY])
            rule = group.rule
            if rule is not None and (rule.trace or rule.forced):
                raise InferKitError("'trace', 'forced' and 'tables' are not for clients.")
            if isinstance(group, Member) and config.parallel_config.data_parallel_size > 1:
                raise InferKitError(
                    "A group of several requests does not run with data parallelism: they may land "
                    "on different engines. Send it as 'members'."
                )
            if not isinstance(prompt, Mapping) or not prompt.get("prompt_token_ids"):
                raise InferKitError("The prompts of a group are token ids, not embeddings.")
            others = group.prompts if isinstance(group, Embedded) else ()
            inputs = [prompt, *({"prompt_token_ids": list(ids)} for ids in others)]
            check_fits([WeightedInput(i, 1.0) for i in inputs], config, "The group")
        except InferKitError as error:
            raise refused(error) from error


class MethodChat:
    """vLLM's chat completions, answered by a method where `vllm_xargs` names one."""

    def __init__(self, inner: Any, methods: ServedMethods, engine: Any) -> None:
        """Args: inner: vLLM's `OpenAIServingChat`. engine: vLLM's own client."""
        self._inner = inner
        self._methods = methods
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        """As `OpenAIServingChat.create_chat_completion`."""
        xargs = request.vllm_xargs or {}
        if not any(name in xargs for name in _OURS):
            return await self._inner.create_chat_completion(request, raw_request)
        if request.use_beam_search:
            raise refused(InferKitError("Beam search does not run with groups of streams."))
        try:
            answering = await self._methods.answering(request.messages, xargs, self._engine)
        except InferKitError as error:
            raise refused(error) from error
        token = _answering.set(answering)
        try:
            answer = await self._inner.create_chat_completion(_text_of(request), raw_request)
        finally:
            _answering.reset(token)
        if answering.rationale is None:
            return answer
        if hasattr(answer, "choices"):
            for choice in answer.choices:
                choice.message.reasoning = choice.message.reasoning or answering.rationale
            return answer
        if hasattr(answer, "__aiter__"):
            return _with_reasoning(answer, answering.rationale)
        return answer


def _text_of(request: Any) -> Any:
    """The request without its images, which the group brings.

    vLLM takes an image that its handler has processed as sent to the engine, and would leave it out
    of the next request that shows it.
    """
    messages = []
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list):
            content = [part for part in content if part.get("type") == "text"]
        messages.append({**message, "content": content})
    return request.model_copy(update={"messages": messages})


async def _with_reasoning(
    events: AsyncGenerator[str, None], rationale: str
) -> AsyncGenerator[str, None]:
    """A stream whose first event is followed by one that brings the rationale as reasoning."""
    told = False
    try:
        async for event in events:
            yield event
            if not told and event.startswith("data: {"):
                told = True
                chunk = json.loads(event.removeprefix("data: "))
                for choice in chunk.get("choices", []):
                    choice["delta"] = {"reasoning": rationale}
                chunk.pop("usage", None)
                if chunk.get("choices"):
                    yield f"data: {json.dumps(chunk)}\n\n"
    finally:
        await events.aclose()


def refused(error: InferKitError) -> VLLMValidationError:
    """HTTP 400 with the message of an error, and its hint."""
    return VLLMValidationError(f"{error} {error.hint}" if error.hint else str(error))
