# ruff: noqa: E402
"""Drawing from the pool: seeds, frequencies, filters, penalties, biases and grammars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel

import infer_kit as ik
from infer_kit.streams import Group, Stream

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from tests.vllm.engines import Watch, check_idle, engine
from tests.vllm.folders import load_text, text_folder
from tests.vllm.group_cases import VOCAB, Case, answers, pooled, random_cases
from tests.vllm.laws import chat, check_same

DRAWS = 3000
PROMPTS = (tuple(range(10, 30)), (40, 41, 42, 60, 61), (77, 78))
CASE = Case(PROMPTS, (1.0, 0.8, -0.4), new=10)
SAMPLED: dict[str, Any] = {"temperature": 1.0, "stop_token_ids": []}
SEEDED = SAMPLED | {"seed": 11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return load_text(folder)[0].double()


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def llm(request: Any, folder: Path) -> Iterator[Any]:
    options = {"max_num_seqs": 64, "max_num_batched_tokens": 4096}
    with engine(folder, asynchronous=request.param, **options) as made:
        yield made


@pytest.fixture(autouse=True)
def idle(llm: Any) -> Iterator[None]:
    yield
    check_idle(llm)


@torch.no_grad()
def first_row(model: PreTrainedModel, case: Case) -> Tensor:
    """`[V]` float64 log π of the first token."""
    rows = [model(torch.tensor([p])).logits[0, -1] for p in case.prompts]
    return pooled(case, torch.stack(rows).log_softmax(-1))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("options", [{}, SEEDED], ids=["greedy", "seeded"])
def test_weights_of_one_and_nothing(options: dict[str, Any], external: bool, llm: Any) -> None:
    """(1, 0) is the plain request: tokens, and log-probabilities of the whole vocabulary."""
    for length in (20, 3, 1):
        plain = Case((PROMPTS[0][:length],), full=True, new=8)
        group = Case((*plain.prompts, PROMPTS[1]), (1.0, 0.0), external=external, full=True, new=8)
        shown = options if not options else options | {"logprobs": VOCAB}
        (alone,), (leader, *_) = (
            answers(llm, [plain], **shown)[0],
            answers(llm, [group], **shown)[0],
        )
        if not (options and external):  # a group made of requests draws with noise of its own
            assert leader["tokens"] == alone["tokens"]
        else:
            assert leader["tokens"] == answers(llm, [group], **shown)[0][0]["tokens"]
        same = [a == b for a, b in zip(leader["tokens"], alone["tokens"], strict=False)]
        steps = [*same, False].index(False) + 1
        pairs = list(zip(leader["logprobs"], alone["logprobs"], strict=False))[:steps]
        for ours, theirs in pairs:
            for token in set(ours) & set(theirs):
                assert ours[token] == pytest.approx(theirs[token], abs=1e-5)


def drawn(llm: Any, cases: Sequence[Case], **options: Any) -> list[list[int]]:
    return [group[0]["tokens"] for group in answers(llm, cases, **options)]


def test_a_seed_says_what_is_drawn(llm: Any) -> None:
    """Alone, in another batch, in another order: the same; other seeds, something else."""
    groups = [replace(c, full=False, new=8) for c in random_cases(12, seed=4) if c.weights]
    with Watch(llm):
        every = drawn(llm, groups, **SEEDED)
    assert drawn(llm, groups[::-1], **SEEDED) == every[::-1]
    alone = [drawn(llm, [case], **SEEDED)[0] for case in groups]
    assert alone == every
    beside = drawn(llm, [*random_cases(9, seed=9), *groups], **SEEDED)
    assert beside[9:] == every
    assert drawn(llm, groups, **SAMPLED, seed=12) != every
    form = [replace(case, external=not case.external) for case in groups]
    assert drawn(llm, form, **SEEDED) == every


def test_a_seed_moves_with_the_step(llm: Any) -> None:
    """A flat pool: were the noise of each step the same, so were its tokens."""
    case = Case(PROMPTS, (1e-4, 1e-4, -1e-4), new=40)
    for seed in (1, 2, 3):
        (tokens,) = drawn(llm, [case], **SAMPLED, seed=seed)
        assert len(set(tokens)) > 20


def test_seeds_are_the_same_on_every_engine(llm: Any, request: Any) -> None:
    """Synchronous or not; kept between the two parameters of the fixture."""
    cache = request.config.stash.setdefault(_KEPT, [])
    cache.append(drawn(llm, [CASE, replace(CASE, external=True)], **SEEDED))
    assert all(tokens == cache[0] for tokens in cache)


_KEPT = pytest.StashKey[list[Any]]()


def test_several_answers_of_a_seed(llm: Any) -> None:
    group = Group(tuple(Stream(list(p), w) for p, w in zip(PROMPTS, CASE.weights, strict=True)))
    params = vllm.SamplingParams(**SEEDED, n=4, max_tokens=10, ignore_eos=True)
    first, again = (llm.generate_groups([group], params)[0].outputs for _ in range(2))
    texts = [tuple(c.token_ids) for c in first]
    assert len(set(texts)) == 4 and texts == [tuple(c.token_ids) for c in again]
    beside = llm.generate_groups([group, group], [params, params])
    assert [[tuple(c.token_ids) for c in o.outputs] for o in beside] == [texts, texts]


FILTERS: dict[str, dict[str, float]] = {
    "temperature": {"temperature": 0.6},
    "top_k": {"temperature": 1.0, "top_k": 12},
    "top_p": {"temperature": 1.2, "top_p": 0.5},
    "min_p": {"temperature": 0.8, "min_p": 0.2},
    "all": {"temperature": 0.9, "top_k": 60, "top_p": 0.8, "min_p": 0.05},
}


def filtered(row: Tensor, options: dict[str, float]) -> Tensor:
    """`[V]` probabilities after temperature, min_p, top_k and top_p, written out."""
    p = (row / options["temperature"]).softmax(0)
    p = torch.where(p < options.get("min_p", 0.0) * p.max(), 0.0, p)
    order = p.argsort(descending=True)
    p[order[int(options.get("top_k", VOCAB)) :]] = 0.0
    p = p / p.sum()
    before = p[order].cumsum(0) - p[order]
    p[order[before >= options.get("top_p", 1.0)]] = 0.0
    return p / p.sum()


@pytest.mark.parametrize("mode", ["product", "mixture"])
@pytest.mark.parametrize("name", list(FILTERS))
def test_frequencies(name: str, mode: str, llm: Any, model: PreTrainedModel) -> None:
    """χ² of the first token over thousands of draws; none outside the support."""
    if mode == "mixture" and name not in ("temperature", "all"):
        pytest.skip("the filters do not know how the row came to be")
    weights = CASE.weights if mode == "product" else (0.5, 0.3, 0.2)
    case = replace(CASE, weights=weights, mode=mode)
    want = filtered(first_row(model, case), FILTERS[name])
    group = Group(tuple(Stream(list(p), w) for p, w in zip(PROMPTS, weights, strict=True)))
    params = vllm.SamplingParams(**FILTERS[name], n=DRAWS, seed=1, max_tokens=1, detokenize=False)
    (output,) = llm.generate_groups([group], params, pool=mode)
    counts = Counter(c.token_ids[0] for c in output.outputs)
    assert sum(counts.values()) == DRAWS
    assert all(want[token] > 0 for token in counts)
    often = [token for token in range(VOCAB) if want[token] * DRAWS >= 5]
    observed = [counts[token] for token in often]
    share = [float(want[token]) * DRAWS for token in often]
    rest = DRAWS - sum(share)
    if rest > 1e-9 * DRAWS:
        observed, share = [*observed, DRAWS - sum(observed)], [*share, rest]
    share = [value * DRAWS / sum(share) for value in share]
    assert chisquare(observed, share).pvalue > 1e-3


def test_draws_without_a_seed_differ(llm: Any) -> None:
    group = Group((Stream(list(PROMPTS[0])), Stream(list(PROMPTS[1]), 0.5)))
    params = vllm.SamplingParams(temperature=1.0, n=40, max_tokens=4, ignore_eos=True)
    (output,) = llm.generate_groups([group], params)
    assert len({tuple(c.token_ids) for c in output.outputs}) > 30


def test_penalties_are_those_of_transformers(llm: Any, folder: Path) -> None:
    model, tokenizer = load_text(folder)
    chats = [chat("hello the thing"), chat("is the ring in the street on a plane?")]
    outs = {}
    for penalty in (1.0, 1.3, 1.8):
        ours, theirs = (
            ik.RED(each, tokenizer, weight=0.7).generate(
                chats, rationale=["a a a", "the the"], repetition_penalty=penalty, max_new_tokens=16
            )
            for each in (llm, model)
        )
        check_same(ours, theirs)
        outs[penalty] = ours.text
    assert outs[1.0] != outs[1.8]


@pytest.mark.parametrize("external", [False, True])
def test_biases_act_on_the_pool(external: bool, llm: Any, model: PreTrainedModel) -> None:
    """Once, not once a member, and not at the scale of a member's weight."""
    case = Case(PROMPTS, (0.5, 0.8, -0.4), external=external, full=True, new=1)
    row = first_row(model, case)
    order = row.argsort(descending=True).tolist()
    gap = float(row[order[0]] - row[order[6]])
    for share, wins in ((0.9, False), (1.1, True)):
        (tokens,) = drawn(llm, [case], logit_bias={order[6]: gap * share})
        assert (tokens[0] == order[6]) == wins
    allowed = sorted(order[20:26])
    got = answers(llm, [replace(case, new=6)], allowed_token_ids=allowed)[0]
    assert set(got[0]["tokens"]) <= set(allowed) and got[0]["tokens"][0] == order[20]
    assert all(other["tokens"] == got[0]["tokens"] for other in got[1:])
    # what is returned is the pool itself, whatever was allowed
    assert got[0]["logprobs"][0][order[0]] == pytest.approx(float(row[order[0]]), abs=1e-4)
    (tokens,) = drawn(llm, [replace(case, new=3)], min_tokens=3, stop_token_ids=[order[0]])
    assert len(tokens) == 3 and order[0] not in tokens[:2]


