"""Each image is encoded once, and the logits do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from torch import Tensor, nn

from infer_kit.engine import image_features
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.engine.image_features import ImageFeatures, ImageMemory, supports_shared_features
from infer_kit.errors import InferKitError
from infer_kit.testing import assert_image_law
from tests.engine.cases import GREEDY, OUTPUT, assert_engine, assert_reference
from tests.tiny import (
    LVLM_FUSED,
    LVLM_SERIAL,
    TinyLVLM,
    lvlm_available,
    reference_logits,
    shared_lvlm,
)

BY_IMAGE = tuple(family for family in LVLM_FUSED if family != "llama4")
"""Families whose features can be told apart by image."""

SHARES = version.parse(transformers.__version__) >= version.parse("5.18")
shares_features = pytest.mark.skipif(
    not SHARES, reason="transformers < 5.18 takes no encoded images"
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:MllamaForConditionalGeneration. streams are decoded one by one"
)
NOTHING = torch.zeros(1, 0, dtype=torch.long)
TOWERS = ("vision_tower", "visual", "vision_model")


def _tiny(family: str) -> TinyLVLM:
    found, why = lvlm_available(family)
    if not found:
        pytest.skip(why)
    return shared_lvlm(family)


def _tower(tiny: TinyLVLM) -> nn.Module:
    return next(m for name, m in tiny.model.named_modules() if name.split(".")[-1] in TOWERS)


def _without_pixels(tiny: TinyLVLM, images: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    row = tiny.row(images, 9, seed)
    return {name: value for name, value in row.items() if name not in tiny.recipe.pixels(images)}


def _encoded(tiny: TinyLVLM, images: tuple[int, ...]) -> ImageFeatures:
    """All the images together, as the processor would lay them out."""
    image_token = tiny.model.config.image_token_id
    counts = [tiny.recipe.span(image, len(images)).count(image_token) for image in images]
    return ImageFeatures(tiny.model, tiny.recipe.pixels(images), counts)


def _logits(tiny: TinyLVLM, row: dict[str, Any]) -> Tensor:
    return reference_logits(tiny.model, row, NOTHING)


# ImageFeatures


@shares_features
@pytest.mark.parametrize("chosen", [(0, 1), (2, 3, 1), (3, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("family", BY_IMAGE)
def test_features_stand_for_the_pixels(family: str, chosen: tuple[int, ...]) -> None:
    """Any choice of four images, in any order; with and without the engine."""
    tiny, images = _tiny(family), (4, 1, 2, 3)
    features = _encoded(tiny, images)
    shown = tuple(images[i] for i in chosen)
    row = _without_pixels(tiny, shown, 5) | features.rows_of(chosen)
    expected = _logits(tiny, tiny.row(shown, 9, 5))
    torch.testing.assert_close(_logits(tiny, row), expected, atol=1e-5, rtol=0)
    out = CoupledLM(tiny.model).generate([[row]], max_new_tokens=1, do_sample=False, **OUTPUT)
    torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=0)
    assert_engine(out, "fused")


@shares_features
@pytest.mark.parametrize("family", BY_IMAGE)
def test_the_features_of_one_image_among_several(family: str) -> None:
    tiny = _tiny(family)
    row = _without_pixels(tiny, (2,), 5)
    features = _encoded(tiny, (1, 2))
    if family == "llava_onevision":  # a lone image is cut into tiles, one of several is not
        with pytest.raises(ValueError, match="do not match"):
            _logits(tiny, row | features.rows_of([1]))
        features = _encoded(tiny, (2,))
        row |= features.rows_of([0])
    else:
        row |= features.rows_of([1])
    expected = _logits(tiny, tiny.row((2,), 9, 5))
    torch.testing.assert_close(_logits(tiny, row), expected, atol=1e-5, rtol=0)


@shares_features
@pytest.mark.parametrize("family", BY_IMAGE)
def test_one_pass_encodes_all_the_images(family: str) -> None:
    tiny = _tiny(family)

    def run() -> None:
        features = _encoded(tiny, (0, 1, 2))
        rows = [[_without_pixels(tiny, (a, b), 5) | features.rows_of([a, b]),
                 _without_pixels(tiny, (b, a), 6) | features.rows_of([b, a])]
                for a, b in ((0, 1), (1, 2))]  # fmt: skip
        CoupledLM([tiny.model] * 2).generate(rows, suppress_tokens=tiny.image_token_ids, **GREEDY)

    assert_image_law(tiny.model, _tower(tiny), run, distinct_images=1)


@shares_features
def test_counts_that_do_not_fit_are_refused() -> None:
    tiny = _tiny("llava")
    with pytest.raises(
        InferKitError, match=r"gave 18 feature vectors for 17 placeholder tokens \[9"
    ):
        ImageFeatures(tiny.model, tiny.recipe.pixels((0, 1)), [9, 8])


def test_models_that_take_no_features_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = _tiny("mllama")
    assert not supports_shared_features(tiny.model)
    with pytest.raises(InferKitError, match="MllamaForConditionalGeneration does not take encoded"):
        ImageFeatures(tiny.model, tiny.recipe.pixels((0,)), [1])
    if SHARES and lvlm_available("llama4")[0]:
        llama4 = _tiny("llama4")
        with pytest.raises(InferKitError, match="no features that can be told apart by image"):
            _encoded(llama4, (0, 2))


def test_the_signature_decides() -> None:
    """Below 5.18 the argument would be swallowed and the image lost."""
    for family in LVLM_FUSED:
        if lvlm_available(family)[0]:
            assert supports_shared_features(shared_lvlm(family).model) == SHARES


# ImageMemory, inside generate


def _passes(tiny: TinyLVLM, run: Callable[[], Any]) -> int:
    calls: list[int] = []
    handle = _tower(tiny).register_forward_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(calls)


@pytest.mark.parametrize("family", LVLM_FUSED + LVLM_SERIAL)
def test_image_law(family: str) -> None:
    """Two requests of two image streams and one without: the same image once, another once."""
    tiny = _tiny(family)
    rows = [[tiny.row((image,), 9, 10 * image), tiny.row((image,), 7, 10 * image + 1),
             tiny.row((), 8, 10 * image + 2)] for image in (0, 1)]  # fmt: skip
    lm = CoupledLM([tiny.model] * 3, [1.0, 0.5, 0.3])
    shared = SHARES and family != "mllama"
    assert_image_law(
        tiny.model,
        _tower(tiny),
        lambda: lm.generate(rows, suppress_tokens=tiny.image_token_ids, **GREEDY),
        distinct_images=2 if shared else 4,
    )
    assert _passes(tiny, lambda: lm.score(rows, [[7, 8], [9]])) == (2 if shared else 4)


@pytest.mark.parametrize("family", LVLM_FUSED)
def test_shared_features_change_no_logit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: the pass that is shared is the one that each row would make."""
    tiny = _tiny(family)
    rows = [[tiny.row((0, 1), 9, 1), tiny.row((0, 1), 12, 2)]]
    lm = CoupledLM([tiny.model] * 2, [1.0, 0.5])
    options = GREEDY | OUTPUT | {"suppress_tokens": tiny.image_token_ids}
    shared = lm.generate(rows, **options)
    monkeypatch.setattr(image_features, "supports_shared_features", lambda model: False)
    apart = lm.generate(rows, **options)
    assert torch.equal(shared.sequences, apart.sequences)
    assert all(map(torch.equal, shared.logits, apart.logits))


