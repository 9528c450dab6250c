"""What an engine has to be started with so that it runs groups, and what it cannot have."""

from typing import TYPE_CHECKING, Any

from infer_kit.errors import InferKitError
from infer_kit.vllm.names import PROCESSOR, SCHEDULER, WORKER

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class CannotCouple(InferKitError):
    """An engine's settings do not go with groups."""


def engine_arguments(**given: Any) -> dict[str, Any]:
    """Arguments of `vllm.LLM` or `AsyncEngineArgs` with the plug-ins of groups added.

    Raises:
        CannotCouple: `scheduler_cls` or `worker_extension_cls` is somebody else's.
    """
    arguments = dict(given)
    for name, ours in (("scheduler_cls", SCHEDULER), ("worker_extension_cls", WORKER)):
        theirs = arguments.get(name)
        if theirs and theirs != ours:
            raise CannotCouple(
                f"{name}={theirs!r} is set, but groups need {ours!r}.", hint=f"Leave out {name}."
            )
        arguments[name] = ours
    processors = list(arguments.get("logits_processors") or [])
    arguments["logits_processors"] = [*(p for p in processors if p != PROCESSOR), PROCESSOR]
    return arguments


def check_settings(config: "VllmConfig") -> None:
    """Raise `CannotCouple` for settings that groups cannot run with; called as the engine starts.

    Raises:
        CannotCouple: naming the setting.
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    refused = {
        "speculative decoding (a draft would be checked against one stream alone)": (
            config.speculative_config is not None
        ),
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "the priority policy": scheduling.policy != "fcfs",
        "a KV connector": config.kv_transfer_config is not None,
        "an encoder connector": config.ec_transfer_config is not None,
        "batch-sharded sampling": getattr(config, "shard_sampling_batch", False),
        "returned sampling masks": getattr(config.model_config, "return_sampling_mask", False),
        "pooling models": config.model_config.runner_type == "pooling",
    }
    names = [name for name, is_set in refused.items() if is_set]
    if names:
        raise CannotCouple(
            f"Groups of streams do not run with {', '.join(names)}.",
            hint="Start the engine without it; tensor and data parallelism work.",
        )
    if PROCESSOR not in (config.model_config.logits_processors or []):
        raise CannotCouple(
            "The group scheduler is active, but the logits processor of groups is not.",
            hint=f"logits_processors=['{PROCESSOR}']; --logits-processors {PROCESSOR}",
        )


def check_scheduler(config: "VllmConfig") -> None:
    """Raise `CannotCouple` unless the group scheduler is set; called as the processor is made."""
    theirs = config.scheduler_config.scheduler_cls
    if theirs != SCHEDULER:
        raise CannotCouple(
            f"The logits processor of groups is active, but the scheduler is {theirs or 'vLLM’s'}.",
            hint=f"scheduler_cls='{SCHEDULER}'; --scheduler-cls {SCHEDULER}",
        )


def is_active(config: "VllmConfig") -> bool:
    """Whether an engine of this configuration runs groups."""
    processors = config.model_config.logits_processors or []
    return config.scheduler_config.scheduler_cls == SCHEDULER and PROCESSOR in processors


def check_active(config: "VllmConfig") -> None:
    """Raise `CannotCouple`, saying how to activate the plug-ins, unless they are."""
    if is_active(config):
        return
    theirs = config.scheduler_config.scheduler_cls
    if theirs and theirs != SCHEDULER:
        raise CannotCouple(f"The engine's scheduler is {theirs!r}, but groups need {SCHEDULER!r}.")
    raise CannotCouple(
        "The engine was started without the plug-ins of groups.",
        hint="Make it with infer_kit.vllm.CoupledLLM(...), or vllm.LLM(..., "
        f"scheduler_cls={SCHEDULER!r}, logits_processors=[{PROCESSOR!r}], "
        f"worker_extension_cls={WORKER!r}); on a server: infer-kit serve MODEL.",
    )
