"""Engines for tests: in this process, started for groups, ended with the module; their inside."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.group_cases import BLOCK, VOCAB


@contextmanager
def engine(folder: Path | str, asynchronous: bool = False, **options: Any) -> Iterator[Any]:
    """A `CoupledLLM` on a tiny model.

    Args:
        folder: of the model. asynchronous: schedules the next step before this one has ended, which
            vLLM leaves out on CPUs.
        **options: of `vllm.LLM`.
    """
    from vllm.platforms.cpu import CpuPlatform

    from infer_kit.vllm import CoupledLLM

    settings: dict[str, Any] = {
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": 40_000_000,
        "max_logprobs": VOCAB,
        "seed": 0,
    } | options
    with pytest.MonkeyPatch.context() as patch:
        if asynchronous:
            original = CpuPlatform.check_and_update_config.__func__

            def overlapped(cls: Any, config: Any) -> None:
                original(cls, config)
                config.scheduler_config.async_scheduling = True

            patch.setattr(CpuPlatform, "check_and_update_config", classmethod(overlapped))
        llm = CoupledLLM(str(folder), **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def scheduler_of(llm: Any) -> Any:
    """That of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def processor_of(llm: Any) -> Any:
    """The logits processor of groups."""
    return llm.collective_rpc(lambda worker: worker._infer_kit_processor())[0]


def check_idle(llm: Any) -> None:
    """No request, no group, no block is left over."""
    scheduler = scheduler_of(llm)
    assert not llm.llm_engine.has_unfinished_requests()
    assert not scheduler.requests and not scheduler.running and not scheduler.waiting
    assert not scheduler._book.groups and not scheduler._book._of
    assert not scheduler._admitted and not scheduler._outside and not scheduler._untold
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one stands for none


class Watch:
    """Looks at a scheduler's steps: all members of a group have one output at every step.

    Attributes:
        preempted: how often a group was preempted. alone: steps of one group with one-token
            prompts. steps: steps with groups in the book. together: most groups in one step.
    """

    def __init__(self, llm: Any) -> None:
        self.preempted = self.alone = self.steps = self.together = 0
        self.scheduler = scheduler_of(llm)
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Watch:
        update, preempt = self.scheduler.update_from_output, self.scheduler._preempt_whole
        run_alone = self.scheduler._run_alone

        def checked(*args: Any, **kwargs: Any) -> Any:
            groups = {g.id: g.requests() for g in self.scheduler._book if g.is_complete}
            taken = sum(group.size for group in self.scheduler._admitted.values())
            assert taken <= self.scheduler._most_running()
            before = {n: len(members[0].output_token_ids) for n, members in groups.items()}
            out = update(*args, **kwargs)
            moved = 0
            for name, members in groups.items():
                texts = [list(member.output_token_ids) for member in members]
                assert all(text == texts[0] for text in texts), f"group {name}: {texts}"
                moved += len(texts[0]) > before[name]
            self.steps += bool(groups)
            self.together = max(self.together, moved)
            return out

        def counted(request: Any) -> None:
            group = self.scheduler._book.of(request)
            self.preempted += group is not None
            preempt(request)
            victims = [request] if group is None else group.requests()
            assert not any(victim in self.scheduler.running for victim in victims)

        def alone(*args: Any, **kwargs: Any) -> Any:
            self.alone += 1
            return run_alone(*args, **kwargs)

        self._patch.setattr(self.scheduler, "update_from_output", checked)
        self._patch.setattr(self.scheduler, "_preempt_whole", counted)
        self._patch.setattr(self.scheduler, "_run_alone", alone)
        return self

    def __exit__(self, *error: Any) -> None:
        self._patch.undo()
