"""Paired comparisons against slow references, and refusals."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.comparison import agreement, compare, paired_bootstrap, sign_test
from infer_kit.evaluation.results import ratio
from infer_kit.evaluation.run_folder import RunFolder


def run_of(path: Path, scores: dict[str, float], **config: Any) -> RunFolder:
    """A finished run of the task "exact" whose answers are right or wrong as told."""
    path.mkdir()
    given = {"task": "exact", "data": "d", "limit": None, "method": "direct", **config}
    begun = {"config": given, "paths": {"task": given["task"]}, "versions": {}, "commits": []}
    (path / "config.json").write_text(json.dumps(begun))
    figures = {"metrics": {}, "n": len(scores), "errors": 0, "seconds": 1.0}
    (path / "results.json").write_text(json.dumps({**begun, **figures}))
    lines = (
        {"id": id, "question": f"q{id}", "prediction": "yes" if score else "no", "target": "yes",
         "correct": score, "seconds": 0.1}
        for id, score in scores.items()
    )  # fmt: skip
    (path / "samples-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunFolder(path)


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[RunFolder, RunFolder]]:
    def make(n: int, seed: int) -> tuple[RunFolder, RunFolder]:
        rng = np.random.default_rng(seed)
        tables = [{str(i): float(rng.random() < p) for i in range(n)} for p in (0.5, 0.7)]
        return run_of(tmp_path / f"a{seed}", tables[0]), run_of(tmp_path / f"b{seed}", tables[1])

    return make


@pytest.mark.parametrize("seed", range(3))
def test_a_comparison_is_what_the_definitions_say(seed: int, pair: Any) -> None:
    first, second = pair(60, seed)
    found = compare(first, second, resamples=4000, seed=seed)
    a = np.array([line["correct"] for line in first.lines().values()])
    b = np.array([line["correct"] for line in second.lines().values()])
    assert found.values == (pytest.approx(a.mean()), pytest.approx(b.mean()))
    assert found.difference == pytest.approx(b.mean() - a.mean())
    wins, losses = int((b > a).sum()), int((a > b).sum())
    assert (found.wins, found.losses, found.ties) == (wins, losses, 60 - wins - losses)
    assert found.mcnemar == pytest.approx(binomtest(wins, wins + losses, 0.5).pvalue)
    rng = np.random.default_rng(1000 + seed)
    slow = np.sort([(b - a)[rng.integers(60, size=60)].mean() for _ in range(4000)])
    assert found.low == pytest.approx(slow[100], abs=0.04)
    assert found.high == pytest.approx(slow[3900], abs=0.04)
    assert {flip.id for flip in found.flips} == {str(i) for i in np.nonzero(a != b)[0]}


def test_a_run_compared_with_itself_differs_nowhere(pair: Any) -> None:
    first, _ = pair(30, 9)
    found = compare(first, first)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert (found.wins, found.losses, found.mcnemar, found.flips) == (0, 0, 1.0, ())
    assert agreement(first, first) == 1


def test_the_bootstrap_covers_the_true_difference() -> None:
    """95 % intervals of 200 data sets hold it about 190 times."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        differences = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=150)
        drawn = paired_bootstrap(differences, np.ones(150), 600, seed)
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= 0.2 <= high
    assert 180 <= held <= 199


def test_weights_are_those_of_a_ratio() -> None:
    rng = np.random.default_rng(1)
    differences, weights = rng.normal(size=40), rng.integers(1, 90, size=40).astype(float)
    drawn = paired_bootstrap(differences, weights, 3000, 2)
    slow = []
    for _ in range(3000):
        places = rng.integers(40, size=40)
        slow.append(differences[places].sum() / weights[places].sum())
    assert drawn.mean() == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / math.sqrt(3000))
    assert drawn.std() == pytest.approx(np.std(slow), rel=0.1)


@pytest.mark.parametrize("wins, losses", [(0, 0), (1, 0), (5, 5), (12, 3), (0, 9)])
def test_the_sign_test_is_scipys(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


def test_a_mean_and_its_error_are_the_textbooks() -> None:
    values = np.random.default_rng(3).random(50)
    found = ratio(values, np.ones(50))
    assert found["value"] == pytest.approx(values.mean())
    assert found["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert ratio(values[:1], np.ones(1))["stderr"] is None
    assert ratio(values[:0], np.ones(0))["value"] is None


def test_runs_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    one = run_of(tmp_path / "a", {"1": 1.0})
    with pytest.raises(InferKitError, match="of different tasks, exact and gqa"):
        compare(one, run_of(tmp_path / "b", {"1": 1.0}, task="gqa"))
    with pytest.raises(InferKitError, match="the data files differ"):
        compare(one, run_of(tmp_path / "c", {"1": 1.0}, data="e"))
    with pytest.raises(InferKitError, match="--limit was None and 3"):
        compare(one, run_of(tmp_path / "d", {"1": 1.0}, limit=3))
    with pytest.raises(InferKitError, match="no sample in common"):
        compare(one, run_of(tmp_path / "e", {"2": 1.0}))
    with pytest.raises(InferKitError, match="is no run"):
        compare(one, RunFolder(tmp_path))


def test_samples_that_one_run_failed_on_are_told(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "a", {str(n): 1.0 for n in range(5)})
    part = run_of(tmp_path / "b", {str(n): 1.0 for n in range(3)})
    found = compare(whole, part)
    assert (found.n, found.left_out) == (3, 2)


def test_no_agreement_is_zero(tmp_path: Path) -> None:
    one = run_of(tmp_path / "a", {"1": 1.0, "2": 1.0})
    other = run_of(tmp_path / "b", {"1": 0.0, "2": 0.0})
    assert agreement(one, other) == 0
