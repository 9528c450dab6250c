"""vLLM's scheduler, taught that the members of a group draw in the same step or not at all.

Each member's prompt is read up to its last token and no further. When every member has one token
left, all of them are run together at the front of the running list, once there are blocks for all;
so a group never draws in part. Plain requests are scheduled as ever.
"""

import time
from collections.abc import Iterable
from typing import Any

from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from infer_kit.vllm.description import KEY, Embedded, InvalidGroup, parse
from infer_kit.vllm.names import check_attributes, check_version
from infer_kit.vllm.scheduled_groups import GroupBook, ScheduledGroup, is_idle
from infer_kit.vllm.settings import check_settings

logger = init_logger(__name__)

_ATTRIBUTES = ("running", "waiting", "requests", "kv_cache_manager", "_pause_state", "policy")


def coupled_scheduler(*args: Any, **kwargs: Any) -> Scheduler:
    """The scheduler for `scheduler_cls`: asynchronous where the configuration asks for it."""
    check_version()
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    check_settings(config)
    kind = _CoupledAsyncScheduler if config.scheduler_config.async_scheduling else _CoupledScheduler
    return kind(*args, **kwargs)


class _GroupScheduling(Scheduler):
    """What is added to either scheduler."""

    running: list[Request]
    waiting: Any
    max_num_running_reqs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_attributes(self, _ATTRIBUTES)
        check_attributes(self.kv_cache_manager, ("coordinator", "block_pool"))
        config = self.vllm_config
        self._book = GroupBook(
            max_model_len=self.max_model_len,
            vocab_size=config.model_config.get_vocab_size(),
            most_streams=self._most_running(),
            max_step_tokens=self._step_tokens(),
            stateless_noise=getattr(self, "use_v2_model_runner", False),
        )
        self._released: set[str] = set()  # requests whose last token may be read in this step
        self._made_room = False  # in this step: nobody is admitted, lest the room be taken
        self._failed: dict[str, str] = {}  # requests that end with an error, and why
        self._ended: list[Request] = []  # ended with their group, the client still to be told

    # -- arrivals and ends ------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        value = _description(request.sampling_params)
        if value is None or request.request_id in self.requests:
            super().add_request(request)
            return
        followers: list[Request] = []
        try:
            group = parse(value)
            if isinstance(group, Embedded):
                followers = self._book.embed(request, group)
            else:
                self._book.join(request, group)
        except InvalidGroup as error:
            self._failed[request.request_id] = str(error)
        for each in (request, *followers):
            super().add_request(each)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if not self._book or request_ids is None:
            for group in list(self._book):
                self._book.forget(group)
            return super().finish_requests(request_ids, finished_status)
        asked = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        known = [self.requests[i] for i in asked if i in self.requests]
        finished = super().finish_requests(asked, finished_status)
        for each in {g for r in known if (g := self._book.of(r)) is not None}:
            self._end(each, tell=True)
        return finished

    def _end(self, group: ScheduledGroup, tell: bool) -> None:
        """End what is left of a group; `tell` the client of those that it knows."""
        self._book.forget(group)
        rest = [r.request_id for r in group.requests() if not r.is_finished()]
        ended = super().finish_requests(rest, RequestStatus.FINISHED_ABORTED)
        if tell and not group.embedded:
            self._ended += ended

    # -- a step -----------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._released.clear()
        self._made_room = False
        if not self._book:
            return super().schedule(*args, **kwargs)
        if self._pause_state == PauseState.PAUSED_ALL:
            return super().schedule(*args, **kwargs)
        for group in list(self._book):
            if group.newcomers() and group.is_ready() and self._can_run_alone(group):
                return self._run_alone(group, *args, **kwargs)
        self._release()
        output = super().schedule(*args, **kwargs)
        self._check_whole(output)
        if not output.total_num_scheduled_tokens:
            self._break_deadlock()
        return output

    def _release(self) -> None:
        """Let the groups that are ready draw, as many as there is room for, before all others."""
        front: list[Request] = []
        budget, free = self._step_tokens(), self._free_block_count()
        order = {id(r): place for place, r in enumerate(self.running)}
        ready = [g for g in self._book if not g.newcomers() and g.is_ready()]
        ready.sort(key=lambda g: min(order[id(r)] for r in g.members.values()))
        for group in ready:
            members = group.requests()
            if group.id not in self._book.groups:
                continue
            if not all(r.status == RequestStatus.RUNNING for r in members):
                continue  # it made room for another
            if len(front) + len(members) > budget:
                break
            needed = sum(map(self._blocks_needed, members))
            while needed > free and self._make_room(group, front):
                free = self._free_block_count() - sum(map(self._blocks_needed, front))
            if needed > free:
                if not self._others_hold_blocks(group):
                    self._fail_group(group, "its streams do not fit into the KV cache together")
                break
            free -= needed
            front += members
            group.begun = True
        chosen = {id(r) for r in front}
        self.running = front + [r for r in self.running if id(r) not in chosen]
        self._released = {r.request_id for r in front}

    def _make_room(self, group: ScheduledGroup, front: list[Request]) -> bool:
        """Preempt what came last and is neither of `group` nor of those at the front."""
        kept = {id(r) for r in (*front, *group.members.values())}
        for request in reversed(self.running):
            if id(request) in kept:
                continue
            self._preempt_whole(request)
            return True
        return False

    def _preempt_whole(self, request: Request) -> None:
        """Preempt a request, and all members of its group with it."""
        group = self._book.of(request)
        victims = [request] if group is None else group.requests()
        now = time.monotonic()
        for victim in reversed([v for v in self.running if v in victims]):
            self.running.remove(victim)
            self._preempt_request(victim, now)
        if group is not None:
            group.admitted = False
        self._made_room = True

    def _others_hold_blocks(self, group: ScheduledGroup) -> bool:
        """Whether requests other than its members are running."""
        mine = {id(r) for r in group.members.values()}
        return any(id(r) not in mine for r in self.running)

    def _break_deadlock(self) -> None:
        """Nothing could be scheduled: make room for the group that came first, in the next step.

        Groups that are half read hold blocks, and each waits for those of another.
        """
        if self._pause_state != PauseState.UNPAUSED:
            return
        if any(r.num_in_flight_tokens for r in self.requests.values()):
            return  # something is still being computed and may free what is needed
        admitted = [g for g in self._book if g.admitted and g.is_complete]
        stuck = [g for g in admitted if any(map(is_idle, g.requests()))]
        holders = [g for g in admitted if any(r in self.running for r in g.requests())]
        if not stuck:
            return
        if holders == stuck[:1] and not self._others_hold_blocks(stuck[0]):
            self._fail_group(stuck[0], "its streams do not fit into the KV cache together")
            return
        last = holders[-1] if holders else None
        if last is not None and last is not stuck[0]:
            self._preempt_whole(next(r for r in last.requests() if r in self.running))
            first = [r for r in stuck[0].requests() if is_idle(r)]
            self.waiting.remove_requests(first)
            for request in reversed(first):
                self.waiting.prepend_request(request)

    def _can_run_alone(self, group: ScheduledGroup) -> bool:
        """Whether there are slots, tokens and blocks for a group with members not yet run."""
        new = group.newcomers()
        old = [r for r in group.requests() if r not in new]
        if len(self.running) + len(new) > self._most_running():
            return False
        managers = self.kv_cache_manager.coordinator.single_type_managers
        needed = sum(map(self._blocks_needed, old)) + len(new) * len(managers)
        while needed > self._free_block_count():
            if not self._make_room(group, []):
                if not self._others_hold_blocks(group):
                    self._fail_group(group, "its streams do not fit into the KV cache together")
                return False
        return True

    def _run_alone(self, group: ScheduledGroup, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """A step of one group, some of whose prompts have one token: nothing to read before.

        Such members enter and draw at once, which is sure only while nobody else is scheduled.
        """
        new = group.newcomers()
        members = group.requests()
        self.waiting.remove_requests(new)
        self._discard_deferred(new)
        others = [r for r in self.running if r not in members]
        waiting, holding = self.waiting, getattr(self, "kv_holding_waiting", None)
        self.running = [r for r in members if r not in new]
        self.waiting = create_request_queue(self.policy)
        for request in new:
            self.waiting.add_request(request)
        if holding is not None:
            self.kv_holding_waiting = create_request_queue(self.policy)
        self._released = {r.request_id for r in members}
        self._made_room = False
        group.admitted = group.begun = True
        output = super().schedule(*args, **kwargs)
        left = list(self.waiting)
        self.running = self.running + others
        self.waiting = waiting
        if left:
            self.waiting.prepend_requests(left)
        if holding is not None:
            self.kv_holding_waiting = holding
        self._check_whole(output)
        return output

    def _discard_deferred(self, requests: list[Request]) -> None:
        """Take requests out of the set of those that were passed over, where this vLLM has one."""
        deferred = getattr(self, "deferred_waiting", None)
        if deferred is not None:
            deferred.difference_update(requests)

    def _check_whole(self, output: SchedulerOutput) -> None:
        """A group of which only a part draws would diverge: end it with an error instead."""
        scheduled = output.num_scheduled_tokens
        for group in list(self._book):
            drawing = [
                r.request_id in scheduled and not r.is_prefill_chunk for r in group.members.values()
            ]
            if any(drawing) and not all(drawing):
                logger.error("Group %s drew in part: %s", group.id, drawing)
                self._fail_group(group, "only a part of its streams was scheduled")

    # -- hooks of vLLM's scheduler ----------------------------------------------------------

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """A member's prompt is read up to its last token, until the group is released."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if request.request_id in self._released or self._book.of(request) is None:
            return tokens
        known = request.num_tokens + request.num_output_placeholders
        return max(min(tokens, known - 1 - num_computed_tokens), 0)

    def _get_local_prefix_cache_hit(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """A hit that leaves one token gives a block back: a member has to read something."""
        blocks, hit, *rest = super()._get_local_prefix_cache_hit(request, *args, **kwargs)
        if hit == 0 or hit < request.num_tokens - 1 or self._book.of(request) is None:
            return (blocks, hit, *rest)
        manager = self.kv_cache_manager
        kept = (hit - 1) // self.block_size * self.block_size
        if kept == 0 or getattr(self, "has_mamba_layers", False):
            return (manager.empty_kv_cache_blocks, 0, *rest)
        return (manager.truncate_computed_blocks(blocks, kept), kept, *rest)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether a waiting request may be admitted in this step."""
        if self._made_room or request.request_id in self._failed:
            return False
        group = self._book.of(request)
        if request.request_id in self._released:
            return super()._handle_blocked_waiting_request(request)
        if group is None:
            # slots of members that enter with their group's first draw are kept free for them
            kept = sum(len(g.newcomers()) for g in self._book if g.admitted and g.is_complete)
            if self._book and len(self.running) + kept >= self._most_running():
                return False
            return super()._handle_blocked_waiting_request(request)
        if not super()._handle_blocked_waiting_request(request):
            return False
        if not group.is_complete or not self._admit(group):
            return False
        return request.num_tokens > 1

    def _admit(self, group: ScheduledGroup) -> bool:
        """Let a group take slots if all its members will find one, whatever the others do."""
        if group.admitted:
            return True
        taken = self._book.slots(g for g in self._book if g.admitted)
        group.admitted = taken + group.size <= self._most_running()
        return group.admitted

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._book:
            self._follow(outputs)
        if self._failed:
            self._report_failures(outputs)
        for request in self._ended:
            _tell(outputs, request)
        self._ended = []
        return outputs

    def _follow(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """End groups of which a member has ended; hide the members that the client knows not."""
        hidden: set[str] = set()
        for group in list(self._book):
            requests = group.requests()
            if group.embedded:
                hidden |= {r.request_id for r in requests[1:]}
            if any(r.is_finished() for r in requests):
                self._end(group, tell=True)
        if hidden:
            for each in outputs.values():
                each.outputs = [o for o in each.outputs if o.request_id not in hidden]

    # -- errors -----------------------------------------------------------------------------

    def _fail_group(self, group: ScheduledGroup, why: str) -> None:
        """End a group with an error, at the end of this step."""
        self._book.forget(group)
        requests = group.requests()
        for request in requests[:1] if group.embedded else requests:
            self._failed[request.request_id] = f"Group {group.id!r} cannot run: {why}."
        if group.embedded:
            rest = [r.request_id for r in requests[1:]]
            super().finish_requests(rest, RequestStatus.FINISHED_ABORTED)

    def _report_failures(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        for request_id, why in self._failed.items():
            logger.error("Request %s: %s", request_id, why)
            for request in super().finish_requests(request_id, RequestStatus.FINISHED_ERROR):
                _tell(outputs, request)
        self._failed = {}

    # -- figures ----------------------------------------------------------------------------

    def _most_running(self) -> int:
        return getattr(self, "max_num_active_reqs", self.max_num_running_reqs)

    def _step_tokens(self) -> int:
        return min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)

    def _free_block_count(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks()

    def _blocks_needed(self, request: Request) -> int:
        """Blocks for one more token: at most this many."""
        tokens = request.num_computed_tokens + 1
        return sum(
            max(
                0, cdiv(tokens, manager.block_size) - len(manager.req_to_blocks[request.request_id])
            )
            for manager in self.kv_cache_manager.coordinator.single_type_managers
        )


class _CoupledScheduler(_GroupScheduling):
    pass


class _CoupledAsyncScheduler(_GroupScheduling, AsyncScheduler):
    pass


def _description(params: SamplingParams | None) -> Any:
    """What a request says about its group, or None."""
    return None if params is None or not params.extra_args else params.extra_args.get(KEY)


def _tell(outputs: dict[int, EngineCoreOutputs], request: Request) -> None:
    """Add the end of a request to what its client gets."""
    each = outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[]))
    each.outputs.append(
        EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            events=request.take_events(),
        )
    )
