"""The trace of an answer: parts that sum to the margin, and its three renderings."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from infer_kit.errors import InferKitError
from infer_kit.methods.recipe import Recipe
from infer_kit.token_statistics import TokenStatistics
from infer_kit.trace import Trace, trace_of


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    logprobs, other = np.log(rng.dirichlet(np.ones(2), size=(2, 3, 2)))[..., 0]
    weights = np.tile([1.0, 0.5], (3, 1))
    pooled = (weights * logprobs).sum(1)
    return Trace(
        streams=("image", "rationale"),
        pool="product",
        tokens=("a", "b", "</s>"),
        token_ids=np.array([3, 4, 2]),
        pooled=pooled,
        logprobs=logprobs,
        weights=weights,
        runner_up=("x", "y", "z"),
        runner_up_pooled=(weights * other).sum(1),
        runner_up_logprobs=other,
        top=(("a", "x"), ("b", "b"), ("</s>", "</s>")),
        decisive=np.array([[True, False], [False, False], [False, False]]),
        divergence=np.array([0.3, 0.1, 0.0]),
    )


def test_parts_sum_to_the_margin(trace: Trace) -> None:
    np.testing.assert_allclose(trace.parts.sum(1), trace.margin, atol=1e-12)


def test_a_stream_that_did_not_run_adds_nothing(trace: Trace) -> None:
    logprobs = trace.logprobs.copy()
    logprobs[:, 1] = np.nan
    assert (replace(trace, logprobs=logprobs).parts[:, 1] == 0).all()


def test_parts_of_a_mixture_are_refused(trace: Trace) -> None:
    with pytest.raises(InferKitError, match="for a product, not a mixture"):
        _ = replace(trace, pool="mixture").parts


def test_mattered_asks_whether_a_stream_decided_some_token(trace: Trace) -> None:
    assert trace.mattered("image")
    assert not trace.mattered("rationale")
    assert not replace(trace, idle=("other",)).mattered("other")
    with pytest.raises(InferKitError, match=r"No stream 'rational'; this trace has \['image', 'r"):
        trace.mattered("rational")


def test_model_text_is_no_markup(trace: Trace) -> None:
    odd = replace(trace, tokens=("[/INST]", "[b]", "$x$"), runner_up=("[/x]", "$", "_"))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(odd.table())
    assert "'[/INST]'" in console.export_text()


def test_a_figure_leaves_the_callers_backend_alone(trace: Trace, tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.get_backend()
    replace(trace, tokens=("[/INST]", "\n", "$x$")).figure(tmp_path / "odd.svg")
    assert matplotlib.get_backend() == before


def test_the_table_shows_every_token_and_stream(trace: Trace) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(trace.table("title"))
    text = console.export_text()
    part = f"{trace.parts[0, 0]:+.2f}"
    for word in ("'a'", "'</s>'", "image wants", "rationale wants", "title", part):
        assert word in text


def test_to_dict_is_json_and_keeps_the_figures(trace: Trace) -> None:
    read = json.loads(json.dumps(trace.to_dict()))
    assert read["tokens"] == ["a", "b", "</s>"]
    np.testing.assert_allclose(np.array(read["parts"]).sum(1), read["margin"])


def test_the_figure_is_written(trace: Trace, tmp_path: Path) -> None:
    path = trace.figure(tmp_path / "trace.png", title="a question")
    assert path.read_bytes().startswith(b"\x89PNG")


def _wide(trace: Trace, streams: int) -> Trace:
    """The trace with its second stream repeated at weights that keep the sum."""
    times = streams - 1
    columns = [0, *[1] * times]
    weights = trace.weights[:, columns] / np.array([1, *[times] * times])
    return replace(
        trace,
        streams=tuple(f"chunk {k}" for k in range(streams)),
        logprobs=trace.logprobs[:, columns],
        weights=weights,
        runner_up_logprobs=trace.runner_up_logprobs[:, columns],
        top=tuple((row[0], *[row[1]] * times) for row in trace.top),
        decisive=trace.decisive[:, columns],
    )


def test_the_leading_stream_added_most(trace: Trace) -> None:
    wide = _wide(trace, 6)
    np.testing.assert_allclose(wide.parts.sum(1), wide.margin, atol=1e-12)
    for name, parts in zip(wide.leading, wide.parts, strict=True):
        assert parts[wide.streams.index(name)] == parts.max()
    assert json.loads(json.dumps(wide.to_dict()))["leading"] == list(wide.leading)


def test_the_table_of_many_streams_names_those_that_led_and_decided(trace: Trace) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(_wide(trace, 6).table())
    text = console.export_text()
    assert "added most" in text and "decided by" in text and "wants" not in text
    first = next(line for line in text.splitlines() if "'a'" in line)
    assert "chunk 0" in first.split("'x'")[1]  # decided the first token


def _with_candidates(trace: Trace) -> Trace:
    return replace(
        trace,
        candidates=(("a", "x"), ("b", "y", "q"), ("</s>", "z")),
        candidate_ids=tuple(np.arange(n) for n in (2, 3, 2)),
        candidate_logprobs=tuple(np.full((n, 2), -1.5) for n in (2, 3, 2)),
        floors=np.array([[-3.0, -np.inf]] * 3),
        pooled_floor=np.array([-4.0, -np.inf, -4.0]),
    )


def test_to_dict_carries_the_candidates(trace: Trace) -> None:
    read = json.loads(json.dumps(_with_candidates(trace).to_dict(), allow_nan=False))
    assert read["candidates"][1] == ["b", "y", "q"]
    assert read["candidate_ids"][1] == [0, 1, 2]
    assert read["candidate_logprobs"][0] == [[-1.5, -1.5]] * 2
    assert read["floors"][0] == [-3.0, None]
    assert read["pooled_floor"] == [-4.0, None, -4.0]
    without = trace.to_dict()
    assert without["candidates"] is None and without["floors"] is None


def test_the_candidates_of_one_sequence_out_of_a_batch() -> None:
    """Of the streams that it has, without padding, as texts."""
    R, T, K, C, V = 2, 4, 3, 5, 20
    random = torch.Generator().manual_seed(0)
    ids = torch.tensor([[[1, -1, 3, 7, -1], [2, 4, 5, -1, 9]] * 2] * R)
    values = torch.randn(R, T, C, K, generator=random)
    each = {name: torch.randint(V, (R, T), generator=random) for name in ("chosen", "runner_up")}
    figure = torch.randn(R, T, K, generator=random)
    statistics = TokenStatistics(
        **each,
        **dict.fromkeys(
            ("pooled", "runner_up_pooled", "divergence", "pooled_floor"), figure[..., 0]
        ),
        **dict.fromkeys(("logprobs", "weights", "runner_up_logprobs", "floors"), figure),
        top=torch.randint(V, (R, T, K), generator=random),
        decisive=torch.zeros(R, T, K, dtype=torch.bool),
        candidates=ids,
        candidate_logprobs=values,
    )
    found = trace_of(
        statistics, 1, 3, [2, 0], ["c", "a"], ["b"], "product", lambda i: f"<{i}>", 0.2, (1, 2)
    )
    assert found.candidates == (
        ("<1>", "<3>", "<7>"),
        ("<2>", "<4>", "<5>", "<9>"),
        *found.candidates[:1],
    )
    assert found.candidate_ids[1].tolist() == [2, 4, 5, 9]
    expected = values[1, 1][[0, 1, 2, 4]][:, [2, 0]].double().numpy()
    np.testing.assert_array_equal(found.candidate_logprobs[1], expected)
    np.testing.assert_array_equal(found.floors, figure[1, :3][:, [2, 0]].double().numpy())
    assert found.pooled_floor.shape == (3,)
    assert (found.plausibility, found.experts) == (0.2, (0,))  # stream 2 alone is there
    uncut = trace_of(statistics, 1, 3, [2, 0], ["c", "a"], [], "product", str, 0.0, (1, 2))
    assert uncut.experts == ()


@pytest.mark.parametrize("value", [0, -2, "True", 2.0, None], ids=repr)
def test_a_method_refuses_other_values_of_trace(value: object) -> None:
    class Quiet(Recipe):
        def groups(self, chats: object, memory: object = None) -> list:
            return []

    recipe = Quiet()
    assert recipe.trace is True
    recipe.trace = 4
    assert recipe.trace == 4
    with pytest.raises(InferKitError, match=f"1 or more\\); got {re.escape(repr(value))}"):
        recipe.trace = value  # type: ignore[assignment]
    assert recipe.trace == 4
