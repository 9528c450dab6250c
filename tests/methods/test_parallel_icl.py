"""Parallel-ICL: what it equals at K = 1, the pool of the chunks, the bank, features, disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, TextIteratorStreamer

from infer_kit.engine.image_noise import add_noise
from infer_kit.errors import InferKitError
from infer_kit.methods.contrastive import VCD
from infer_kit.methods.parallel_icl import ParallelICL
from infer_kit.methods.red import RED
from tests.engine.reference import ReferenceLM
from tests.methods.conftest import SHORT, chat, picture
from tests.methods.icl_cases import (
    GREEDY,
    LOGITS,
    QUERIES,
    QUERY,
    assert_same,
    demonstrations,
    greedy_loop,
    plain,
    step_logprobs,
    texts,
    whole_row,
)
from tests.methods.test_red import shares_features

Make = Callable[..., ParallelICL]
DEMOS = demonstrations()
PENALTY: dict[str, Any] = {"repetition_penalty": 1.3, "max_new_tokens": 10}


@pytest.fixture
def icl(lvlm: PreTrainedModel, processor: Any) -> Make:
    """A fitted `ParallelICL` on the tiny LLaVA."""

    def make(demos: Any = DEMOS, features: Any = None, **options: Any) -> ParallelICL:
        return ParallelICL(lvlm, processor, **options).fit(demos, features=features)

    return make


# One chunk


@pytest.mark.parametrize("more", [{}, PENALTY], ids=["plain", "penalty"])
@pytest.mark.parametrize("options", [{"bank": False}, {"mode": "serial"}], ids=["auto", "serial"])
def test_one_chunk_is_full_context_bit_for_bit(
    icl: Make, lvlm: PreTrainedModel, processor: Any, options: Any, more: Any
) -> None:
    expected = plain(lvlm, whole_row(processor, DEMOS, QUERY), **GREEDY | more)
    out = icl(chunks=1, **options).generate(QUERY, **LOGITS, **GREEDY | more)
    assert torch.equal(out.sequences, expected.sequences)
    assert all(map(torch.equal, out.output.logits, expected.logits))
    assert (out.banked, out.weights, out.chunks) == (False, [1.0], [[*range(7)]])
    assert out.engines == (options.get("mode", "fused"),)


@pytest.mark.parametrize("more", [{}, PENALTY, {"num_beams": 3}], ids=["plain", "penalty", "beams"])
def test_one_chunk_from_the_bank_is_full_context(
    icl: Make, lvlm: PreTrainedModel, processor: Any, more: Any
) -> None:
    """Against the cache-free reference: transformers 5.16's own beams with images are off."""
    reference = ReferenceLM([lvlm], [[whole_row(processor, DEMOS, QUERY)]], [[1.0]])
    expected = reference.write(**GREEDY | more)
    out = icl(chunks=1).generate(QUERY, **LOGITS, **GREEDY | more)
    assert out.banked and out.sequences.tolist() == expected.sequences.tolist()
    assert_same(out, expected)


