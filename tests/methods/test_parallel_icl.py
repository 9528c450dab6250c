"""Parallel-ICL: what it equals at K = 1, the pool of the chunks, the bank, features, disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.methods.parallel_icl import ParallelICL
from tests.engine.reference import ReferenceLM
from tests.methods.conftest import chat, picture
from tests.methods.icl_cases import (
    GREEDY,
    LOGITS,
    PARTS,
    PENALTY,
    QUERIES,
    QUERY,
    assert_same,
    demonstrations,
    greedy_loop,
    plain,
    stream_logprobs,
    texts,
    whole_row,
)

Make = Callable[..., ParallelICL]
DEMOS = demonstrations()


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
    p = stream_logprobs(lvlm, processor, PARTS, ids).exp()
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
    log_p = stream_logprobs(lvlm, processor, PARTS, ids)
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
    log_p = stream_logprobs(lvlm, processor, PARTS, torch.zeros(1, dtype=torch.long))[:, 0]
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
