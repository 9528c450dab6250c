"""Sliders: their weights are those that the method would have used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infer_kit.explanation.controls import STOPS, controls_of
from infer_kit.methods.contrastive import CFG, ICD, VCD, ContrastiveDecoding
from infer_kit.methods.recipe import Recipe
from infer_kit.methods.red import RED
from infer_kit.streams import Group, Stream
from infer_kit.trace import Trace
from tests.explanation.cases import case


def _of(kind: Any, **attributes: Any) -> Any:
    """A method that was never given a model."""
    recipe = object.__new__(kind)
    for name, value in attributes.items():
        setattr(recipe, name, value)
    return recipe


def _made(recipe: Any, weights: list[float], **options: Any) -> tuple[Any, Trace]:
    trace = case(1, len(weights), tuple(weights), **options).trace
    group = Group(tuple(Stream(None, w, f"stream {k}") for k, w in enumerate(weights)))
    return controls_of(recipe, group, trace), trace


METHODS: dict[str, tuple[Any, float, list[float]]] = {
    "RED": (_of(RED, weight=0.7, image_weight=1.0), 0.7, [0.0, 1.7]),
    "RED, an image weight": (_of(RED, weight=0.7, image_weight=0.4), 0.7, [0.0, 1.7]),
    "RED, normalised": (_of(RED, weight=1.5, image_weight=1.0, normalize=True), 1.5, [0.5, 3.0]),
    "VCD": (_of(VCD, alpha=1.0), 1.0, [0.0, 2.0]),
    "ICD": (_of(ICD, alpha=0.5, noise_step=None), 0.5, [0.25, 1.5]),
    "ICD, noise": (_of(ICD, alpha=0.5, noise_step=300), 0.5, [0.25, 1.5]),
    "CFG": (_of(CFG, scale=1.5), 1.5, [1.0, 2.5]),
    "contrastive decoding": (_of(ContrastiveDecoding, strength=0.5, temperature=0.5), 0.5, [1.5]),
}


@pytest.mark.parametrize("name", METHODS)
def test_one_slider_for_the_knob(name: str) -> None:
    recipe, value, others = METHODS[name]

    def weights_of(s: float) -> np.ndarray:
        w = np.array(recipe.stream_weights(s))
        return w / w.sum() if recipe.normalize else w

    controls, trace = _made(recipe, weights_of(value).tolist())
    (slider,) = controls.sliders
    assert slider.name == recipe.knob and slider.neutral == recipe.neutral
    assert slider.values == (value,) * len(trace)
    assert slider.stops[slider.start] == value
    assert {0.0, recipe.neutral, value} <= set(slider.stops)
    assert len(slider.stops) <= STOPS and list(slider.stops) == sorted(set(slider.stops))
    assert controls.weights([value]) == pytest.approx(trace.weights[0], abs=1e-6)
    for s in others:
        assert controls.weights([s]) == pytest.approx(weights_of(s))


def test_a_budget_gives_each_token_its_value() -> None:
    recipe = _of(RED, weight="kl:0.1", image_weight=1.0)
    trace = case(1, 2, (1.0, 0.5), tokens=3).trace
    weights = np.array([[1.0, 0.2], [1.0, 0.9], [1.0, 100.0]])
    trace = SimpleNamespace(**{**vars(trace), "weights": weights})  # type: ignore[assignment]
    group = Group((Stream(None, 1.0, "stream 0"), Stream(None, 1.0, "stream 1")))
    controls = controls_of(recipe, group, trace)
    (slider,) = controls.sliders
    assert slider.values == pytest.approx((0.2, 0.9, 100.0))
    assert slider.stops[-1] == 2 and slider.stops[slider.start] == pytest.approx(0.55, abs=0.02)
    assert "A budget of 0.1 nats a token" in controls.note and "0.2 to 100" in controls.note


def test_weights_that_are_no_function_of_the_knob_have_a_slider_each() -> None:
    for recipe in (
        _of(ContrastiveDecoding, strength=None, temperature=1.0),
        _of(RED, weight=0.5, image_weight=1.0),  # not what these weights come from
        _of(Free),
    ):
        controls, trace = _made(recipe, [0.9, -0.4])
        assert [s.name for s in controls.sliders] == list(trace.streams)
        assert controls.weights([0.3, -0.2]) == pytest.approx([0.3, -0.2])
        assert [s.stops[s.start] for s in controls.sliders] == pytest.approx([0.9, -0.4])
        assert controls.weights([0.0, 0.0]) is None


class Free(Recipe):
    """Weights of its own."""

    def groups(self, chats: Any, memory: Any = None) -> list[Group]:
        raise NotImplementedError


def test_a_mixture_is_divided_by_its_sum() -> None:
    controls, _ = _made(_of(Free, pool="mixture"), [0.25, 0.75], pool="mixture")
    assert controls.weights([1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert min(s.stops[0] for s in controls.sliders) == 0
    assert "divided by their sum" in controls.note


def test_weights_that_sum_to_zero_are_none() -> None:
    recipe = _of(RED, weight=1.0, image_weight=-0.5, normalize=True)
    controls, _ = _made(recipe, [-1.0, 2.0])
    assert controls.weights([0.5]) is None


def test_a_stream_that_did_not_run_cannot_be_moved() -> None:
    controls, trace = _made(_of(RED, weight=0.0, image_weight=1.0), [1.0, 0.0])
    assert trace.idle == ("stream 1",) and not controls.sliders
    assert "Only 'stream 0' was run, 'stream 1' having weight 0" in controls.note
    controls, _ = _made(_of(Free), [1.0, 0.5, 0.0])
    assert len(controls.sliders) == 2 and "Not run, having weight 0: stream 2" in controls.note
    controls, _ = _made(_of(Free), [1.0])
    assert "One stream alone" in controls.note
