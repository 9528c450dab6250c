"""What `Ensemble.generate` writes: batches, ends, stop strings, sampling, beams, streams."""

from __future__ import annotations

from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer

import infer_kit as ik
from tests.vocab.taught import (
    LESSONS,
    Walk,
    counted,
    is_utf8_so_far,
    pair,
    taught,
)

pytestmark = pytest.mark.filterwarnings("ignore:Member . .* wanted tokens")

PROMPTS = ["The lighthouse kee", "A small boat drifted sl", "", "清晨的市", "It costs $3,499"]
EMOJI = "Great job"  # goes on with some
END = 256


@pytest.fixture(scope="module")
def ensemble() -> ik.Ensemble:
    return ik.Ensemble(pair())


class Collected(TextStreamer):
    """Keeps what it is given to print."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)


def test_both_models_go_on_with_what_they_know(ensemble: ik.Ensemble) -> None:
    out = ensemble.generate("The lighthouse kee", max_new_tokens=40)
    assert out.text == "per's daughter hadn't seen the sea for 1"
    assert out.alphabet == "bytes" and out.sequences.shape == (1, 40)
    assert bytes(out.sequences[0].tolist()) == out.text.encode()
    assert 0 <= out.tv_bound <= 2e-3 and max(out.leak) < 0.01


# Batches


def test_a_batch_is_its_prompts_alone() -> None:
    ensemble = ik.Ensemble(pair(in_double=True))
    together = ensemble.generate(PROMPTS, max_new_tokens=24)
    alone = [ensemble.generate(prompt, max_new_tokens=24) for prompt in PROMPTS]
    assert together.text == [out.text for out in alone]
    assert len(set(together.text)) == len(PROMPTS)
    for record, out in zip(together.steps, alone, strict=True):
        np.testing.assert_allclose(record.logprobs, out.steps[0].logprobs, atol=1e-9)


def test_prompts_of_a_batch_share_forward_calls(ensemble: ik.Ensemble) -> None:
    members = pair()
    alone = [ensemble.generate(prompt, max_new_tokens=24).calls for prompt in PROMPTS]
    with counted(members) as calls:
        out = ensemble.generate(PROMPTS, max_new_tokens=24)
    assert out.calls == tuple(calls)
    for together, single in zip(out.calls, np.transpose(alone), strict=True):
        assert together < 0.6 * single.sum()
        assert together <= 1.5 * 24  # about one a symbol; some texts need several


def test_one_prompt_gives_a_text_and_a_list_gives_a_list(ensemble: ik.Ensemble) -> None:
    assert isinstance(ensemble.generate("A sm", max_new_tokens=2).text, str)
    assert ensemble.generate(["A sm"], max_new_tokens=2).text == ["al"]


def test_several_sequences_stay_with_their_prompt(ensemble: ik.Ensemble) -> None:
    prompts = ["The lighthouse kee", "A small boat drifted sl"]
    options = {"do_sample": True, "temperature": 0.3}
    out = ensemble.generate(prompts, max_new_tokens=5, num_return_sequences=3, **options)
    assert [text[:3] for text in out.text] == ["per"] * 3 + ["owl"] * 3
    assert len(out.steps) == len(out.sequences) == 6
    single = ensemble.generate(prompts[0], max_new_tokens=3, num_return_sequences=2, **options)
    assert single.text == ["per", "per"]


# Greedy search and sampling act on the pooled law


def test_greedy_takes_the_most_probable_symbol_of_each_law() -> None:
    ensemble = ik.Ensemble(pair(in_double=True), eps=0, healing=99)
    prompt = "Trains are late"
    text = ensemble.generate(prompt, max_new_tokens=16).text
    for place in range(8):
        so_far = (prompt + text)[: len(prompt) + place]
        assert chr(int(ensemble.law(so_far).argmax())) == text[place]


def test_scores_are_the_log_of_the_law(ensemble: ik.Ensemble) -> None:
    out = ensemble.generate(
        "The dog", max_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    walk = Walk(ensemble, out.text.encode(), "The dog")
    scores = torch.stack(out.output.scores)[:, 0]
    assert scores.shape == (6, 259)
    np.testing.assert_allclose(scores[:, :257].exp(), walk.laws, atol=1e-5)
    assert bool(scores[:, 257:].isneginf().all())  # BEGIN never comes again, nothing waits
    assert out.sequences.tolist() == out.output.sequences[:, 1:].tolist()


def test_seeds_repeat(ensemble: ik.Ensemble) -> None:
    def sampled(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return ensemble.generate(["The", ""], max_new_tokens=16, do_sample=True).text

    assert sampled(3) == sampled(3) != sampled(4)


def test_the_first_symbols_are_drawn_by_the_law() -> None:
    ensemble = ik.Ensemble(pair(in_double=True), eps=0)
    draws = 4000
    out = ensemble.generate("", max_new_tokens=2, do_sample=True, num_return_sequences=draws)
    first = Walk(ensemble, b"T").laws[0]
    joint = np.zeros((257, 257))
    for symbol in np.flatnonzero(first * draws > 2).tolist():
        if symbol != END:
            joint[symbol] = first[symbol] * Walk(ensemble, bytes([symbol, 32])).laws[1]
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(out.sequences.T.clip(max=END).numpy()), 1)
    expected = joint * draws
    often = expected >= 5
    assert often.sum() > 8
    rest = draws - expected[often].sum(), draws - counts[often].sum()
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    chi2 += (rest[1] - rest[0]) ** 2 / rest[0]
    free = often.sum()
    assert chi2 < free + 4 * np.sqrt(2 * free)


def test_sampling_is_not_cut_to_the_likeliest_symbols() -> None:
    """transformers samples from the best 50 unless told otherwise."""
    ensemble = ik.Ensemble(pair(), eps=0)
    choices = {"max_new_tokens": 1, "do_sample": True}
    config = GenerationConfig(**choices)
    for options in (choices, {"generation_config": config}, {**choices, "top_k": 50}):
        scores = {"return_dict_in_generate": True, "output_scores": True}
        for name in scores if "generation_config" in options else ():
            setattr(config, name, True)
        out = ensemble.generate("The ", **(options if options.get("generation_config") else
                                           options | scores))  # fmt: skip
        possible = int(out.output.scores[0].isfinite().sum())
        assert possible == 50 if "top_k" in options else possible > 100
    assert config.top_k is None


def test_top_p_cuts_the_pooled_law(ensemble: ik.Ensemble) -> None:
    law = ensemble.law("")
    order = np.argsort(-law)
    nucleus = set(order[: int((law[order].cumsum() < 0.6).sum()) + 1].tolist())
    assert 1 < len(nucleus) < 8
    out = ensemble.generate(
        "", max_new_tokens=1, do_sample=True, top_p=0.6, num_return_sequences=300
    )
    assert set(out.sequences[:, 0].tolist()) == nucleus


def test_processors_of_generate_work_on_symbols(ensemble: ik.Ensemble) -> None:
    plain = ensemble.generate("The lighthouse kee", max_new_tokens=24).text
    out = ensemble.generate(
        "The lighthouse kee", max_new_tokens=24, suppress_tokens=[ord("e"), ord("d")]
    )
    assert "e" in plain and "d" in plain and not set("ed") & set(out.text)


# Beams


def test_one_beam_is_greedy_search(ensemble: ik.Ensemble) -> None:
    greedy = ensemble.generate(PROMPTS[:2], max_new_tokens=12)
    assert ensemble.generate(PROMPTS[:2], max_new_tokens=12, num_beams=1).text == greedy.text


def test_scores_of_beams_are_the_log_probabilities_of_their_texts() -> None:
    """Of every segmentation, exactly; so the laws of the steps multiply to the text's."""
    ensemble = ik.Ensemble(pair(in_double=True), mode="full", eps=0)
    options: dict[str, Any] = {"max_new_tokens": 4, "suppress_tokens": [END]}
    scores = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    out = ensemble.generate("It", num_beams=3, num_return_sequences=3, **options, **scores)
    assert len(set(out.text)) == 3 and out.steps == []
    greedy = ensemble.generate("It", **options).text
    *found, least = (score.low for score in ensemble.logprob([*out.text, greedy], prompt="It"))
    np.testing.assert_allclose(out.output.sequences_scores, found, atol=1e-5)
    assert found[0] >= least - 1e-9 and found == sorted(found, reverse=True)


