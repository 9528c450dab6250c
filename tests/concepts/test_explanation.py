"""Interventions on an explanation: deleting and inserting phrases, with and without a refit."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning

from infer_kit.concepts.cbm import ZeroShotCBM
from infer_kit.concepts.explanation import Explanation
from infer_kit.concepts.lasso import sparse_code
from infer_kit.errors import InferKitError
from tests.concepts.worlds import CLASSES, PARTS, WordEncoder, bank_of


@pytest.fixture(params=[None, "modality"])
def found(request: pytest.FixtureRequest) -> Explanation:
    """A picture of a forest, explained."""
    encoder = WordEncoder()
    options: dict[str, Any] = {}
    if request.param:
        options = {"center": "modality", "image_mean": 0.3 * encoder.vector("<image>")}
    model = ZeroShotCBM(encoder, bank_of(encoder), CLASSES, alpha=1e-4, **options)
    explained: Explanation = model.explain(features=encoder.image(PARTS["forest"], 0.3))
    assert explained.label == "forest" and len(explained.phrases) >= 5
    return explained


def rebuilt(one: Explanation) -> torch.Tensor:
    return one.weights @ one.features


def test_the_label_is_read_from_the_phrases(found: Explanation) -> None:
    model = found.model
    bank_rows = torch.tensor([model.bank.numbers[p] for p in found.phrases])
    F = model.phrase_features(model.bank.rows(bank_rows)).double()
    torch.testing.assert_close(F, found.features, atol=1e-6, rtol=0)
    p = model.read(model.rebuilt(rebuilt(found)[None]))[0]
    assert list(found.probabilities.values()) == pytest.approx(p.tolist(), abs=1e-6)


@pytest.mark.parametrize("order", ["descending", "ascending", "random"])
def test_deleting_a_number_without_a_refit(found: Explanation, order: Any) -> None:
    n = len(found.phrases)
    for count in (0, 1, 3, n):
        left = found.delete(count, order)
        assert len(left.phrases) == n - count and left.gap is None
        kept = {p: float(w) for p, w in zip(found.phrases, found.weights, strict=True)}
        assert all(kept[p] == float(w) for p, w in zip(left.phrases, left.weights, strict=True))
        if order == "descending":
            assert left.phrases == found.phrases[count:]
        if order == "ascending":
            assert left.phrases == found.phrases[: n - count]
    assert found.delete(n, order).label is None  # acceptance check 6: z = 0
    assert not found.delete(n).weights.any() and found.delete(n).cosine == 0
    assert found.delete(0).probabilities == pytest.approx(dict(found.probabilities))


def test_the_random_order_is_seeded(found: Explanation) -> None:
    drawn = [found.delete(3, "random", seed=seed).phrases for seed in range(6)]
    assert drawn[0] == found.delete(3, "random", seed=0).phrases
    assert len(set(drawn)) > 1


def test_deleting_phrases_by_name(found: Explanation) -> None:
    first, second = found.phrases[:2]
    left = found.delete([first.upper(), second])
    assert left.phrases == found.phrases[2:]
    gone = found.weights[:2] @ found.features[:2]
    torch.testing.assert_close(rebuilt(left), rebuilt(found) - gone, atol=1e-12, rtol=0)
    assert found.delete(first).phrases == found.phrases[1:]
    assert found.delete(f"NOT {first}").phrases == found.phrases[1:]


def test_deleting_with_a_refit_solves_the_lasso_without_them(found: Explanation) -> None:
    left = found.delete(2, refit=True)
    gone = set(found.phrases[:2])
    assert not gone & set(left.phrases) and left.gap is not None and left.gap <= 1e-9
    model = found.model
    names = [model.bank.phrases[n] for n in found.candidates.tolist()]
    keep = [name for name in names if name not in gone]
    rows = model.bank.rows(torch.tensor([model.bank.numbers[name] for name in keep]))
    F = model.phrase_features(rows).double()
    w = sparse_code(F, found.target, 1e-4, positive=model.positive).w
    expected = {name: float(x) for name, x in zip(keep, w, strict=True) if x}
    assert dict(zip(left.phrases, left.weights.tolist(), strict=True)) == pytest.approx(expected)
    assert left.gone == gone
    again = left.delete(1, refit=True)  # what is gone stays gone
    assert not gone & set(again.phrases)


def test_interventions_follow_one_another(found: Explanation) -> None:
    first, second = found.phrases[:2]
    twice = found.delete(first).delete(second, refit=True)  # what went without a refit stays away
    assert not {first, second} & set(twice.phrases)
    both = found.delete([first, second], refit=True)
    assert twice.phrases == both.phrases
    torch.testing.assert_close(twice.weights, both.weights, atol=1e-9, rtol=0)
    grown = found.insert({"forest": 0.3}).delete(second, refit=True)
    assert "forest" in grown.phrases  # what was inserted may be chosen
    assert "forest" not in grown.delete("forest", refit=True).phrases
    back = found.delete(first).insert(first)
    assert first in back.phrases and first not in back.gone


def test_an_unconverged_list_stays_one(found: Explanation) -> None:
    model = found.model
    hurried = ZeroShotCBM(model.encoder, model.bank, CLASSES, alpha=1e-7, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        one = hurried.explain(features=found.model.encoder.image(PARTS["city"], 2.0))  # type: ignore[attr-defined]
    if one.phrases:
        assert not one.delete(1).converged
        assert "the lasso did not converge" in one.delete(1).remarks
    assert not one.converged


def test_inserting_with_a_weight_moves_the_label(found: Explanation) -> None:
    with_city = found.insert({"City": 3.0})
    assert with_city.label == "city" and with_city.gap is None
    assert with_city.phrases[0] == "city" and float(with_city.weights[0]) == 3.0
    for phrase, w in zip(found.phrases, found.weights.tolist(), strict=True):
        assert float(with_city.weights[with_city.phrases.index(phrase)]) == w
    back = with_city.delete("city")
    assert back.probabilities == pytest.approx(dict(found.probabilities), abs=1e-6)


def test_inserting_with_the_lasso(found: Explanation) -> None:
    grown = found.insert(["forest", "wall"])
    assert grown.gap is not None and grown.gap <= 1e-9 and grown.k == len(found.phrases) + 2
    encoder = found.model.encoder
    new = torch.nn.functional.normalize(encoder.encode_text(["forest", "wall"]), dim=1)
    F = torch.cat([found.features, found.model.phrase_features(new).double()])
    w = sparse_code(F, found.target, 1e-4, positive=found.model.positive).w
    names = [*found.phrases, "forest", "wall"]
    expected = {name: float(x) for name, x in zip(names, w, strict=True) if x}
    ours = dict(zip(grown.phrases, grown.weights.tolist(), strict=True))
    assert ours == pytest.approx(expected, abs=1e-6)
    assert ours["forest"] > 0 and grown.cosine >= found.cosine


def test_inserting_with_least_squares(found: Explanation) -> None:
    grown = found.insert("forest", refit="ols")
    F = grown.features
    residual = grown.target - rebuilt(grown)
    assert float((F @ residual).abs().max()) < 1e-9  # the normal equations
    assert grown.gap is None and grown.residual <= found.residual
    assert "forest" in grown.phrases


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda e: e.delete("sea"), "'sea' has no weight in this explanation"),
        (lambda e: e.delete(99), r"99 phrases cannot be deleted: \d+ have weight"),
        (lambda e: e.delete(-1), "-1 phrases cannot be deleted"),
        (lambda e: e.delete(True), "Expected phrases, or how many of them, got True"),
        (lambda e: e.delete(1, "sideways"), "order is descending, ascending or random, got 'side"),
        (lambda e: e.insert([]), "No phrase is given"),
        (lambda e: e.insert("  "), "No phrase is given, or one is empty"),
        (lambda e: e.insert(e.phrases[0]), "is in this explanation already"),
        (lambda e: e.insert(["sea", "Sea"]), "'sea' is in this explanation already"),
        (lambda e: e.insert({"sea": float("nan")}), "The weight of 'sea' is nan; expected a numb"),
        (lambda e: e.insert({"sea": "much"}), "The weight of 'sea' is 'much'; expected a number"),
        (lambda e: e.insert("sea", refit="ridge"), "refit is 'lasso' or 'ols', got 'ridge'"),
    ],
)
def test_bad_interventions(found: Explanation, call: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        call(found)


def test_what_is_shown(found: Explanation) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found.table(4))
    shown = console.export_text()
    top = found.top(4)
    assert len(top) == 4 and all(phrase in shown for phrase, _ in top)
    assert f"label: {found.label}" in shown and f"{found.probabilities['forest']:.3f}" in shown
    assert f"{len(found.phrases)} of {found.k} phrases have weight" in shown
    assert all(said in " ".join(shown.split()) for said in found.remarks)
    for phrase, w in found.top(99):
        assert phrase.startswith("NOT ") == (w < 0)


def test_json_has_every_figure(found: Explanation) -> None:
    data = json.loads(json.dumps(found.to_dict()))
    assert data["label"] == "forest" and data["nonzero"] == len(found.phrases)
    assert [p["phrase"] for p in data["phrases"]] == list(found.phrases)
    assert math.isclose(data["gap"], found.gap or 0) and data["remarks"] == found.remarks
    assert len(found.to_dict(2)["phrases"]) == 2
    assert found.delete(1).to_dict()["gap"] is None


def test_figures_are_drawn(found: Explanation, tmp_path: Path) -> None:
    for picture in (None, Image.new("RGB", (8, 8), (9, 200, 3))):
        path = found.figure(tmp_path / "in" / "page.png", picture, 5)
        with Image.open(path) as drawn:
            assert drawn.size[0] > 300
    nothing = found.delete(len(found.phrases))
    nothing.figure(tmp_path / "nothing.png")
    Console(file=io.StringIO()).print(nothing.table())


def test_remarks_say_how_much_is_not_shown() -> None:
    encoder = WordEncoder(dim=40)
    bank = bank_of(encoder, [f"word{n}" for n in range(200)])
    model = ZeroShotCBM(encoder, bank, CLASSES, alpha=1e-6)
    one = model.explain(features=encoder.image(PARTS["city"], 2.0))
    assert len(one.phrases) > 16
    share = float(one.weights.abs()[:16].sum() / one.weights.abs().sum())
    expected = f"the first 16 of {len(one.phrases)} phrases carry {share:.0%} of the weight"
    assert expected in one.remarks
    negative = float(one.weights.abs()[one.weights < 0].sum() / one.weights.abs().sum())
    assert negative > 0.25
    assert f"{negative:.0%} of the weight says what is not there" in one.remarks
