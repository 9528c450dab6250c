# ruff: noqa: E402
"""How groups end: stops, caps, aborts, errors; nothing is left over, and the engine goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import infer_kit as ik
from infer_kit.errors import InferKitError
from infer_kit.streams import Group, Stream

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from infer_kit.vllm.description import KEY, Member
from tests.vllm.engines import Watch, check_idle, engine, scheduler_of
from tests.vllm.folders import load_text, text_folder
from tests.vllm.group_cases import Case, Expected, answers, expected, requests_of

LIMIT = 128
SEQUENCES = 6
PROMPTS = (tuple(range(10, 30)), (40, 41, 42, 60, 61), tuple(range(100, 70, -1)))
CASE = Case(PROMPTS, (1.0, 0.8, -0.3), new=12)
KINDS = pytest.mark.parametrize("external", [False, True], ids=["embedded", "external"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("ends"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return load_text(folder)[0].double()


@pytest.fixture(scope="module")
def want(model: PreTrainedModel) -> Expected:
    found = expected(model, CASE)
    assert len(found.tokens) == 12
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def llm(request: Any, folder: Path) -> Iterator[Any]:
    options = {"max_model_len": LIMIT, "max_num_seqs": SEQUENCES, "num_gpu_blocks_override": 20}
    with engine(folder, asynchronous=request.param, **options) as made:
        yield made


@pytest.fixture(autouse=True)
def idle(llm: Any) -> Iterator[None]:
    """The engine is empty after every test, and still answers."""
    yield
    check_idle(llm)
    assert len(answers(llm, [Case(((5, 6, 7),), new=2)])[0][0]["tokens"]) == 2


def add(llm: Any, case: Case, name: str, skip: tuple[int, ...] = (), **options: Any) -> list[str]:
    """The requests of a group but for some members; their ids."""
    names = []
    for k, (prompt, params) in enumerate(requests_of(case, name, **options)):
        if k not in skip:
            names.append(llm.llm_engine.add_request(f"{name}-{k}", prompt, params))
    return names


def run(llm: Any, steps: int = 10_000) -> dict[str, tuple[list[int], str | None]]:
    """Tokens and finish reason of what ended, by the client's id."""
    ended = {}
    for _ in range(steps):
        if not llm.llm_engine.has_unfinished_requests():
            break
        for output in llm.llm_engine.step():
            if output.finished:
                first = output.outputs[0]
                ended[output.request_id] = (list(first.token_ids), first.finish_reason)
    return ended


def variant(external: bool, **changes: Any) -> Case:
    return Case(CASE.prompts, CASE.weights, **{"external": external, "new": 12} | changes)


@KINDS
def test_a_stop_token_ends_all(external: bool, llm: Any, want: Expected) -> None:
    stop = want.tokens[5]
    length = want.tokens.index(stop) + 1
    with Watch(llm):
        got = answers(llm, [variant(external)], stop_token_ids=[stop])[0]
    assert got[0]["tokens"] == want.tokens[:length] and got[0]["reason"] == "stop"
    assert all(other["tokens"] == got[0]["tokens"] for other in got[1:])
    assert all(other["reason"] == "abort" for other in got[1:])


def test_embedded_members_stay_hidden(llm: Any) -> None:
    """The client of a group that one request brought hears of one request."""
    add(llm, variant(False), "seen")
    core, heard = llm.llm_engine.engine_core, []
    original = core.get_output
    with pytest.MonkeyPatch.context() as patch:

        def listened() -> Any:
            out = original()
            heard.extend(o.request_id for o in out.outputs)
            return out

        patch.setattr(core, "get_output", listened)
        run(llm)
    assert len(heard) >= 12 and len(set(heard)) == 1


@KINDS
def test_a_stop_text_ends_all(external: bool, llm: Any, want: Expected) -> None:
    """The front end finds it, and aborts the leader in the engine core."""
    tokenizer = llm.get_tokenizer()
    text = tokenizer.decode(want.tokens[4:6])
    case = variant(external, new=60)
    got = answers(llm, [case], stop=[text], detokenize=True)[0]
    assert got[0]["reason"] == "stop" and got[0]["tokens"] == want.tokens[:6]
    assert all(other["reason"] == "abort" for other in got[1:])


@KINDS
def test_the_least_cap_is_all_members(external: bool, llm: Any, want: Expected) -> None:
    got = answers(llm, [variant(external, new=4)])[0]
    assert {tuple(answer["tokens"]) for answer in got} == {tuple(want.tokens[:4])}
    assert got[0]["reason"] == "length"
    if not external:
        return
    requests = requests_of(variant(True), "caps")
    requests[2][1].max_tokens = 3
    outs = llm.generate([p for p, _ in requests], [s for _, s in requests], use_tqdm=False)
    assert [list(o.outputs[0].token_ids) for o in outs] == [want.tokens[:3]] * 3
    assert {o.outputs[0].finish_reason for o in outs} <= {"length", "abort"}


