"""RED's laws: what it equals at the ends of λ, exact pooling, isolation, batches, streaming."""

import copy
from collections.abc import Callable

import pytest
import torch
import transformers
from packaging import version
from transformers import GenerationConfig, TextIteratorStreamer

from infer_kit.methods.prompts import Prompts
from infer_kit.methods.red import RED
from infer_kit.pool import kl_divergence
from infer_kit.testing import extended_row
from tests.methods.conftest import SHORT, chat, picture
from tests.tiny import reference_logits
from tests.tiny.tokenizers import tiny_tokenizer

Make = Callable[..., RED]
QUESTION = chat("what is it?", picture(0))
BATCH = [QUESTION, chat("no picture here, what now?"), chat("and which?", picture(1), picture(2))]
GREEDY = {"max_new_tokens": 6, "do_sample": False}
pytestmark = pytest.mark.filterwarnings("ignore:The rationale of prompt . was cut")
shares_features = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.18"),
    reason="transformers < 5.18 takes no encoded images: one pass a step",
)


def _reference(model, row, ids):
    """`reference_logits` without its rounding to float32."""
    grown = extended_row(model, row, ids[0])
    return model(**grown, use_cache=False).logits[0, row["input_ids"].shape[1] - 1 :].detach()


def plain(model, processor, messages, **options):
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    options |= {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **options), inputs["input_ids"].shape[1]


def new_tokens(out) -> list[list[int]]:
    return [trace.token_ids.tolist() for trace in out.trace]


def test_weight_zero_is_generate_bit_for_bit(red: Make, lvlm, processor) -> None:
    out = red(weight=0).generate(QUESTION, output_logits=True, **GREEDY)
    expected, _ = plain(lvlm, processor, QUESTION, **GREEDY)
    assert torch.equal(out.sequences, expected.sequences)
    assert all(map(torch.equal, out.output.logits, expected.logits))
    assert out.engines == ("fused",)


def test_weight_zero_writes_no_rationale(red: Make, model_calls: list[int]) -> None:
    out = red(weight=0).generate(QUESTION, max_new_tokens=1, do_sample=False)
    assert out.rationale is None
    assert len(model_calls) == 2  # one forward, one pass through the tower


@pytest.mark.parametrize("weights", [{"image_weight": 0.0, "weight": 1.0}, {"weight": 1e6}])
def test_the_rationale_alone_is_the_other_end(red: Make, lvlm, processor, weights) -> None:
    out = red(**weights).generate(QUESTION, rationale="it is red", **GREEDY)
    text = SHORT.fill("rationale_context", "what is it?", "it is red")
    expected, length = plain(lvlm, processor, chat(text), **GREEDY)
    assert out.trace.token_ids.tolist() == expected.sequences[0, length:].tolist()


def test_the_rationale_alone_has_its_logits_bit_for_bit(red: Make, lvlm, processor) -> None:
    maker = red(image_weight=0.0, weight=1.0)
    out = maker.generate(QUESTION, rationale="it is red", output_logits=True, **GREEDY)
    text = SHORT.fill("rationale_context", "what is it?", "it is red")
    expected, _ = plain(lvlm, processor, chat(text), **GREEDY)
    assert all(map(torch.equal, out.output.logits, expected.logits))


def test_scores_of_the_pooled_distribution_are_returned(red: Make) -> None:
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = red().generate(QUESTION, **options, **GREEDY)
    for scores, token in zip(out.output.scores, out.trace.token_ids, strict=True):
        assert int(scores.argmax()) == token
    beams = red().generate(QUESTION, num_beams=3, num_return_sequences=2, **options, **GREEDY)
    assert len(beams.text) == len(beams.trace) == len(beams.output.sequences_scores) == 2
    for trace, score in zip(beams.trace, beams.output.sequences_scores, strict=True):
        assert trace.pooled.sum() / len(trace) == pytest.approx(float(score), abs=1e-5)


