"""Groups of prompts of one's own, without a method: as jobs, and streamed from an `AsyncLLM`."""

from collections.abc import AsyncGenerator, Sequence
from numbers import Real
from typing import Any
from uuid import uuid4

import torch
from vllm.outputs import RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import SamplingParams

from infer_kit.errors import InferKitError
from infer_kit.pooling import resolve_pooling
from infer_kit.streams import Group, weight_table
from infer_kit.vllm.description import MODES, PoolRule
from infer_kit.vllm.engines import Job, stream
from infer_kit.vllm.jobs import WeightedInput, job_of
from infer_kit.vllm.settings import check_active


def checked_groups(
    groups: Sequence[Group], pool: str, plausibility: float, normalize: bool
) -> list[Group]:
    """Groups that can be pooled so, with the weights that they will have.

    Raises:
        InferKitError: naming the group that cannot.
    """
    if isinstance(groups, Group) or not all(isinstance(group, Group) for group in groups):
        raise InferKitError(
            "groups is a list of Group.",
            hint="[Group((Stream(prompt, 1.0), Stream(other, 0.5)))]",
        )
    if not groups:
        raise InferKitError("No requests: the list of groups is empty.")
    if pool not in MODES:
        raise InferKitError(f"pool is one of {list(MODES)}, got {pool!r}.")
    for b, group in enumerate(groups):
        for k, weight in enumerate(each.weight for each in group.streams):
            if not isinstance(weight, Real) or isinstance(weight, bool):
                raise InferKitError(
                    f"Group {b}, stream {k}: the weight is a number, got {weight!r}."
                )
    table = weight_table(groups)
    present = torch.tensor([[k < len(g.streams) for k in range(len(table[0]))] for g in groups])
    for experts in {group.experts or (0,) for group in groups}:
        resolve_pooling(pool, torch.tensor(table), present, normalize, plausibility, experts)
    if not normalize:
        return list(groups)
    return [
        group.reweighted([s.weight / sum(table[b]) for s in group.streams])
        for b, group in enumerate(groups)
    ]


def group_job(
    group: Group,
    params: SamplingParams,
    pool: str,
    plausibility: float,
    config: Any,
    renderer: Any,
    where: str,
) -> Job:
    """The requests of one group, whose contexts are prompts as vLLM takes them.

    Args:
        params: of n = 1. config, renderer: of the engine. where: names the group in errors.
    """
    order = [group.primary, *(k for k in range(len(group.streams)) if k != group.primary)]
    streams = []
    for k in order:
        tokens = renderer.default_cmpl_tok_params
        try:
            parsed = parse_model_prompt(config.model_config, group.streams[k].context)
            # apart from the cache that takes what is rendered as sent: a refused group is not
            (made,) = renderer.render_cmpl([parsed], tokens, skip_mm_cache=True)
        except Exception as error:  # vLLM's own kinds are no ValueError
            raise InferKitError(f"{where}, stream {k}: vLLM cannot take it: {error}") from error
        streams.append(WeightedInput(made, group.streams[k].weight))
    experts = tuple(order.index(k) for k in group.experts or ()) if plausibility else (0,)
    return job_of(streams, params, PoolRule(pool, plausibility, experts), config, where)


async def stream_group(
    engine: Any,
    group: Group,
    sampling_params: SamplingParams,
    pool: str = "product",
    plausibility: float = 0.0,
    normalize: bool = False,
    request_id: str | None = None,
) -> AsyncGenerator[RequestOutput, None]:
    """Decode a group on an `AsyncLLM`, output by output; closing the generator ends all streams.

    Args:
        engine: an `AsyncLLM` that was made with `engine_arguments`.
        group: see `CoupledLLM.generate_groups`.
        sampling_params: n = 1; its `output_kind` says whether outputs are cumulative.
        pool, plausibility, normalize: see `CoupledLLM.generate_groups`.
        request_id: of the outputs; None for one of its own.

    Raises:
        InferKitError: the group cannot run; before it does.
    """
    check_active(engine.vllm_config)
    (group,) = checked_groups([group], pool, plausibility, normalize)
    if sampling_params.n > 1:
        raise InferKitError(
            f"n={sampling_params.n}: stream_group writes one answer.", hint="Call it n times."
        )
    kind = sampling_params.output_kind
    job = group_job(
        group, sampling_params, pool, plausibility, engine.vllm_config, engine.renderer, "The group"
    )
    job.requests[0][1].output_kind = kind
    async for output in stream(engine, job, request_id or uuid4().hex):
        yield output
