"""Prompts that go on from a prefix are the whole prompts, in every family, or say why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.engine.context_prefix import PREFIX, ContextPrefix, prompt_length
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.image_features import (
    ImageMemory,
    can_be_joined,
    supports_shared_features,
)
from infer_kit.engine.model_facts import encodes_images_apart, why_not_continued
from infer_kit.engine.prefill import make_prefix
from infer_kit.errors import InferKitError, PromptTooLong
from tests.engine.cases import GREEDY, LOOKUP, OUTPUT, assert_engine, model_of, text_row
from tests.engine.reference import Row
from tests.tiny import (
    LVLM_FUSED,
    LVLM_SERIAL,
    TEXT_GRID,
    TEXT_SWEEP,
    TinyLVLM,
    lvlm_available,
    shared_lvlm,
    shared_text_model,
    text_model,
)
from tests.tiny.weights import BOS

EXPECTED_FALLBACK = "ignore:MllamaForConditionalGeneration. streams are decoded one by one"
pytestmark = pytest.mark.filterwarnings(EXPECTED_FALLBACK)
every_lvlm = pytest.mark.parametrize("family", LVLM_FUSED + LVLM_SERIAL)
every_text = pytest.mark.parametrize("family", TEXT_GRID + TEXT_SWEEP)

WEIGHTS = [0.5, 0.3, 0.4]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY | {"max_new_tokens": 4},
    "beams": {"max_new_tokens": 3, "do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}
BEFORE: tuple[tuple[tuple[int, ...], int], ...] = (((0, 1), 9), ((), 14), ((5,), 4))
AFTER: tuple[tuple[tuple[int, ...], int], ...] = (((2,), 6), ((3, 4), 9), ((), 1))
TEXTS = (9, 14, 4), (6, 9, 1)  # of prefixes, on both sides of a window of 8; of what follows


def _tiny(family: str) -> TinyLVLM:
    found, why = lvlm_available(family)
    if not found:
        pytest.skip(why)
    return shared_lvlm(family)


def _parts(
    tiny: TinyLVLM,
    before: tuple[Sequence[int], int],
    after: tuple[Sequence[int], int],
    seed: int = 0,
) -> tuple[Row, Row, Row]:
    """A whole prompt, its beginning and the rest."""
    first = tiny.row(*before, seed=seed + len(before[0]))
    second = tiny.row(*after, seed=20 + seed + len(after[0]))
    kept = second["input_ids"][0] != BOS
    rest = {
        key: value[:, kept]
        if value.shape[:2] == second["input_ids"].shape and key != "pixel_values"
        else value
        for key, value in second.items()
    }
    ids = torch.cat([first["input_ids"], rest["input_ids"]], dim=1)
    images = (*before[0], *after[0])
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        whole |= tiny.recipe.pixels(images)
    return whole | tiny.recipe.extras(ids, images), first, rest


def _continued(model: PreTrainedModel, first: Row, rest: Row, read: bool = True) -> dict[str, Any]:
    return {**rest, PREFIX: make_prefix(model, ImageMemory().encode(model, first), read)}


def _pairs(tiny: TinyLVLM) -> tuple[list[list[Row]], list[list[Row]]]:
    """Requests that show 1, 2 and 0 images after 2, 0 and 1: whole, and from prefixes if allowed.

    Prefixes are read once, and serve every request.
    """
    prefixes: dict[int, ContextPrefix] = {}
    wholes, continued = [], []
    for after in AFTER:
        wholes.append([])
        continued.append([])
        for k, before in enumerate(BEFORE):
            if why_not_continued(tiny.model, len(before[0]), len(after[0])) is not None:
                images = (*before[0], *after[0])
                wholes[-1].append(tiny.row(images, before[1] + after[1], seed=k))
                continued[-1].append(wholes[-1][-1])
                continue
            whole, first, rest = _parts(tiny, before, after)
            if k not in prefixes:
                prefixes[k] = make_prefix(tiny.model, ImageMemory().encode(tiny.model, first))
            wholes[-1].append(whole)
            continued[-1].append({**rest, PREFIX: prefixes[k]})
    return wholes, continued


def _text_pairs(model: PreTrainedModel) -> tuple[list[list[Row]], list[list[Row]]]:
    firsts = [text_row(n, 10 + n) for n in TEXTS[0]]
    prefixes = [make_prefix(model, first) for first in firsts]
    rests = [text_row(n, 30 + n) for n in TEXTS[1]]
    wholes = [[_joined(first, rest) for first in firsts] for rest in rests]
    return wholes, [[{**rest, PREFIX: prefix} for prefix in prefixes] for rest in rests]


def _joined(first: Row, rest: Row) -> dict[str, Tensor]:
    ids = torch.cat([first["input_ids"], rest["input_ids"]], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.logits) == len(theirs.logits)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def _assert_whole(
    model: PreTrainedModel, wholes: Any, continued: Any, engines: dict[str, str], **more: Any
) -> None:
    """Both engines, both ways; the whole prompts are run by one engine."""
    first = next(iter(engines))
    for options in WAYS.values():
        lm = CoupledLM([model] * 3, WEIGHTS, mode=first)
        expected = lm.generate(wholes, **OUTPUT, **options, **more)
        for mode, engine in engines.items():
            lm = CoupledLM([model] * 3, WEIGHTS, mode=mode)
            ours = lm.generate(continued, **OUTPUT, **options, **more)
            assert_engine(ours, engine)
            _assert_same(ours, expected)


@every_lvlm
def test_images_on_both_sides(family: str) -> None:
    tiny = _tiny(family)
    wholes, continued = _pairs(tiny)
    banked = sum(PREFIX in row for rows in continued for row in rows)
    assert banked == {"gemma3": 3, "llava_onevision": 5, "paligemma": 0, "mllama": 1}.get(family, 9)
    both = {"fused": "fused", "serial": "serial"}
    engines = {"serial": "serial"} if family in LVLM_SERIAL else both
    _assert_whole(tiny.model, wholes, continued, engines, suppress_tokens=tiny.image_token_ids)


@pytest.mark.parametrize("family", LVLM_FUSED)
def test_queries_of_equal_length_are_read_together(family: str) -> None:
    """One batch of rows that show unlike images: of either size, one, two and none."""
    tiny = _tiny(family)
    if why_not_continued(tiny.model, 0, 1) is not None:
        assert family in ("gemma3", "paligemma")
        return
    first = tiny.row((), 9, seed=1)
    prefix = make_prefix(tiny.model, first)
    wholes, continued = [], []
    for seed, images in enumerate(((2,), (4,), (3,), (2, 4), (5, 2), ())):
        text = 2 * 60 - tiny.row(images, 60, seed)["input_ids"].shape[1]
        whole, _, rest = _parts(tiny, ((), 9), (images, text), seed)
        assert rest["input_ids"].shape[1] == 59
        wholes.append([{**whole}])
        continued.append([{**rest, PREFIX: prefix}])
    for rows in wholes:  # all begin alike
        rows[0]["input_ids"][:, : prefix.length] = first["input_ids"]
    lm, options = CoupledLM(tiny.model), OUTPUT | {"max_new_tokens": 2, "do_sample": False}
    options |= {"suppress_tokens": tiny.image_token_ids}
    ours, shapes = _counted(tiny.model, lambda: lm.generate(continued, **options))
    if supports_shared_features(tiny.model) and family != "llama4":
        assert sorted(shapes) == [[1, 59], [5, 59], [6, 1]]
    _assert_same(ours, lm.generate(wholes, **options))


@every_text
def test_texts(family: str) -> None:
    model = model_of(family)
    if family == "jamba":
        assert "start anew" in str(why_not_continued(model, 0, 0))
        return
    assert why_not_continued(model, 0, 0) is None
    wholes, continued = _text_pairs(model)
    _assert_whole(model, wholes, continued, {"fused": "fused", "serial": "serial"})


# Where a prompt has to be read whole


@pytest.mark.parametrize(
    ("family", "before", "after", "reason"),
    [
        ("paligemma", 0, 0, "read in both directions"),
        ("gemma3", 1, 1, "the tokens of an image see one another"),
        ("gemma3", 0, 1, "the tokens of an image see one another"),
        ("gemma3", 2, 0, None),
        ("llava_onevision", 1, 1, "a picture alone otherwise than one among several"),
        ("llava_onevision", 2, 0, None),
        ("llava_onevision", 0, 2, None),
        ("mllama", 1, 0, "cross-attention"),
        ("mllama", 0, 1, "cross-attention"),
        ("mllama", 0, 0, None),
        ("qwen2_vl", 3, 3, None),
    ],
)
def test_reasons(family: str, before: int, after: int, reason: str | None) -> None:
    given = why_not_continued(_tiny(family).model, before, after)
    assert given is None if reason is None else reason in str(given)


def _difference(model: PreTrainedModel, whole: Row, continued: Row) -> float:
    """Largest difference of a logit of the first new token."""
    lm, options = CoupledLM(model), OUTPUT | {"max_new_tokens": 1, "do_sample": False}
    a, b = (lm.generate([[row]], **options).logits[0] for row in (whole, continued))
    return (a - b).abs().max().item()


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_the_guard_of_images_is_needed(family: str) -> None:
    tiny = _tiny(family)
    whole, first, rest = _parts(tiny, ((0,), 9), ((2,), 6))
    rest = {key: value for key, value in rest.items() if key != "labels"}
    assert _difference(tiny.model, whole, _continued(tiny.model, first, rest)) > 1e-2
    assert _difference(tiny.model, whole, whole) == 0


def test_the_guard_of_recurrent_layers_is_needed() -> None:
    model = model_of("jamba")
    first, rest = text_row(9, 1), text_row(6, 2)
    assert _difference(model, _joined(first, rest), _continued(model, first, rest)) > 1e-2


@every_lvlm
def test_prefixes_that_are_not_read(family: str) -> None:
    """Texts and images are prepared apart, and the prompt is read whole."""
    tiny = _tiny(family)
    wholes, prepared = [], []
    for after in AFTER:
        for before in BEFORE:
            whole, first, rest = _parts(tiny, before, after)
            shared = supports_shared_features(tiny.model) or not before[0]
            if not (encodes_images_apart(tiny.model) and shared):
                continue
            row = ImageMemory().encode(tiny.model, first)
            if before[0] and not can_be_joined(row["mm_encoder_outputs"]["image"]):
                continue
            wholes.append([whole])
            prepared.append([{**rest, PREFIX: make_prefix(tiny.model, row, read=False)}])
    expected = {"llava_onevision": 0, "mllama": 3, "llama4": 3}
    if supports_shared_features(tiny.model):
        assert len(wholes) == expected.get(family, 9)
    if not wholes:
        return
    options = OUTPUT | {"max_new_tokens": 3, "do_sample": False}
    options |= {"suppress_tokens": tiny.image_token_ids}
    lm = CoupledLM(tiny.model, mode="serial" if family in LVLM_SERIAL else "fused")
    _assert_same(lm.generate(prepared, **options), lm.generate(wholes, **options))


# What generate does with them


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next", "falcon_h1", "lfm2"])
@pytest.mark.parametrize("mode", ["fused", "serial"])
def test_a_prefix_is_not_changed_by_use(family: str, mode: str) -> None:
    model = model_of(family)
    prefix = make_prefix(model, text_row(11, 1))
    rows = [[{**text_row(6, 2), PREFIX: prefix}], [{**text_row(4, 3), PREFIX: prefix}]]
    lm = CoupledLM(model, mode=mode)
    before = lm.generate(rows, **OUTPUT, **GREEDY)
    ways: list[dict[str, Any]] = [WAYS["beams"], {"do_sample": True, "num_return_sequences": 2}]
    for way in ways:
        lm.generate(rows, **{"max_new_tokens": 3} | way)
    if not model._is_stateful:
        lm.generate(rows[:1], **LOOKUP)
    after = lm.generate(rows, **OUTPUT, **GREEDY)
    _assert_same(after, before, tolerance=0)


def _assert_alone(lm: CoupledLM, rows: Any, weights: Any, **options: Any) -> None:
    """Every request alone writes what it writes among the others."""
    options |= {"do_sample": False, "min_new_tokens": 4, "max_new_tokens": 4}
    options |= {"return_dict_in_generate": True, "trace": True}
    together = lm.generate(rows, weights, **options)
    assert_engine(together, "fused")
    for b, row in enumerate(rows):
        alone = lm.generate([row], [weights[b]], **options)
        assert alone.sequences[0, -4:].tolist() == together.sequences[b, -4:].tolist()
        mine, theirs = together.statistics.pooled[b], alone.statistics.pooled[0]
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text"])
def test_batch_law(family: str) -> None:
    """Prefixes, none, and requests with fewer streams in one call."""
    model = model_of(family)
    _, rows = _text_pairs(model)
    mixed = [rows[0], [text_row(8, 1), text_row(3, 2)], [rows[1][0], None, text_row(9, 3)], rows[2]]
    weights = [WEIGHTS, [1.0, 0.5, 0.0], [0.7, 0.0, -0.2], WEIGHTS]
    _assert_alone(CoupledLM([model] * 3), mixed, weights)


def test_batch_law_with_images() -> None:
    tiny = _tiny("qwen2_vl")
    _, rows = _pairs(tiny)
    plain = [tiny.row((0,), 7, 1), tiny.row((), 5, 2)]
    weights = [WEIGHTS, [1.0, 0.5, 0.0], WEIGHTS]
    lm, suppressed = CoupledLM([tiny.model] * 3), tiny.image_token_ids
    _assert_alone(lm, [rows[1], plain, rows[2]], weights, suppress_tokens=suppressed)


@pytest.mark.parametrize("mode", ["fused", "serial"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_drafts(family: str, mode: str) -> None:
    model = model_of(family)
    first, rest = (text_row(n, 50 + n, range(11, 17)) for n in (17, 8))
    prefix = make_prefix(model, first)
    lm = CoupledLM([model] * 2, [1.0, 0.4], mode=mode)
    other = text_row(9, 3, range(11, 17))
    ours = lm.generate([[{**rest, PREFIX: prefix}, other]], **OUTPUT, **LOOKUP)
    plain = {k: v for k, v in LOOKUP.items() if k != "prompt_lookup_num_tokens"}
    _assert_same(ours, lm.generate([[_joined(first, rest), other]], **OUTPUT, **plain))


def test_processors_see_the_tokens_of_the_prefix() -> None:
    model = model_of("llama")
    wholes, continued = _text_pairs(model)
    lm = CoupledLM([model] * 3, WEIGHTS)
    options = GREEDY | {"repetition_penalty": 3.0}
    expected = lm.generate(wholes, **OUTPUT, **options)
    _assert_same(lm.generate(continued, **OUTPUT, **options), expected)
    without = [[{k: v for k, v in row.items() if k != PREFIX} for row in rows] for rows in wholes]
    free = lm.generate(without, **OUTPUT, **GREEDY)
    assert free.sequences.tolist() != expected.sequences.tolist()  # the penalty counts here


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_scores_and_traces(family: str) -> None:
    model = model_of(family)
    wholes, continued = _text_pairs(model)
    lm = CoupledLM([model] * 3, WEIGHTS)
    answers = [[7, 8, 9], [20], [31, 32]]
    for a, b in zip(lm.score(wholes, answers).streams, lm.score(continued, answers).streams,
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    one, two = (
        lm.generate(rows, trace=True, return_dict_in_generate=True, **GREEDY).statistics
        for rows in (wholes, continued)
    )
    for name in ("pooled", "logprobs", "runner_up_pooled", "divergence"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-5, rtol=0)
    assert torch.equal(one.chosen, two.chosen) and torch.equal(one.decisive, two.decisive)


def _counted(model: PreTrainedModel, run: Callable[[], Any]) -> tuple[Any, list[list[int]]]:
    """What `run` returns, and the shape of the ids of every forward."""
    shapes: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(list(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        return run(), shapes
    finally:
        handle.remove()


def test_only_what_follows_is_read_and_in_one_batch() -> None:
    model = model_of("llama")
    _, continued = _text_pairs(model)
    lm, options = CoupledLM([model] * 3, WEIGHTS), {"max_new_tokens": 2, "do_sample": False}
    _, shapes = _counted(model, lambda: lm.generate(continued, **options))
    assert shapes == [[3, 6], [3, 9], [3, 1], [9, 1]]
    tiny = _tiny("llava")
    _, continued = _pairs(tiny)
    lm = CoupledLM([tiny.model] * 3, WEIGHTS)
    _, shapes = _counted(tiny.model, lambda: lm.generate(continued, **options))
    assert len(shapes) == 4 if supports_shared_features(tiny.model) else len(shapes) > 4


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_a_row_that_several_streams_share_is_read_once(family: str) -> None:
    model = model_of(family)
    prefix = make_prefix(model, text_row(9, 1))
    shared, plain = {**text_row(5, 2), PREFIX: prefix}, text_row(7, 3)
    lm, options = CoupledLM([model] * 3, WEIGHTS), OUTPUT | GREEDY
    for row in (shared, plain):
        ours, shapes = _counted(
            model, lambda row=row: lm.generate([[row] * 3, [row] * 3], **options)
        )
        n = row["input_ids"].shape[1]
        assert shapes[:2] == [[1, n], [6, 1]]
        copies = [[dict(row) for _ in range(3)] for _ in range(2)]
        theirs, shapes = _counted(model, lambda copies=copies: lm.generate(copies, **options))
        assert sum(rows * length for rows, length in shapes if length == n) == 6 * n
        _assert_same(ours, theirs)


def test_a_continued_state_goes_on() -> None:
    model = model_of("llama")
    wholes, continued = _text_pairs(model)
    lm = CoupledLM([model] * 3, WEIGHTS)
    out = lm.generate(continued, **OUTPUT, **GREEDY)
    for rows in (wholes, continued):
        first = lm.generate(rows, return_dict_in_generate=True, max_new_tokens=2, do_sample=False)
        then = lm.generate(None, input_ids=first.sequences, max_new_tokens=4, do_sample=False,
                           past_key_values=first.past_key_values)  # fmt: skip
        assert then.tolist() == out.sequences.tolist()


# Refusals


def test_a_prefix_of_another_model_is_refused() -> None:
    model, other = model_of("llama"), shared_text_model("llama", seed=1)
    row = {**text_row(5, 2), PREFIX: make_prefix(other, text_row(9, 1))}
    message = "Request 0, stream 1: its prefix was not read by this LlamaForCausalLM"
    with pytest.raises(InferKitError, match=message):
        CoupledLM([model] * 2).generate([[text_row(4, 1), row]], **GREEDY)
    with pytest.raises(InferKitError, match="its prefix was not read by this"):
        CoupledLM(model).generate([[{**text_row(5, 2), PREFIX: "text"}]], **GREEDY)


@cache
def _short() -> PreTrainedModel:
    return text_model("gpt2", n_positions=24, max_position_embeddings=24)


def test_prefix_and_rest_together_have_a_limit() -> None:
    model = _short()
    prefix = make_prefix(model, text_row(20, 1))
    fits, long = ({**text_row(n, 2), PREFIX: prefix} for n in (3, 5))
    assert (prompt_length(fits), prompt_length(long)) == (23, 25)
    with pytest.raises(PromptTooLong, match="the prompt is 25 tokens, the model takes 24"):
        CoupledLM(model).generate([[long]], max_new_tokens=1)
    with pytest.raises(PromptTooLong, match="23 prompt tokens and 2 new ones exceed the 24"):
        CoupledLM(model).generate([[fits]], max_new_tokens=2)
    assert CoupledLM(model).generate([[fits]], max_new_tokens=1).shape == (1, 24)
