"""Which vLLM is installed, and whether the inner names that groups rely on are there."""

from typing import Any

from packaging.version import Version

from infer_kit.errors import MissingExtra

PLUGIN = "infer_kit"
"""The name of the entry points, for `VLLM_PLUGINS`."""

FLOOR, CEILING = Version("0.30"), Version("0.34")
PROCESSOR = "infer_kit.vllm.processor:CoupledLogitsProcessor"
SCHEDULER = "infer_kit.vllm.scheduler.coupled_scheduler"
WORKER = "infer_kit.vllm.worker.CoupledWorker"

_SCHEDULER_NAMES = (
    "_get_local_prefix_cache_hit",
    "_enqueue_waiting_request",
    "_preempt_request",
    "_reserve_prefill_lookahead",
    "finish_requests",
    "update_from_output",
)


def check_version() -> None:
    """Raise unless the installed vLLM is one that groups run on.

    Raises:
        MissingExtra: vLLM is not installed.
        RuntimeError: another version, or a name that it lacks.
    """
    try:
        import vllm
        from vllm.v1.core.sched.scheduler import Scheduler
    except ImportError as error:
        raise MissingExtra(
            f"vLLM is not installed ({error}).",
            hint="GPU: pip install 'infer-kit[vllm]'. CPU: see docs/vllm.md.",
        ) from error
    # a CPU build has a version of its own behind the release's
    found = Version(vllm.__version__).release
    if not FLOOR.release <= found < CEILING.release:
        raise unsupported(f"found {vllm.__version__}")
    for name in _SCHEDULER_NAMES:
        if not hasattr(Scheduler, name):
            raise unsupported(f"found {vllm.__version__}: no Scheduler.{name}")


def check_attributes(holder: Any, names: tuple[str, ...]) -> None:
    """Raise `RuntimeError` for an instance attribute that this vLLM's class does not have."""
    import vllm

    for name in names:
        if not hasattr(holder, name):
            kind = type(holder).__name__
            raise unsupported(f"found {vllm.__version__}: no {kind}.{name}")


def unsupported(what: str) -> RuntimeError:
    """The error for another vLLM than those that were tested."""
    return RuntimeError(f"vLLM 0.30 to 0.33 supported, {what}.")
