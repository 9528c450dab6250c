"""Demonstrations as users pass them, and the features that compare them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from infer_kit.backends import backend_for
from infer_kit.errors import InferKitError
from infer_kit.methods.demonstrations import as_demonstrations, question_key
from infer_kit.methods.features import (
    DualEncoder,
    OwnEncoder,
    TextEncoder,
    encoder_for,
    feature_table,
)
from infer_kit.methods.parallel_icl import ParallelICL
from tests.methods.conftest import chat, picture
from tests.methods.icl_cases import GREEDY, QUERIES, demonstrations, turns
from tests.tiny.dual import save_dual_encoder

# What users pass


def test_records_and_chats_are_the_same() -> None:
    record = {"image": picture(0), "question": "what is it?", "answer": "dax"}
    several = {"images": [picture(0)], "question": "what is it?", "answer": "dax"}
    one, two, three = as_demonstrations([record, turns(record), several])
    assert one == two == three
    assert (one.question, one.answer) == ("what is it?", "dax")
    assert len(one.pictures) == 1


def test_earlier_turns_are_kept() -> None:
    earlier = turns({"image": picture(1), "question": "first?", "answer": "yes"})
    (demo,) = as_demonstrations([[*earlier, *turns(demonstrations(1)[0])]])
    assert (demo.question, demo.answer) == ("what is it?", "dax")
    assert len(demo.pictures) == 2 and len(demo.chat) == 4


def test_texts_alone() -> None:
    (demo,) = as_demonstrations([{"question": "say", "answer": "yes"}])
    assert demo.pictures == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "No demonstrations: the list is empty."),
        ("what?", "Expected a list of demonstrations, got a str."),
        ({"question": "q", "answer": "a"}, "Expected a list of demonstrations, got a dict."),
        (None, "Expected a list of demonstrations, got a NoneType."),
        ([{"question": "q"}], "Demonstration 0 has no answer: got None."),
        ([{"question": "q", "answer": " "}], "Demonstration 0 has no answer: got ' '."),
        ([{"question": "q", "answer": 3}], "The answer of Demonstration 0 is 3, not a text."),
        ([{"answer": "a"}], "Demonstration 0 has no question: got None."),
        (
            [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "label": 1}],
            r"Demonstration 1 has unknown fields \['label'\].",
        ),
        (
            [{"question": "q", "answer": "a", "image": picture(0), "images": [picture(0)]}],
            "Demonstration 0 has both 'image' and 'images'; give one of them.",
        ),
        ([chat("what?")], "Demonstration 0 has no answer: it ends with 'user'."),
        ([turns(demonstrations(1)[0])[1:]], "Demonstration 0 has no question before its answer."),
        (
            [[{"role": "system", "content": "x"}, *turns(demonstrations(1)[0])]],
            "Demonstration 0 has a system turn.",
        ),
        ([3], "Demonstration 0 is a int."),
        ([["a", "b"]], "Demonstration 0: "),
        ([[{"role": "user"}]], "Demonstration 0: Prompt 0: a message needs 'role' and 'content'"),
    ],
)
def test_what_is_no_demonstration(given: Any, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        as_demonstrations(given)


def test_a_question_is_known_again_whatever_its_spaces_and_case() -> None:
    key = question_key([picture(0)], "What  is it?\n")
    assert key == question_key([picture(0)], "what is IT?")
    assert key != question_key([picture(1)], "what is it?")
    assert key != question_key([], "what is it?")
    assert key != question_key([picture(0)], "what is this?")


# Features


class _Fixed:
    """Features that are written down."""

    def images(self, pictures: Any, memory: Any) -> Tensor:
        return torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]])[: len(pictures)]

    def texts(self, texts: Any) -> Tensor:
        return torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 4.0]])[: len(texts)]


def test_unit_image_beside_unit_text() -> None:
    table = feature_table(_Fixed(), [[0], [0]], ["a", "b"])
    expected = torch.tensor([[0.6, 0.8, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.6, 0.8]])
    torch.testing.assert_close(table, expected)
    assert float(table[0] @ table[0]) == pytest.approx(2.0)


def test_the_mean_of_an_items_pictures_is_a_unit_too() -> None:
    table = feature_table(_Fixed(), [[0, 0], []], ["a", "b"])
    mean = torch.tensor([0.3, 0.9])
    torch.testing.assert_close(table[0, :2], mean / mean.norm())
    assert not table[1, :2].any()


def test_without_pictures_the_width_is_that_of_the_others() -> None:
    assert feature_table(_Fixed(), [[], []], ["a", "b"]).shape == (2, 3)
    assert feature_table(_Fixed(), [[]], ["a"], image_width=2).tolist() == [[0, 0, 1, 0, 0]]
    assert feature_table(_Fixed(), [[0]], ["a"], image_width=0).shape == (1, 3)


def test_encoders_by_what_is_given(lvlm: PreTrainedModel, processor: Any) -> None:
    backend = backend_for(lvlm, processor)
    assert isinstance(encoder_for(None, backend), OwnEncoder)
    assert isinstance(encoder_for("text", backend), TextEncoder)
    own = _Fixed()
    assert encoder_for(own, backend) is own
    with pytest.raises(InferKitError, match="encoder is a int; expected None, 'text', the path"):
        encoder_for(3, backend)
    with pytest.raises(InferKitError, match="has no image and text features; expected a CLIP"):
        encoder_for((processor.tokenizer, processor), backend)


def test_texts_alone_by_the_models_embeddings(lvlm: PreTrainedModel, processor: Any) -> None:
    encoder = encoder_for("text", backend_for(lvlm, processor))
    features = encoder.texts(["what", ""])
    ids = processor.tokenizer("what", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(
        features[0], lvlm.get_input_embeddings().weight[ids].mean(0).detach()
    )
    assert not features[1].any()
    assert encoder.images([picture(0)], None).shape == (1, 0)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP or SigLIP of two layers, on disk with its processor."""
    folder = tmp_path_factory.mktemp(request.param)
    return save_dual_encoder(request.param, folder)


