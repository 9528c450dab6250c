"""vLLM's scheduler, taught that the members of a group draw in the same step or not at all.

A group waits outside vLLM's queues until all its members are there and will find slots. Then each
member's prompt is read up to its last token and no further, unless one step reads all there is.
When every member has one token left, all of them are run together at the front of the running list,
once there are blocks for all; so a group never draws in part. Plain requests are scheduled as ever.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from infer_kit.vllm.description import KEY, Embedded, InvalidGroup, parse
from infer_kit.vllm.names import check_attributes, check_version
from infer_kit.vllm.scheduled_groups import GroupBook, ScheduledGroup, is_idle, remaining
from infer_kit.vllm.scheduler_room import OTHER_QUEUES, RoomKeeping
from infer_kit.vllm.settings import check_settings

logger = init_logger(__name__)

_ATTRIBUTES = ("running", "waiting", "requests", "kv_cache_manager", "_pause_state", "policy")
_TOO_LARGE = "its streams do not fit into the KV cache together"


def coupled_scheduler(*args: Any, **kwargs: Any) -> Scheduler:
    """The scheduler for `scheduler_cls`: asynchronous where the configuration asks for it."""
    check_version()
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    check_settings(config)
    kind = _CoupledAsyncScheduler if config.scheduler_config.async_scheduling else _CoupledScheduler
    return kind(*args, **kwargs)


class _GroupScheduling(RoomKeeping):
    """What is added to either scheduler."""

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
        self._backlog: deque[ScheduledGroup] = deque()  # complete, not yet admitted, oldest first
        self._admitted: dict[str, ScheduledGroup] = {}
        self._preempted: dict[
            str, ScheduledGroup
        ] = {}  # in the backlog, perhaps with tokens to come
        self._outside: set[str] = set()  # requests that are in none of vLLM's queues
        self._released: set[str] = set()  # requests whose last token may be read in this step
        self._made_room = False  # in this step: nobody enters, lest the room be taken
        self._untold: list[Request] = []  # ended here; the client is still to be told

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
            super().add_request(request)
            logger.error("Request %s: %s", request.request_id, error)
            spoilt = self._book.of(request)  # the last member may show that the group cannot be
            if spoilt is not None:
                self._end(spoilt, RequestStatus.FINISHED_ERROR)
            else:
                self._finish([request], RequestStatus.FINISHED_ERROR, tell=True)
            return
        for each in (request, *followers):
            super().add_request(each)
        scheduled = self._book.of(request)
        if scheduled is not None and scheduled.is_complete:
            self._backlog.append(scheduled)

    def _enqueue_waiting_request(self, request: Request) -> None:
        """Members of groups enter vLLM's queues when their group is admitted."""
        if self._book.of(request) is None:
            super()._enqueue_waiting_request(request)
        else:
            self._outside.add(request.request_id)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if not self._book:
            return super().finish_requests(request_ids, finished_status)
        if request_ids is None:
            asked = set(self.requests)
        else:
            asked = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        known = [self.requests[i] for i in asked if i in self.requests]
        finished = super().finish_requests(asked, finished_status)
        self._outside -= asked
        for each in {g for r in known if (g := self._book.of(r)) is not None}:
            self._end(each)
        return finished

    def _end(
        self,
        group: ScheduledGroup,
        status: RequestStatus = RequestStatus.FINISHED_ABORTED,
    ) -> None:
        """End what is left of a group, and let the client know of the requests that are its own."""
        self._book.forget(group)
        self._admitted.pop(group.id, None)
        self._preempted.pop(group.id, None)
        requests = group.requests()
        own = requests[:1] if group.embedded else requests
        self._finish(own, status, tell=True)
        self._finish([r for r in requests if r not in own], status, tell=False)

    def _finish(self, requests: list[Request], status: RequestStatus, tell: bool) -> None:
        left = [r.request_id for r in requests if not r.is_finished()]
        self._outside.difference_update(r.request_id for r in requests)
        ended = super().finish_requests(left, status)
        if tell:
            self._untold += ended

    def get_request_counts(self) -> tuple[int, int]:
        running, waiting = super().get_request_counts()
        return running, waiting + len(self._outside)

    def get_num_unfinished_requests(self) -> int:
        unfinished = super().get_num_unfinished_requests()
        # of the versions that groups run on, the older one does not ask get_request_counts
        asks = not hasattr(self, "skipped_waiting")
        return unfinished + (0 if asks or self._is_paused() else len(self._outside))

    def _is_paused(self) -> bool:
        return self._pause_state != PauseState.UNPAUSED

    # -- a step -----------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._released.clear()
        self._made_room = False
        if not self._book or self._pause_state == PauseState.PAUSED_ALL:
            return super().schedule(*args, **kwargs)
        throttled = bool(args[0] if args else kwargs.get("throttle_prefills", False))
        if self._is_paused():
            self._set_aside_half_read()
        else:
            self._admit()
            for group in list(self._admitted.values()) if self._outside else ():
                waits = self._newcomers(group) and group.is_ready()
                if waits and self._can_run_alone(group):
                    return self._run_alone(group, *args, **kwargs)
        if self._all_fit(throttled):
            self._release_all()
        else:
            self._release(throttled)
        with self._room_kept():
            output = super().schedule(*args, **kwargs)
        self._check_whole(output)
        if not output.total_num_scheduled_tokens:
            self._break_deadlock()
        return output

    def _admit(self) -> None:
        """Let groups enter, oldest first, as long as all their members will find slots.

        Groups that enter without that could hold each other's slots for ever.
        """
        taken = sum(group.size for group in self._admitted.values())
        while self._backlog:
            group = self._backlog[0]
            if self._book.groups.get(group.id) is group:  # else it has ended
                if taken + group.size > self._most_running():
                    break
                taken += group.size
                self._admitted[group.id] = group
                self._preempted.pop(group.id, None)
            self._backlog.popleft()
        for group in self._admitted.values() if self._outside else ():
            for request in self._newcomers(group):
                if request.num_tokens > 1:  # else see `_run_alone`
                    self._outside.discard(request.request_id)
                    super()._enqueue_waiting_request(request)

    def _set_aside_half_read(self) -> None:
        """A pause lets what runs come to its end; groups whose members still wait never would."""
        for group in list(self._admitted.values()):
            if not group.is_running:
                self._preempt_whole(group.requests()[0])

    def _newcomers(self, group: ScheduledGroup) -> list[Request]:
        """Members of one token that are to enter with the group's first draw."""
        return [r for r in group.requests() if r.request_id in self._outside]

    def _all_fit(self, throttled: bool) -> bool:
        """Whether this step will read all that is left of every request there is.

        Then groups need not stop one token short: all their members end their prompts together.
        """
        if throttled or self._is_paused() or self._outside or self._made_room:
            return False
        if all(group.begun for group in self._admitted.values()):
            return False  # nobody would gain
        if len(self.running) + len(self.waiting) > self._most_running():
            return False
        if any(map(len, (getattr(self, name, ()) for name in OTHER_QUEUES))):
            return False
        if self.scheduler_config.long_prefill_token_threshold > 0 or self._has_special_prefills():
            return False
        if not all(is_idle(r) and not r.lora_request for r in self.waiting):
            return False
        every = [*self.running, *self.waiting]
        if any(r.has_encoder_inputs for r in every):
            return False
        if sum(map(remaining, every)) > self._step_tokens():
            return False
        managers = self.kv_cache_manager.coordinator.single_type_managers
        blocks = sum(cdiv(remaining(r), m.block_size) + 1 for r in every for m in managers)
        return 2 * blocks <= self._free_block_count()

    def _release_all(self) -> None:
        """Let every group draw in this step, whatever its members have still to read."""
        for group in self._admitted.values():
            group.begun = True
            self._released.update(r.request_id for r in group.members.values())

    def _release(self, throttled: bool) -> None:
        """Let the groups that are ready draw, as many as there is room for, before all others."""
        front: list[Request] = []
        budget, free = self._step_tokens(), self._free_block_count()
        kinds = len(self.kv_cache_manager.coordinator.single_type_managers)
        ready = [g for g in self._admitted.values() if g.is_running and g.is_ready()]
        for group in ready:
            members = group.requests()
            if group.id not in self._admitted:
                continue  # it made room for another
            if throttled and len({r.is_prefill_chunk for r in members}) > 1:
                continue  # vLLM leaves out those that read their prompts, in this step
            if len(front) + len(members) > budget:
                break
            needed = len(members) * kinds  # at most: exact figures are for when it is tight
            if needed > free:
                needed = sum(map(self._blocks_needed, members))
            while needed > free and self._make_room(group, front):
                free = self._free_block_count() - sum(map(self._blocks_needed, front))
            if needed > free:
                if not self._others_hold_blocks(group):
                    self._fail(group, _TOO_LARGE)
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
            if id(request) not in kept:
                self._preempt_whole(request)
                return True
        return False

    def _preempt_whole(self, request: Request) -> None:
        """Preempt a request; of a group all members, which then waits to be admitted again."""
        group = self._book.of(request)
        victims = [request] if group is None else group.requests()
        now = time.monotonic()
        for victim in reversed([v for v in self.running if v in victims]):
            self.running.remove(victim)
            self._preempt_request(victim, now)
        if group is not None:
            self.waiting.remove_requests(victims)
            getattr(self, "deferred_waiting", set()).difference_update(victims)
            self._outside.update(victim.request_id for victim in victims)
            self._preempted[group.id] = self._admitted.pop(group.id)
            self._backlog.appendleft(group)
        self._made_room = True

    def _others_hold_blocks(self, group: ScheduledGroup) -> bool:
        """Whether requests other than its members are running."""
        mine = {id(r) for r in group.members.values()}
        return any(id(r) not in mine for r in self.running)

    def _break_deadlock(self) -> None:
        """Nothing could be scheduled: make room for the group that came first, in the next step.

        Groups that are half read hold blocks, and each waits for those of another.
        """
        if self._is_paused():
            return
        if any(r.num_in_flight_tokens for r in self.requests.values()):
            return  # something is still being computed and may free what is needed
        running = RequestStatus.RUNNING
        if any(
            r.status != running and not is_idle(r)
            for g in self._admitted.values()
            for r in g.requests()
        ):
            return  # a grammar is being compiled
        stuck = [g for g in self._admitted.values() if any(map(is_idle, g.requests()))]
        if not stuck:
            return
        holders = [
            g for g in self._admitted.values() if any(r in self.running for r in g.requests())
        ]
        if holders == stuck[:1] and not self._others_hold_blocks(stuck[0]):
            self._fail(stuck[0], _TOO_LARGE)
        elif holders and holders[-1] is not stuck[0]:
            self._preempt_whole(next(r for r in holders[-1].requests() if r in self.running))

    def _can_run_alone(self, group: ScheduledGroup) -> bool:
        """Whether there are slots and blocks for a group with members not yet run."""
        new = self._newcomers(group)
        old = [r for r in group.requests() if r not in new]
        if len(self.running) + len(new) > self._most_running():
            return False
        managers = self.kv_cache_manager.coordinator.single_type_managers
        needed = sum(map(self._blocks_needed, old)) + len(new) * len(managers)
        while needed > self._free_block_count():
            if not self._make_room(group, []):
                if not self._others_hold_blocks(group):
                    self._fail(group, _TOO_LARGE)
                return False
        return True

    def _run_alone(self, group: ScheduledGroup, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """A step of one group, some of whose prompts have one token: nothing to read before.

        Such members enter and draw at once, which is sure only while nobody else is scheduled.
        """
        new = self._newcomers(group)
        members = group.requests()
        others = [r for r in self.running if r not in members]
        self.running = [r for r in members if r not in new]
        self._outside.difference_update(r.request_id for r in new)
        self._released = {r.request_id for r in members}
        group.begun = True
        with self._queues_aside(enter=new):
            output = super().schedule(*args, **kwargs)
        self.running = self.running + others
        self._check_whole(output)
        return output

    @contextmanager
    def _room_kept(self) -> Iterator[None]:
        """Keep room in this step that was made, and slots of members that enter later."""
        if self._made_room:
            with self._queues_aside():
                yield
            return
        held = sum(len(self._newcomers(g)) for g in self._admitted.values() if self._outside)
        newer = hasattr(self, "max_num_active_reqs")
        name = "max_num_active_reqs" if newer else "max_num_running_reqs"
        most = getattr(self, name)
        setattr(self, name, max(len(self.running), most - held))
        try:
            yield
        finally:
            setattr(self, name, most)

    def _check_whole(self, output: SchedulerOutput) -> None:
        """A group of which only a part draws would diverge: end it with an error instead."""
        scheduled = output.num_scheduled_tokens
        for group in list(self._admitted.values()):
            drawing = [
                r.request_id in scheduled and not r.is_prefill_chunk for r in group.members.values()
            ]
            if any(drawing) and not all(drawing):
                self._fail(group, f"only a part of its streams was scheduled: {drawing}")

    def _fail(self, group: ScheduledGroup, why: str) -> None:
        """End a group with an error."""
        logger.error("Group %s cannot run: %s.", group.id, why)
        self._end(group, RequestStatus.FINISHED_ERROR)

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
        free = request.request_id in self._released or self._book.of(request) is None
        if free or hit == 0 or hit < request.num_tokens - 1:
            return (blocks, hit, *rest)
        # looked up anew, not cut: layers with a window hold the blocks of a hit's own end alone
        manager = self.kv_cache_manager
        found, hit, *_ = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 2
        )
        return (manager.create_kv_cache_blocks(found), hit, *rest)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self._admitted or self._preempted:
            self._follow(outputs)
        for request in self._untold:
            _tell(outputs, request)
        self._untold = []
        return outputs

    def _follow(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """End groups of which a member has ended; hide the members that the client knows not."""
        hidden: set[str] = set()
        for group in [*self._admitted.values(), *self._preempted.values()]:
            requests = group.requests()
            if group.embedded:
                hidden.update(r.request_id for r in requests[1:])
            if any(r.is_finished() for r in requests):
                self._end(group)
        if hidden:
            for each in outputs.values():
                each.outputs = [o for o in each.outputs if o.request_id not in hidden]


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