def test_own_rationale_is_what_generate_writes(red: Make, lvlm, processor) -> None:
    out = red().generate(QUESTION, **GREEDY)
    request = chat(SHORT.fill("rationale_request", "what is it?"), picture(0))
    expected, length = plain(
        lvlm, processor, request, max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    text = processor.tokenizer.decode(expected.sequences[0, length:], skip_special_tokens=True)
    assert out.rationale == text.strip()
    assert red().rationales(QUESTION) == out.rationale


@pytest.mark.parametrize("weight", [0.3, 1.0, 5.0])
def test_equal_contexts_answer_like_one(text_pair, weight: float) -> None:
    model, tokenizer = text_pair
    same = Prompts("{question}", "{question}", "{rationale}{question}")
    red = RED(model, tokenizer, weight=weight, prompts=same)
    with pytest.warns(UserWarning, match="rationale of prompt 0 is empty"):
        out = red.generate("hello there", rationale="", **GREEDY)
    expected = RED(model, tokenizer, weight=0, prompts=same).generate("hello there", **GREEDY)
    assert torch.equal(out.sequences, expected.sequences)


def test_normalised_equal_contexts_sample_like_one_under_a_penalty(text_pair) -> None:
    model, tokenizer = text_pair
    same = Prompts("{question}", "{question}", "{rationale}{question}")
    options = {"max_new_tokens": 12, "do_sample": True, "repetition_penalty": 1.3}
    red = RED(model, tokenizer, weight=0.5, prompts=same, normalize=True)
    for seed in range(5):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="empty"):
            out = red.generate("hello there", rationale="", **options)
        torch.manual_seed(seed)
        (stream,) = red.group(chat("hello there"), weight=0).streams
        expected = model.generate(**stream.context, **options)
        assert torch.equal(out.sequences, expected)


def test_a_tiny_weight_under_a_penalty_is_weight_zero(red: Make) -> None:
    options = GREEDY | {"repetition_penalty": 1.3, "max_new_tokens": 12}
    tiny = red(weight=1e-6).generate(QUESTION, rationale="it is red", **options)
    zero = red(weight=0).generate(QUESTION, **options)
    assert torch.equal(tiny.sequences, zero.sequences)


@pytest.mark.parametrize("weight", [0.5, 2.0, -0.4])
def test_the_pool_is_the_product_in_float64(lvlm, processor, weight: float) -> None:
    exact = copy.deepcopy(lvlm).double()  # so that what is left is the pool's own rounding
    maker = RED(exact, processor, weight=weight, prompts=SHORT)
    out = maker.generate(QUESTION, rationale="it is red", output_logits=True, **GREEDY)
    streams = maker.group(QUESTION, rationale="it is red", weight=weight).streams
    ids = torch.as_tensor(out.trace.token_ids)[None]
    x, r = (_reference(exact, s.context, ids[:, :-1]).double().softmax(-1) for s in streams)
    expected = x * r**weight
    expected = expected / expected.sum(-1, keepdim=True)
    pooled = torch.cat(out.output.logits).double().softmax(-1)
    assert (pooled - expected).abs().max() < 1e-6


def test_a_budget_is_spent_exactly_and_caps_the_weight(red: Make) -> None:
    maker = red(weight="kl:0.2")
    out = maker.generate(QUESTION, rationale="it is red", **GREEDY)
    weights = out.trace.weights
    assert (weights[:, 0] == 1).all() and (weights[:, 1] > 0).all()
    (group,) = maker.groups([QUESTION], rationale="it is red")
    model = maker.backend.model
    ids = torch.as_tensor(out.trace.token_ids)[None, :-1]
    x, r = (reference_logits(model, s.context, ids).double().log_softmax(-1) for s in group.streams)
    spent = kl_divergence(torch.as_tensor(weights[:, 1]).double(), x, r)[0]
    reached = torch.as_tensor(weights[:, 1]) < 100
    assert reached.any()
    assert (spent[reached] - 0.2).abs().max() < 1e-4
    assert (spent <= 0.2 + 1e-4).all()


@pytest.mark.parametrize(
    "options", [GREEDY, {"max_new_tokens": 6, "do_sample": True}, GREEDY | {"num_beams": 3}]
)
def test_trace_parts_sum_to_the_margin(red: Make, options: dict) -> None:
    torch.manual_seed(0)
    trace = red(weight=0.7).generate(QUESTION, **options).trace
    assert trace.streams == ("image", "rationale")
    assert len(trace) >= 2
    torch.testing.assert_close(
        torch.as_tensor(trace.parts.sum(1)), torch.as_tensor(trace.margin), atol=1e-5, rtol=0
    )


