"""Laws of the contrastive family: its ends, isolation, batches, what generate adds, traces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from torch import Tensor
from transformers import LogitsProcessor, TextIteratorStreamer

from infer_kit.methods.contrastive import CFG, ICD, VCD, ContextAware, ContrastiveDecoding
from tests.engine.reference import ReferenceLM
from tests.methods.conftest import chat, picture
from tests.methods.contrast import (
    GREEDY,
    QUESTIONS,
    SAMPLING,
    TEXTS,
    chi_squared_z,
    last_logits,
    log_p,
    noised_row,
    row_of,
    tokens_of,
)
from tests.tiny import shared_text_model
from tests.tiny.vision_parts import SPECIAL

BATCH = [QUESTIONS[0], QUESTIONS[1], chat("a longer question, of one image: which?", picture(4))]
shares_features = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.18"),
    reason="transformers < 5.18 takes no encoded images: one pass a stream and step",
)

# Each method at the value where it does nothing, and a call of it on a question with an image.
NEUTRAL: dict[str, Callable[..., Any]] = {
    "VCD": lambda m, p, **o: VCD(m, p, alpha=0, **o),
    "ICD": lambda m, p, **o: ICD(m, p, alpha=0, **o),
    "CFG": lambda m, p, **o: CFG(m, p, scale=1, **o),
    "ContextAware": lambda m, p, **o: ContextAware(m, p, alpha=0, template="{context}", **o),
}


def strong(name: str, model: Any, processor: Any, **options: Any) -> Any:
    """The methods that read images, with much contrast."""
    if name == "CFG":
        return CFG(model, processor, scale=2.0, **options)
    if name == "VCD":
        return VCD(model, processor, alpha=1.0, noise_step=900, **options)
    return {"ICD": ICD, "ContextAware": ContextAware}[name](model, processor, alpha=1.0, **options)


def more(name: str, count: int | None = None) -> dict[str, Any]:
    """What `generate` needs beside the chats."""
    if name != "ContextAware":
        return {}
    return {"context": "it is red" if count is None else ["it is red", "or blue", "x"][:count]}


every = pytest.mark.parametrize("name", NEUTRAL)


def plain(model: Any, row: dict[str, Any], **options: Any) -> Any:
    return model.generate(**row, return_dict_in_generate=True, output_logits=True, **options)


# The ends


@every
@pytest.mark.parametrize("trace", [True, False])
def test_without_contrast_it_is_generate_bit_for_bit(lvlm, processor, name, trace) -> None:
    method = NEUTRAL[name](lvlm, processor, beta=0, trace=trace)
    options = {"context": ""} if name == "ContextAware" else {}
    with pytest.warns(match="is empty") if options else nullcontext():
        out = method.generate(QUESTIONS[0], output_logits=True, **options, **GREEDY)
    expected = plain(lvlm, row_of(processor, QUESTIONS[0]), **GREEDY)
    assert torch.equal(out.sequences, expected.sequences)
    assert len(out.output.logits) == len(expected.logits) > 1
    assert all(map(torch.equal, out.output.logits, expected.logits))


def test_strength_zero_is_the_expert(text_pair) -> None:
    model, tokenizer = text_pair
    method = ContrastiveDecoding(
        model, shared_text_model("llama", seed=1), tokenizer, 0.0, beta=0.0
    )
    out = method.generate(TEXTS[1], output_logits=True, **GREEDY)
    expected = plain(model, row_of(tokenizer, TEXTS[1]), **GREEDY)
    assert torch.equal(out.sequences, expected.sequences)
    assert all(map(torch.equal, out.output.logits, expected.logits))
    assert out.engines == ("fused",)  # the amateur was not run
    assert out.trace.streams == ("expert",) and out.trace.idle == ("amateur",)


@every
def test_a_cut_off_of_one_leaves_stream_0s_best(lvlm, processor, name) -> None:
    options = more(name)
    method = strong(name, lvlm, processor, beta=1.0)
    row = method.group(QUESTIONS[0], **options).streams[0].context
    expected = plain(lvlm, row, **GREEDY).sequences
    out = method.generate(QUESTIONS[0], **options, **GREEDY)
    assert torch.equal(out.sequences, expected)
    method.plausibility = 0.0
    free = method.generate(QUESTIONS[0], **options, **GREEDY)
    assert not torch.equal(free.sequences, expected), "the contrast changes nothing: no test"


def test_a_cut_off_of_one_under_beams_and_sampling(lvlm, processor) -> None:
    vcd = VCD(lvlm, processor, beta=1.0, noise_step=900)
    greedy = plain(lvlm, row_of(processor, QUESTIONS[0]), **GREEDY).sequences
    beams = vcd.generate(QUESTIONS[0], num_beams=3, **GREEDY)
    assert torch.equal(beams.sequences, greedy)
    assert torch.equal(vcd.generate(QUESTIONS[0], **SAMPLING).sequences, greedy)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_context_aware_is_cfg_without_the_document(text_pair, alpha) -> None:
    model, tokenizer = text_pair
    aware = ContextAware(model, tokenizer, alpha, template="{context}: ")
    cfg = CFG(model, tokenizer, scale=1 + alpha)
    a = aware.generate("and what?", context="it is new", output_logits=True, **GREEDY)
    b = cfg.generate("it is new: and what?", negative="and what?", output_logits=True, **GREEDY)
    assert torch.equal(a.sequences, b.sequences)
    assert all(map(torch.equal, a.output.logits, b.output.logits))


@pytest.mark.parametrize("way", [GREEDY, SAMPLING, GREEDY | {"repetition_penalty": 1.4}])
def test_equal_contexts_are_one(text_pair, way) -> None:
    """The weights sum to 1: what both say is said once, at the scale of raw logits."""
    model, tokenizer = text_pair
    cfg = CFG(model, tokenizer, scale=3.0)
    for seed in range(4):
        torch.manual_seed(seed)
        out = cfg.generate("hello there", negative="hello there", **way)
        torch.manual_seed(seed)
        expected = model.generate(**row_of(tokenizer, chat("hello there")), **way)
        assert torch.equal(out.sequences, expected)


# The contrast is real, lasting, and the noise repeatable


@every
def test_streams_still_differ_after_the_first_token(lvlm, processor, name) -> None:
    out = strong(name, lvlm, processor, beta=0.0).generate(QUESTIONS[0], **more(name), **GREEDY)
    trace = out.trace
    assert len(trace) > 3
    gaps = abs(trace.logprobs[:, 0] - trace.logprobs[:, 1])
    assert (gaps[2:] > 1e-3).all()
    assert (trace.divergence[2:] > 1e-5).all()


def test_the_noise_is_the_seeds_alone(lvlm, processor) -> None:
    def noised(messages: Any, seed: int = 0, step: int = 500) -> Tensor:
        group = VCD(lvlm, processor, noise_step=step, seed=seed).group(messages)
        return group.streams[1].context["pixel_values"]

    first = noised(QUESTIONS[0])
    assert torch.equal(first, noised(QUESTIONS[0]))
    assert not torch.equal(first, noised(QUESTIONS[0], seed=1))
    assert not torch.equal(first, noised(QUESTIONS[0], step=501))
    state = torch.get_rng_state()
    vcd = VCD(lvlm, processor)
    together = vcd.groups([QUESTIONS[2], QUESTIONS[0]])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(together[1].streams[1].context["pixel_values"], first)


@shares_features
def test_each_image_is_encoded_twice_by_vcd(lvlm, processor, tower_calls) -> None:
    vcd = VCD(lvlm, processor)
    vcd.generate(QUESTIONS[0], **GREEDY)
    assert len(tower_calls) == 2
    tower_calls.clear()
    vcd.generate([QUESTIONS[0], chat("other words, one image", picture(0))], **GREEDY)
    assert len(tower_calls) == 2
    tower_calls.clear()
    vcd.run([vcd.group(QUESTIONS[0])], **GREEDY)
    assert len(tower_calls) == 2
    tower_calls.clear()
    VCD(lvlm, processor, alpha=0.0).generate(QUESTIONS[0], **GREEDY)
    assert len(tower_calls) == 1  # a stream of weight 0 is not run


@shares_features
def test_the_clean_image_is_encoded_once_by_the_others(lvlm, processor, tower_calls) -> None:
    for method, passes in ((ICD(lvlm, processor), 1), (CFG(lvlm, processor), 1)):
        method.generate(QUESTIONS[0], **GREEDY)
        assert len(tower_calls) == passes
        tower_calls.clear()
    ICD(lvlm, processor, noise_step=500).generate(QUESTIONS[0], **GREEDY)
    assert len(tower_calls) == 2


# Batches


@every
@pytest.mark.parametrize("options", [GREEDY, GREEDY | {"num_beams": 3}], ids=["greedy", "beams"])
def test_chats_together_are_chats_alone(lvlm, processor, name, options) -> None:
    method = strong(name, lvlm, processor, beta=0.2)
    together = method.generate(BATCH, **more(name, 3), **options)
    assert len(together.text) == len(together.trace) == 3
    for b, messages in enumerate(BATCH):
        given = {key: value[b] for key, value in more(name, 3).items()}
        alone = method.generate(messages, **given, **options)
        assert tokens_of(alone) == together.trace[b].token_ids.tolist()
        assert alone.text == together.text[b]
        assert abs(alone.trace.pooled.sum() - together.trace[b].pooled.sum()) < 1e-5


def test_cfg_takes_a_negative_for_all_or_for_each(text_pair) -> None:
    model, tokenizer = text_pair
    cfg = CFG(model, tokenizer, scale=2.0)
    chats, others = ["first question", "and a second one"], ["not this", "nor that, please"]
    alone = [
        tokens_of(cfg.generate(chat, negative=other, **GREEDY))
        for chat, other in zip(chats, others, strict=True)
    ]
    each = cfg.generate(chats, negative=others, **GREEDY)
    assert [trace.token_ids.tolist() for trace in each.trace] == alone
    one = cfg.generate(chats, negative=others[0], **GREEDY)
    assert one.trace[0].token_ids.tolist() == alone[0]
    swapped = cfg.generate(chats[1], negative=others[0], **GREEDY)
    assert one.trace[1].token_ids.tolist() == tokens_of(swapped) != alone[1]


def test_a_batch_of_images_and_texts_under_cfg(lvlm, processor) -> None:
    cfg = CFG(lvlm, processor, scale=2.0)
    mixed = [QUESTIONS[0], TEXTS[1]]
    together = cfg.generate(mixed, **GREEDY)
    for b, messages in enumerate(mixed):
        alone = tokens_of(cfg.generate(messages, **GREEDY))
        assert together.trace[b].token_ids.tolist() == alone


# What generate adds


class Seen(LogitsProcessor):
    """Keeps the scores that it was given."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores.append(scores.clone())
        return scores


