"""Parallel-ICL: batches, ways to write, the bank, what is read once, traces, composing, disk."""

from __future__ import annotations

import copy
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
from tests.methods.conftest import SHORT, chat, picture
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
    stream_logprobs,
    texts,
    whole_row,
)
from tests.methods.test_red import shares_features
from tests.tiny import tiny_lvlm

Make = Callable[..., ParallelICL]
DEMOS = demonstrations()


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
    log_p = stream_logprobs(lvlm, processor, PARTS, ids)
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


@shares_features
def test_a_composed_group_is_encoded_once(icl: Make, tower_calls: list[int]) -> None:
    """What `fit` and `group` have encoded is not encoded again by `run`."""
    picl = icl(chunks=2)
    tower_calls.clear()
    picl.run([picl.group(QUERY)], **GREEDY)
    assert len(tower_calls) == 1


def test_groups_with_vanishing_weights_share_a_batch(
    icl: Make, lvlm: PreTrainedModel, processor: Any
) -> None:
    """At a tiny temperature some weights are 0 for one query and not for another."""
    picl = icl(chunks=3, temperature=1e-4)
    vcd = VCD(lvlm, processor, beta=0.2, noise_step=900)
    groups = [vcd.contrast(picl.group(query)) for query in QUERIES]
    together = vcd.run(groups, **GREEDY).text
    assert together == [vcd.run([group], **GREEDY).text for group in groups]


def test_a_group_names_its_model(icl: Make, lvlm: PreTrainedModel, processor: Any) -> None:
    """Another method's backend runs it on the model that it was made for."""
    other = tiny_lvlm("llava", seed=1).model
    theirs = VCD(other, processor, beta=0.0).group(QUERY)
    expected = VCD(other, processor, beta=0.0).run([theirs], **GREEDY)
    ours = VCD(lvlm, processor, beta=0.0).run([theirs], **GREEDY)
    assert ours.trace.token_ids.tolist() == expected.trace.token_ids.tolist()


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


def test_a_pool_knows_its_model_in_half_precision(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    icl(chunks=2).save(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(lvlm).to(dtype)
        assert (
            ParallelICL.load(tmp_path, half, processor, bank=False).generate(QUERY, **GREEDY).text
        )


def test_a_pool_in_the_place_of_another_leaves_no_pictures(icl: Make, tmp_path: Path) -> None:
    icl(chunks=2).save(tmp_path)
    icl(DEMOS[:3], chunks=[0, 0, 1]).save(tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 3
    (tmp_path / "file").write_text("x")
    with pytest.raises(InferKitError, match="save takes a folder"):
        icl(chunks=2).save(tmp_path / "file")


def test_a_pool_with_features_of_ones_own(
    icl: Make, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    query = torch.tensor([0.3, -1.0, 0.5])
    picl = icl(features=features, chunks=2)
    out = picl.generate(QUERY, features=query, **GREEDY)
    unit, one = (torch.nn.functional.normalize(x, dim=-1) for x in (features, query))
    means = torch.stack([(unit[part] @ one).double().mean() for part in out.chunks])
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