@KINDS
def test_room_of_the_longest_member(external: bool, llm: Any, model: PreTrainedModel) -> None:
    """The answer ends where the longest prompt reaches the model's limit."""
    long = tuple(10 + n % 90 for n in range(LIMIT - 5))
    case = Case((PROMPTS[0], long), (1.0, 0.4), external=external, new=40)
    got = answers(llm, [case])[0]
    tokens = expected(model, Case(case.prompts, case.weights, new=5)).tokens
    assert got[0]["tokens"] == tokens and got[0]["reason"] == "length"
    assert all(other["tokens"] == tokens for other in got[1:])


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("who", ["embedded", "leader", "follower"])
def test_aborts(who: str, steps: int, llm: Any, want: Expected) -> None:
    """In the queue, while it is read, and while it draws; another group is not disturbed."""
    names = add(llm, variant(who != "embedded", new=60), "doomed")
    others = add(llm, variant(True), "other")
    early = run(llm, steps)
    llm.llm_engine.abort_request([names[1 if who == "follower" else 0]], internal=True)
    ended = early | run(llm)
    assert ended["other-0"] == (want.tokens, "length") and len(others) == 3
    left = {k: v for k, v in ended.items() if k.startswith("doomed")}
    assert all(reason == "abort" for _, reason in left.values())
    if who == "follower":
        assert "doomed-0" in left
    scheduler = scheduler_of(llm)
    assert "doomed" not in str(list(scheduler.requests))


@pytest.mark.parametrize("missing", [0, 2])
def test_an_incomplete_group_blocks_nobody(missing: int, llm: Any, want: Expected) -> None:
    names = add(llm, variant(True), "lonely", skip=(missing,))
    plain = Case(PROMPTS[:1], new=5)
    for round_ in range(2):  # plain requests fill every slot, and a whole group is between them
        add(llm, variant(bool(round_)), f"whole-{round_}")
        for n in range(SEQUENCES + 2):
            add(llm, plain, f"plain-{round_}-{n}")
        ended = run(llm, 60)
        assert ended[f"whole-{round_}-0"] == (want.tokens, "length")
        assert sum(name.startswith("plain") for name in ended) == SEQUENCES + 2
    assert llm.llm_engine.get_num_unfinished_requests() == 2
    assert all(not r.output_token_ids for r in scheduler_of(llm).requests.values())
    llm.llm_engine.abort_request(names[:1], internal=True)
    run(llm)


def test_an_incomplete_group_is_completed_late(llm: Any, want: Expected) -> None:
    add(llm, variant(True), "late", skip=(1,))
    assert run(llm, 5) == {}
    prompt, params = requests_of(variant(True), "late")[1]
    llm.llm_engine.add_request("late-1", prompt, params)
    assert run(llm)["late-0"] == (want.tokens, "length")


def test_all_requests_end(llm: Any) -> None:
    """`finish_requests` of everything, as a reset asks for."""
    add(llm, variant(False, new=60), "reset")
    add(llm, variant(True, new=60), "reset-too")
    run(llm, 3)
    from vllm.v1.request import RequestStatus

    scheduler_of(llm).finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert not scheduler_of(llm)._book
    ids = list(llm.llm_engine.output_processor.request_states)
    llm.llm_engine.abort_request(ids, internal=True)
    run(llm)


def test_several_answers(llm: Any, want: Expected) -> None:
    """n = 3 of an embedded group, by vLLM's own way: a child each."""
    prompt, params = requests_of(variant(False), "n", temperature=1.0, seed=3, n=3)[0]
    with Watch(llm):
        (output,) = llm.generate([prompt], [params], use_tqdm=False)
        (again,) = llm.generate([prompt], [params], use_tqdm=False)
    texts = [tuple(c.token_ids) for c in output.outputs]
    assert len(set(texts)) == 3 and texts == [tuple(c.token_ids) for c in again.outputs]
    groups = [Group(tuple(Stream(list(p), w) for p, w in zip(PROMPTS, CASE.weights, strict=True)))]
    params = vllm.SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=12, ignore_eos=True)
    (ours,) = llm.generate_groups(groups, params)
    assert [c.index for c in ours.outputs] == [0, 1, 2]
    assert len({tuple(c.token_ids) for c in ours.outputs}) == 3