def test_the_cut_off_comes_before_the_processors(lvlm, processor) -> None:
    seen, beta = Seen(), 0.3
    vcd = VCD(lvlm, processor, beta=beta, noise_step=900)
    out = vcd.generate(
        QUESTIONS[0], logits_processor=[seen], repetition_penalty=1.7, output_logits=True,
        output_scores=True, **GREEDY,
    )  # fmt: skip
    row, tokens = row_of(processor, QUESTIONS[0]), tokens_of(out)
    penalised = 0
    for t in range(len(tokens)):
        expert = torch.softmax(last_logits(lvlm, row, tokens[:t]), -1)
        cut = expert < beta * expert.max()
        logits = out.output.logits[t][0]
        assert torch.equal(logits.isneginf(), cut) and 0 < cut.sum() < len(cut)
        assert seen.scores[t][0][cut].isneginf().all()
        said = torch.zeros_like(cut)
        said[out.sequences[0, : row["input_ids"].shape[1] + t]] = True
        expected = torch.where(said, torch.where(logits < 0, logits * 1.7, logits / 1.7), logits)
        expected[list(SPECIAL)] = -torch.inf
        torch.testing.assert_close(out.output.scores[t][0], expected)
        penalised += int((said & ~cut).sum())
    assert penalised > 0


