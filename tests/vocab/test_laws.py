"""The public laws of reduced models, on the two models that ship."""

import pytest
from transformers import PreTrainedModel

from infer_kit.demo import text
from infer_kit.testing import assert_certificate_law, assert_lossless_law
from infer_kit.vocab.reduction import Row


@pytest.fixture(scope="module", params=text.NAMES)
def member(request) -> tuple[PreTrainedModel, object]:
    model, tokenizer = text.load(request.param)
    return model.double(), tokenizer


@pytest.mark.parametrize("words", [b"Mia", b" ran.", "é".encode()])
def test_no_text_gains_or_loses_probability(member, words) -> None:
    assert_lossless_law(*member, words)


@pytest.mark.parametrize("eps", [1e-2, 1e-6])
def test_the_bound_holds_at_every_byte(member, eps) -> None:
    assert_certificate_law(*member, 'One day, Mia said "Où est le café?" to Emma.', eps)


def test_a_wrong_mass_is_found(member, monkeypatch) -> None:
    part = Row.part
    monkeypatch.setattr(Row, "part", lambda self, low, high: part(self, low, high) * (1 + 1e-8))
    with pytest.raises(AssertionError, match="log P is"):
        assert_lossless_law(*member, b"Mia")


def test_a_bound_that_is_too_small_is_found(member, monkeypatch) -> None:
    from infer_kit.vocab.reducer import CertifiedReducer

    monkeypatch.setattr(CertifiedReducer, "tv_bound", property(lambda self: 0.0))
    with pytest.raises(AssertionError, match="the laws are"):
        assert_certificate_law(*member, "One day, Mia saw a", 5e-2)
