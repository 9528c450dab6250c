"""Groups in vLLM equal a plain loop without a cache, beside plain requests, however scheduled."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

pytest.importorskip("vllm", reason="vLLM is not installed")

from tests.vllm.engines import Watch, check_idle, engine
from tests.vllm.folders import load_text, text_folder
from tests.vllm.group_cases import (
    BLOCK,
    TIE,
    Case,
    Expected,
    answers,
    compare,
    expected,
    random_cases,
    requests_of,
)

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "chunked": {
        "max_num_batched_tokens": 16,
        "max_num_seqs": 6,
        "long_prefill_token_threshold": 5,
    },
    "pressure": {"num_gpu_blocks_override": 14},
    "uncached": {"enable_prefix_caching": False},
    "async": {"asynchronous": True},
    "async-pressure": {
        "asynchronous": True,
        "num_gpu_blocks_override": 14,
        "max_num_batched_tokens": 24,
    },
}
WRITERS = random.Random(7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("groups"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return load_text(folder)[0].double()


@pytest.fixture(scope="module")
def cases(model: PreTrainedModel) -> list[tuple[Case, Expected]]:
    return [(case, expected(model, case)) for case in random_cases(90)]


@pytest.fixture(scope="module", params=list(CONFIGURATIONS))
def configured(request: Any, folder: Path) -> Iterator[tuple[str, Any]]:
    with engine(folder, **CONFIGURATIONS[request.param]) as llm:
        yield request.param, llm


def check(cases: list[tuple[Case, Expected]], got: list[list[dict[str, Any]]]) -> None:
    """No answer is wrong, and few are so near to a tie that they say nothing."""
    verdicts = [compare(case, want, group) for (case, want), group in zip(cases, got, strict=True)]
    wrong = {n: v for n, v in enumerate(verdicts) if v not in (None, "tie")}
    assert not wrong
    assert verdicts.count("tie") <= len(cases) // 20


def test_random_groups(configured: tuple[str, Any], cases: list[tuple[Case, Expected]]) -> None:
    name, llm = configured
    with Watch(llm) as watch:
        got = answers(llm, [case for case, _ in cases])
    check(cases, got)
    check_idle(llm)
    assert watch.steps > 16 and watch.together > 1
    assert watch.alone > 0  # groups with one-token members
    if "pressure" in name:
        assert watch.preempted >= 5
    else:
        assert watch.preempted == 0


def test_prefixes_are_shared(configured: tuple[str, Any], model: PreTrainedModel) -> None:
    """Between the streams of a group, between groups, and with plain requests."""
    name, llm = configured
    start = tuple(WRITERS.randrange(4, 150) for _ in range(2 * BLOCK))

    def own(length: int) -> tuple[int, ...]:
        return start + tuple(WRITERS.randrange(4, 150) for _ in range(length))

    external = [
        Case((own(5), own(9)), (1.0, -0.3), external=True),
        Case((own(7), own(1), own(2)), (1.0, 0.5, 0.2), external=True),
        Case((own(3),)),
    ]
    embedded = [Case((own(2), own(3)), (1.0, 0.4)), Case((own(1), start), (0.7, 0.4))]
    answers(llm, [Case(((*start, 5),), new=1)])
    for part in (external, embedded):
        got = answers(llm, part)
        check([(case, expected(model, case)) for case in part], got)
        cached = [answer["cached"] for group in got for answer in group]
        if name == "uncached":
            assert not any(cached)
        elif "pressure" not in name:
            # a hit that leaves one token gives a block back: a member reads something
            short, long = BLOCK, 2 * BLOCK
            want = [long, long, long, short, long, long] if part is external else [long, short]
            assert cached == want
    check_idle(llm)


def test_prompts_before_a_group_leave_one_token(
    configured: tuple[str, Any], model: PreTrainedModel
) -> None:
    """Three long prompts take 15 of the 16 tokens of each step: one is left, for two streams."""
    name, llm = configured
    if name != "chunked":
        pytest.skip("steps are large")
    rng = random.Random(17)
    long = [Case((tuple(rng.randrange(4, 150) for _ in range(85)),), new=6) for _ in range(3)]
    every = [*long, Case(((5, 6), (7, 8)), (1.0, 0.5), new=6)]
    with Watch(llm):
        got = answers(llm, every)
    check([(case, expected(model, case)) for case in every], got)
    check_idle(llm)


@pytest.mark.parametrize("external", [False, True])
def test_a_hit_that_leaves_one_token(
    configured: tuple[str, Any], model: PreTrainedModel, external: bool
) -> None:
    """Prompts of 1 token modulo the block size, sent again."""
    name, llm = configured
    if name not in ("default", "async", "chunked"):
        pytest.skip("the cache is off, or too small to keep anything")
    rng = random.Random(11 + external)
    lengths = (BLOCK + 1, 2 * BLOCK + 1, 1, BLOCK + 1)
    prompts = tuple(tuple(rng.randrange(4, 150) for _ in range(n)) for n in lengths)
    case = Case(prompts, (1.0, 0.6, -0.2, 0.3), external=external)
    plain = Case(prompts[1:2])
    pairs = [(case, expected(model, case)), (plain, expected(model, plain))]
    for cached in (0, BLOCK):
        with Watch(llm):
            got = answers(llm, [case, plain, case])
        check([*pairs, pairs[0]], got)
        if external and cached:
            # of 33 tokens 32 are known: a member takes none of them, of 65 the first 32
            assert [answer["cached"] for answer in got[0]] == [0, BLOCK, 0, 0]
            assert got[1][0]["cached"] == 2 * BLOCK
    check_idle(llm)


def test_members_come_one_by_one(
    configured: tuple[str, Any], cases: list[tuple[Case, Expected]]
) -> None:
    """Requests arrive between the steps of others, the members of a group not together."""
    _, llm = configured
    rng = random.Random(3)
    chosen = rng.sample(cases, 30)
    waiting = [
        (f"{number}-{k}", request)
        for number, (case, _) in enumerate(chosen)
        for k, request in enumerate(requests_of(case, f"late-{number}"))
    ]
    waiting = [waiting[k] for k in sorted(range(len(waiting)), key=lambda k: k + rng.random() * 6)]
    got: dict[str, list[int]] = {}
    with Watch(llm):
        while waiting or llm.llm_engine.has_unfinished_requests():
            for _ in range(min(rng.randrange(4), len(waiting))):
                name, request = waiting.pop(0)
                llm.llm_engine.add_request(name, *request)
            for output in llm.llm_engine.step():
                if output.finished:
                    got[output.request_id] = list(output.outputs[0].token_ids)
    for number, (_, want) in enumerate(chosen):
        members = [ids for name, ids in got.items() if name.startswith(f"{number}-")]
        assert all(ids == want.tokens for ids in members) or want.gap < TIE
    check_idle(llm)


def test_model_runner_v2(folder: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    """Both schedulers, short of blocks; in a process of its own, where triton is interpreted."""
    pytest.importorskip("triton")
    rng = random.Random(5)

    def prompt() -> tuple[int, ...]:
        return tuple(rng.randrange(4, 150) for _ in range(rng.randrange(58, 64)))

    small = [replace(case, new=6) for case in random_cases(10, seed=1, longest=30)]
    small += [Case((prompt(), prompt()), (1.0, w), external=w > 0, new=8) for w in (0.5, -0.4) * 3]
    (tmp_path / "cases.json").write_text(json.dumps([asdict(case) for case in small]))
    files = [str(tmp_path / "cases.json"), str(tmp_path / "out.json")]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.groups_in_process", str(folder), *files],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pairs = [(case, expected(model, case)) for case in small]
    for out in json.loads((tmp_path / "out.json").read_text()):
        check(pairs, out["greedy"])
        assert out["preempted"] > 0
        forward, backward, alone = (
            [[answer["tokens"] for answer in group] for group in part] for part in out["sampled"]
        )
        assert forward == backward[::-1] and alone[0] == forward[0]
        assert all(answer == group[0] for group in forward for answer in group)


def test_engines_end(folder: Path) -> None:
    """Another engine in the same process starts with all its blocks."""
    with engine(folder) as llm:
        check_idle(llm)