def cut_off_product(weights: list[float], beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """As a pool for the reference: `[1, K, 1, V]` log-probabilities to `[1, 1, V]` scores."""

    def pool(logprobs: Tensor, _: Tensor) -> Tensor:
        parts = logprobs[0, :, 0].exp()
        scores = sum(w * part.log() for w, part in zip(weights, parts, strict=True))
        scores[parts[0] < beta * parts[0].max()] = -torch.inf
        return scores[None, None]

    return pool


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_beams_are_the_references(lvlm, processor, beta) -> None:
    vcd = VCD(lvlm, processor, beta=beta, noise_step=900)
    options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, **GREEDY}
    out = vcd.generate(QUESTIONS[0], **options)
    row = row_of(processor, QUESTIONS[0])
    rows = [[row, noised_row(row, 900)]]
    reference = ReferenceLM([lvlm] * 2, rows, [[2.0, -1.0]], cut_off_product([2.0, -1.0], beta))
    expected = reference.write(**options)
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(
        out.output.sequences_scores, expected.sequences_scores, atol=1e-5, rtol=0
    )


def test_streamed_text_is_the_text(lvlm, processor) -> None:
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10
    )
    out = VCD(lvlm, processor, noise_step=900).generate(QUESTIONS[0], streamer=streamer, **GREEDY)
    assert out.text and "".join(streamer) == out.text