def test_a_dual_encoder_by_path(saved: Path) -> None:
    encoder = DualEncoder.from_pretrained(saved)
    images = encoder.images([picture(0), picture(1), picture(0)], None)
    words = encoder.texts(["a dax", "the other one, longer", "a dax"])
    assert images.shape == words.shape and images.shape[0] == 3
    torch.testing.assert_close(images[0], images[2])
    assert (images[0] - images[1]).abs().max() > 1e-3
    assert (words[0] - words[1]).abs().max() > 1e-3
    alone = encoder.texts(["a dax"])[0]
    torch.testing.assert_close(alone, words[0], atol=1e-5, rtol=0)  # whatever is beside it


def test_features_are_the_models_own(saved: Path) -> None:
    encoder = DualEncoder.from_pretrained(saved)
    pixels = encoder.processor.image_processor(images=[picture(0)], return_tensors="pt")
    with torch.no_grad():
        expected = encoder.model.get_image_features(**pixels)
    expected = expected if isinstance(expected, Tensor) else expected.pooler_output
    torch.testing.assert_close(encoder.images([picture(0)], None), expected)


def test_texts_that_are_cut_give_a_warning(saved: Path) -> None:
    encoder = DualEncoder.from_pretrained(saved)
    with pytest.warns(UserWarning, match=r"Model reads 24 tokens; the longest text has 6\d, and"):
        encoder.texts(["short", "z" * 64])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.texts(["short"])


def test_chunks_by_another_encoder(
    saved: Path, lvlm: PreTrainedModel, processor: Any, tmp_path: Path
) -> None:
    demos = demonstrations(6)
    picl = ParallelICL(lvlm, processor, chunks=2, encoder=saved).fit(demos)
    out = picl.generate(QUERIES, **GREEDY)
    encoder = DualEncoder.from_pretrained(saved)
    texts = [f"{demo['question']} {demo['answer']}" for demo in demos]
    table = feature_table(encoder, [[demo["image"]] for demo in demos], texts)
    queries = feature_table(
        encoder, [[picture(100)], [picture(101), picture(102)]],
        ["what is it?", "and which of the two?"],
    )  # fmt: skip
    for query, weights in zip(queries, out.weights, strict=True):
        means = torch.stack([(table[part] @ query).double().mean() for part in out.chunks[0]])
        assert weights == pytest.approx(means.softmax(0).tolist(), abs=1e-6)
    pair = (encoder.model, encoder.processor)
    same = ParallelICL(lvlm, processor, chunks=2, encoder=pair).fit(demos)
    assert same.generate(QUERIES, **GREEDY).weights == out.weights
    picl.save(tmp_path)
    again = ParallelICL.load(tmp_path, lvlm, processor).generate(QUERIES, **GREEDY)
    assert (again.weights, again.text) == (out.weights, out.text)
