"""Vision-language families: image and text streams in one group, against the reference."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import NotMergeable
from infer_kit.testing import assert_batch_law, assert_image_matters, assert_zero_law
from tests.engine.cases import BEAMS, GREEDY, OUTPUT, SAMPLING, assert_engine, assert_reference
from tests.tiny import LVLM_FUSED, LVLM_SERIAL, TinyLVLM, lvlm_available, shared_lvlm

families = pytest.mark.parametrize("family", LVLM_FUSED)
every_family = pytest.mark.parametrize("family", LVLM_FUSED + LVLM_SERIAL)
ENGINE = dict.fromkeys(LVLM_FUSED, "fused") | dict.fromkeys(LVLM_SERIAL, "serial")
EXPECTED_FALLBACK = "ignore:MllamaForConditionalGeneration. streams are decoded one by one"
pytestmark = pytest.mark.filterwarnings(EXPECTED_FALLBACK)


def _tiny(family: str) -> TinyLVLM:
    found, why = lvlm_available(family)
    if not found:
        pytest.skip(why)
    return shared_lvlm(family)


def _words(tiny: TinyLVLM, **options: Any) -> dict[str, Any]:
    """Options under which a random model does not write image placeholders."""
    return options | {"suppress_tokens": tiny.image_token_ids}


def _red(tiny: TinyLVLM, image: int = 0) -> list[Any]:
    """The question with its image, and a longer rationale without."""
    return [tiny.row((image,), 9, seed=1 + image), tiny.row((), 14, seed=2 + image)]


@every_family
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_an_image_stream_and_a_text_stream(family: str, way: str) -> None:
    tiny = _tiny(family)
    options = GREEDY if way == "greedy" else BEAMS | {"max_new_tokens": 4}
    assert_reference(tiny.model, [_red(tiny)], [[1.0, 0.7]], engine=ENGINE[family],
                     **_words(tiny, **options))  # fmt: skip


@every_family
def test_zero_law(family: str) -> None:
    tiny = _tiny(family)
    assert_zero_law(tiny.model, _red(tiny), 0.0, ENGINE[family], **_words(tiny, **GREEDY))


@every_family
def test_an_image_request_beside_a_text_request(family: str) -> None:
    """Negative weights and images of two sizes in one batch."""
    tiny = _tiny(family)
    rows = [_red(tiny, 1), [tiny.row((), 6, seed=8), tiny.row((0,), 5, seed=9)],
            [tiny.row((), 7, seed=3), tiny.row((), 12, seed=4)]]  # fmt: skip
    weights = [[1.3, -0.4], [0.5, 0.8], [1.0, 0.6]]
    assert_reference(tiny.model, rows, weights, engine=ENGINE[family], **_words(tiny, **GREEDY))


@every_family
def test_streams_of_2_3_1_and_0_images(family: str) -> None:
    tiny = _tiny(family)
    row = [tiny.row(images, 10 + n, seed=20 + n)
           for n, images in enumerate(((0, 1), (2, 4, 3), (5,), ()))]  # fmt: skip
    assert_reference(tiny.model, [row], [[0.4, 0.3, 0.2, 0.1]], "mixture", engine=ENGINE[family],
                     **_words(tiny, **GREEDY))  # fmt: skip


@every_family
def test_a_text_request_after_an_image_request(family: str) -> None:
    """Families with M-RoPE leave state of the last prompt on the module."""
    tiny = _tiny(family)
    lm = CoupledLM([tiny.model] * 2)
    text = [tiny.row((), 8, 5), tiny.row((), 11, 6)]
    for row, engine in (
        (_red(tiny), ENGINE[family]), (text, "fused"), (_red(tiny, 1), ENGINE[family])
    ):  # fmt: skip
        assert_reference(tiny.model, [row], [[1.0, 0.5]], lm=lm, engine=engine,
                         **_words(tiny, **GREEDY))  # fmt: skip


@every_family
def test_batch_law(family: str) -> None:
    tiny = _tiny(family)
    rows = [_red(tiny), [tiny.row((), 6, seed=8)], [tiny.row((0, 1), 9, seed=9), None,
            tiny.row((), 3, seed=7)]]  # fmt: skip
    weights = [[1.0, 0.5, 0.0], [1.0, 0.0, 0.0], [0.8, 0.0, -0.3]]
    assert_batch_law([tiny.model] * 3, rows, weights, engine=ENGINE[family],
                     **_words(tiny, **GREEDY))  # fmt: skip


@families
def test_serial_equals_fused(family: str) -> None:
    tiny = _tiny(family)
    rows = [_red(tiny, 1), [tiny.row((), 6, seed=8), tiny.row((0, 1), 5, seed=9)]]
    for options in (GREEDY, SAMPLING | {"num_return_sequences": 2}):
        out = []
        for mode in ("fused", "serial"):
            torch.manual_seed(0)
            lm = CoupledLM([tiny.model] * 2, [1.0, 0.6], mode=mode)
            out.append(lm.generate(rows, **OUTPUT, **_words(tiny, **options)))
            assert_engine(out[-1], mode)
        assert torch.equal(out[0].sequences, out[1].sequences)
        for a, b in zip(out[0].logits, out[1].logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@families
@pytest.mark.parametrize("mode", ["fused", "serial"])
def test_drafts(family: str, mode: str) -> None:
    tiny = _tiny(family)
    if tiny.model._is_stateful:
        pytest.skip(f"{family} has recurrent state, which cannot take drafts back")
    alphabet = set(range(20, 26))
    rows = [_red(tiny)]
    for row in rows[0]:
        text = row["input_ids"] < 132
        row["input_ids"] = torch.where(text & (row["input_ids"] > 3), 20 + row["input_ids"] % 6,
                                       row["input_ids"])  # fmt: skip
    suppressed = [token for token in range(160) if token not in alphabet]
    options = GREEDY | {"prompt_lookup_num_tokens": 3, "suppress_tokens": suppressed}
    assert_reference(tiny.model, rows, [[1.0, 0.6]], mode=mode, engine=mode, **options)


@every_family
def test_the_pixels_are_read(family: str) -> None:
    tiny = _tiny(family)
    assert_image_matters(tiny.model, tiny.row((0,), 9, seed=1), tiny.row((2,), 9, seed=1))
    lm = CoupledLM([tiny.model] * 2)
    logits = [
        lm.generate([[tiny.row((image,), 9, seed=1), tiny.row((), 5, 2)]], max_new_tokens=1,
                    do_sample=False, **OUTPUT).logits[0]
        for image in (0, 2)
    ]  # fmt: skip
    assert (logits[0] - logits[1]).abs().max() > 1e-2


# Mllama: rows with different images cannot share a batch


def test_mllama_warns_and_goes_serial() -> None:
    tiny = _tiny("mllama")
    with pytest.warns(UserWarning, match="MllamaForConditionalGeneration: streams are decoded one "
                                         "by one, .* mode='serial'"):  # fmt: skip
        out = CoupledLM([tiny.model] * 2).generate([_red(tiny)], **OUTPUT, **_words(tiny, **GREEDY))
    assert_engine(out, "serial")


def test_mllama_fused_is_refused() -> None:
    tiny = _tiny("mllama")
    with pytest.raises(NotMergeable, match="cross-attention"):
        CoupledLM([tiny.model] * 2, mode="fused").generate([_red(tiny)], **_words(tiny, **GREEDY))


def test_mllama_serial_by_choice_is_silent() -> None:
    tiny = _tiny("mllama")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*streams are decoded.*")
        for options in (GREEDY, BEAMS, SAMPLING):
            assert_reference(tiny.model, [_red(tiny), _red(tiny, 1)], [[1.0, 0.5]] * 2,
                             mode="serial", engine="serial", **_words(tiny, **options))  # fmt: skip


def test_mllama_streams_of_text_alone_are_fused() -> None:
    """What cannot be merged is the images; auto says so by trying, and is silent here."""
    tiny = _tiny("mllama")
    rows = [[tiny.row((), 5, seed=1), tiny.row((), 9, seed=2)]]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*streams are decoded.*")
        assert_reference(tiny.model, rows, [[1.0, 0.5]], **_words(tiny, **GREEDY))


def test_mllama_drafts() -> None:
    tiny = _tiny("mllama")
    rows = [_red(tiny)]
    suppressed = [token for token in range(160) if not 20 <= token < 26]
    for row in rows[0]:
        ids = row["input_ids"]
        row["input_ids"] = torch.where((ids > 3) & (ids < 132), 20 + ids % 6, ids)
    assert_reference(tiny.model, rows, [[1.0, 0.6]], mode="serial", engine="serial",
                     max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3,
                     suppress_tokens=suppressed)  # fmt: skip
