"""The groups of one batch: which rows of logits are pooled how, and who takes whose token.

Shape letters: N rows of the batch, R groups, K streams of each, V tokens.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer_kit.pool import kl_budget_weights
from infer_kit.pooling import Pooling
from infer_kit.token_statistics import TokenStatistics, token_statistics
from infer_kit.vllm.description import Member, PoolRule


@dataclass(frozen=True)
class Alike:
    """Groups that share a pool and a number of streams.

    Attributes:
        pooling: the pool, with the weights of each group.
        rows: `[R, K]` rows of the streams that have a say. leaders: `[R]` rows of the leaders.
        ids: of the groups.
        traced: places of the groups whose figures are kept.
    """

    pooling: Pooling
    rows: Tensor
    leaders: Tensor
    ids: tuple[str, ...]
    traced: tuple[int, ...]


@dataclass
class Pooled:
    """What `BatchGroups.pool` read of groups whose figures are kept, until the token is known."""

    alike: Alike
    logits: Tensor
    weights: Tensor
    pooled: Tensor

    def statistics(self, sampled: Tensor) -> dict[str, TokenStatistics]:
        """Figures of the token that each traced group has drawn; `sampled` `[N]`."""
        if not self.alike.traced:
            return {}
        kept = list(self.alike.traced)
        chosen = sampled[self.alike.leaders[kept]].long()[:, None]
        figures = token_statistics(
            self.alike.pooling,
            self.logits[kept],
            self.weights[kept],
            self.pooled[kept],
            chosen,
        )
        return {
            self.alike.ids[place]: figures.map(lambda t, k=k: t[k : k + 1])  # type: ignore[misc]
            for k, place in enumerate(kept)
        }


class BatchGroups:
    """Index tensors of a batch, made once for as long as the batch stays the same."""

    def __init__(self, members: Mapping[int, Member], device: torch.device) -> None:
        """Args:
        members: by row of the batch; rows of plain requests are not in it.
        device: of the logits.
        """
        groups: dict[str, dict[int, tuple[int, Member]]] = defaultdict(dict)
        for row, member in members.items():
            groups[member.id][member.index] = (row, member)
        whole = {
            name: [parts[k] for k in range(len(parts))]
            for name, parts in groups.items()
            if 0 in parts and len(parts) == parts[0][1].size
        }
        self.leader_rows = {name: parts[0][0] for name, parts in whole.items()}
        self.seeds = {
            parts[0][0]: parts[0][1].seed
            for parts in whole.values()
            if parts[0][1].seed is not None
        }
        pairs = [(row, parts[0][0]) for parts in whole.values() for row, _ in parts[1:]]
        self._followers = torch.tensor([row for row, _ in pairs], dtype=torch.long, device=device)
        self._led_by = torch.tensor([lead for _, lead in pairs], dtype=torch.long, device=device)
        self._alike = _alike(whole, device)

    def __bool__(self) -> bool:
        return bool(self._alike)

    def pool(self, logits: Tensor) -> list[Pooled]:
        """Write each group's pooled scores, at the scale of raw logits, into its leader's row.

        Args:
            logits: `[N, V]` float32, changed in place.
        """
        out = []
        for alike in self._alike:
            streams = logits[alike.rows][:, :, None]  # [R, K, 1, V]
            request = torch.arange(len(alike.ids), device=logits.device)
            weights = alike.pooling.weights_at(streams, request, 0)
            pooled = alike.pooling(streams, weights, request)
            out.append(Pooled(alike, streams, weights, pooled))
        for part in out:
            logits[part.alike.leaders] = part.pooled[:, 0]
        return out

    def share(self, sampled: Tensor) -> None:
        """Give every member its leader's token; `sampled` `[N, 1]`, changed in place."""
        sampled[self._followers] = sampled[self._led_by]


def _alike(
    whole: Mapping[str, Sequence[tuple[int, Member]]], device: torch.device
) -> tuple[Alike, ...]:
    """Groups by pool and number of streams."""
    sorted_by: dict[tuple[PoolRule, tuple[int, ...], int], list[str]] = defaultdict(list)
    chosen: dict[str, list[tuple[int, Member]]] = {}
    for name, parts in whole.items():
        rule = parts[0][1].rule
        assert rule is not None
        every = rule.kl_budget is not None
        # a stream of weight 0 has no say, and 0 · −inf is never formed
        speaking = [k for k, (_, member) in enumerate(parts) if every or member.weight != 0]
        chosen[name] = [parts[k] for k in speaking]
        experts = tuple(speaking.index(k) for k in rule.experts if k in speaking)
        fixed = PoolRule(rule.mode, rule.plausibility, (), rule.kl_budget, rule.direction)
        if every:
            # base weights of a budget are one set for all of its groups
            base = tuple(member.weight for _, member in parts)
            fixed = PoolRule(*_fields(fixed)[:4], direction=(*base, *rule.direction))
        sorted_by[fixed, experts, len(speaking)].append(name)
    out = []
    for (rule, experts, size), names in sorted_by.items():
        table = torch.tensor([[m.weight for _, m in chosen[n]] for n in names], device=device)
        rows = torch.tensor([[row for row, _ in chosen[n]] for n in names], device=device)
        budget = None
        if rule.kl_budget is not None:
            base, direction = rule.direction[:size], rule.direction[size:]
            budget = kl_budget_weights(rule.kl_budget, base, direction)
        pooling = Pooling(
            rule.mode,
            None if budget else table,
            budget,
            torch.ones_like(table, dtype=torch.bool),
            tuple(range(size)),
            plausibility=rule.plausibility,
            experts=experts,
        )
        leaders = torch.tensor([whole[n][0][0] for n in names], device=device)
        traced = tuple(k for k, n in enumerate(names) if _is_traced(whole[n]))
        out.append(Alike(pooling, rows, leaders, tuple(names), traced))
    return tuple(out)


def _fields(rule: PoolRule) -> tuple[str, float, tuple[int, ...], float | None]:
    return rule.mode, rule.plausibility, rule.experts, rule.kl_budget


def _is_traced(parts: Sequence[tuple[int, Member]]) -> bool:
    rule = parts[0][1].rule
    return rule is not None and rule.trace