def test_streams_are_isolated(red: Make) -> None:
    maker = red(weight=0.7)
    other_image = chat("what is it?", picture(5))

    def logprobs(messages, rationale):
        streams = maker.group(messages, rationale=rationale, weight=0.7).streams
        rows = [[stream.context for stream in streams]]
        from infer_kit.engine.coupled_lm import CoupledLM

        lm = CoupledLM(maker.backend.model)
        scores = lm.score(rows, [[7, 8, 9]], weights=[1.0, 0.7])
        return scores.streams[0], scores.pooled[0]

    base, pooled = logprobs(QUESTION, "it is red")
    by_image, pooled_image = logprobs(other_image, "it is red")
    by_text, pooled_text = logprobs(QUESTION, "nothing of the kind")
    assert (base[:, 1] - by_image[:, 1]).abs().max() <= 1e-5
    assert (base[:, 0] - by_text[:, 0]).abs().max() <= 1e-5
    assert (pooled - pooled_image).abs().max() > 1e-2
    assert (pooled - pooled_text).abs().max() > 1e-2


@pytest.mark.parametrize("options", [GREEDY, GREEDY | {"num_beams": 3}])
def test_chats_together_are_chats_alone(red: Make, options: dict) -> None:
    maker = red(weight=0.7)
    together = maker.generate(BATCH, **options)
    for b, messages in enumerate(BATCH):
        alone = maker.generate(messages, **options)
        assert together.rationale[b] == alone.rationale
        assert new_tokens(together)[b] == alone.trace.token_ids.tolist()
        assert together.text[b] == alone.text
        assert abs(together.trace[b].pooled.sum() - alone.trace.pooled.sum()) < 1e-5


def test_a_weight_for_each_chat(red: Make) -> None:
    maker = red()
    given = ["it is red", "it is blue", "it is new"]
    together = maker.generate(BATCH, rationale=given, weight=[0.0, 0.5, 3.0], **GREEDY)
    for b, weight in enumerate([0.0, 0.5, 3.0]):
        alone = maker.generate(BATCH[b], rationale=given[b], weight=weight, **GREEDY)
        assert new_tokens(together)[b] == alone.trace.token_ids.tolist()


@shares_features
def test_each_image_is_encoded_once_over_both_steps(red: Make, tower_calls: list[int]) -> None:
    red().generate(QUESTION, **GREEDY)
    assert len(tower_calls) == 1
    tower_calls.clear()
    same_picture_twice = [QUESTION, chat("another question", picture(0)), BATCH[2]]
    red().intervene(same_picture_twice, **GREEDY)
    assert len(tower_calls) == 2  # the set {0}, and the set {1, 2}


def test_another_image_changes_the_answer_distribution(red: Make) -> None:
    a = red(weight=0.3).generate(QUESTION, rationale="x", output_logits=True, max_new_tokens=1)
    other = chat("what is it?", picture(5))
    b = red(weight=0.3).generate(other, rationale="x", output_logits=True, max_new_tokens=1)
    assert (a.output.logits[0] - b.output.logits[0]).abs().max() > 1e-2


def test_streamed_text_is_the_text(red: Make, processor) -> None:
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=10
    )
    out = red().generate(QUESTION, streamer=streamer, **GREEDY)
    assert "".join(streamer) == out.text


def test_stop_strings_end_the_answer(red: Make, processor) -> None:
    whole = red().generate(QUESTION, **GREEDY)
    stop = processor.tokenizer.decode([whole.trace.token_ids[2]])
    out = red().generate(QUESTION, stop_strings=[stop], tokenizer=processor.tokenizer, **GREEDY)
    assert out.text.endswith(stop) and whole.text.startswith(out.text)


def test_seeded_sampling_repeats(red: Make) -> None:
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    texts = []
    for _ in range(2):
        torch.manual_seed(1)
        texts.append(red().generate(QUESTION, **options).text)
    assert texts[0] == texts[1] and len(texts[0]) == 3 and len(set(texts[0])) > 1


