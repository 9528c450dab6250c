"""The page in a real browser: the slider, the details, and that nothing gets out or in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infer_kit.explanation import Explanation
from infer_kit.explanation.controls import Controls
from infer_kit.explanation.recomputed import recomputed
from infer_kit.trace import Trace
from tests.explanation.cases import case
from tests.explanation.pages import ATTACKS, ODD, explanation, free, knob, trace_with

Opened = Callable[..., Any]

CASES: dict[str, tuple[dict[str, Any], Callable[[Trace], Controls]]] = {
    "two streams, a knob": (
        {"streams": 2, "weights": (1.0, 0.5)}, lambda t: knob(t, [1, 0], [0, 1], 0.5),
    ),
    "signed, a cut-off": (
        {"streams": 2, "weights": (2.0, -1.0), "plausibility": 0.1},
        lambda t: knob(t, [1, 0], [1, -1], 1.0),
    ),
    "signed": ({"streams": 2, "weights": (1.5, -0.5)}, lambda t: knob(t, [1, 0], [1, -1], 0.5)),
    "normalised": (
        {"streams": 2, "weights": (0.5, 0.5)},
        lambda t: replace(knob(t, [1, 0], [0, 1], 1.0), normalize=True),
    ),
    "to weights of sum 0": (
        {"streams": 2, "weights": (0.8, 0.2)},
        lambda t: replace(knob(t, [1, 0], [0, -1], -0.25), normalize=True),
    ),
    "four streams": ({"streams": 4, "weights": (0.4, 0.3, 0.2, -0.2)}, free),
    "a mixture of four": (
        {"streams": 4, "weights": (0.4, 0.3, 0.2, 0.1), "pool": "mixture"},
        lambda t: free(t, normalize=True),
    ),
    "a mixture, a cut-off": (
        {"streams": 2, "weights": (0.6, 0.4), "pool": "mixture", "plausibility": 0.3},
        lambda t: free(t, normalize=True),
    ),
    "excluded tokens": (
        {"streams": 3, "weights": (1.0, 0.7, -0.4), "holes": 0.4, "depth": 4}, free,
    ),
    "two experts": (
        {"streams": 3, "weights": (0.6, 0.5, -0.4), "plausibility": 0.3, "experts": (0, 1),
         "spread": 1.0}, free,
    ),
}  # fmt: skip

DOUBTFUL = ("signed", "four streams", "excluded tokens", "two experts")

_READ = """() => [...document.querySelectorAll("#tokens button")].map(
    (b) => [Number(b.dataset.shown), b.dataset.doubt ?? null])"""
_MOVE = """([j, stop]) => {
    const slider = document.getElementById(`slider-${j}`);
    slider.value = stop;
    slider.dispatchEvent(new Event("input"));
}"""

_THROUGH = f"""(every) => every.map((places) => {{
    places.forEach((stop, j) => ({_MOVE})([j, stop]));
    return [({_READ})(), document.getElementById("summary").textContent];
}})"""


def _settings(controls: Controls) -> list[list[int]]:
    """Positions of all sliders: each over its whole range, the others where they are."""
    start = [slider.start for slider in controls.sliders]
    return [
        [stop if i == j else at for i, at in enumerate(start)]
        for j, slider in enumerate(controls.sliders)
        for stop in range(len(slider.stops))
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_slider_says_what_the_recomputation_says(name: str, opened: Opened) -> None:
    options, controls_for = CASES[name]
    trace = case(5, tokens=12, **options).trace
    made = explanation(trace, controls := controls_for(trace))
    page = opened(made)
    written = trace.token_ids.tolist()
    assert [shown for shown, _ in page.evaluate(_READ)] == written
    seen, doubts = set(), set()
    every = _settings(controls)
    for places, (found, summary) in zip(every, page.evaluate(_THROUGH, every), strict=True):
        values = [s.stops[p] for s, p in zip(controls.sliders, places, strict=True)]
        weights = controls.weights(values)
        if weights is None:
            assert found == [[token, None] for token in written]
            assert "there is no choice" in summary
            continue
        expected = []
        for t, choice in enumerate(recomputed(trace, weights)):
            left = choice.place is not None
            expected.append([choice.token_id if left else written[t], choice.doubt])
        assert found == expected, values
        seen.add(tuple(shown for shown, _ in found))
        doubts |= {doubt for _, doubt in found}
    assert len(seen) > 1
    assert "" in doubts and (len(doubts) > 1 or name not in DOUBTFUL)
    page.locator("#reset").click()
    assert [shown for shown, _ in page.evaluate(_READ)] == written


_SHARES = """() => [...document.querySelectorAll("#tokens button")].map((button) => {
    button.focus();
    const cells = [...document.querySelectorAll("#details tbody tr")].map(
        (row) => [Number(row.dataset.id), row.querySelector("td").textContent]);
    return [document.querySelector("#details thead th:nth-child(2)").textContent, cells];
})"""


def _shown_share(log_pi: float) -> str:
    if np.isnan(log_pi):
        return "–"
    share = float(np.exp(log_pi))
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %" if share > 0 else "0 %"


@pytest.mark.parametrize("name", ["two streams, a knob", "signed, a cut-off", "two experts"])
def test_no_share_is_shown_that_is_no_bound(name: str, opened: Opened) -> None:
    options, controls_for = CASES[name]
    trace = case(5, tokens=12, **options).trace
    page = opened(explanation(trace, controls := controls_for(trace)))
    heads = set()
    start = [slider.start for slider in controls.sliders]
    for stop in range(0, len(controls.sliders[0].stops), 5):
        weights = controls.weights([s.stops[p] for s, p in zip(
            controls.sliders, [stop, *start[1:]], strict=True)])  # fmt: skip
        page.evaluate(_MOVE, [0, stop])
        for t, (choice, (head, cells)) in enumerate(
            zip(recomputed(trace, weights), page.evaluate(_SHARES), strict=True)
        ):
            if choice.place is None:
                continue
            ids = trace.candidate_ids[t].tolist()
            expected = {i: _shown_share(p) for i, p in zip(ids, choice.log_pi, strict=True)}
            assert dict(cells) == expected
            unknown = bool(np.isnan(choice.log_pi).all())
            assert head == ("π" if choice.exact or unknown else "π ≤")
            heads.add((head, unknown))
            if unknown and t == len(trace) - 1:
                assert "the edge is not known" in page.locator("#details .doubt").inner_text()
                assert "π is not known" in page.locator("#details").inner_text()
    assert ("π", True) in heads if name == "two experts" else ("π", True) not in heads


def test_values_by_token_are_in_force_until_the_slider_is_moved(opened: Opened) -> None:
    trace = case(5, 2, (1.0, 0.5), tokens=4).trace
    lm = knob(trace, [1, 0], [0, 1], 0.5)
    slider = replace(lm.sliders[0], values=(0.1, 0.5, 0.9, 1.3))
    page = opened(explanation(trace, replace(lm, sliders=(slider,))))
    assert "0.1 … 1.3, by token (in force)" in page.locator("#value-0").inner_text()
    page.evaluate(_MOVE, [0, 40])
    assert page.locator("#value-0").inner_text() == "2"


def _two(texts: tuple[str, ...] = ("red", "green", "blue"), **more: Any) -> Explanation:
    trace = trace_with(texts, seed=2, streams=2, weights=(1.0, 0.5), tokens=8, **more)
    return explanation(trace, knob(trace, [1, 0], [0, 1], 0.5), picture=True)


def test_hover_focus_and_tap_show_the_candidates(opened: Opened) -> None:
    made = _two()
    page = opened(made, has_touch=True)
    trace = made.trace
    assert trace.candidate_ids is not None and trace.candidate_logprobs is not None
    buttons = page.locator("#tokens button")

    def check(t: int) -> None:
        panel = page.locator("#details")
        assert f"Token {t + 1} of 8" in panel.inner_text()
        rows = panel.locator("tbody tr")
        ids = rows.evaluate_all("rows => rows.map((row) => Number(row.dataset.id))")
        assert sorted(ids) == trace.candidate_ids[t].tolist()
        assert ids[0] == trace.token_ids[t]
        cells = rows.first.locator("td").all_inner_texts()
        place = trace.candidate_ids[t].tolist().index(ids[0])
        for k in range(2):
            value = trace.candidate_logprobs[t][place, k]
            assert float(cells[1 + k].split("(")[0].replace("−", "-")) == pytest.approx(
                value, rel=1e-2
            )
            assert f"{100 * np.exp(value):.1f} %" in cells[1 + k]
        share = np.exp(trace.pooled[t])
        assert cells[0] == f"{100 * share:.1f} %"
        figures = panel.locator(".part .figure").all_inner_texts()
        parts = [float(f.replace("−", "-").replace("+", "")) for f in figures]
        assert parts == pytest.approx(trace.parts[t].tolist(), rel=1e-2, abs=1e-3)

    check(0)
    buttons.nth(3).hover()
    check(3)
    page.mouse.move(2, 2)
    check(0)
    buttons.nth(2).tap()
    check(2)
    page.keyboard.press("ArrowRight")
    check(3)
    page.keyboard.press("End")
    check(7)
    page.keyboard.press("Home")
    check(0)
    assert buttons.first.get_attribute("aria-pressed") == "true"


def test_texts_stay_texts(opened: Opened) -> None:
    trace = trace_with(ATTACKS, seed=2, streams=2, weights=(1.0, 0.5), tokens=8)
    trace = replace(trace, streams=(ATTACKS[0], ATTACKS[3]))
    page = opened(explanation(trace, knob(trace, [1, 0], [0, 1], 0.5), ATTACKS, picture=True))
    for t in range(8):
        page.locator("#tokens button").nth(t).hover()
    page.evaluate(_MOVE, [0, 33])
    page.locator("summary").first.click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, svg").count() == 1
    assert page.locator("script").count() == 3
    assert page.locator("h1").text_content() == " ".join(ATTACKS)
    assert ATTACKS[1] in page.locator("pre").first.inner_text()
    assert page.title().startswith("</script><script>")


def test_the_policy_lets_nothing_out(opened: Opened) -> None:
    page = opened(_two())
    for attempt in (
        "fetch('https://example.com/')",
        "new Promise((done, fail) => { const i = new Image(); i.onload = done; i.onerror = fail;"
        " i.src = 'https://example.com/x.png'; })",
    ):
        with pytest.raises(Exception, match="."):
            page.evaluate(attempt)
    refused = [problem for problem in page.problems if "Content Security Policy" in problem]
    assert len(refused) >= 2
    page.problems.clear()


def test_what_cannot_be_seen_is_made_visible(opened: Opened) -> None:
    trace = trace_with(ODD, seed=4, streams=2, weights=(1.0, 0.5), vocabulary=len(ODD), tokens=30)
    page = opened(explanation(trace, knob(trace, [1, 0], [0, 1], 0.5), ODD))
    shown = {"\n": "⏎", " ": "␣", "  red ": "␣␣red␣", "\t": "⇥", "": "∅", "\x00": "\\u0000",
             "\u202eabc": "\\u202eabc", "🦉": "🦉", "é": "é"}  # fmt: skip
    words = page.locator("#tokens .word").all_text_contents()
    for text, word in zip(trace.tokens, words, strict=True):
        assert word.rstrip("?") == shown.get(text, word.rstrip("?"))
    assert {"\n", " ", "", "🦉"} <= set(trace.tokens)
    assert all(word.strip() for word in words)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("streams", [2, 4])
@pytest.mark.parametrize("picture", [True, False])
def test_it_fits(streams: int, width: int, picture: bool, opened: Opened) -> None:
    weights = (1.0, 0.5, 0.3, 0.2)[:streams]
    trace = trace_with(("red", "a" * 90), seed=1, streams=streams, weights=weights, tokens=40)
    names = ("image", "rationale", "disturbed instruction", "chunk 3")[:streams]
    trace = replace(trace, streams=names)
    page = opened(explanation(trace, free(trace), ("word " * 60, "x" * 300), picture), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure").count() == int(picture)
    for name in names:
        assert name in page.locator("#legend").inner_text()


def test_a_token_that_is_not_the_pools_best_is_marked(opened: Opened) -> None:
    trace = case(2, 2, (1.0, 0.5), written="other").trace
    page = opened(explanation(trace, knob(trace, [1, 0], [0, 1], 0.5)))
    assert page.locator("#tokens sup", has_text="†").count() == len(trace)
    assert page.locator("#tokens del").count() == 0
    assert "sampled or changed by a processor" in page.locator("#details").inner_text()


def test_a_token_that_would_differ_stands_beside_the_old_one(opened: Opened) -> None:
    page = opened(made := _two(spread=0.5))
    page.evaluate(_MOVE, [0, 0])
    choices = recomputed(made.trace, [1.0, 0.0])
    differ = [t for t, c in enumerate(choices) if c.token_id != made.trace.token_ids[t]]
    assert differ
    button = page.locator("#tokens button").nth(differ[0])
    assert button.locator("del").inner_text() == made.trace.tokens[differ[0]]
    assert button.locator("ins").inner_text() == choices[differ[0]].text
    summary = page.locator("#summary").inner_text()
    assert f"{len(differ)} of 8 tokens would be chosen otherwise" in summary
    assert "given the original tokens before it" in summary


def test_an_empty_answer_and_nothing_to_slide(opened: Opened) -> None:
    made = _two()
    trace = case(2, 1, (1.0,), tokens=1).trace
    alone = Controls((0.0,), (), False, "One stream alone was run.")
    page = opened(replace(made, trace=trace, controls=alone))
    assert page.locator("input").count() == 0
    assert "One stream alone was run." in page.locator("main").inner_text()


def test_figures_of_excluded_tokens_are_written(opened: Opened) -> None:
    trace = case(5, 3, (1.0, 0.7, -0.4), tokens=6, holes=0.9, depth=20, vocabulary=30).trace
    page = opened(explanation(trace, free(trace)))
    seen = ""
    for t in range(6):
        page.locator("#tokens button").nth(t).hover()
        seen += page.locator("#details").inner_text()
    assert "−∞" in seen and "excluded" in seen
    assert "NaN" not in seen and "Infinity" not in seen and "undefined" not in seen
