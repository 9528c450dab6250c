r"""What a request says about its group: `SamplingParams.extra_args["coupled"]`, read and checked.

Two forms. *Embedded*: one request brings the other members as token ids, one answer comes back::

    {"weight": 1.0, "members": [{"prompt_token_ids": [8, 9], "weight": 0.5}]}

*External*: K ordinary requests of one group, the only form that carries images::

    {"id": "8f0c…", "size": 2, "index": 0, "weight": 1.0}     # the leader
    {"id": "8f0c…", "size": 2, "index": 1, "weight": 0.5}

The leader (index 0; in the embedded form the request itself) also carries the pool: `mode`
("product" or "mixture"), `plausibility` and `experts` (the cut-off of `infer_kit.pool.plausible`),
`kl_budget` and `direction` (`infer_kit.pool.KLBudgetWeights`), `trace` (a key under which each
stream's part in each token is kept), `candidates` (how many of each stream's best tokens are kept
with it), and `forced` with `tables` (tokens to be scored under several
sets of weights, in place of drawn ones). This module imports neither vllm nor torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from infer_kit.errors import InferKitError

KEY = "coupled"
MODES = ("product", "mixture")
MOST_STREAMS = 256
LARGEST_WEIGHT = 1e6

_POOL_KEYS = (
    "mode", "plausibility", "experts", "kl_budget", "direction", "trace", "candidates", "forced",
    "tables",
)  # fmt: skip
_EMBEDDED_KEYS = ("weight", "members", *_POOL_KEYS)
_EXTERNAL_KEYS = ("id", "size", "index", "weight", "seed", *_POOL_KEYS)
_MEMBER_KEYS = ("prompt_token_ids", "weight")


class InvalidGroup(InferKitError):
    """The description of a group cannot be; HTTP 400 on a server."""


@dataclass(frozen=True)
class PoolRule:
    """How a group's distributions become one.

    Attributes:
        mode: "product" or "mixture".
        plausibility: β of the cut-off, 0 for none.
        experts: streams that say what is plausible.
        kl_budget: nats a token, or None for weights that are numbers.
        direction: of the weights, $w = w_0 + s d$, one a stream; empty without a budget.
        trace: under which name each stream's part in each token is kept for
            `CoupledWorker.infer_kit_take_traces`; empty for none.
        candidates: how many of each stream's best tokens are kept with it.
        forced: tokens to be scored; the group ends with the last of them.
        tables: sets of weights to score them under, each with one a stream.
    """

    mode: str = "product"
    plausibility: float = 0.0
    experts: tuple[int, ...] = (0,)
    kl_budget: float | None = None
    direction: tuple[float, ...] = ()
    trace: str = ""
    candidates: int = 0
    forced: tuple[int, ...] = ()
    tables: tuple[tuple[float, ...], ...] = ()

    @property
    def needs_all(self) -> bool:
        """Whether streams of weight 0 run too: they may get a weight at a step, or in a table."""
        return self.kl_budget is not None or bool(self.forced)

    def to_dict(self) -> dict[str, Any]:
        """What `parse` reads, less what is the default."""
        values = {name: getattr(self, name) for name in _POOL_KEYS}
        given = {n: v for n, v in values.items() if v != getattr(PoolRule, n)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}


@dataclass(frozen=True)
class Member:
    """One request of a group in the external form.

    Attributes:
        id: of the group. size: its number of streams. index: of this one; 0 leads.
        weight: of this stream.
        rule: the pool; of the leader only.
        seed: of the group's draws, of the leader only, where the engine draws them itself.
    """

    id: str
    size: int
    index: int
    weight: float
    rule: PoolRule | None = None
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `parse` reads."""
        out = {"id": self.id, "size": self.size, "index": self.index, "weight": self.weight}
        if self.rule is not None:
            out |= self.rule.to_dict()
        if self.seed is not None:
            out["seed"] = self.seed
        return out


@dataclass(frozen=True)
class Embedded:
    """A group that one request brings.

    Attributes:
        weights: of all streams, the request's own first.
        prompts: token ids of the others.
        rule: the pool.
    """

    weights: tuple[float, ...]
    prompts: tuple[tuple[int, ...], ...]
    rule: PoolRule

    def member(self, group: str, index: int) -> Member:
        """One stream in the external form."""
        rule = self.rule if index == 0 else None
        return Member(group, len(self.weights), index, self.weights[index], rule)

    def without_idle(self) -> "Embedded":
        """The same without the other streams of weight 0, which have no say.

        Where every stream may get a weight (`PoolRule.needs_all`) all stay.
        """
        if self.rule.needs_all:
            return self
        kept = [0, *(k for k, w in enumerate(self.weights) if k and w != 0)]
        return Embedded(
            tuple(self.weights[k] for k in kept),
            tuple(self.prompts[k - 1] for k in kept[1:]),
            replace(self.rule, experts=experts_among(self.rule.experts, kept)),
        )

    @property
    def is_plain(self) -> bool:
        """One stream of weight 1: the request is what it would be without a group."""
        return self.weights == (1.0,) and self.rule == PoolRule(self.rule.mode)