def test_a_text_model_and_its_tokenizer(text_pair: Any) -> None:
    model, tokenizer = text_pair
    picl = ParallelICL(model, tokenizer, chunks=1, system="be brief", bank=False).fit(texts())
    system = [{"role": "system", "content": "be brief"}]
    turns = [{"role": role, "content": demo[key]} for demo in texts()
             for role, key in (("user", "question"), ("assistant", "answer"))]  # fmt: skip
    row = tokenizer.apply_chat_template(
        [*system, *turns, {"role": "user", "content": "say it"}],
        return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    out = picl.generate("say it", **LOGITS, **GREEDY)
    expected = plain(model, row, **GREEDY)
    assert torch.equal(out.sequences, expected.sequences)
    assert all(map(torch.equal, out.output.logits, expected.logits))
    several = ParallelICL(model, tokenizer, chunks=3, system="be brief").fit(texts())
    without = ParallelICL(model, tokenizer, chunks=3, system="be brief", bank=False).fit(texts())
    assert_same(*(p.generate(["say it", "go"], **LOGITS, **GREEDY) for p in (several, without)))


# The pool


@pytest.mark.parametrize("bank", [None, False])
def test_equal_chunks_are_one(icl: Make, bank: bool | None) -> None:
    options = GREEDY | PENALTY | LOGITS
    one = icl(DEMOS[:1], chunks=1, bank=bank).generate(QUERY, **options)
    same = icl(DEMOS[:1] * 4, chunks=4, bank=bank).generate(QUERY, **options)
    assert same.sequences.tolist() == one.sequences.tolist()
    assert_same(same, one)
    assert same.chunks == [[0], [1], [2], [3]]


def test_equal_chunks_sample_like_one(icl: Make) -> None:
    outs = []
    for count in (1, 3):
        picl = icl(DEMOS[:1] * count, chunks=count)
        torch.manual_seed(3)
        outs.append(picl.generate(QUERY, max_new_tokens=12, do_sample=True, top_k=0).text)
    assert outs[0] == outs[1]


def test_the_order_of_chunks_does_not_matter(icl: Make) -> None:
    parts, weights = [[0, 4], [3, 1, 2], [5, 6]], [0.5, 0.3, 0.2]
    one = icl(chunks=parts, weighting=weights).generate(QUERY, **LOGITS, **GREEDY)
    two = icl(chunks=parts[::-1], weighting=weights[::-1]).generate(QUERY, **LOGITS, **GREEDY)
    assert_same(one, two)
    assert (one.chunks, one.weights) == (parts, weights)
    assert (two.chunks, two.weights) == (parts[::-1], weights[::-1])
    other = icl(chunks=parts, weighting=weights[::-1]).generate(QUERY, **LOGITS, **GREEDY)
    assert (one.output.logits[0] - other.output.logits[0]).abs().max() > 1e-3


def test_labels_and_their_weights(icl: Make) -> None:
    labels = [9, 1, 9, 1, 1, 4, 4]
    out = icl(chunks=labels, weighting=[0.6, 0.3, 0.1]).generate(QUERY, **LOGITS, **GREEDY)
    assert out.chunks == [[1, 3, 4], [5, 6], [0, 2]]
    same = icl(chunks=torch.tensor(labels), weighting=torch.tensor([0.6, 0.3, 0.1]).double())
    assert_same(same.generate(QUERY, **LOGITS, **GREEDY), out, tolerance=0)


def test_weights_of_one_and_zero_are_that_chunk(icl: Make) -> None:
    options = LOGITS | GREEDY
    both = icl(chunks=[[0, 1, 2], [3, 4]], weighting=[0.0, 1.0], demos=DEMOS[:5])
    alone = icl(DEMOS[3:5], chunks=1)
    out = both.generate(QUERY, **options)
    assert_same(out, alone.generate(QUERY, **options))
    assert out.trace.idle == ("chunk 0",)


def _streams(model: Any, processor: Any, parts: Any, ids: Tensor, query: Any = QUERY) -> Tensor:
    """`[K, n, V]` float64 log-probabilities of each chunk, read whole."""
    rows = [whole_row(processor, [DEMOS[n] for n in part], query) for part in parts]
    return torch.stack([step_logprobs(model, row, ids) for row in rows])


PARTS = [[0, 2], [1, 3, 6], [4, 5]]


@pytest.mark.parametrize("pool", ["product", "mixture"])
@pytest.mark.parametrize("bank", [None, False])
def test_the_pool_in_float64(
    icl: Make, lvlm: PreTrainedModel, processor: Any, pool: str, bank: bool | None
) -> None:
    weights = [0.2, 0.5, 0.3]
    out = icl(chunks=PARTS, weighting=weights, pool=pool, bank=bank).generate(
        QUERY, **LOGITS, **GREEDY
    )
    ids = torch.as_tensor(out.trace.token_ids)
    p = _streams(lvlm, processor, PARTS, ids).exp()
    w = torch.tensor(weights).double()[:, None, None]
    expected = (p**w).prod(0) if pool == "product" else (p * w).sum(0)
    expected = expected / expected.sum(-1, keepdim=True)
    ours = torch.cat(out.output.logits).double().softmax(-1)
    assert (ours - expected).abs().max() < 1e-6
    kept = expected.clone()
    kept[:, lvlm.generation_config.suppress_tokens] = 0
    assert kept.argmax(-1).tolist() == ids.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.02])