def bad_groups() -> dict[str, tuple[list[list[int]], str]]:
    """Prompts that cannot be a group, and what is said of them."""
    return {
        "too many": ([[5, 6]] * 7, r"Group 0 has 7 streams; this engine runs 6 requests"),
        "too long": (
            [[5], list(range(4, 150)) * 2],
            r"Group 0, stream 1: .* contains 292 input",
        ),
        "just too long": ([[5], [7] * LIMIT], r"the prompt is 128 tokens, the engine takes 128"),
        "vocabulary": ([[5], [6, 160]], r"Group 0, stream 1: token id 160 is outside .* of 160"),
    }


@pytest.mark.parametrize("name", list(bad_groups()))
def test_what_cannot_run_is_refused_at_the_call(name: str, llm: Any) -> None:
    prompts, message = bad_groups()[name]
    with pytest.raises(InferKitError, match=message):
        llm.generate_groups([Group(tuple(Stream(p) for p in prompts))])


@KINDS
@pytest.mark.parametrize("name", list(bad_groups()))
def test_what_cannot_run_ends_with_an_error(name: str, external: bool, llm: Any) -> None:
    """Sent past the checks; plain requests and groups beside it are answered."""
    prompts, _ = bad_groups()[name]
    if external and name != "too many":
        pytest.skip("vLLM itself refuses such a prompt")
    case = Case(tuple(map(tuple, prompts)), (1.0,) * len(prompts), external=external, new=5)
    add(llm, case, "bad")
    add(llm, variant(False, new=5), "good")
    ended = run(llm)
    assert ended["bad-0"][1] == "error"
    assert ended["good-0"][1] == "length" and len(ended["good-0"][0]) == 5
    assert all(reason == "error" for key, (_, reason) in ended.items() if key.startswith("bad"))


def test_members_that_do_not_fit_one_another(llm: Any, want: Expected) -> None:
    """Another size, an index twice: those end with an error, the group goes on."""
    add(llm, variant(True), "odd", skip=(2,))
    prompt = {"prompt_token_ids": [7, 8]}
    for k, info in enumerate((Member("odd", 2, 1, 1.0), Member("odd", 3, 1, 1.0))):
        params = vllm.SamplingParams(max_tokens=3, extra_args={KEY: info.to_dict()})
        llm.llm_engine.add_request(f"stranger-{k}", prompt, params)
    late, params = requests_of(variant(True), "odd")[2]
    llm.llm_engine.add_request("odd-2", late, params)
    ended = run(llm)
    assert ended["stranger-0"][1] == ended["stranger-1"][1] == "error"
    assert ended["odd-0"] == (want.tokens, "length")


def test_weights_that_are_all_zero_end_with_an_error(llm: Any) -> None:
    """Of an external group this is known when its last member arrives."""
    case = Case(PROMPTS[:2], (0.0, 0.0), external=True, new=3)
    add(llm, case, "nothing")
    ended = run(llm)
    assert {reason for _, reason in ended.values()} <= {"error", "abort"}
    assert "error" in {reason for _, reason in ended.values()}


def test_the_cache_is_too_small_for_a_group(llm: Any) -> None:
    """Each member fits, all of them together do not."""
    prompts = tuple(tuple(10 + (n * k) % 90 for n in range(120)) for k in range(1, 7))
    ended = {}
    for external in (False, True):
        case = Case(prompts, (1.0,) * 6, external=external, new=7)
        add(llm, case, f"large-{external}")
        add(llm, variant(False, new=5), f"small-{external}")
        ended |= run(llm)
    assert ended["large-False-0"][1] == "error" and ended["large-True-0"][1] == "error"
    assert ended["small-False-0"][1] == "length" and ended["small-True-0"][1] == "length"
    groups = [Group(tuple(Stream(list(p)) for p in prompts))]
    (out,) = llm.generate_groups(groups, vllm.SamplingParams(max_tokens=3))
    assert out.outputs[0].finish_reason == "error"


def test_an_interrupt_frees_the_groups(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a call."""
    red = ik.RED(llm, llm.get_tokenizer(), weight=0.5)
    step, count = llm.llm_engine.step, [0]

    def interrupted() -> Any:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.llm_engine, "step", interrupted)
    chat = [{"role": "user", "content": "hello"}]
    with pytest.raises(KeyboardInterrupt):
        red.generate(chat, rationale="a thing", max_new_tokens=20)
    assert count[0] >= 3


def test_requests_in_the_queue_are_not_swallowed(llm: Any) -> None:
    add(llm, Case(PROMPTS[:1], new=3), "mine")
    with pytest.raises(InferKitError, match="The engine has requests in its queue"):
        llm.generate_groups([Group((Stream([5, 6]), Stream([7])))])
    assert run(llm)["mine-0"][1] == "length"