def experts_among(experts: Sequence[int], kept: Sequence[int]) -> tuple[int, ...]:
    """Experts by their places among the streams that are kept; the first where none is left."""
    return tuple(kept.index(k) for k in experts if k in kept) or (0,)


def parse(value: Any) -> Member | Embedded:
    """The description of a group, checked.

    Args:
        value: an object, or its JSON text (`vllm_xargs` takes scalars and flat lists alone).

    Raises:
        InvalidGroup: naming what is wrong.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidGroup(f"'{KEY}' is not JSON: {error}.") from error
    if not isinstance(value, Mapping):
        raise InvalidGroup(f"'{KEY}' is an object, got {_shown(value)}.")
    if "members" in value and ("id" in value or "index" in value or "size" in value):
        raise InvalidGroup(
            f"'{KEY}' has both 'members' and 'id': a group is either brought by one request "
            "('members') or made of several ('id', 'size', 'index')."
        )
    return _embedded(value) if "members" in value else _member(value)


def check_weights(weights: Sequence[float], rule: PoolRule) -> None:
    """Raise `InvalidGroup` unless a group can have these weights, its own streams' all."""
    if any(e >= len(weights) for e in rule.experts):
        raise InvalidGroup(f"'experts' is {list(rule.experts)}, of {len(weights)} streams.")
    if any(abs(w) > LARGEST_WEIGHT for w in (*weights, *rule.direction)):
        raise InvalidGroup(f"Weights are at most {LARGEST_WEIGHT:g}, got {list(weights)}.")
    if rule.kl_budget is not None:
        if all(d == 0 for d in rule.direction) or all(w == 0 for w in weights):
            raise InvalidGroup("Of a budget neither the weights nor the direction are all 0.")
        if len(rule.direction) != len(weights):
            raise InvalidGroup(
                f"'direction' has {len(rule.direction)} numbers for {len(weights)} streams."
            )
        return
    if rule.forced:
        if any(len(table) != len(weights) for table in rule.tables):
            raise InvalidGroup(f"'tables' needs {len(weights)} weights in each set, one a stream.")
        return
    if all(w == 0 for w in weights):
        raise InvalidGroup(f"All weights of the group are 0: {list(weights)}.")
    if rule.mode == "mixture" and any(w < 0 for w in weights):
        raise InvalidGroup(f"A mixture's weights are ≥ 0, got {list(weights)}.")
    if rule.plausibility and all(weights[e] == 0 for e in rule.experts):
        raise InvalidGroup(
            f"'experts' {list(rule.experts)} say what is plausible, but have weight 0."
        )


def _embedded(value: Mapping[str, Any]) -> Embedded:
    _check_keys(value, _EMBEDDED_KEYS, f"'{KEY}'")
    members = value["members"]
    if not isinstance(members, Sequence) or isinstance(members, str) or not members:
        raise InvalidGroup(f"'members' is a list, not empty; got {_shown(members)}.")
    if len(members) >= MOST_STREAMS:
        raise InvalidGroup(f"{len(members)} members: a group has at most {MOST_STREAMS} streams.")
    weights, prompts = [_number(value.get("weight", 1.0), "'weight'")], []
    for k, member in enumerate(members):
        name = f"member {k}"
        if not isinstance(member, Mapping):
            raise InvalidGroup(f"{name} is an object, got {_shown(member)}.")
        _check_keys(member, _MEMBER_KEYS, name)
        prompts.append(_tokens(member.get("prompt_token_ids"), f"'prompt_token_ids' of {name}"))
        weights.append(_number(member.get("weight", 1.0), f"'weight' of {name}"))
    rule = _rule(value)
    check_weights(weights, rule)
    return Embedded(tuple(weights), tuple(prompts), rule)


def _member(value: Mapping[str, Any]) -> Member:
    missing = [key for key in ("id", "size", "index") if key not in value]
    if missing:
        raise InvalidGroup(f"'{KEY}' has neither 'members' nor {missing}.")
    _check_keys(value, _EXTERNAL_KEYS, f"'{KEY}'")
    name, size, index = value["id"], value["size"], value["index"]
    if not isinstance(name, str) or not name:
        raise InvalidGroup(f"'id' is a text, not empty; got {_shown(name)}.")
    if not _is_whole(size) or not 1 <= size <= MOST_STREAMS:
        raise InvalidGroup(f"'size' is a number from 1 to {MOST_STREAMS}, got {_shown(size)}.")
    if not _is_whole(index) or not 0 <= index < size:
        raise InvalidGroup(f"'index' is a number from 0 to {size - 1}, got {_shown(index)}.")
    weight = _number(value.get("weight", 1.0), "'weight'")
    if index:
        foreign = [key for key in (*_POOL_KEYS, "seed") if key in value]
        if foreign:
            raise InvalidGroup(f"{foreign} belong to the leader (index 0), not to index {index}.")
        return Member(name, size, index, weight)
    seed = value.get("seed")
    if seed is not None and not _is_whole(seed):
        raise InvalidGroup(f"'seed' is a whole number, got {_shown(seed)}.")
    rule = _rule(value)
    if any(expert >= size for expert in rule.experts):
        raise InvalidGroup(f"'experts' is {list(rule.experts)}, of {size} streams.")
    return Member(name, size, index, weight, rule, seed)