def test_rationale_settings_are_apart_from_the_answers(red: Make) -> None:
    long = red(rationale_generation={"max_new_tokens": 9, "min_new_tokens": 9})
    short = red(rationale_generation={"max_new_tokens": 3, "min_new_tokens": 3})
    with pytest.warns(UserWarning, match="cut at the length limit"):
        a, b = (maker.generate(QUESTION, max_new_tokens=2) for maker in (long, short))
    assert a.rationale.startswith(b.rationale) and len(a.rationale) > len(b.rationale)


def test_interventions_replace_the_rationale(red: Make) -> None:
    maker = red(weight=2.0)
    out = maker.intervene(
        BATCH, ("own", "given", "shuffled", "empty"), given=["a", "b", "c"], **GREEDY
    )
    own = maker.generate(BATCH, **GREEDY)
    assert out["own"].text == own.text and out["own"].rationale == own.rationale
    assert out["shuffled"].rationale == [*own.rationale[1:], own.rationale[0]]
    assert out["given"].rationale == ["a", "b", "c"]
    assert out["empty"].rationale == ["", "", ""]
    given = maker.generate(BATCH, rationale=["a", "b", "c"], **GREEDY)
    assert out["given"].text == given.text
    assert len({str(o.text) for o in out.values()}) > 1


def test_a_long_chat_does_not_shorten_the_rationale_of_another(lvlm, processor) -> None:
    """Each rationale may fill what its own prompt leaves of the context."""
    red = RED(lvlm, processor, prompts=SHORT, trace=False)
    limit = lvlm.config.get_text_config().max_position_embeddings
    lvlm.generation_config.eos_token_id, eos = None, lvlm.generation_config.eos_token_id
    try:
        chats = [chat("why?"), chat("x" * (limit - 60))]
        alone = [red.rationales(one) for one in chats]
        together = red.rationales(chats)
    finally:
        lvlm.generation_config.eos_token_id = eos
    assert together == alone
    assert len(together[0]) > 4 * len(together[1]) > 0


def test_a_config_object_ends_answers_as_keywords_do(red: Make, lvlm) -> None:
    first = red(weight=0).generate(QUESTION, **GREEDY).trace.token_ids
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=int(first[1]))
    out = red(weight=0).generate(QUESTION, generation_config=config)
    assert out.trace.token_ids.tolist() == first[:2].tolist()


def test_a_rationale_of_weight_zero_did_not_matter(red: Make) -> None:
    out = red().generate(BATCH, weight=[0.0, 0.5, 3.0], **GREEDY)
    assert out.trace[0].streams == ("image",)
    assert not out.trace[0].mattered("rationale")
    assert out.trace[1].streams == ("image", "rationale")


def test_images_between_texts_stay_there(red: Make) -> None:
    content = [
        {"type": "text", "text": "A:"},
        {"type": "image", "image": picture(0)},
        {"type": "text", "text": "B: same?"},
    ]
    (image,) = red(weight=0).group([{"role": "user", "content": content}], weight=0).streams
    text = tiny_tokenizer().decode(image.context["input_ids"][0])
    assert text.index("A:") < text.index("<image>") < text.index("B: same?")


@pytest.mark.filterwarnings("ignore:The rationale of prompt 0 is empty")
def test_a_config_object_may_sample_rationales(red: Make) -> None:
    config = GenerationConfig(do_sample=True, temperature=5.0, max_new_tokens=8)
    maker = red(rationale_generation={"generation_config": config})
    assert len({maker.rationales(QUESTION) for _ in range(4)}) > 1


def test_stop_strings_under_beams_add_no_end_token(red: Make, processor) -> None:
    """Beam search takes a pad id of 0 for none, and fills with the end token."""
    maker = red(weight=0)
    whole = maker.generate(QUESTION, num_beams=3, **GREEDY)
    stop = processor.tokenizer.decode([whole.trace.token_ids[2]])
    out = maker.generate([QUESTION, BATCH[1]], num_beams=3, stop_strings=[stop], **GREEDY)
    for text, trace in zip(out.text, out.trace, strict=True):
        if stop in text:
            assert trace.token_ids[-1] != 2 and text.endswith(stop)
    assert any(stop in text for text in out.text)
