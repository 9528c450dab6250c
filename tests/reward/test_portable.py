"""What a reward is saved with, and which bases it refuses."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from infer_kit.errors import InferKitError, VocabularyMismatch
from infer_kit.reward.compose import compose
from infer_kit.reward.labels import check_same_labels, label_hash, labels_of
from infer_kit.reward.portable import PortableReward, twin
from tests.reward.models import VOCAB, classifier, gpt2, llama
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(VOCAB)
IDS = torch.tensor([[1, 40, 50, 60]])


# Labels


def test_labels_are_the_tokens_that_a_tokenizer_owns() -> None:
    labels = labels_of(TOKENIZER)
    assert len(labels) == VOCAB and labels[:3] == ("<pad>", "<bos>", "<eos>")
    for id in range(VOCAB):
        assert labels[id] == TOKENIZER.convert_ids_to_tokens(id)
    assert labels_of(classifier()) == ("a", "b", "c") == labels_of(classifier().config)
    assert labels_of(["x", None]) == ("x", None)
    many = SimpleNamespace(id2label={str(n): f"n{n}" for n in range(12)})
    assert labels_of(many) == tuple(f"n{n}" for n in range(12))


def test_the_hash_is_of_labels_with_their_lengths() -> None:
    digest = hashlib.sha256()
    for text in ("ab", "ü", ""):
        data = text.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    assert label_hash(["ab", "ü", ""]) == digest.hexdigest()
    tables = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["ab", "c", None], ["ab"]]
    assert len({label_hash(table) for table in tables}) == len(tables)


@pytest.mark.parametrize(
    "source, message",
    [
        (3, "a tokenizer, a classifier or a list of labels, got int"),
        ("labels", "got str"),
        ([], "got list"),
        (["a", 4], "Label 1 is 4"),
    ],
)
def test_labels_refused(source: object, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        labels_of(source)


def test_other_labels_are_named() -> None:
    mine, base = tuple("abcdef"), (*tuple("abXdYf"), "g")
    with pytest.raises(VocabularyMismatch) as caught:
        check_same_labels(mine, base)
    assert (
        "it has 6 labels and the base 7; 2 of the first 6 differ (2: 'c' and 'X', 4: 'e' and 'Y')"
        in str(caught.value)
    )
    check_same_labels(mine, mine)


# The artefact


def test_a_reward_is_saved_and_loaded(tmp_path: Path) -> None:
    reward = PortableReward(gpt2(1), TOKENIZER, beta=0.7, alpha=0.1, source_gain=0.5, base="here")
    reward.save_pretrained(tmp_path / "reward")
    settings = json.loads((tmp_path / "reward" / "prt_config.json").read_text())
    assert settings == {
        "kind": "causal-lm",
        "output_size": VOCAB,
        "labels_sha256": label_hash(labels_of(TOKENIZER)),
        "beta": 0.7,
        "alpha": 0.1,
        "init": "base",
        "base": "here",
        "base_revision": None,
        "source_gain": 0.5,
        "dtype": "float32",
        "format_version": 1,
    }
    again = PortableReward.from_pretrained(tmp_path / "reward")
    assert again.config == reward.config and again.labels == reward.labels
    assert again.path == str(tmp_path / "reward") and not again.model.training
    with torch.no_grad():
        assert torch.equal(again.model(IDS).logits, reward.model(IDS).logits)
    assert "gain 0.500 nats" in repr(again)


def test_a_classifier_says_its_classes_itself(tmp_path: Path) -> None:
    reward = PortableReward(classifier(), kind="classification")
    reward.save_pretrained(tmp_path)
    again = PortableReward.from_pretrained(tmp_path)
    assert again.labels == ("a", "b", "c")
    assert type(again.model) is type(reward.model)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    gpt2(1).save_pretrained(tmp_path / "plain")
    with pytest.raises(InferKitError, match="no prt_config.json"):
        PortableReward.from_pretrained(tmp_path / "plain")
    PortableReward(gpt2(1), TOKENIZER).save_pretrained(tmp_path / "reward")
    file = tmp_path / "reward" / "prt_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"format_version": 2}))
    with pytest.raises(InferKitError, match="is of format 2; this version reads up to 1"):
        PortableReward.from_pretrained(tmp_path / "reward")
    file.write_text(json.dumps(settings | {"labels_sha256": "0" * 64}))
    with pytest.raises(InferKitError, match="one of the two files was changed"):
        PortableReward.from_pretrained(tmp_path / "reward")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "regression"}, "kind is 'regression'"),
        ({"labels": None}, "needs to know its tokens"),
        ({"labels": ["a"] * 200}, "has 160 columns, fewer than its 200 labels"),
        ({"beta": float("nan")}, "beta is nan; expected a finite number"),
        ({"beta": True}, "beta is True"),
        ({"alpha": "x"}, "alpha is 'x'"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    with pytest.raises(InferKitError, match=message):
        PortableReward(gpt2(1), **({"labels": TOKENIZER} | change))


def test_a_base_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """By hash, as many ids as it may have."""
    PortableReward(gpt2(1), TOKENIZER).save_pretrained(tmp_path)
    other = tiny_tokenizer(VOCAB)
    state = json.loads(other.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    moved = type(other)(tokenizer_object=type(other.backend_tokenizer).from_str(json.dumps(state)))
    with pytest.raises(VocabularyMismatch, match=r"2 of the first 160 differ \(101: 'a' and 'b'"):
        compose(llama(0), tmp_path, tokenizer=moved)
    compose(llama(0), tmp_path, tokenizer=TOKENIZER)


def test_kinds_are_not_mixed() -> None:
    reward = PortableReward(classifier(), kind="classification")
    with pytest.raises(
        InferKitError, match="one for classification, the base is a model for causal-lm"
    ):
        compose(llama(0), reward, tokenizer=TOKENIZER)
    words = PortableReward(gpt2(1), TOKENIZER)
    with pytest.raises(
        InferKitError, match="one for causal-lm, the base is a model for classification"
    ):
        compose(classifier(), words)


# Adapters


def test_an_adapter_shares_its_bases_weights(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = llama(0)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(twin(base), config)
    adapted.get_base_model().config._name_or_path = str(tmp_path / "base")
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    reward = PortableReward(adapted, TOKENIZER)
    reward.save_pretrained(tmp_path / "reward")
    names = {file.name for file in (tmp_path / "reward").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names

    again = PortableReward.from_pretrained(tmp_path / "reward", base=base)
    with torch.no_grad():
        assert torch.equal(again.scorer(IDS).logits, adapted(IDS).logits)
        assert not torch.equal(base(IDS).logits, adapted(IDS).logits)
        merged = copy.deepcopy(adapted).merge_and_unload()
        assert torch.allclose(merged(IDS).logits, again.scorer(IDS).logits, atol=1e-5)
        assert torch.equal(again.source()(IDS).logits, base(IDS).logits)
    mine = again.scorer.get_input_embeddings().weight
    assert mine.data_ptr() == base.get_input_embeddings().weight.data_ptr()
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.requires_grad for parameter in base.parameters())
    mixed = compose(base, again, tokenizer=TOKENIZER, beta=0.5)
    alone = PortableReward.from_pretrained(tmp_path / "reward")
    other = compose(base, alone, tokenizer=TOKENIZER, beta=0.5)
    assert torch.equal(mixed.generate(IDS, max_new_tokens=8), other.generate(IDS, max_new_tokens=8))
    with pytest.raises(InferKitError, match="The base is a PEFT model"):
        compose(adapted, again, tokenizer=TOKENIZER)
    with pytest.raises(InferKitError, match="is a whole model"):
        PortableReward(gpt2(1), TOKENIZER).source()