def test_beams_of_a_batch_are_those_of_its_prompts_alone() -> None:
    ensemble = ik.Ensemble(pair(in_double=True))
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 3}
    together = ensemble.generate(PROMPTS[1:4], **options)
    assert together.text == [ensemble.generate(p, **options).text for p in PROMPTS[1:4]]


# Ends


def test_end_ends_a_text_and_the_others_go_on(ensemble: ik.Ensemble) -> None:
    prompts = [LESSONS[2][:-12], "The lighthouse kee"]
    out = ensemble.generate(prompts, max_new_tokens=30)
    assert prompts[0] + out.text[0] == LESSONS[2]
    assert out.sequences[0].tolist()[12:14] == [END, END + 1]  # then padding
    assert len(out.text[1]) == 30
    assert [len(record.weights) for record in out.steps] == [12, 29]


def test_max_new_tokens_counts_symbols_and_is_256_by_default(ensemble: ik.Ensemble) -> None:
    out = ensemble.generate("清晨的市", max_new_tokens=9)
    assert len(out.sequences[0]) == 9 and len(out.text) == 3
    assert ensemble.generate("The", suppress_tokens=[END]).sequences.shape == (1, 256)


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id", "bos_token_id"])
def test_ids_of_a_tokenizer_are_refused(ensemble: ik.Ensemble, name: str) -> None:
    with pytest.raises(ik.InferKitError, match=f"{name}=2 cannot work here: it names a token"):
        ensemble.generate(["The", "A"], **{name: 2})
    with pytest.raises(ik.InferKitError, match=r"suppress_tokens has 257, but .* 0 to 255 and END"):
        ensemble.generate("The", suppress_tokens=[257])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"healing": 1}, "healing is an option of the ensemble"),
        ({"seed": 1}, "generate takes no seed"),
        ({"generation_config": {"max_new_tokens": 7}}, "generation_config is a dict"),
        ({"generation_config": GenerationConfig(max_length=50)}, "has max_length=50, which cannot"),
        ({"prompt_lookup_num_tokens": 3}, "it proposes tokens of one tokenizer"),
        ({"stop_strings": ["\ud800"]}, "A stop string has half of a character"),
    ],
)
def test_settings_that_cannot_work(ensemble: ik.Ensemble, options: dict, message: str) -> None:
    with pytest.raises(ik.InferKitError, match=message):
        ensemble.generate("The", **options)


