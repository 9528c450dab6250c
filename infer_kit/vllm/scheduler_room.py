"""What the scheduler of groups asks of vLLM's: slots, tokens and blocks, and queues set aside."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

OTHER_QUEUES = ("kv_holding_waiting", "skipped_waiting")  # one or the other, by version


class RoomKeeping(Scheduler):
    """vLLM's scheduler, with figures and queues by names that all versions have."""

    running: list[Request]
    waiting: Any
    max_num_running_reqs: int

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

    def _has_special_prefills(self) -> bool:
        """Whether this model's prompts may be cut elsewhere than where the budget ends."""
        return self.is_encoder_decoder or getattr(self, "need_mamba_block_aligned_split", False)

    @contextmanager
    def _queues_aside(self, enter: Iterable[Request] = ()) -> Iterator[None]:
        """Other requests than `enter` are not admitted meanwhile."""
        names = ("waiting", *(name for name in OTHER_QUEUES if hasattr(self, name)))
        aside = {name: getattr(self, name) for name in names}
        for name in names:
            setattr(self, name, create_request_queue(self.policy))
        for request in enter:
            self.waiting.add_request(request)
        try:
            yield
        finally:
            come = {name: list(getattr(self, name)) for name in names}
            for name in names:
                setattr(self, name, aside[name])
                for request in reversed(come[name]):  # preempted meanwhile
                    aside[name].prepend_request(request)
