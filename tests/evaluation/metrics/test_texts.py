"""Exact match, GQA and bits per byte against other implementations of the same definition."""

import math
import random

import numpy as np
import pytest

from infer_kit.errors import InferKitError
from infer_kit.evaluation.metrics.bits import bits_per_byte
from infer_kit.evaluation.metrics.exact import exact_match
from infer_kit.evaluation.metrics.gqa import gqa_match, normalize_gqa


def test_exact_match() -> None:
    assert exact_match(" Red. ", ["blue", "red"]) == 1.0
    assert exact_match("two  cats", ["Two cats"]) == 1.0
    assert exact_match("red cat", ["red"]) == 0.0
    assert exact_match("red!", ["red"]) == 0.0


def test_gqa_normalises_both_sides_alike() -> None:
    for prediction, answer in [
        ("T-shirt.", "t-shirt"),
        ("yes", "Yes."),
        (" fire   hydrant", "fire hydrant"),
    ]:
        assert gqa_match(prediction, [answer]) == gqa_match(answer, [prediction]) == 1.0
    assert gqa_match("the chair", ["chair"]) == 0.0
    assert gqa_match("chair", ["table", "chair"]) == 1.0


def test_gqa_is_the_exact_match_of_lm_eval_but_where_nothing_is_left() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    rng = random.Random(0)
    texts = ["".join(rng.choices("aAbB.,-!'", k=rng.randint(1, 5))) for _ in range(60)]
    for _ in range(2000):
        a, b = rng.choice(texts), rng.choice(texts)
        theirs = metrics.exact_match_hf_evaluate(
            np.array([a]), np.array([b]), ignore_case=True, ignore_punctuation=True
        )["exact_match"]
        nothing_left = not normalize_gqa(a)
        assert gqa_match(a, [b]) == (0.0 if nothing_left else float(theirs)), (a, b)


def test_gqa_normaliser_is_idempotent() -> None:
    assert normalize_gqa(normalize_gqa(" It's  RED. ")) == normalize_gqa("it's red") == "its red"


def test_bits_per_byte_of_a_uniform_model_over_bytes_is_eight() -> None:
    text = "naïve 😀"  # 11 bytes
    assert bits_per_byte(11 * math.log(1 / 256), text) == pytest.approx(8)
    tokens = [0.5, 0.25, 0.125]  # three tokens, 1 + 2 + 3 bits, over 3 bytes
    assert bits_per_byte(sum(map(math.log, tokens)), "abc") == pytest.approx(2)
    with pytest.raises(InferKitError, match="empty text"):
        bits_per_byte(0.0, "")
