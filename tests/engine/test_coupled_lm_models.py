"""Streams of several models, another primary stream, heads of unequal size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from infer_kit.engine.cache_name import cache_of
from infer_kit.engine.coupled_lm import CoupledLM
from infer_kit.errors import InferKitError, VocabularyMismatch
from tests.engine.cases import (
    BEAMS,
    GREEDY,
    LOOKUP,
    PRODUCT,
    SAMPLING,
    SIGNED,
    assert_engine,
    assert_reference,
    lookup_rows,
    model_of,
    text_rows,
)
from tests.engine.reference import ReferenceLM
from tests.tiny import shared_text_model
from tests.tiny.tokenizers import tiny_tokenizer

WAYS: dict[str, dict[str, Any]] = {"greedy": GREEDY, "sampling": SAMPLING, "beams": BEAMS}
ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def pair() -> list[PreTrainedModel]:
    """Two models of unlike architecture with the same vocabulary."""
    return [model_of("llama"), shared_text_model("gpt2", seed=1)]


@ways
def test_two_models(pair: list[PreTrainedModel], way: str) -> None:
    out = assert_reference(pair, text_rows(3, 2), [SIGNED[:2]] * 3, **WAYS[way])
    assert cache_of(out).engines == ("fused", "fused")


def test_two_models_under_drafts(pair: list[PreTrainedModel]) -> None:
    assert_reference(pair, lookup_rows(2), [PRODUCT[:2]], **LOOKUP)


@ways
def test_streams_of_two_models_interleaved(pair: list[PreTrainedModel], way: str) -> None:
    a, b = pair
    assert_reference([a, b, a, b], text_rows(2, 4), [SIGNED, PRODUCT], **WAYS[way])


@ways
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_request_without_the_second_model(
    pair: list[PreTrainedModel], lacking: int, way: str
) -> None:
    rows = text_rows(3, 3)
    rows[lacking] = [rows[lacking][0], None, rows[lacking][2]]
    weights = [[1.0, 0.0 if b == lacking else 0.7, -0.3] for b in range(3)]
    assert_reference([pair[0], pair[1], pair[0]], rows, weights, **WAYS[way])


@ways
def test_another_primary_stream(way: str) -> None:
    """The output starts with its prompt, and processors read it."""
    options = WAYS[way] | {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    rows = text_rows(3, 3)
    out = assert_reference(model_of("llama"), rows, [SIGNED[:3]] * 3, primary=1, **options)
    longest = max(row[1]["input_ids"].shape[1] for row in rows)
    assert out.sequences[0, :longest].tolist() == rows[0][1]["input_ids"][0].tolist()


def test_drafts_come_from_the_primary_prompt() -> None:
    rows = [lookup_rows(3)[0][::-1]]
    assert_reference(model_of("llama"), rows, [PRODUCT[:3]], primary=2, **LOOKUP)


def test_a_primary_stream_of_weight_zero() -> None:
    rows = text_rows(2, 2)
    out = assert_reference(model_of("llama"), rows, [[0.0, 1.0]] * 2, **GREEDY)
    assert cache_of(out).pooling.streams == (1,)


def test_one_model_for_any_number_of_streams() -> None:
    lm = CoupledLM(model_of("llama"))
    for streams in (1, 3, 2):
        assert_reference(
            model_of("llama"), text_rows(2, streams), [SIGNED[:streams]] * 2, lm=lm, **GREEDY
        )


# Heads of 160 and 176 rows, as padded heads of one tokenizer differ


@pytest.mark.parametrize("first", [160, 176])
def test_heads_of_unequal_size_share_their_common_rows(first: int) -> None:
    models = [shared_text_model("llama", first), shared_text_model("gpt2", 336 - first, seed=1)]
    lm = CoupledLM(models, tokenizers=[tiny_tokenizer(), tiny_tokenizer()])
    rows = text_rows(2, 2)
    ours = lm.generate(rows, [SIGNED[:2]] * 2, return_dict_in_generate=True, output_logits=True,
                       **GREEDY)  # fmt: skip
    theirs = ReferenceLM(models, rows, [SIGNED[:2]] * 2, vocab_size=160).write(**GREEDY)
    assert_engine(ours, "fused")
    assert torch.equal(ours.sequences, theirs.sequences)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        assert a.shape == (2, 160)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_unequal_heads_need_tokenizers() -> None:
    models = [shared_text_model("llama", 160), shared_text_model("llama", 176)]
    with pytest.raises(VocabularyMismatch, match="disagree on vocabulary: 160 vs 176 tokens") as e:
        CoupledLM(models)
    assert "tokenizers=[...]" in (e.value.hint or "")


def test_tokenizers_that_name_ids_differently() -> None:
    models = [shared_text_model("llama", 160), shared_text_model("llama", 176)]
    other = tiny_tokenizer()
    tokens = other.get_vocab()
    swapped = dict(tokens) | {"a": tokens["b"], "b": tokens["a"]}
    other.get_vocab = lambda: swapped
    with pytest.raises(VocabularyMismatch, match=r"160 and 160 tokens, 99% of the ids mean the"):
        CoupledLM(models, tokenizers=[tiny_tokenizer(), other])
    with pytest.raises(VocabularyMismatch, match="the heads share 160 rows"):
        CoupledLM(models, tokenizers=[tiny_tokenizer(), tiny_tokenizer(176)])
    with pytest.raises(VocabularyMismatch):  # both name ids that the first head lacks
        CoupledLM(models, tokenizers=[tiny_tokenizer(176), tiny_tokenizer(176)])


def test_tokenizers_are_compared_where_heads_agree_too() -> None:
    other = tiny_tokenizer()
    swapped = dict(other.get_vocab())
    swapped["a"], swapped["b"] = swapped["b"], swapped["a"]
    other.get_vocab = lambda: swapped
    with pytest.raises(VocabularyMismatch, match="disagree on vocabulary"):
        CoupledLM([model_of("llama")] * 2, tokenizers=[tiny_tokenizer(), other])


def test_one_tokenizer_for_each_model() -> None:
    with pytest.raises(InferKitError, match="Got 1 tokenizers for 2 models"):
        CoupledLM([model_of("llama")] * 2, tokenizers=[tiny_tokenizer()])
