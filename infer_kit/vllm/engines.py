"""The engines of vLLM that groups are sent to: `vllm.LLM`, and `AsyncLLM` from another thread."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from tqdm import tqdm
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.config import VllmConfig
    from vllm.inputs import EngineInput
    from vllm.v1.engine.async_llm import AsyncLLM

_SHOW_PROGRESS_FROM = 64  # requests
_FIGURES_AT_A_TIME = 512  # answers


@dataclass(frozen=True)
class Job:
    """The requests of one group, the leader's first: its answer is the group's."""

    requests: tuple[tuple["EngineInput", SamplingParams], ...]


class Engine(Protocol):
    """Runs jobs.

    Attributes:
        config: vLLM's configuration. renderer: makes engine inputs of prompts.
    """

    config: "VllmConfig"
    renderer: Any

    def run(
        self, jobs: Sequence[Job], heard: Callable[[Sequence[int]], None] | None = None
    ) -> list[RequestOutput]:
        """The answer of each job; `heard` gets the new tokens of the one job as they come."""
        ...

    def rpc(self, method: str, *args: Any) -> Any:
        """What a method of `CoupledWorker` returns on the first worker."""
        ...


def run_for_figures(
    engine: Engine,
    jobs: Sequence[Job],
    names: Sequence[str],
    heard: Callable[[Sequence[int]], None] | None = None,
) -> tuple[list[RequestOutput], dict[str, Any]]:
    """Run jobs whose figures are kept in the worker, and take these, slice by slice.

    Args:
        names: under which the jobs' figures are kept.

    Returns:
        The answers, and the figures by name (`CoupledWorker.infer_kit_take_traces`).

    Raises:
        InferKitError: the engine has let go of some figures.
    """
    outputs: list[RequestOutput] = []
    figures: dict[str, Any] = {}
    for start in range(0, len(jobs), _FIGURES_AT_A_TIME):
        part = slice(start, start + _FIGURES_AT_A_TIME)
        outputs += engine.run(jobs[part], heard)
        figures |= engine.rpc("infer_kit_take_traces", list(names[part]))
    lost = [name for name in names if name not in figures]
    failed = any(output.outputs[0].finish_reason == "error" for output in outputs)
    if lost and not failed:
        raise InferKitError(
            f"The engine kept no figures of {len(lost)} of {len(names)} answers.",
            hint="Ask for fewer or shorter answers at a time, or pass trace=False.",
        )
    return outputs, figures


class OfflineEngine:
    """`vllm.LLM`."""

    def __init__(self, llm: "LLM") -> None:
        self.llm = llm
        self.config = llm.llm_engine.vllm_config
        self.renderer = llm.renderer

    def run(
        self, jobs: Sequence[Job], heard: Callable[[Sequence[int]], None] | None = None
    ) -> list[RequestOutput]:
        engine = self.llm.llm_engine
        if engine.has_unfinished_requests():
            raise InferKitError(
                "The engine has requests in its queue, whose answers would be lost.",
                hint="Call llm.wait_for_completion() first.",
            )
        added: list[str] = []
        places: dict[str, int] = {}
        answers: dict[int, RequestOutput] = {}
        try:
            for place, job in enumerate(jobs):
                for k, (prompt, params) in enumerate(job.requests):
                    params.output_kind = _kind(k, heard)
                    name = str(next(self.llm.request_counter))
                    if k == 0:
                        places[name] = place
                    added.append(engine.add_request(name, prompt, params))
            few = len(jobs) < _SHOW_PROGRESS_FROM
            with tqdm(total=len(jobs), desc="groups", disable=few) as bar:
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        place = places.get(output.request_id, -1)
                        if place < 0:
                            continue
                        if heard is not None:
                            heard(output.outputs[0].token_ids)
                            output = _joined(answers.get(place), output)
                            answers[place] = output
                        if output.finished:
                            answers[place] = output
                            bar.update()
        except BaseException:
            engine.abort_request(added, internal=True)
            while engine.has_unfinished_requests():
                engine.step()
            raise
        return [answers[place] for place in range(len(jobs))]

    def rpc(self, method: str, *args: Any) -> Any:
        return self.llm.collective_rpc(method, args=args)[0]


class ThreadedEngine:
    """`AsyncLLM`, from a thread other than its event loop's; one a request."""

    def __init__(self, engine: "AsyncLLM", loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.loop = loop
        self.config = engine.vllm_config
        self.renderer = engine.renderer
        self._calls: list[Any] = []
        self._cancelled = False

    def run(
        self, jobs: Sequence[Job], heard: Callable[[Sequence[int]], None] | None = None
    ) -> list[RequestOutput]:
        async def every() -> list[RequestOutput]:
            return await asyncio.gather(*(_last(self.engine, job, heard) for job in jobs))

        return self._result(every())

    def rpc(self, method: str, *args: Any) -> Any:
        return self._result(self.engine.collective_rpc(method, args=args))[0]

    def cancel(self) -> None:
        """End what runs, and let nothing more begin: the client has left."""
        self._cancelled = True
        for call in self._calls:
            call.cancel()

    def _result(self, work: Any) -> Any:
        call = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._calls.append(call)
        if self._cancelled:
            call.cancel()
        try:
            return call.result()
        finally:
            self._calls.remove(call)


async def stream(
    engine: Any, job: Job, request_id: str, **options: Any
) -> AsyncGenerator[RequestOutput, None]:
    """The leader's outputs of one job on an `AsyncLLM`; if it is closed early, all members end.

    Args:
        engine: an `EngineClient`. request_id: of the leader.
        **options: of `EngineClient.generate`, for every member.
    """
    leader, *others = job.requests
    tasks = []
    for k, (prompt, params) in enumerate(others, start=1):
        params.output_kind = RequestOutputKind.FINAL_ONLY
        name = f"{request_id}-stream-{k}-{uuid4().hex}"
        tasks.append(asyncio.ensure_future(_drain(engine, prompt, params, name, options)))
    answers = engine.generate(leader[0], leader[1], request_id, **options)
    waiting: asyncio.Future[Any] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(_next(answers))
            failed = await _first(waiting, tasks)
            if failed is not None:
                raise failed
            output = waiting.result()
            if output is None:
                return
            yield output
    finally:
        # a generator that is being waited for cannot be closed
        left = [*tasks, waiting] if waiting is not None else tasks
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await answers.aclose()


async def _next(answers: AsyncGenerator[RequestOutput, None]) -> RequestOutput | None:
    """The next output, or None after the last."""
    return await anext(answers, None)


async def _first(waiting: asyncio.Future[Any], tasks: list[Any]) -> BaseException | None:
    """Wait for the leader's next output; a member that was refused ends the wait."""
    pending = {waiting, *(t for t in tasks if not t.done())}
    while True:
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        if waiting.done():
            return None
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)


async def _drain(
    engine: Any, prompt: Any, params: SamplingParams, name: str, options: dict[str, Any]
) -> None:
    async for _ in engine.generate(prompt, params, name, **options):
        pass


async def _last(
    engine: Any, job: Job, heard: Callable[[Sequence[int]], None] | None
) -> RequestOutput:
    job.requests[0][1].output_kind = _kind(0, heard)
    answer = None
    async for output in stream(engine, job, uuid4().hex):
        if heard is not None:
            heard(output.outputs[0].token_ids)
        answer = _joined(answer, output) if heard is not None else output
    assert answer is not None
    return answer


def _kind(member: int, heard: Any) -> RequestOutputKind:
    if member == 0 and heard is not None:
        return RequestOutputKind.DELTA
    return RequestOutputKind.FINAL_ONLY


def _joined(before: RequestOutput | None, output: RequestOutput) -> RequestOutput:
    """All that was heard of one answer."""
    if before is not None:
        old, new = before.outputs[0], output.outputs[0]
        new.token_ids = [*old.token_ids, *new.token_ids]
        new.text = old.text + new.text
        if old.logprobs is not None and new.logprobs is not None:
            new.logprobs = [*old.logprobs, *new.logprobs]
    return output
