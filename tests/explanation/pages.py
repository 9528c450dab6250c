"""Explanations made of random streams, with texts that try to get out of the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from infer_kit.explanation import Explanation
from infer_kit.explanation.contexts import Context
from infer_kit.explanation.controls import Controls, Slider
from infer_kit.explanation.pictures import shown
from infer_kit.trace import Trace
from tests.explanation.cases import case

ATTACKS = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=window.hacked=2>",
    "<!--<script>",
    '" onmouseover="window.hacked=3',
    "{{data}} &lt;b&gt; \u2028 ${window.hacked=4} ]]>",
    "<svg onload=window.hacked=5>",
)
ODD = ("\n", " ", "  red ", "\t", "", "🦉", "👩‍🚀", "\u202eabc", "\x00", "é", "a" * 80)


def trace_with(texts: tuple[str, ...], **options: Any) -> Trace:
    """A random trace whose tokens are called by `texts`, in turn."""
    trace = case(**options).trace

    def name(token: int) -> str:
        return texts[token % len(texts)] + (f" {token}" if token >= len(texts) else "")

    assert trace.candidate_ids is not None
    return replace(
        trace,
        candidates=tuple(tuple(name(int(i)) for i in ids) for ids in trace.candidate_ids),
        tokens=tuple(name(int(i)) for i in trace.token_ids),
        runner_up=tuple(name(int(text[1:-1])) for text in trace.runner_up),
    )


def knob(trace: Trace, base: list[float], d: list[float], value: float) -> Controls:
    """One slider, as for RED or VCD."""
    stops = tuple(np.linspace(0.0, 2.0, 41).round(10).tolist())
    slider = Slider("weight", stops, 0.0, tuple([value] * len(trace)), tuple(d))
    return Controls(tuple(base), (slider,), False)


def free(trace: Trace, normalize: bool = False) -> Controls:
    """One slider a stream."""
    streams = len(trace.streams)
    stops = tuple(np.linspace(-1.0 if trace.weights.min() < 0 else 0.0, 2.0, 31).round(10).tolist())
    sliders = tuple(
        Slider(
            name,
            stops,
            None,
            tuple(trace.weights[:, k].tolist()),
            tuple(float(j == k) for j in range(streams)),
        )
        for k, name in enumerate(trace.streams)
    )
    return Controls(tuple([0.0] * streams), sliders, normalize)


def explanation(
    trace: Trace,
    controls: Controls,
    texts: tuple[str, ...] = ("a context",),
    picture: bool = False,
) -> Explanation:
    """With `texts` in every place that takes a text of a model or a user."""
    every = " ".join(texts)
    return Explanation(
        question=every,
        text=every,
        trace=trace,
        pictures=(shown(Image.new("RGB", (40, 30), "teal")),) if picture else (),
        contexts=tuple(Context(name, 7, 3, every, every) for name in trace.streams),
        controls=controls,
        facts=(("method", f"RED({every})"), ("model", every)),
        depth=3,
    )
