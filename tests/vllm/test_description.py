"""What a request says about its group: both forms, and everything that is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_kit.vllm.description import (
    MOST_STREAMS,
    Embedded,
    InvalidGroup,
    Member,
    PoolRule,
    check_weights,
    parse,
)

EMBEDDED: dict[str, Any] = {"members": [{"prompt_token_ids": [8, 9], "weight": 0.5}]}
LEADER: dict[str, Any] = {"id": "a", "size": 2, "index": 0}


def test_the_embedded_form() -> None:
    value = EMBEDDED | {"weight": 2, "mode": "mixture", "plausibility": 0.1, "experts": [1]}
    rule = PoolRule("mixture", 0.1, (1,))
    assert parse(value) == parse(json.dumps(value)) == Embedded((2.0, 0.5), ((8, 9),), rule)
    assert parse({"members": [{"prompt_token_ids": [1]}]}) == Embedded(
        (1.0, 1.0), ((1,),), PoolRule()
    )
    assert parse(value).member("g", 1) == Member("g", 2, 1, 0.5)
    assert parse(value).member("g", 0) == Member("g", 2, 0, 2.0, rule)


def test_the_external_form() -> None:
    assert parse(LEADER) == Member("a", 2, 0, 1.0, PoolRule())
    follower = {"id": "a", "size": 2, "index": 1, "weight": -0.5}
    assert parse(follower) == parse(json.dumps(follower)) == Member("a", 2, 1, -0.5)
    assert parse(LEADER | {"seed": 4}) == Member("a", 2, 0, 1.0, PoolRule(), 4)
    budget = {"kl_budget": 0.1, "direction": [0, 1]}
    assert parse(LEADER | budget).rule == PoolRule(kl_budget=0.1, direction=(0.0, 1.0))
    forced = {"forced": [3, 4], "tables": [[1, 0], [0.5, 0.5]], "trace": "t"}
    rule = PoolRule(trace="t", forced=(3, 4), tables=((1.0, 0.0), (0.5, 0.5)))
    assert parse(LEADER | forced).rule == rule


REFUSED: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", r"'coupled' is not JSON"),
    "a list": ([1], r"'coupled' is an object, got \[1\]"),
    "JSON of a number": ("3", r"'coupled' is an object, got 3"),
    "nothing": ({}, r"neither 'members' nor \['id', 'size', 'index'\]"),
    "no index": ({"id": "a", "size": 2}, r"neither 'members' nor \['index'\]"),
    "both forms": (EMBEDDED | {"id": "a"}, r"both 'members' and 'id'"),
    "unknown key": (EMBEDDED | {"pool": "product"}, r"'coupled' has unknown keys \['pool'\]"),
    "unknown key, external": (LEADER | {"weights": 1}, r"unknown keys \['weights'\]"),
    "unknown key of a member": (
        {"members": [{"prompt_token_ids": [1], "text": "a"}]},
        r"member 0 has unknown keys \['text'\]",
    ),
    "unknown mode": (EMBEDDED | {"mode": "sum"}, r"'mode' is one of .* got 'sum'"),
    "no members": ({"members": []}, r"'members' is a list, not empty; got \[\]"),
    "members are a text": ({"members": "ab"}, r"'members' is a list, not empty; got 'ab'"),
    "a member is a list": ({"members": [[1, 2]]}, r"member 0 is an object, got \[1, 2\]"),
    "too many members": (
        {"members": [{"prompt_token_ids": [1]}] * MOST_STREAMS},
        r"256 members: a group has at most 256 streams",
    ),
    "no prompt": ({"members": [{}]}, r"'prompt_token_ids' of member 0 is a list of token ids"),
    "empty prompt": (
        {"members": [{"prompt_token_ids": []}]},
        r"'prompt_token_ids' of member 0 is a list of token ids, not empty; got \[\]",
    ),
    "text prompt": ({"members": [{"prompt_token_ids": "hello"}]}, r"not empty; got 'hello'"),
    "float ids": ({"members": [{"prompt_token_ids": [1.0]}]}, r"member 0 has an entry that is no"),
    "negative ids": ({"members": [{"prompt_token_ids": [-1]}]}, r"has an entry that is no token"),
    "bool ids": ({"members": [{"prompt_token_ids": [True]}]}, r"has an entry that is no token id"),
    "text weight": (EMBEDDED | {"weight": "1"}, r"'weight' is a finite number, got '1'"),
    "bool weight": (EMBEDDED | {"weight": True}, r"'weight' is a finite number, got True"),
    "null weight": (EMBEDDED | {"weight": None}, r"'weight' is a finite number, got None"),
    "infinite weight": (
        '{"id":"a","size":1,"index":0,"weight":Infinity}',
        r"finite number, got inf",
    ),
    "nan weight": (
        {"members": [{"prompt_token_ids": [1], "weight": float("nan")}]},
        r"'weight' of member 0 is a finite number, got nan",
    ),
    "all zero": (
        {"weight": 0, "members": [{"prompt_token_ids": [1], "weight": 0}]},
        r"All weights of the group are 0: \[0.0, 0.0\]",
    ),
    "negative mixture": (
        {"mode": "mixture", "members": [{"prompt_token_ids": [1], "weight": -1}]},
        r"A mixture's weights are ≥ 0, got \[1.0, -1.0\]",
    ),
    "id": (LEADER | {"id": ""}, r"'id' is a text, not empty; got ''"),
    "id number": (LEADER | {"id": 3}, r"'id' is a text, not empty; got 3"),
    "size": (LEADER | {"size": 0}, r"'size' is a number from 1 to 256, got 0"),
    "size text": (LEADER | {"size": "2"}, r"'size' is a number from 1 to 256, got '2'"),
    "size bool": (LEADER | {"size": True}, r"'size' is a number from 1 to 256, got True"),
    "size large": (LEADER | {"size": 257}, r"'size' is a number from 1 to 256, got 257"),
    "index": (LEADER | {"index": 2}, r"'index' is a number from 0 to 1, got 2"),
    "index negative": (LEADER | {"index": -1}, r"'index' is a number from 0 to 1, got -1"),
    "a follower's pool": (
        LEADER | {"index": 1, "mode": "product", "seed": 1},
        r"\['mode', 'seed'\] belong to the leader \(index 0\), not to index 1",
    ),
    "seed": (LEADER | {"seed": 1.5}, r"'seed' is a whole number, got 1.5"),
    "plausibility": (EMBEDDED | {"plausibility": 1.5}, r"'plausibility' is from 0 to 1, got 1.5"),
    "no experts": (EMBEDDED | {"experts": []}, r"'experts' is a list of streams, got \[\]"),
    "experts": (EMBEDDED | {"experts": ["0"]}, r"'experts' is a list of streams, got \['0'\]"),
    "far expert": (EMBEDDED | {"experts": [2]}, r"'experts' is \[2\], of 2 streams"),
    "far expert, external": (LEADER | {"experts": [2]}, r"'experts' is \[2\], of 2 streams"),
    "idle expert": (
        EMBEDDED | {"weight": 0, "plausibility": 0.1},
        r"'experts' \[0\] say what is plausible, but have weight 0",
    ),
    "trace": (EMBEDDED | {"trace": 1}, r"'trace' is a text, the name to keep figures under; got 1"),
    "budget alone": (EMBEDDED | {"kl_budget": 1}, r"'kl_budget' and 'direction' come together"),
    "direction alone": (EMBEDDED | {"direction": [0, 1]}, r"'kl_budget' and 'direction' come"),
    "budget": (
        EMBEDDED | {"kl_budget": 0, "direction": [0, 1]},
        r"'kl_budget' is positive, in nats a token; got 0",
    ),
    "budget of a mixture": (
        EMBEDDED | {"mode": "mixture", "kl_budget": 1, "direction": [0, 1]},
        r"'kl_budget' is for products",
    ),
    "direction": (
        EMBEDDED | {"kl_budget": 1, "direction": [1]},
        r"'direction' has 1 numbers for 2 streams",
    ),
    "direction is a number": (
        EMBEDDED | {"kl_budget": 1, "direction": 1},
        r"'direction' is a list of numbers, got 1",
    ),
    "candidates of no trace": (
        EMBEDDED | {"candidates": 3},
        r"'candidates' are kept with a 'trace'",
    ),
    "candidates, negative": (
        EMBEDDED | {"candidates": -1, "trace": "t"},
        r"'candidates' is a whole number, got -1",
    ),
    "forced alone": (EMBEDDED | {"forced": [1]}, r"'forced', 'tables' and 'trace' come together"),
    "forced without trace": (
        EMBEDDED | {"forced": [1], "tables": [[1, 1]]},
        r"'forced', 'tables' and 'trace' come together",
    ),
    "tables": (
        EMBEDDED | {"forced": [1], "tables": [1], "trace": "t"},
        r"'tables' is a list of sets of weights, got \[1\]",
    ),
    "tables of other sizes": (
        EMBEDDED | {"forced": [1], "tables": [[1, 0, 0]], "trace": "t"},
        r"'tables' needs 2 weights in each set, one a stream",
    ),
    "forced ids": (
        EMBEDDED | {"forced": [], "tables": [[1, 0]], "trace": "t"},
        r"'forced' is a list of token ids, not empty",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals(name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(InvalidGroup, match=message):
        parse(value)
    assert issubclass(InvalidGroup, ValueError)


@pytest.mark.parametrize("value", ["x" * 500, {"id": "a" * 500}, [0] * 500])
def test_messages_stay_short(value: Any) -> None:
    with pytest.raises(InvalidGroup) as error:
        parse({"mode": value} | EMBEDDED)
    assert len(str(error.value)) < 200


def test_idle_streams_are_left_out() -> None:
    rule = PoolRule("product", 0.2, (2, 0))
    group = Embedded((1.0, 0.0, 0.5), ((5,), (6,)), rule)
    kept = Embedded((1.0, 0.5), ((6,),), PoolRule("product", 0.2, (1, 0)))
    assert group.without_idle() == kept
    every = Embedded((1.0, 0.0), ((5,),), PoolRule(kl_budget=1.0, direction=(0.0, 1.0)))
    assert every.without_idle() is every
    scored = Embedded((1.0, 0.0), ((5,),), PoolRule(trace="t", forced=(1,), tables=((1.0, 1.0),)))
    assert scored.without_idle() is scored


def test_plain_groups() -> None:
    assert Embedded((1.0, 0.0), ((5,),), PoolRule()).without_idle().is_plain
    assert Embedded((1.0,), (), PoolRule("mixture")).is_plain
    assert not Embedded((0.5,), (), PoolRule()).is_plain
    assert not Embedded((1.0,), (), PoolRule(plausibility=0.1)).is_plain
    assert not Embedded((1.0,), (), PoolRule(trace="t")).is_plain
    with pytest.raises(InvalidGroup, match="All weights"):
        check_weights([0.0], PoolRule())


WEIGHTS = st.floats(-5, 5).map(lambda w: round(w, 3))
TOKENS = st.lists(st.integers(0, 999), min_size=1, max_size=5).map(tuple)


@st.composite
def rules(draw: Any, size: int) -> PoolRule:
    """Of products, since then weights may have any sign."""
    experts = tuple(draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)))
    budget, direction, trace = None, (), draw(st.text(max_size=4))
    forced, tables = (), ()
    kind = draw(st.sampled_from(("numbers", "budget", "scores")))
    row = st.lists(WEIGHTS, min_size=size, max_size=size).map(tuple)
    if kind == "budget":
        budget, direction = draw(st.floats(0.01, 3)), draw(row.filter(any))
    elif kind == "scores":
        trace, forced = trace + "t", draw(TOKENS)
        tables = tuple(draw(st.lists(row, min_size=1, max_size=3)))
    cutoff = draw(st.floats(0.1, 1)) if kind == "numbers" else 0.0
    candidates = draw(st.integers(0, 9)) if trace and not forced else 0
    return PoolRule(
        "product", cutoff, experts, budget, direction, trace, candidates, forced, tables
    )


@given(st.data(), st.integers(1, 5))
def test_round_trips(data: Any, size: int) -> None:
    rule = data.draw(rules(size))
    index = data.draw(st.integers(0, size - 1))
    weight = data.draw(WEIGHTS)
    seed = data.draw(st.none() | st.integers(0, 2**40))
    leads = index == 0
    member = Member("a", size, index, weight, rule if leads else None, seed if leads else None)
    assert parse(member.to_dict()) == member
    assert parse(json.dumps(member.to_dict())) == member
    if size == 1:
        return
    weights = tuple(data.draw(st.lists(WEIGHTS.filter(bool), min_size=size, max_size=size)))
    prompts = tuple(data.draw(st.lists(TOKENS, min_size=size - 1, max_size=size - 1)))
    value = {
        "weight": weights[0],
        "members": [
            {"prompt_token_ids": list(p), "weight": w}
            for p, w in zip(prompts, weights[1:], strict=True)
        ],
        **rule.to_dict(),
    }
    assert parse(value) == parse(json.dumps(value)) == Embedded(weights, prompts, rule)