def test_entropy_weights_follow_every_step(
    icl: Make, lvlm: PreTrainedModel, processor: Any, temperature: float
) -> None:
    picl = icl(chunks=PARTS, weighting="entropy", temperature=temperature)
    out = picl.generate(QUERY, **LOGITS, **GREEDY)
    assert out.weights is None
    ids = torch.as_tensor(out.trace.token_ids)
    log_p = _streams(lvlm, processor, PARTS, ids)
    scores = (log_p.exp() * log_p).sum(-1) / temperature
    w = scores.exp() / scores.exp().sum(0)
    torch.testing.assert_close(torch.as_tensor(out.trace.weights), w.T, atol=1e-4, rtol=0)
    expected = (w[..., None] * log_p).sum(0).exp()
    expected = expected / expected.sum(-1, keepdim=True)
    ours = torch.cat(out.output.logits).double().softmax(-1)
    assert (ours - expected).abs().max() < 1e-5
    assert w.std(1).max() > 1e-3  # they do change from step to step


def test_samples_follow_the_product(icl: Make, lvlm: PreTrainedModel, processor: Any) -> None:
    """χ² of 4,000 first tokens against float64; bins of at least 10 expected."""
    picl = icl(chunks=PARTS, weighting=[0.2, 0.5, 0.3])
    torch.manual_seed(0)
    counts = torch.zeros(160)
    for _ in range(4):
        out = picl.generate(
            QUERY, max_new_tokens=1, do_sample=True, top_k=0, num_return_sequences=1000
        )
        counts += torch.bincount(out.sequences[:, -1], minlength=160)
    log_p = _streams(lvlm, processor, PARTS, torch.zeros(1, dtype=torch.long))[:, 0]
    p = (torch.tensor([0.2, 0.5, 0.3]).double()[:, None] * log_p).sum(0).exp()
    p[lvlm.generation_config.suppress_tokens] = 0
    expected = 4000 * p / p.sum()
    assert counts[expected == 0].sum() == 0
    large = expected >= 10
    bins = [(counts[large], expected[large])]
    bins.append((counts[~large].sum()[None], expected[~large].sum()[None]))
    seen, hoped = (torch.cat(parts).double() for parts in zip(*bins, strict=True))
    chi2 = float(((seen - hoped) ** 2 / hoped).sum())
    degrees = len(seen) - 1
    assert degrees > 30
    assert chi2 < degrees + 4.5 * math.sqrt(2 * degrees)
    flat = torch.full_like(hoped, hoped.mean())  # it could fail: uniform samples are far off
    assert float(((flat - hoped) ** 2 / hoped).sum()) > 5 * degrees


# Features, weights and chunks


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _features(model: PreTrainedModel, processor: Any, images: Any, text: str) -> Tensor:
    """By hand: unit mean of the image's tokens, unit mean of the text's embeddings."""
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    table = model.get_input_embeddings().weight
    words = _unit(table[ids].detach().mean(0))
    seen = []
    for image in images:
        pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = model.get_image_features(pixel_values=pixels, return_dict=True)
        seen.append(_unit(output.pooler_output[0].reshape(-1, 32).mean(0)))
    return torch.cat([_unit(torch.stack(seen).mean(0)), words])