@pytest.mark.parametrize("family", LVLM_FUSED)
def test_overlapping_sets_of_images(family: str) -> None:
    """Streams that show some of the same images equal the reference, in any order of images."""
    tiny = _tiny(family)
    rows = [[tiny.row((0, 1), 9, 1), tiny.row((1, 2), 7, 2), tiny.row((2, 0, 1), 8, 3)],
            [tiny.row((1,), 9, 4), tiny.row((1, 0), 7, 5), tiny.row((), 6, 6)]]  # fmt: skip
    assert_reference(tiny.model, rows, [[0.5, 0.3, 0.4]] * 2, max_new_tokens=3, do_sample=False,
                     suppress_tokens=tiny.image_token_ids)  # fmt: skip


@shares_features
@pytest.mark.parametrize("family", ["qwen2_vl", "glm4v", "llava", "gemma3"])
def test_an_image_seen_among_others_is_not_encoded_again(family: str) -> None:
    tiny = _tiny(family)
    seen: list[int] = []
    handle = _tower(tiny).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len((args or tuple(kwargs.values()))[0])),
        with_kwargs=True,
    )
    rows = [[tiny.row((0, 2), 9, 1), tiny.row((2,), 7, 2), tiny.row((2, 4), 8, 3)]]
    each = len(tiny.recipe.pixels((0,))["pixel_values"])
    try:
        CoupledLM([tiny.model] * 3).generate(rows, max_new_tokens=1, do_sample=False)
    finally:
        handle.remove()
    assert seen == [2 * each, each]


@shares_features
def test_a_memory_is_shared_between_calls() -> None:
    tiny, memory = _tiny("llava"), ImageMemory()
    lm, rows = CoupledLM([tiny.model] * 2), [[tiny.row((0,), 9, 1), tiny.row((), 8, 2)]]
    options = GREEDY | {"suppress_tokens": tiny.image_token_ids}

    def run() -> None:
        for _ in range(3):
            lm.generate(rows, images=memory, **options)

    assert_image_law(tiny.model, _tower(tiny), run, distinct_images=1)
    assert_image_law(tiny.model, _tower(tiny), lambda: lm.generate(rows, **options), 1)


def test_another_model_or_other_pixels_are_other_images() -> None:
    """What is remembered belongs to one model and to these very pixels."""
    tiny, other, memory = _tiny("llava"), shared_lvlm("llava", seed=1), ImageMemory()
    for one in (tiny, other):
        for image in (0, 2):
            row = one.row((image,), 9, 1)
            shared = memory.encode(one.model, row)
            torch.testing.assert_close(_logits(one, shared), _logits(one, row), atol=0, rtol=0)
    rows = [[tiny.row((0,), 9, 1), other.row((2,), 9, 1)]]
    assert_reference([tiny.model, other.model], rows, [[1.0, 0.5]], **GREEDY,
                     suppress_tokens=tiny.image_token_ids)  # fmt: skip


def test_image_law_can_fail() -> None:
    tiny = _tiny("llava")
    lm, rows = CoupledLM(tiny.model), [[tiny.row((0,), 9, 1)]]
    with pytest.raises(AssertionError, match="vision tower ran 1 times for 2 distinct images"):
        assert_image_law(tiny.model, _tower(tiny), lambda: lm.generate(rows, max_new_tokens=1), 2)