@pytest.mark.parametrize("external", [False, True])
def test_a_grammar_acts_on_the_pool(external: bool, llm: Any, model: PreTrainedModel) -> None:
    """With a weight below 0 at the leader: the mask is applied once, to what is pooled."""
    pytest.importorskip("xgrammar")
    from vllm.sampling_params import StructuredOutputsParams

    case = Case(PROMPTS, (-0.6, 1.3, 0.4), external=external, full=True, new=12)
    tokenizer = llm.get_tokenizer()
    grammar = StructuredOutputsParams(regex="(ab|cd|xyz){1,3}")
    options = {"structured_outputs": grammar, "detokenize": True, "stop_token_ids": []}
    row = first_row(model, case)
    got = answers(llm, [case, Case(PROMPTS[:1], new=4), case], **options | {})
    text = tokenizer.decode(got[0][0]["tokens"], skip_special_tokens=True)
    import re

    assert re.fullmatch("(ab|cd|xyz){1,3}", text), text
    begins = [tokenizer.convert_tokens_to_ids(letter) for letter in "acx"]
    assert got[0][0]["tokens"][0] == max(begins, key=lambda token: float(row[token]))
    assert got[0][0]["tokens"] == got[2][0]["tokens"]
    assert all(other["tokens"] == got[0][0]["tokens"] for other in got[0][1:])