def _table(model: PreTrainedModel, processor: Any, demos: Any) -> Tensor:
    rows = [
        _features(model, processor, [demo["image"]], f"{demo['question']} {demo['answer']}")
        for demo in demos
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_similarity_weights_by_hand(
    icl: Make, lvlm: PreTrainedModel, processor: Any, temperature: float
) -> None:
    out = icl(chunks=PARTS, temperature=temperature).generate(QUERIES, **GREEDY)
    table = _table(lvlm, processor, DEMOS)
    asked = (("what is it?", [picture(100)]),
             ("and which of the two?", [picture(101), picture(102)]))  # fmt: skip
    for (question, images), weights in zip(asked, out.weights, strict=True):
        query = _features(lvlm, processor, images, question)
        means = torch.stack([(table[part] @ query).double().mean() for part in PARTS])
        expected = (means / temperature).softmax(0)
        assert weights == pytest.approx(expected.tolist(), abs=1e-4 if temperature < 1 else 1e-6)
    assert out.weights[0] != out.weights[1]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_chunks_are_the_clusters(
    icl: Make, lvlm: PreTrainedModel, processor: Any, count: int
) -> None:
    from sklearn.cluster import KMeans

    out = icl(chunks=count).generate(QUERY, max_new_tokens=1)
    assert len(out.chunks) == len(out.weights) == count
    assert sorted(n for part in out.chunks for n in part) == [*range(7)]
    table = _table(lvlm, processor, DEMOS).double().numpy()
    labels = KMeans(count, n_init=10, random_state=0).fit(table).labels_
    assert {frozenset(part) for part in out.chunks} == {
        frozenset(n for n in range(7) if labels[n] == label) for label in range(count)
    }


@pytest.mark.parametrize("chunking", ["balanced", "similarity", "diversity", "random"])
def test_other_partitions(icl: Make, chunking: str) -> None:
    out = icl(chunks=3, chunking=chunking).generate(QUERY, max_new_tokens=1)
    assert sorted(map(len, out.chunks)) == [2, 2, 3]
    assert sorted(n for part in out.chunks for n in part) == [*range(7)]


@pytest.mark.parametrize("selection", ["diverse", "random", "nearest"])
def test_the_number_of_chunks_stays_after_selection(icl: Make, selection: str) -> None:
    out = icl(chunks=3, selection=selection, shots=5).generate(QUERIES, **GREEDY)
    for parts, weights in zip(out.chunks, out.weights, strict=True):
        used = sorted(n for part in parts for n in part)
        assert len(parts) == len(weights) == 3 and all(parts)
        assert len(used) == len(set(used)) == 5
    assert out.banked == [selection != "nearest"] * 2
    assert (out.chunks[0] == out.chunks[1]) == (selection != "nearest")


def test_nearest_picks_anew_for_every_query(
    icl: Make, lvlm: PreTrainedModel, processor: Any
) -> None:
    picl = icl(chunks=2, selection="nearest", shots=3)
    queries = [chat("what is it?", picture(n)) for n in (200, 201, 202)]
    out = picl.generate(queries, **LOGITS, **GREEDY)
    table = _table(lvlm, processor, DEMOS)
    for n, parts in enumerate(out.chunks):
        query = _features(lvlm, processor, [picture(200 + n)], "what is it?")
        nearest = (table @ query).topk(3).indices.tolist()
        assert sorted(i for part in parts for i in part) == sorted(nearest)
        rows = [whole_row(processor, [DEMOS[i] for i in part], queries[n]) for part in parts]
        w = out.weights[n]
        tokens = greedy_loop(lvlm, rows, lambda *p, w=w: sum(map(torch.mul, p, torch.tensor(w))), 5)
        assert out.trace[n].token_ids.tolist() == tokens
    assert len({str(parts) for parts in out.chunks}) > 1


# Queries, and ways to write


@pytest.mark.parametrize("options", [GREEDY, GREEDY | {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("bank", [None, False], ids=["bank", "whole"])
def test_queries_together_are_queries_alone(icl: Make, options: Any, bank: bool | None) -> None:
    """With 1, 2 and 0 images; none is allowed where some demonstration has none."""
    picl = icl([*DEMOS[:4], *texts(2)], chunks=3, bank=bank)
    queries = [*QUERIES, chat("what now, without a picture?")]
    together = picl.generate(queries, **options)
    assert together.banked == [bank is None] * 3
    for b, query in enumerate(queries):
        alone = picl.generate(query, **options)
        assert together.trace[b].token_ids.tolist() == alone.trace.token_ids.tolist()
        assert together.weights[b] == pytest.approx(alone.weights, abs=1e-6)
        assert abs(together.trace[b].pooled - alone.trace.pooled).max() < 1e-5
        assert together.text[b] == alone.text


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": 4},
        {"chunks": 7, "weighting": "uniform", "chunking": "diversity"},
        {"chunks": 3, "weighting": "entropy", "mode": "fused"},
        {"chunks": 2, "pool": "mixture", "system": "answer in a word"},
    ],
)
def test_bank_on_is_bank_off(icl: Make, options: Any) -> None:
    ways: list[Any] = [
        GREEDY | LOGITS,
        GREEDY | LOGITS | PENALTY,
        {**GREEDY, **LOGITS, "num_beams": 3},
    ]
    on, off = icl(bank=True, **options), icl(bank=False, **options)
    for way in ways:
        one, two = on.generate(QUERIES, **way), off.generate(QUERIES, **way)
        assert (one.banked, two.banked) == ([True] * 2, [False] * 2)
        assert one.chunks == two.chunks
        assert_same(one, two)


def test_the_bank_serves_every_engine(icl: Make) -> None:
    fused, serial = (icl(chunks=3, bank=True, mode=mode) for mode in ("fused", "serial"))
    one, two = (p.generate(QUERIES, **LOGITS, **GREEDY) for p in (fused, serial))
    assert (one.engines, two.engines) == (("fused",), ("serial",))
    assert one.banked == two.banked == [True] * 2
    assert_same(one, two)


def test_the_bank_is_not_used_up(icl: Make) -> None:
    picl = icl(chunks=3)
    first = picl.generate(QUERY, **LOGITS, **GREEDY)
    picl.generate(QUERIES, num_beams=3, max_new_tokens=3)
    assert_same(picl.generate(QUERY, **LOGITS, **GREEDY), first, tolerance=0)


def test_fitting_anew_forgets(icl: Make, recwarn: pytest.WarningsRecorder) -> None:
    picl = icl(chunks=2)
    other = demonstrations(4, first=20)
    again = picl.fit(other).generate(chat("what is it?", picture(0)), **LOGITS, **GREEDY)
    fresh = icl(other, chunks=2).generate(chat("what is it?", picture(0)), **LOGITS, **GREEDY)
    assert_same(again, fresh, tolerance=0)
    assert not [w for w in recwarn if "is demonstration" in str(w.message)]


def test_streamed_text_is_the_text(icl: Make, processor: Any) -> None:
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10
    )
    out = icl(chunks=3).generate(QUERY, streamer=streamer, **GREEDY)
    assert "".join(streamer) == out.text


def test_seeded_sampling_repeats(icl: Make) -> None:
    picl, seen = icl(chunks=3), []
    for _ in range(2):
        torch.manual_seed(1)
        seen.append(picl.generate(QUERY, max_new_tokens=6, do_sample=True, num_return_sequences=3))
    assert seen[0].text == seen[1].text and len(set(seen[0].text)) > 1
    assert len(seen[0].text) == len(seen[0].trace) == 3


# The vision tower and the demonstrations' own answers


@shares_features
def test_every_picture_is_encoded_once(icl: Make, tower_calls: list[int]) -> None:
    picl = icl(chunks=3)
    assert len(tower_calls) == 7
    for n, query in enumerate((QUERY, chat("what is it?", picture(101)))):
        picl.generate(query, **GREEDY)
        assert len(tower_calls) == 8 + n
    tower_calls.clear()
    whole = icl(chunks=3, bank=False)
    assert len(tower_calls) == 7
    whole.generate(QUERY, **GREEDY)
    assert len(tower_calls) == 8
    tower_calls.clear()
    icl(chunks=2, selection="nearest", shots=4).generate(QUERY, **GREEDY)
    assert len(tower_calls) == 8
    tower_calls.clear()
    icl(chunks=1, bank=False).generate(QUERY, **GREEDY)
    assert len(tower_calls) == 1


def test_queries_and_demonstrations_are_read(icl: Make) -> None:
    """Changing a pixel of either, or a demonstration's answer, changes the logits."""
    base = icl(chunks=2, chunking="random")
    logits = base.generate(QUERY, **LOGITS, max_new_tokens=1).output.logits[0]
    other = chat("what is it?", picture(300))
    changed = [
        (base, other),
        (icl([DEMOS[0] | {"image": picture(301)}, *DEMOS[1:]], chunks=2, chunking="random"), QUERY),
        (icl([DEMOS[0] | {"answer": "xyz"}, *DEMOS[1:]], chunks=2, chunking="random"), QUERY),
    ]
    for picl, query in changed:
        out = picl.generate(query, **LOGITS, max_new_tokens=1)
        assert (out.output.logits[0] - logits).abs().max() > 1e-3


def test_a_query_that_is_a_demonstration_is_told(icl: Make) -> None:
    twin = chat("  What is  IT? ", picture(3))
    for options in ({}, {"selection": "nearest", "shots": 5}):
        with pytest.warns(UserWarning, match="Query 1 is demonstration 3 itself, so its answer is"):
            icl(chunks=2, **options).generate([QUERY, twin], max_new_tokens=1)


@pytest.mark.filterwarnings("error:Query")
def test_a_twin_that_was_not_selected_is_not_in_the_context(icl: Make) -> None:
    picl = icl(chunks=2, selection="random", shots=4)
    used = {n for part in picl.generate(QUERY, max_new_tokens=1).chunks for n in part}
    left = next(n for n in range(7) if n not in used)
    picl.generate(chat("what is it?", picture(left)), max_new_tokens=1)
    picl.generate(chat("what else?", picture(min(used))), max_new_tokens=1)


# The trace


def test_the_trace_says_which_chunk_decided(
    icl: Make, lvlm: PreTrainedModel, processor: Any
) -> None:
    weights = [0.2, 0.5, 0.3]
    trace = icl(chunks=PARTS, weighting=weights).generate(QUERY, **GREEDY).trace
    assert trace.streams == ("chunk 0", "chunk 1", "chunk 2")
    ids = torch.as_tensor(trace.token_ids)
    log_p = _streams(lvlm, processor, PARTS, ids)
    w = torch.tensor(weights).double()[:, None, None]
    p = log_p.exp()
    mean = p.mean(0)
    divergence = -(mean * mean.log()).sum(-1) + (p * log_p).sum(-1).mean(0)
    torch.testing.assert_close(torch.as_tensor(trace.divergence), divergence, atol=1e-5, rtol=0)
    for k in range(3):
        rest = (w * log_p).sum(0) - w[k] * log_p[k]
        whole = (w * log_p).sum(0)
        decisive = whole.argmax(-1) != rest.argmax(-1)
        assert trace.decisive[:, k].tolist() == decisive.tolist()
    parts, margin = torch.as_tensor(trace.parts), torch.as_tensor(trace.margin)
    torch.testing.assert_close(parts.sum(1), margin, atol=1e-5, rtol=0)
    assert icl(chunks=1).generate(QUERY, **GREEDY).trace.streams == ("all",)
    assert icl(chunks=2, trace=False).generate(QUERY, **GREEDY).trace is None


# Other methods in one group


@pytest.mark.parametrize("bank", [None, False])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_with_a_rationale_and_a_contrast(
    icl: Make, lvlm: PreTrainedModel, processor: Any, bank: bool | None, beta: float
) -> None:
    """RED's image stream gives way to the chunks, and each of those is contrasted."""
    weights, strength, alpha = [0.3, 0.7], 0.6, 0.8
    picl = icl(chunks=[[0, 1], [2, 3, 4, 5, 6]], weighting=weights, bank=bank)
    red = RED(lvlm, processor, weight=strength, prompts=SHORT)
    vcd = VCD(lvlm, processor, alpha=alpha, beta=beta, noise_step=700)
    group = red.group(QUERY, rationale="it is red").replace("image", picl.group(QUERY))
    assert [s.name for s in group.streams] == ["chunk 0", "chunk 1", "rationale"]
    out = vcd.run([vcd.contrast(group)], **GREEDY)
    names = ["chunk 0", "chunk 0, noised", "chunk 1", "chunk 1, noised", "rationale"]
    assert list(out.trace.streams) == names
    if bank is None:
        assert [len(s.context["pixel_values"]) for s in group.streams[:2]] == [1, 1]

    rows = []
    for stream, part in zip(group.streams, ([0, 1], [2, 3, 4, 5, 6]), strict=False):
        own = len(stream.context["pixel_values"])  # the query's, but where prompts are read whole
        row = whole_row(processor, [DEMOS[n] for n in part], QUERY)
        pixels = row["pixel_values"]
        noised = torch.cat([pixels[:-own], add_noise(pixels[-own:], 700, 0)])
        rows += [row, row | {"pixel_values": noised}]
    text = SHORT.fill("rationale_context", "what is it?", "it is red")
    rows.append(whole_row(processor, [], chat(text)))

    def formula(a: Tensor, a_: Tensor, b: Tensor, b_: Tensor, r: Tensor) -> Tensor:
        chunks = 0.3 * ((1 + alpha) * a - alpha * a_) + 0.7 * ((1 + alpha) * b - alpha * b_)
        scores = chunks + strength * r
        if beta:
            expert = 0.3 * a + 0.7 * b
            scores[expert < math.log(beta) + expert.max()] = -torch.inf
        return scores

    assert out.trace.token_ids.tolist() == greedy_loop(lvlm, rows, formula, 5)


# Disk


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": 3},
        {"chunks": [[6, 1], [0, 2, 3], [4, 5]], "weighting": [0.2, 0.5, 0.3]},
        {"chunks": 2, "selection": "nearest", "shots": 4, "system": "brief", "temperature": 0.1},
        {"chunks": 2, "chunking": "random", "weighting": "uniform", "seed": 3, "pool": "mixture"},
        {"chunks": 3, "encoder": "text", "selection": "diverse", "shots": 5},
    ],
)
def test_a_pool_comes_back_from_disk(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path, options: Any
) -> None:
    picl = icl(**options)
    picl.save(tmp_path / "pool")
    again = ParallelICL.load(tmp_path / "pool", lvlm, processor)
    one, two = (p.generate(QUERIES, **LOGITS, **GREEDY) for p in (picl, again))
    assert_same(one, two, tolerance=0)
    assert (one.text, one.weights, one.chunks) == (two.text, two.weights, two.chunks)
    assert one.banked == two.banked
    for before, after in zip(
        picl._pool().demonstrations, again._pool().demonstrations, strict=True
    ):
        assert before.question == after.question and before.answer == after.answer
        for a, b in zip(before.pictures, after.pictures, strict=True):
            assert a.convert("RGB").tobytes() == b.convert("RGB").tobytes()


