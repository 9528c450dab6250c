"""Groups of streams as requests to vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vllm.sampling_params import SamplingParams

from infer_kit.errors import InferKitError, PromptTooLong
from infer_kit.vllm.description import (
    KEY,
    Embedded,
    Member,
    PoolRule,
    check_weights,
    experts_among,
)
from infer_kit.vllm.engines import Job
from infer_kit.vllm.processor import check_sampling
from infer_kit.vllm.scheduled_groups import follower_params

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.inputs import EngineInput


@dataclass(frozen=True)
class WeightedInput:
    """One stream: what it reads, and its weight."""

    input: "EngineInput"
    weight: float


def job_of(
    streams: Sequence[WeightedInput],
    params: SamplingParams,
    rule: PoolRule,
    config: "VllmConfig",
    where: str,
) -> Job:
    """The requests of one group; the first stream leads.

    A group of texts is one request that brings the others; with images it is K requests. Streams of
    weight 0 are left out, except the first.

    Args:
        streams: at least one. params: of the answer; taken over, n = 1.
        rule: the pool. config: of the engine. where: names the group in errors.

    Raises:
        InferKitError: it cannot run on this engine.
    """
    check_weights([stream.weight for stream in streams], rule)
    if not rule.needs_all:
        kept = [k for k, stream in enumerate(streams) if k == 0 or stream.weight != 0]
        rule = replace(rule, experts=experts_among(rule.experts, kept))
        streams = [streams[k] for k in kept]
    check_fits(streams, config, where)
    weights = tuple(stream.weight for stream in streams)
    others = tuple(tuple(_ids(stream.input)) for stream in streams[1:])
    whole = Embedded(weights, others, rule)
    check_sampling(whole, params)
    params = params.clone()
    leader = streams[0].input
    if whole.is_plain:
        return Job(((leader, params),))
    if all(_is_text(stream.input) for stream in streams[1:]):
        members = [
            {"prompt_token_ids": list(ids), "weight": weight}
            for ids, weight in zip(others, weights[1:], strict=True)
        ]
        if not members:
            value = Member(uuid4().hex, 1, 0, weights[0], rule).to_dict()
        else:
            value = {"weight": weights[0], "members": members, **rule.to_dict()}
        return Job(((leader, _with(params, value)),))
    if config.parallel_config.data_parallel_size > 1:
        raise InferKitError(
            f"{where} shows images in streams other than its first, and such groups do not run "
            "with data parallelism: their streams may land on different engines.",
            hint="Start one server for each GPU, or use tensor parallelism.",
        )
    name = uuid4().hex
    requests = []
    for k, stream in enumerate(streams):
        info = Member(name, len(streams), k, stream.weight, rule if k == 0 else None)
        own = _with(params, info.to_dict()) if k == 0 else follower_params(params, info)
        requests.append((stream.input, own))
    return Job(tuple(requests))


def split_returned(params: SamplingParams) -> list[SamplingParams]:
    """n answers as n parameters of one answer, with seeds of their own."""
    out = []
    for place in range(params.n):
        each = params.clone()
        each.n = 1
        if params.seed is not None:
            each.seed = params.seed + place
        out.append(each)
    return out


def check_fits(streams: Sequence[WeightedInput], config: "VllmConfig", where: str) -> None:
    """Raise for a group that the engine could never run."""
    scheduling = config.scheduler_config
    most = min(scheduling.max_num_seqs, scheduling.max_num_batched_tokens)
    if len(streams) > most:
        raise InferKitError(
            f"{where} has {len(streams)} streams; this engine runs {most} requests at a time.",
            hint=f"Start the engine with max_num_seqs={len(streams)} or more.",
        )
    limit = config.model_config.max_model_len
    for k, stream in enumerate(streams):
        length = len(_ids(stream.input))
        if not length:
            raise InferKitError(f"{where}, stream {k}: the prompt is empty.")
        if length >= limit:
            raise PromptTooLong(
                f"{where}, stream {k}: the prompt is {length:,} tokens, the engine takes "
                f"{limit:,} with the answer.",
                hint="Start the engine with a larger max_model_len, where the model allows it.",
            )
    vocabulary = config.model_config.get_vocab_size()
    for k, stream in enumerate(streams):
        largest = max(_ids(stream.input))
        if largest >= vocabulary:
            raise InferKitError(
                f"{where}, stream {k}: token id {largest} is outside the model's vocabulary of "
                f"{vocabulary}."
            )


def _is_text(prompt: Mapping[str, Any]) -> bool:
    return prompt["type"] == "token"


def _ids(prompt: Mapping[str, Any]) -> list[int]:
    return prompt["prompt_token_ids"]


def _with(params: SamplingParams, value: dict[str, Any]) -> SamplingParams:
    params.extra_args = {**(params.extra_args or {}), KEY: value}
    return params