def _rule(value: Mapping[str, Any]) -> PoolRule:
    mode = value.get("mode", "product")
    if mode not in MODES:
        raise InvalidGroup(f"'mode' is one of {list(MODES)}, got {_shown(mode)}.")
    cutoff = _number(value.get("plausibility", 0.0), "'plausibility'")
    if not 0 <= cutoff <= 1:
        raise InvalidGroup(f"'plausibility' is from 0 to 1, got {cutoff}.")
    experts = value.get("experts", [0])
    if not isinstance(experts, Sequence) or isinstance(experts, str) or not experts:
        raise InvalidGroup(f"'experts' is a list of streams, got {_shown(experts)}.")
    if not all(_is_whole(e) and e >= 0 for e in experts):
        raise InvalidGroup(f"'experts' is a list of streams, got {_shown(experts)}.")
    trace = value.get("trace", "")
    if not isinstance(trace, str):
        raise InvalidGroup(
            f"'trace' is a text, the name to keep figures under; got {_shown(trace)}."
        )
    candidates = value.get("candidates", 0)
    if not _is_whole(candidates) or candidates < 0:
        raise InvalidGroup(f"'candidates' is a whole number, got {_shown(candidates)}.")
    if candidates and (not trace or "forced" in value):
        raise InvalidGroup("'candidates' are kept with a 'trace' of drawn tokens.")
    budget, direction = _budget(value, mode)
    forced, tables = _forced(value, trace)
    return PoolRule(
        mode, cutoff, tuple(experts), budget, direction, trace, candidates, forced, tables
    )


def _forced(
    value: Mapping[str, Any], trace: str
) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """Tokens to be scored and the weights to score them under; both or neither."""
    if "forced" not in value and "tables" not in value:
        return (), ()
    if "forced" not in value or "tables" not in value or not trace:
        raise InvalidGroup("'forced', 'tables' and 'trace' come together.")
    tables = value["tables"]
    if not isinstance(tables, Sequence) or isinstance(tables, str) or not tables:
        raise InvalidGroup(f"'tables' is a list of sets of weights, got {_shown(tables)}.")
    rows = []
    for table in tables:
        if not isinstance(table, Sequence) or isinstance(table, str):
            raise InvalidGroup(f"'tables' is a list of sets of weights, got {_shown(tables)}.")
        rows.append(tuple(_number(w, "a weight of 'tables'") for w in table))
    return _tokens(value["forced"], "'forced'"), tuple(rows)


def _budget(value: Mapping[str, Any], mode: str) -> tuple[float | None, tuple[float, ...]]:
    """The KL budget and its direction; both or neither."""
    if "kl_budget" not in value and "direction" not in value:
        return None, ()
    if "kl_budget" not in value or "direction" not in value:
        raise InvalidGroup("'kl_budget' and 'direction' come together.")
    nats = _number(value["kl_budget"], "'kl_budget'")
    if nats <= 0:
        raise InvalidGroup(f"'kl_budget' is positive, in nats a token; got {nats}.")
    if mode != "product":
        raise InvalidGroup("'kl_budget' is for products.")
    direction = value["direction"]
    if not isinstance(direction, Sequence) or isinstance(direction, str) or not direction:
        raise InvalidGroup(f"'direction' is a list of numbers, got {_shown(direction)}.")
    return nats, tuple(_number(d, "'direction'") for d in direction)


def _tokens(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidGroup(f"{name} is a list of token ids, not empty; got {_shown(value)}.")
    if not all(_is_whole(token) and token >= 0 for token in value):
        raise InvalidGroup(f"{name} has an entry that is no token id.")
    return tuple(value)


def _check_keys(value: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    unknown = [key for key in value if key not in known]
    if unknown:
        raise InvalidGroup(f"{name} has unknown keys {unknown}; known are {list(known)}.")


def _number(value: Any, name: str) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidGroup(f"{name} is a finite number, got {_shown(value)}.")
    if abs(value) > LARGEST_WEIGHT:
        raise InvalidGroup(f"{name} is at most {LARGEST_WEIGHT:g}, got {_shown(value)}.")
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
