"""The groups of one batch: which rows of logits are pooled how, and who takes whose token.

Shape letters: N rows of the batch, R groups, K streams of each, V tokens.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from infer_kit.pool import KLBudgetWeights, Step
from infer_kit.pooling import Pooling
from infer_kit.token_statistics import TokenStatistics, token_statistics
from infer_kit.vllm.description import Member, PoolRule


@dataclass(frozen=True)
class Alike:
    """Groups that share a pool and a number of streams.

    Attributes:
        pooling: the pool, with the weights of each group.
        rows: `[R, K]` rows of the streams that have a say. leaders: `[R]` rows of the leaders.
        lattice: (first, step by group, step by stream) where that is what `rows` are, else None.
        order: `[R]` 0 to R − 1.
        names: of the R groups. rules: theirs.
        kept: places of the groups whose figures are kept.
    """

    pooling: Pooling
    rows: Tensor
    leaders: Tensor
    order: Tensor
    lattice: tuple[int, int, int] | None
    names: tuple[str, ...]
    rules: tuple[PoolRule, ...]
    kept: tuple[int, ...]

    def streams_of(self, logits: Tensor) -> Tensor:
        """`[R, K, 1, V]` of `[N, V]` logits: a view where the rows lie evenly, else a copy.

        Where figures are kept it is a copy: the sampler writes to the logits before the token is
        known.
        """
        if self.lattice is None or self.kept or not logits.is_contiguous():
            return logits[self.rows][:, :, None]
        first, by_group, by_stream = self.lattice
        width = logits.shape[1]
        return logits.as_strided(
            (*self.rows.shape, 1, width),
            (by_group * width, by_stream * width, width, 1),
            logits.storage_offset() + first * width,
        )

    def solved_weights(self, streams: Tensor) -> Tensor:
        """`[R, K, 1]` weights that spend a budget; the base weights where they are no weights.

        Nothing may be raised here: it would end the engine for everybody.
        """
        function = self.pooling.weight_function
        assert isinstance(function, KLBudgetWeights)
        position = torch.zeros(1, dtype=torch.long, device=streams.device)
        solved = function(Step(streams.log_softmax(-1), position, self.order))
        wrong = ~solved.isfinite().all(1, keepdim=True) | (solved == 0).all(1, keepdim=True)
        return torch.where(wrong, solved.new_tensor(function.base)[None, :, None], solved)


@dataclass
class Pooled:
    """What `BatchGroups.pool` read, until the tokens are known."""

    alike: Alike
    logits: Tensor
    weights: Tensor
    pooled: Tensor

    def figures(self, sampled: Tensor) -> dict[str, TokenStatistics | Tensor]:
        """By group, the figures of the token that it has drawn.

        Args:
            sampled: `[N]` tokens of the batch.

        Returns:
            `TokenStatistics` of one token, or for a group whose tokens are forced its log π under
            each set of weights, `[W]`.
        """
        out: dict[str, TokenStatistics | Tensor] = {}
        traced = [k for k in self.alike.kept if not self.alike.rules[k].forced]
        if traced:
            chosen = sampled[self.alike.leaders[traced]].long()[:, None]
            every = token_statistics(
                replace(self.alike.pooling, present=self.alike.pooling.present[traced]),
                self.logits[traced],
                self.weights[traced],
                self.pooled[traced],
                chosen,
                self.alike.rules[traced[0]].candidates,  # the same for all that are pooled alike
            )
            for place, k in enumerate(traced):
                out[self.alike.names[k]] = every.map(partial(_row, place))
        for k in set(self.alike.kept) - set(traced):
            token = sampled[self.alike.leaders[k]].long()
            out[self.alike.names[k]] = self._scores(k, token)
        return out

    def _scores(self, group: int, token: Tensor) -> Tensor:
        """`[W]` log π of a token under each set of weights, without a cut-off."""
        tables = torch.tensor(self.alike.rules[group].tables, device=self.logits.device)
        streams = self.logits[group].expand(len(tables), -1, -1, -1)
        plain = replace(
            self.alike.pooling, weights=tables, weight_function=None, plausibility=0.0, experts=()
        )
        request = torch.arange(len(tables), device=self.logits.device)
        return plain(streams, tables, request)[:, 0].log_softmax(-1)[:, token]


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
        leaders = {name: parts[0] for name, parts in whole.items()}
        self.leader_rows = {name: row for name, (row, _) in leaders.items()}
        self.rules = {name: _rule(member) for name, (_, member) in leaders.items()}
        self.seeds = {row: m.seed for row, m in leaders.values() if m.seed is not None}
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
            streams = alike.streams_of(logits)
            weights = alike.pooling.weights  # of the R groups, in their order
            if weights is None:
                weights = alike.solved_weights(streams)
            pooled = alike.pooling(streams, weights, alike.order)
            out.append(Pooled(alike, streams, weights, pooled))
        for part in out:
            logits[part.alike.leaders] = part.pooled[:, 0]
        return out

    def share(self, sampled: Tensor, steps: Mapping[str, int]) -> None:
        """Give every member its leader's token; `sampled` `[N, 1]`, changed in place.

        Args:
            steps: by group, how many tokens it has drawn: says which of its forced ones is next.
        """
        for name, rule in self.rules.items():
            if rule.forced and name in steps:
                place = min(max(steps[name], 0), len(rule.forced) - 1)
                sampled[self.leader_rows[name]] = rule.forced[place]
        sampled[self._followers] = sampled[self._led_by]


def _alike(
    whole: Mapping[str, Sequence[tuple[int, Member]]], device: torch.device
) -> tuple[Alike, ...]:
    """Groups by pool and number of streams."""
    chosen: dict[str, list[tuple[int, Member]]] = {}
    sorted_by: dict[tuple[PoolRule, tuple[float, ...], int], list[str]] = defaultdict(list)
    for name, parts in whole.items():
        rule = _rule(parts[0][1])
        # a stream of weight 0 has no say, and 0 · −inf is never formed
        speaking = [k for k, (_, m) in enumerate(parts) if rule.needs_all or m.weight != 0]
        chosen[name] = [parts[k] for k in speaking]
        experts = tuple(speaking.index(k) for k in rule.experts if k in speaking)
        base: tuple[float, ...] = ()
        if rule.kl_budget is not None:
            base = tuple(member.weight for _, member in parts)  # one set for groups of one budget
        pool = replace(rule, experts=experts, trace="", forced=(), tables=())
        sorted_by[pool, base, len(speaking)].append(name)
    out = []
    for (pool, base, size), names in sorted_by.items():
        rows = torch.tensor([[row for row, _ in chosen[n]] for n in names], device=device)
        table = torch.tensor([[m.weight for _, m in chosen[n]] for n in names], device=device)
        budget = None
        if pool.kl_budget is not None:
            budget = KLBudgetWeights(pool.kl_budget, base, pool.direction)
        pooling = Pooling(
            pool.mode,
            None if budget else table,
            budget,
            torch.ones_like(table, dtype=torch.bool),
            tuple(range(size)),
            plausibility=pool.plausibility,
            experts=pool.experts if pool.plausibility else (),
        )
        rules = tuple(_rule(whole[n][0][1]) for n in names)
        out.append(
            Alike(
                pooling,
                rows,
                torch.tensor([whole[n][0][0] for n in names], device=device),
                torch.arange(len(names), device=device),
                _lattice([[row for row, _ in chosen[n]] for n in names]),
                tuple(names),
                rules,
                tuple(k for k, rule in enumerate(rules) if rule.trace),
            )
        )
    return tuple(out)


def _lattice(rows: Sequence[Sequence[int]]) -> tuple[int, int, int] | None:
    """(first, step by group, step by stream) if `rows[r][k]` is their sum for all, none negative.

    Groups that were admitted one after the other lie so: the common case.
    """
    first = rows[0][0]
    by_group = rows[1][0] - first if len(rows) > 1 else 0
    by_stream = rows[0][1] - first if len(rows[0]) > 1 else 0
    if by_group < 0 or by_stream < 0:
        return None
    even = all(
        row == first + r * by_group + k * by_stream
        for r, group in enumerate(rows)
        for k, row in enumerate(group)
    )
    return (first, by_group, by_stream) if even else None


def _rule(leader: Member) -> PoolRule:
    assert leader.rule is not None
    return leader.rule


def _row(place: int, values: Tensor) -> Tensor:
    return values[place : place + 1]
