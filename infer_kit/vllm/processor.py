"""Groups in vLLM's workers: which requests of a batch belong together, and where they are pooled.

`CoupledLogitsProcessor` follows the batch, by vLLM's interfaces for logits processors (those of
model runners V1 and V2), and refuses what cannot be. The pooling itself happens where the sampler
begins: the leader's row becomes the pooled one before log-probabilities are taken and before
penalties, biases, grammars, temperature and filters act, so all of these are vLLM's own and act on
the pooled distribution; when the sampler is done, the other members get the leader's token.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    process_dict_updates,
)
from vllm.v1.sample.sampler import Sampler

from infer_kit.token_statistics import TokenStatistics
from infer_kit.vllm.batch_groups import BatchGroups, Pooled
from infer_kit.vllm.description import KEY, Embedded, InvalidGroup, Member, parse
from infer_kit.vllm.names import check_version
from infer_kit.vllm.settings import check_scheduler

if TYPE_CHECKING:
    from vllm.config import VllmConfig

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsProcessor as LogitsProcessorV2,
    )
except ImportError:  # vLLM 0.30 has runner V1 alone

    class LogitsProcessorV2:  # type: ignore[no-redef]
        """Stands for the interface that this vLLM lacks."""


_MOST_FIGURES = 2**20  # tokens whose figures are kept, of groups that nobody has asked for yet


class CoupledLogitsProcessor(LogitsProcessor, LogitsProcessorV2):
    """Follows which rows of the batch belong to groups; the samplers ask it.

    One class for both runners: V1 makes it with (config, device, is_pin_memory), V2 with (config,
    request states).
    """

    def __init__(self, vllm_config: "VllmConfig", second: Any, third: Any = None) -> None:
        check_version()
        check_scheduler(vllm_config)
        self._rows: dict[int, tuple[Member, list[int]]] = {}  # runner V1: by row of the batch
        self._slots: dict[int, Member] = {}  # runner V2: by slot of the request
        self._groups: BatchGroups | None = None
        self._layout: bytes = b""
        self._figures = 0  # tokens in `traces`
        self.traces: dict[str, dict[int, TokenStatistics | Tensor]] = {}
        if third is None:
            self._states = second
            device = second.device
            _wrap_sampler_v2()
        else:
            device = second
            _wrap_sampler_v1()
        self.device = torch.device(device)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise `InvalidGroup` (HTTP 400) for a group that cannot be."""
        value = (sampling_params.extra_args or {}).get(KEY)
        if value is not None:
            check_sampling(parse(value), sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    # -- runner V1 --------------------------------------------------------------------------

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self._rows, batch_update, _row_state):
            self._groups = None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Nothing: the samplers are wrapped, see this module's docstring."""
        return logits

    def groups(self) -> BatchGroups:
        """Those of runner V1's batch."""
        if self._groups is None:
            members = {row: member for row, (member, _) in self._rows.items()}
            self._groups = BatchGroups(members, self.device)
        return self._groups

    def step(self, row: int) -> int:
        """How many tokens the request in a row of runner V1 has drawn."""
        return len(self._rows[row][1])

    # -- runner V2 --------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._slots.pop(req_idx, None)
        self._layout = b""
        member = _member(sampling_params)
        if member is not None:
            self._slots[req_idx] = member
        return False

    def groups_at(self, slots: Any) -> BatchGroups:
        """Those of a batch of runner V2; `slots` `[N]` numpy, the slot of each row."""
        layout = slots.tobytes()
        if self._groups is None or layout != self._layout:
            members = {row: self._slots[s] for row, s in enumerate(slots) if s in self._slots}
            self._groups = BatchGroups(members, self.device)
            self._layout = layout
        return self._groups

    # -- traces -----------------------------------------------------------------------------

    def record(
        self,
        groups: BatchGroups,
        pooled: list[Pooled],
        sampled: Tensor,
        steps: Mapping[str, int],
    ) -> None:
        """Keep the figures of the tokens that groups have drawn, for those that ask.

        A step whose draw vLLM discards is overwritten by the one that counts: both have the same
        number.

        Args:
            sampled: `[N]` tokens of the batch. steps: by group, how many it had drawn before.
        """
        for part in pooled:
            if not part.alike.kept:
                continue
            for name, figures in part.figures(sampled).items():
                if name not in steps:
                    continue
                kept = self.traces.setdefault(groups.rules[name].trace, {})
                self._figures += steps[name] not in kept
                kept[steps[name]] = figures
        while self._figures > _MOST_FIGURES and len(self.traces) > 1:
            self.take(next(iter(self.traces)))  # nobody came for it

    def take(self, name: str) -> dict[int, TokenStatistics | Tensor]:
        """The figures that are kept under a name, by step; they are forgotten here."""
        kept = self.traces.pop(name, {})
        self._figures -= len(kept)
        return kept