def test_max_new_tokens_may_be_none(ensemble: ik.Ensemble) -> None:
    out = ensemble.generate("The", max_new_tokens=None, suppress_tokens=[END])
    assert out.sequences.shape == (1, 256)


def test_a_generation_config_may_be_given(ensemble: ik.Ensemble) -> None:
    config = GenerationConfig(max_new_tokens=7, stop_strings=["d"])
    assert ensemble.generate("The lighthouse kee", generation_config=config).text == "per's d"
    assert config.stop_strings == ["d"] and config.max_new_tokens == 7  # as it was
    config = GenerationConfig(max_new_tokens=3, do_sample=True, temperature=1e-3)
    assert ensemble.generate("The lighthouse kee", generation_config=config).text == "per"


def test_ids_in_a_models_generation_config_mean_nothing_here(ensemble: ik.Ensemble) -> None:
    config = taught("split_bpe")[0].generation_config
    assert config.eos_token_id == 2
    out = ensemble.generate(LESSONS[2][:-12], generation_config=config)
    assert out.text == LESSONS[2][-12:] and len(out.sequences[0]) == 13


# Stop strings


def test_a_text_ends_with_the_stop_string_found(ensemble: ik.Ensemble) -> None:
    out = ensemble.generate("The lighthouse kee", stop_strings=["seen", "daughter h"])
    assert out.text == "per's daughter h"
    assert ensemble.generate("The lighthouse kee", stop_strings="ter").text == "per's daughter"