def test_stop_strings_end_the_answer(lvlm, processor) -> None:
    vcd = VCD(lvlm, processor, noise_step=900)
    whole = vcd.generate(QUESTIONS[0], **GREEDY)
    stop = processor.tokenizer.decode([whole.trace.token_ids[2]])
    out = vcd.generate(QUESTIONS[0], stop_strings=[stop], **GREEDY)
    assert out.text.endswith(stop) and whole.text.startswith(out.text)
    assert len(out.trace) <= 3 < len(whole.trace)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_prompt_lookup_changes_nothing(text_pair, beta) -> None:
    model, tokenizer = text_pair
    cfg = CFG(model, tokenizer, scale=2.0, beta=beta)
    repeating = "abc abc abc abc abc"
    letters = [i for i in range(160) if i not in tokenizer(repeating)["input_ids"]]
    options = GREEDY | {"max_new_tokens": 16, "suppress_tokens": letters}
    drafted = cfg.generate(repeating, prompt_lookup_num_tokens=3, **options)
    assert tokens_of(drafted) == tokens_of(cfg.generate(repeating, **options))


@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_sampled_frequencies(text_pair, beta) -> None:
    """4000 first tokens pass a chi-squared test against the cut-off product in float64."""
    model, tokenizer = text_pair
    icd = ICD(model, tokenizer, alpha=0.6, beta=beta, disturbance="Guess.", trace=False)
    rows = [row_of(tokenizer, chat(text)) for text in ("what is it?", "Guess.\nwhat is it?")]
    p, q = (torch.softmax(last_logits(model, row, []), -1) for row in rows)

    def distribution(keep: Tensor) -> Tensor:
        powers = torch.where(keep, p**1.6 / q**0.6, 0.0)
        return powers / powers.sum()

    expected, draws = distribution(p >= beta * p.max()), 4000
    torch.manual_seed(1)
    out = icd.generate(
        "what is it?", num_return_sequences=draws, **SAMPLING | {"max_new_tokens": 1}
    )
    counts = torch.bincount(out.sequences[:, -1], minlength=160).double()
    assert counts[expected == 0].sum() == 0
    assert chi_squared_z(counts, draws * expected) < 4
    others = [p, distribution(p >= 0.5 * p.max())]
    assert all(chi_squared_z(counts, draws * other + 1e-9) > 4 for other in others), "no power"


# Traces


def test_parts_sum_to_the_margin(lvlm, processor) -> None:
    trace = (
        VCD(lvlm, processor, alpha=1.5, beta=0.2, noise_step=900)
        .generate(QUESTIONS[0], **GREEDY)
        .trace
    )
    assert trace.weights.tolist() == [[2.5, -1.5]] * len(trace)
    torch.testing.assert_close(
        torch.as_tensor(trace.parts.sum(1)), torch.as_tensor(trace.margin), atol=1e-5, rtol=0
    )
    assert "noised" in trace.table().columns[5].header


def test_without_a_second_plausible_token_margins_are_infinite(lvlm, processor) -> None:
    vcd = VCD(lvlm, processor, beta=1.0, noise_step=900)
    trace = vcd.generate(QUESTIONS[0], **GREEDY).trace
    assert (trace.margin == float("inf")).all() and (trace.pooled == 0).all()
    assert (abs(trace.parts) < 100).all()
    assert trace.to_dict()["margin"] == [None] * len(trace)
    trace.table()


@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_who_decided_a_token_under_the_cut_off(lvlm, processor, beta) -> None:
    """Without the expert there is no cut-off; without the other it stays."""
    vcd = VCD(lvlm, processor, alpha=2.0, beta=beta, noise_step=900)
    out = vcd.generate(QUESTIONS[0], **GREEDY)
    clean = row_of(processor, QUESTIONS[0])
    noised, tokens = noised_row(clean, 900), tokens_of(out)
    by_the_cut_off = 0
    for t, token in enumerate(tokens):
        a, b = (log_p(last_logits(lvlm, row, tokens[:t])) for row in (clean, noised))
        pooled = 3 * a - 2 * b
        free = int(pooled.argmax())
        pooled[a.exp() < beta * a.exp().max()] = -torch.inf
        best = int(pooled.argmax())
        assert out.trace.decisive[t].tolist() == [int((-2 * b).argmax()) != best,
                                                  int(a.argmax()) != best]  # fmt: skip
        assert token == best or best in SPECIAL  # those are suppressed after the pool
        by_the_cut_off += free != best
    assert by_the_cut_off > 0