def check_sampling(group: Member | Embedded, params: SamplingParams) -> None:
    """Raise `InvalidGroup` for parameters that do not go with a group."""
    rule, weight = group.rule, group.weights[0] if isinstance(group, Embedded) else group.weight
    if isinstance(group, Member) and params.n > 1:
        raise InvalidGroup(
            f"n={params.n} with a group made of several requests: its members cannot be told "
            "apart. Send the request n times, or the group as 'members'."
        )
    if params.prompt_logprobs is not None:
        raise InvalidGroup("prompt_logprobs are of one stream: a group has several.")
    if params.structured_outputs is not None and rule is not None:
        if rule.mode != "product":
            raise InvalidGroup(
                "Structured outputs mask the first stream before it is mixed; use mode 'product'."
            )
        if weight == 0:
            raise InvalidGroup("Structured outputs need a first stream whose weight is not 0.")


def find(processors: Any) -> CoupledLogitsProcessor | None:
    """Ours among a runner's processors."""
    return next((p for p in processors if isinstance(p, CoupledLogitsProcessor)), None)


def _member(params: SamplingParams) -> Member | None:
    value = (params.extra_args or {}).get(KEY)
    if value is None:
        return None
    try:
        member = parse(value)
    except InvalidGroup:  # of a request that the scheduler refuses: nothing may be raised here
        return None
    # the scheduler has written the external form; another one it refuses too
    return member if isinstance(member, Member) else None


def _row_state(
    params: SamplingParams, prompt: list[int] | None, output: list[int]
) -> tuple[Member, list[int]] | None:
    member = _member(params)
    return None if member is None else (member, output)


def _wrap_sampler_v1() -> None:
    """Pool before `Sampler.forward` of runner V1."""
    original = Sampler.forward
    if getattr(original, "pools_groups", False):
        return

    @functools.wraps(original)
    def forward(self: Any, logits: Tensor, sampling_metadata: Any, *args: Any, **kw: Any) -> Any:
        ours = find(sampling_metadata.logitsprocs.non_argmax_invariant)
        if ours is None or not (groups := ours.groups()):
            return original(self, logits, sampling_metadata, *args, **kw)
        logits = logits.float()
        pooled = groups.pool(logits)
        if groups.seeds:
            generators = {
                row: _generator(seed, ours.step(row), logits.device)
                for row, seed in groups.seeds.items()
            }
            sampling_metadata = replace(
                sampling_metadata, generators={**sampling_metadata.generators, **generators}
            )
        output = original(self, logits, sampling_metadata, *args, **kw)
        steps = {name: ours.step(row) for name, row in groups.leader_rows.items()}
        groups.share(output.sampled_token_ids, steps)
        ours.record(groups, pooled, output.sampled_token_ids[:, 0], steps)
        return output

    forward.pools_groups = True  # type: ignore[attr-defined]
    Sampler.forward = forward


def _wrap_sampler_v2() -> None:
    """Pool before `Sampler.__call__` of runner V2."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler as SamplerV2

    original = SamplerV2.__call__
    if getattr(original, "pools_groups", False):
        return

    @functools.wraps(original)
    def call(self: Any, logits: Tensor, input_batch: Any, *args: Any, **kw: Any) -> Any:
        ours = find(self.logits_processors)
        if ours is None or not (groups := ours.groups_at(input_batch.idx_mapping_np)):
            return original(self, logits, input_batch, *args, **kw)
        logits = logits.float()
        pooled = groups.pool(logits)
        output = original(self, logits, input_batch, *args, **kw)
        steps = _steps_v2(ours, groups, input_batch)
        groups.share(output.sampled_token_ids, steps)
        ours.record(groups, pooled, output.sampled_token_ids[:, 0], steps)
        return output

    call.pools_groups = True  # type: ignore[attr-defined]
    SamplerV2.__call__ = call


def _steps_v2(ours: CoupledLogitsProcessor, groups: BatchGroups, batch: Any) -> dict[str, int]:
    """By group, how many tokens its leader has drawn; those alone whose draw counts."""
    ends = batch.num_computed_tokens_np + batch.num_scheduled_tokens
    prompts = ours._states.prompt_len.np[batch.idx_mapping_np]
    return {
        name: int(ends[row] - prompts[row])
        for name, row in groups.leader_rows.items()
        if ends[row] >= batch.prefill_len_np[row]
    }


def _generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A generator for one draw: of the seed and the step alone, whatever the batch."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator(device).manual_seed((mixed ^ (mixed >> 31)) % 2**63)