def test_each_text_of_a_batch_stops_by_itself(ensemble: ik.Ensemble) -> None:
    prompts = ["The lighthouse kee", "A small boat drifted sl"]
    out = ensemble.generate(prompts, stop_strings=["the"], max_new_tokens=50)
    assert out.text == ["per's daughter hadn't seen the", "owly toward the"]
    beams = ensemble.generate(prompts, stop_strings=["the"], max_new_tokens=50, num_beams=2)
    assert [text[-3:] for text in beams.text] == ["the", "the"]


def test_a_stop_string_of_several_bytes_a_character(ensemble: ik.Ensemble) -> None:
    assert ensemble.generate("清晨的市", stop_strings=["挤满"]).text == "场里挤满"


def test_the_prompt_is_not_looked_at_for_stop_strings(ensemble: ik.Ensemble) -> None:
    """Neither what it holds nor what begins in it."""
    out = ensemble.generate("The lighthouse kee", stop_strings=["keep", "light", "sea"])
    assert out.text == "per's daughter hadn't seen the sea"


def test_a_stop_string_is_cut_inside_a_symbol() -> None:
    model, tokenizer = taught("signed_bpe")
    symbols = ik.common_vocabulary(tokenizer)
    reduced = ik.ReducedLM(model, tokenizer, symbols)
    whole = reduced.generate("The lighthouse", max_new_tokens=12)
    assert whole.alphabet == "symbols"
    assert whole.text.startswith(" keeper's daughter hadn't seen")
    assert len(whole.text) > 2 * 12  # symbols are longer than bytes
    for stop in ("aught", "s dau", "r", "hadn't se"):
        out = reduced.generate("The lighthouse", max_new_tokens=12, stop_strings=[stop])
        assert out.text == whole.text[: whole.text.index(stop) + len(stop)]
        assert out.sequences.shape[1] < 12


# Streams and characters


@pytest.mark.parametrize("prompt", ["The lighthouse kee", EMOJI])
def test_a_streamer_shows_the_text(ensemble: ik.Ensemble, prompt: str) -> None:
    streamer = Collected(ensemble.tokenizer, skip_prompt=True)
    out = ensemble.generate(prompt, max_new_tokens=45, streamer=streamer)
    assert "".join(streamer.pieces) == out.text and "\ufffd" not in out.text
    assert len(streamer.pieces) > 3 and len(out.text) > 5


def test_an_iterating_streamer_shows_the_text(ensemble: ik.Ensemble) -> None:
    streamer = TextIteratorStreamer(ensemble.tokenizer, skip_prompt=True)
    options = {"max_new_tokens": 30, "streamer": streamer, "stop_strings": ["hadn't"]}
    thread = Thread(target=ensemble.generate, args=("The lighthouse kee",), kwargs=options)
    thread.start()
    assert "".join(streamer) == "per's daughter hadn't"
    thread.join()


def test_an_incomplete_character_is_held_back(ensemble: ik.Ensemble) -> None:
    seen = set()
    for length in range(1, 10):
        streamer = Collected(ensemble.tokenizer, skip_prompt=True)
        out = ensemble.generate(EMOJI, max_new_tokens=length, streamer=streamer)
        written = bytes(out.sequences[0].tolist())
        assert written.startswith(out.text.encode()) and is_utf8_so_far(written)
        assert "".join(streamer.pieces) == out.text and "\ufffd" not in out.text
        seen.add(len(written) - len(out.text.encode()))
    assert seen == {0, 1, 2, 3}


def test_whatever_is_sampled_is_utf8() -> None:
    """A member's tokens hold parts of characters, which the other would go on with otherwise."""
    ensemble = ik.Ensemble([taught("split_bpe"), taught("unigram")])
    out = ensemble.generate(
        ["清", "Great job 🎉", "gr"], max_new_tokens=24, do_sample=True, temperature=3.0,
        num_return_sequences=8,
    )  # fmt: skip
    written = [bytes(id for id in row.tolist() if id < END) for row in out.sequences]
    assert all(map(is_utf8_so_far, written))
    assert sum(max(text, default=0) > 0x7F for text in written) > 10
    assert all("\ufffd" not in text for text in out.text)
