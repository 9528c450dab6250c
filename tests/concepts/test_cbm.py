"""Zero-shot concept bottlenecks: equal to the formulas written out, and their refusals."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

import infer_kit as ik
from infer_kit.concepts.bank import ConceptBank
from infer_kit.concepts.cbm import Prediction, ZeroShotCBM
from infer_kit.concepts.lasso import sparse_code
from infer_kit.concepts.retrieval import FaissIndex
from infer_kit.errors import InferKitError
from tests.concepts.lassos import unit
from tests.concepts.worlds import CLASSES, PHRASES, WordEncoder, bank_of, samples


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def bank(encoder: WordEncoder) -> ConceptBank:
    return bank_of(encoder)


def written_out(
    encoder: WordEncoder,
    bank: ConceptBank,
    v: Tensor,
    k: int,
    alpha: float,
    positive: bool = False,
    mean: Tensor | None = None,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """One image by the equations in float64: weights by phrase, z, probabilities."""
    v, B = v.double(), bank.features.double()
    target = v
    if mean is not None:
        mean = mean.double()
        target, B = unit(v - mean), unit(B - B.mean(0))
    order = (B @ target).argsort(descending=True)[:k]
    F = B[order]
    w = sparse_code(F, target, alpha, positive=positive, solver="admm").w
    z = F.T @ w
    if mean is not None:
        z = unit(unit(z) + mean)
    T = unit(encoder.encode_text([f"a photo of a {name}" for name in CLASSES]).double())
    weights = {bank.phrases[int(n)]: float(x) for n, x in zip(order, w, strict=True) if x != 0}
    return weights, z, (encoder.logit_scale * T @ z).softmax(0)


@pytest.mark.parametrize("k", [1, 7, 30, None])
@pytest.mark.parametrize("positive", [False, True])
def test_an_explanation_is_the_equations(
    encoder: WordEncoder, bank: ConceptBank, k: int | None, positive: bool
) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES, k=k, alpha=1e-4, positive=positive)
    for v in samples(encoder, 6)[0]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*say nothing")
            found = model.explain(features=v)
        weights, z, p = written_out(encoder, bank, v, k or 30, 1e-4, positive)
        ours = dict(zip(found.phrases, found.weights.tolist(), strict=True))
        assert ours == pytest.approx(weights, abs=1e-6)
        assert [abs(w) for w in ours.values()] == sorted(map(abs, ours.values()), reverse=True)
        assert list(found.probabilities.values()) == pytest.approx(p.tolist(), abs=1e-5)
        assert found.label == CLASSES[int(p.argmax())]
        assert found.cosine == pytest.approx(float(unit(z) @ v.double()), abs=1e-6)
        assert found.residual == pytest.approx(float((v.double() - z).norm()), abs=1e-6)
        assert found.gap is not None and found.gap <= 1e-9 and found.converged
        assert found.lam == pytest.approx(48e-4)
        direct = (encoder.logit_scale * _classes(encoder) @ v.double()).softmax(0)
        assert list(found.zero_shot.values()) == pytest.approx(direct.tolist(), abs=1e-5)


def _classes(encoder: WordEncoder) -> Tensor:
    return unit(encoder.encode_text([f"a photo of a {name}" for name in CLASSES]).double())


def test_modality_centring_is_the_equations(encoder: WordEncoder, bank: ConceptBank) -> None:
    features, _ = samples(encoder, 30)
    mean = features.mean(0)
    model = ZeroShotCBM(encoder, bank, CLASSES, alpha=1e-3, k=20, center="modality",
                        image_mean=mean)  # fmt: skip
    assert model.positive
    for v in features[:5]:
        found = model.explain(features=v)
        weights, _, p = written_out(encoder, bank, v, 20, 1e-3, True, mean)
        ours = dict(zip(found.phrases, found.weights.tolist(), strict=True))
        assert ours == pytest.approx(weights, abs=1e-5)
        assert list(found.probabilities.values()) == pytest.approx(p.tolist(), abs=1e-5)
    signed = ZeroShotCBM(encoder, bank, CLASSES, positive=False, center="modality",
                         image_mean=mean.tolist())  # fmt: skip
    assert not signed.positive


def test_batches_are_their_images(encoder: WordEncoder, bank: ConceptBank) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES, alpha=1e-4)
    features, _ = samples(encoder, 33)  # more than one part, and a last part of one image
    many = model.explain(features=features)
    prediction = model.predict(features=features)
    assert isinstance(prediction, Prediction) and len(many) == 33
    for b in (0, 5, 31, 32):
        alone = model.explain(features=features[b])
        assert alone.phrases == many[b].phrases and alone.label == many[b].label
        torch.testing.assert_close(alone.weights, many[b].weights, atol=1e-6, rtol=0)
        assert prediction.labels[b] == alone.label
        assert prediction.probabilities[b].tolist() == pytest.approx(
            list(alone.probabilities.values()), abs=1e-5
        )
        assert prediction.zero_shot[b].tolist() == pytest.approx(
            list(alone.zero_shot.values()), abs=1e-5
        )
        assert int(prediction.code.nnz[b]) == len(alone.phrases)
    assert prediction.probabilities.shape == prediction.zero_shot.shape == (33, 3)


def test_one_image_and_a_list_of_one(encoder: WordEncoder, bank: ConceptBank) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES)
    picture = Image.new("RGB", (4, 4), (1, 0, 0))
    alone, many = model.explain(picture), model.explain([picture])
    assert isinstance(alone, ik.Explanation) and len(many) == 1
    assert alone.to_dict() == many[0].to_dict()
    assert alone.label == "beach"
    assert model.predict([picture, picture]).labels == ["beach", "beach"]


def test_features_of_any_length(encoder: WordEncoder, bank: ConceptBank) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES)
    v = samples(encoder, 1)[0][0]
    assert model.explain(features=3 * v).phrases == model.explain(features=v).phrases
    assert model.explain(features=v.tolist()).phrases == model.explain(features=v).phrases


def test_the_default_k_is_the_bank_where_that_is_small(
    encoder: WordEncoder, bank: ConceptBank
) -> None:
    assert ZeroShotCBM(encoder, bank, CLASSES).k == 30
    assert ZeroShotCBM(encoder, bank, CLASSES, k=12).k == 12


def test_templates_are_averaged(encoder: WordEncoder, bank: ConceptBank) -> None:
    one = ZeroShotCBM(encoder, bank, CLASSES, template=["a {}"])
    two = ZeroShotCBM(encoder, bank, CLASSES, template=["a {}", "the big {}"])
    features = samples(encoder, 4)[0]
    expected = unit(
        sum(
            unit(encoder.encode_text([t.format(name) for name in CLASSES]))
            for t in ("a {}", "the big {}")
        )  # type: ignore[arg-type]
    )
    p = (encoder.logit_scale * features @ expected.T).softmax(1)
    torch.testing.assert_close(two.read(features), p, atol=1e-5, rtol=0)
    assert not torch.allclose(one.read(features), p, atol=1e-3)


def test_nothing_to_say_is_said(encoder: WordEncoder, bank: ConceptBank) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES, alpha=0.1)
    features = samples(encoder, 3)[0]
    with pytest.warns(
        UserWarning, match=r"3 of 3 explanations say nothing \(first: image 0\): no "
    ):
        found = model.explain(features=features)
    assert found[0].label is None and not found[0].phrases and found[0].cosine == 0
    most = f"{found[0].lam_max:.2g}"
    said = f"no phrase has weight: λ = 4.8 against λ_max = {most}, so there is no label"
    assert found[0].remarks == [said]
    assert model.predict(features=features).labels == [None] * 3
    far = ZeroShotCBM(encoder, bank, CLASSES, k=1)
    with pytest.warns(UserWarning, match="1 of 1 explanations say nothing .*at cosine 0"):
        far.explain(features=unit(torch.ones(48)))


def test_an_unconverged_lasso_is_named(encoder: WordEncoder, bank: ConceptBank) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES, max_iter=1)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        found = model.explain(features=samples(encoder, 1)[0][0])
    assert not found.converged and found.gap is not None and found.gap > 1e-9
    assert any("did not converge: gap" in said for said in found.remarks)


def test_warnings_count_all_images(encoder: WordEncoder, bank: ConceptBank) -> None:
    """Not within the parts in which they are solved."""
    model = ZeroShotCBM(encoder, bank, CLASSES, max_iter=1)
    features, _ = samples(encoder, 70)
    for call in (model.explain, model.predict):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call(features=features)
        late = [str(w.message) for w in said if w.category is ConvergenceWarning]
        assert len(late) == 1 and "of 70 images" in late[0]


def test_an_index_of_another_bank(encoder: WordEncoder, bank: ConceptBank) -> None:
    pytest.importorskip("faiss")
    index = FaissIndex.build(bank.features)
    ZeroShotCBM(encoder, bank, CLASSES, retriever=index)
    with pytest.raises(InferKitError, match=r"The index is of a bank of shape \[30, 48\], this"):
        ZeroShotCBM(encoder, bank_of(encoder, PHRASES[:20]), CLASSES, retriever=index)
    other = bank_of(encoder, [f"word{n}" for n in range(30)])
    swapped = ZeroShotCBM(encoder, other, CLASSES, retriever=index)
    with pytest.raises(InferKitError, match="off those of the phrases that it names"):
        swapped.explain(features=samples(encoder, 1)[0][0])


def test_class_names_in_the_bank_are_warned_of(encoder: WordEncoder) -> None:
    leaky = bank_of(encoder, [*PHRASES, "Forest", "beach"])
    with pytest.warns(UserWarning, match=r"2 of 3 class names are phrases of the bank \(forest, "):
        ZeroShotCBM(encoder, leaky, CLASSES)
    ZeroShotCBM(encoder, bank_of(encoder, [*PHRASES, "forest"], classes=CLASSES), CLASSES)


def test_half_a_bank_gives_nearly_the_same(encoder: WordEncoder, bank: ConceptBank) -> None:
    half = bank_of(encoder, dtype="float16")
    v = samples(encoder, 1)[0][0]
    a, b = (ZeroShotCBM(encoder, x, CLASSES, alpha=1e-3).explain(features=v) for x in (bank, half))
    assert a.label == b.label and a.phrases[:3] == b.phrases[:3]
    assert b.gap is not None and b.gap <= 1e-9


def test_a_retriever_of_ones_own(encoder: WordEncoder, bank: ConceptBank) -> None:
    class Last:
        def topk(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
            rows = torch.arange(30 - k, 30).expand(len(queries), -1)
            return self.honest * (queries @ bank.features.T).gather(1, rows), rows

        honest = 1.0

    last = Last()
    model = ZeroShotCBM(encoder, bank, CLASSES, k=5, retriever=last)
    last.honest = -1.0
    with pytest.raises(InferKitError, match="off those of the phrases that it names"):
        model.explain(features=samples(encoder, 1)[0][0])
    last.honest = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = model.explain(features=samples(encoder, 1)[0][0])
    assert set(found.phrases) <= set(bank.phrases[25:])
    assert sorted(found.candidates.tolist()) == list(range(25, 30))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 31}, r"k=31 phrases are asked for, the bank has 30\."),
        ({"k": 0}, "k=0 phrases are asked for"),
        ({"k": 2.5}, r"k=2\.5 phrases are asked for"),
        ({"alpha": 0}, r"alpha is above 0, got 0\."),
        ({"alpha": -1e-5}, "alpha is above 0"),
        ({"scale": "other"}, "Unknown scale 'other'"),
        ({"center": "mean"}, "center is None or 'modality', got 'mean'"),
        ({"center": "modality"}, "center='modality' needs image_mean"),
        ({"image_mean": torch.zeros(48)}, "image_mean is used with center='modality' alone"),
        ({"center": "modality", "image_mean": torch.zeros(3)}, r"shape \[3\]; expected \[48\]"),
        ({"solver": "foo"}, "Unknown solver 'foo'"),
        ({"tol": -1.0}, "tol is above 0"),
        ({"device": "foo"}, "Unknown device 'foo'"),
        ({"center": "modality", "image_mean": torch.ones(48)}, "image_mean has length 6.93"),
        ({"template": "a {} {x}"}, "and no other braces"),
        ({"classes": "forest"}, "classes is a str; expected a list of names"),
        ({"classes": ["forest"]}, "classes has 1 names, 1 unlike"),
        ({"classes": ["forest", "forest"]}, "classes has 2 names, 1 unlike"),
        ({"classes": ["forest", 3]}, "something that is no name"),
        ({"template": "a photo"}, "The template 'a photo' does not contain '{}' once"),
        ({"template": []}, "No template is given"),
        ({"bank": ["red ball"]}, "bank is a list; expected a ConceptBank"),
    ],
)
def test_bad_arguments(
    encoder: WordEncoder, bank: ConceptBank, options: dict[str, Any], message: str
) -> None:
    given = {"encoder": encoder, "bank": bank, "classes": CLASSES, **options}
    with pytest.raises(InferKitError, match=message):
        ZeroShotCBM(**given)


def test_a_bank_of_another_encoder(bank: ConceptBank) -> None:
    with pytest.raises(InferKitError, match="made with another encoder or prompt: it says 'words'"):
        ZeroShotCBM(WordEncoder(name="others"), bank, CLASSES)
    with pytest.raises(InferKitError, match=r"features of 48 numbers.*'words' makes 12"):
        ZeroShotCBM(WordEncoder(dim=12), bank, CLASSES)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "Give images, or features in their place"),
        ({"images": "no.png"}, "Image 0: image 'no.png' cannot be read: there is no such file"),
        ({"images": []}, "No image is given"),
        ({"images": [Image.new("RGB", (2, 2)), 7]}, "Image 1: an image is a int"),
        ({"features": torch.zeros(2, 7)}, r"features have shape \[2, 7\]; expected \[B, 48\]"),
        ({"features": torch.zeros(48)}, "feature of image 0 is 0 or not finite"),
        ({"features": "v"}, "features is no table of numbers"),
    ],
)
def test_bad_images(
    encoder: WordEncoder, bank: ConceptBank, given: dict[str, Any], message: str
) -> None:
    model = ZeroShotCBM(encoder, bank, CLASSES)
    for call in (model.explain, model.predict):
        with pytest.raises(InferKitError, match=message):
            call(**given)