def test_arguments_that_may_change_on_the_way(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    icl(chunks=3).save(tmp_path)
    sharp = ParallelICL.load(tmp_path, lvlm, processor, temperature=0.01, bank=False)
    out = sharp.generate(QUERY, **GREEDY)
    assert min(out.weights) < 1e-9 and not out.banked
    expected = icl(chunks=3, temperature=0.01).generate(QUERY, **GREEDY)
    assert out.weights == pytest.approx(expected.weights, abs=1e-6)


def test_a_pool_with_features_of_ones_own(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    query = torch.tensor([0.3, -1.0, 0.5])
    picl = icl(features=features, chunks=2)
    out = picl.generate(QUERY, features=query, **GREEDY)
    means = torch.stack([(features[part] @ query).double().mean() for part in out.chunks])
    assert out.weights == pytest.approx(means.softmax(0).tolist(), abs=1e-6)
    picl.save(tmp_path)
    again = ParallelICL.load(tmp_path, lvlm, processor).generate(QUERY, features=query, **GREEDY)
    assert (again.text, again.weights, again.chunks) == (out.text, out.weights, out.chunks)
    both = picl.generate(QUERIES, features=torch.stack([query, -query]).numpy(), **GREEDY)
    assert both.weights[0] == pytest.approx(out.weights) != pytest.approx(both.weights[1])


def test_an_encoder_object_is_passed_again(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    class Colours:
        """The mean colour, and the length of a text."""

        def images(self, pictures: Any, memory: Any) -> Tensor:
            means = [torch.frombuffer(bytearray(p.convert("RGB").tobytes()), dtype=torch.uint8)
                     for p in pictures]  # fmt: skip
            return torch.stack([m.view(-1, 3).float().mean(0) - 120 for m in means])

        def texts(self, texts: Any) -> Tensor:
            return torch.tensor([[float(len(t)), 10.0] for t in texts])

    picl = icl(chunks=2, encoder=Colours())
    picl.save(tmp_path)
    with pytest.raises(InferKitError, match="was fitted with an encoder object; pass encoder="):
        ParallelICL.load(tmp_path, lvlm, processor)
    again = ParallelICL.load(tmp_path, lvlm, processor, encoder=Colours())
    one, two = (p.generate(QUERY, **GREEDY) for p in (picl, again))
    assert (one.text, one.weights) == (two.text, two.weights)
