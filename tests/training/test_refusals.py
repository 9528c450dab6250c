"""What training refuses, and in which words."""

import copy

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from infer_kit.errors import InferKitError
from infer_kit.training.prt import PRTConfig
from tests.tiny import text_model
from tests.training.conftest import Classifier, Digits, Texts


@pytest.mark.parametrize(
    "given, told",
    [
        ({"beta": float("nan")}, "beta is nan; expected a finite number"),
        ({"beta": float("inf")}, "beta is inf; expected a finite number"),
        ({"beta": 0}, "beta is 0: the reward would have no part in the loss"),
        ({"beta": "1"}, "beta is '1'; expected a number"),
        ({"alpha": float("nan")}, "alpha is nan; expected a finite number"),
        ({"base_cache": "all"}, "base_cache is 'all'; expected one of none, full, hidden, topk"),
        ({"base_cache": "topk", "tail": None}, "tail is None; expected one of uniform, corpus"),
        ({"base_cache": "topk", "topk": 0}, "topk is 0; expected a whole number of at least 1"),
        ({"chunk": 0.5}, "chunk is 0.5; expected a whole number of at least 1"),
        ({"tail": "corpus"}, "tail='corpus' has no effect with base_cache='none'"),
        ({"cache_dir": "x"}, 'cache_dir has no effect with base_cache="none"'),
    ],
)
def test_settings(given, told) -> None:
    with pytest.raises(InferKitError, match=told):
        PRTConfig(**given)


def test_unknown_options(trainer_of, base, settings) -> None:
    from infer_kit.training.prt import PRTTrainer

    with pytest.raises(TypeError, match="gamma"):
        PRTConfig(gamma=1.0)
    with pytest.raises(TypeError, match="reference_model"):
        PRTTrainer(model=base, args=settings(), base_model=copy.deepcopy(base), reference_model=1)
    with pytest.raises(InferKitError, match="prt is a dict; expected a PRTConfig"):
        trainer_of({"beta": 1.0})


def test_what_the_loss_would_ignore(trainer_of) -> None:
    with pytest.raises(InferKitError, match="label_smoothing_factor is 0.1; the loss of a reward"):
        trainer_of(label_smoothing_factor=0.1)
    with pytest.raises(InferKitError, match="compute_loss_func would replace the loss"):
        trainer_of(compute_loss_func=lambda *a, **k: None)


def test_a_base_is_needed_and_is_another(trainer_of, base) -> None:
    with pytest.raises(InferKitError, match="no base_model, and the reward is not a PEFT model"):
        trainer_of(base_model=None)
    with pytest.raises(InferKitError, match="base shares weights with the reward that are trained"):
        trainer_of(model=base)
    shared = copy.deepcopy(base)
    shared.set_input_embeddings(base.get_input_embeddings())
    with pytest.raises(InferKitError, match="base shares weights with the reward"):
        trainer_of(model=shared)
    peft = pytest.importorskip("peft")
    adapter = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    with pytest.raises(InferKitError, match="base shares weights") as caught:
        trainer_of(model=adapter, base_model=adapter.get_base_model())
    assert "a PEFT model as the reward and no base_model" in str(caught.value.hint)


def test_columns(trainer_of, base) -> None:
    small = text_model("llama", 160)
    told = "The vocabulary has 176 ids; the base has {} columns and the reward {}"
    with pytest.raises(InferKitError, match=told.format(160, 192)):
        trainer_of(base_model=small, vocab_size=176)
    with pytest.raises(InferKitError, match=told.format(192, 160)):
        trainer_of(model=small, vocab_size=176)
    trainer = trainer_of(base_model=small, max_steps=1)  # 160 and 192 columns for 160 ids
    trainer.train()
    assert trainer.vocab_size == 160
    # Models that do not tell are found out by their first batch.
    given = {
        "kind": "classification", "train_dataset": Digits(), "processing_class": None,
        "vocab_size": 5,
    }  # fmt: skip
    narrow = nn.Sequential()
    narrow.forward = lambda x: x[:, :4]  # type: ignore[method-assign]
    trainer = trainer_of(base_model=narrow, model=Classifier(), **given)
    with pytest.raises(InferKitError, match="have 4 .base. and 5 .reward. columns, fewer than the"):
        trainer.train()


@pytest.mark.parametrize("vocab_size", [0, 1.5, True])
def test_vocab_size(trainer_of, vocab_size) -> None:
    with pytest.raises(InferKitError, match=f"vocab_size is {vocab_size}; expected a whole number"):
        trainer_of(vocab_size=vocab_size)


def test_what_nothing_tells(trainer_of) -> None:
    with pytest.raises(InferKitError, match="Without a tokenizer nothing tells how many ids"):
        trainer_of(processing_class=None)
    given = {"train_dataset": Digits(), "processing_class": None}
    model, base = Classifier(), Classifier()
    with pytest.raises(InferKitError, match="Classifier does not tell whether it is a causal"):
        trainer_of(model=model, base_model=base, **given)
    with pytest.raises(InferKitError, match="Classifier does not say how many labels it has"):
        trainer_of(model=model, base_model=base, kind="classification", **given)
    with pytest.raises(InferKitError, match="kind is 'lm'; expected one of causal-lm, classif"):
        trainer_of(kind="lm")


class Masked(Texts):
    """Texts of which the first `n` have no label."""

    def __init__(self, masked: int, n: int) -> None:
        super().__init__(n)
        self.masked = masked

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        example = super().__getitem__(n)
        if n < self.masked:
            example["labels"] = torch.full_like(example["labels"], -100)
            example["labels"][0] = 7  # nothing comes before it
        return example


def test_labels_that_are_all_masked(trainer_of) -> None:
    with pytest.raises(InferKitError, match="None of the first 16 examples of the training data"):
        trainer_of(train_dataset=Masked(16, 16))
    with pytest.raises(InferKitError, match="None of the first 1000 examples of the training data"):
        trainer_of(train_dataset=Masked(1000, 1001))
    trainer_of(train_dataset=Masked(15, 16))
    with pytest.raises(InferKitError, match="None of the first 8 examples of the evaluation data"):
        trainer_of(eval_dataset=Masked(8, 8))


def test_texts_are_no_rows(trainer_of) -> None:
    with pytest.raises(InferKitError, match="Example 0 of the training data is a text"):
        trainer_of(train_dataset=["the rain", "a stone"])


def test_a_reward_without_gradients(trainer_of, base) -> None:
    with pytest.raises(InferKitError, match="No parameter of the reward"):
        trainer_of(model=copy.deepcopy(base).requires_grad_(False)).train()


def test_a_step_without_labels_warns_and_changes_nothing(trainer_of) -> None:
    trainer = trainer_of(train_dataset=Masked(15, 16), optim="sgd", max_steps=4)
    with pytest.warns(UserWarning, match="A batch has no label at all"):
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses.count(0.0) == 3


@pytest.mark.parametrize("label", [160, 191, -7])
def test_labels_outside_the_vocabulary(trainer_of, label) -> None:
    class Wrong(Texts):
        def __init__(self, at: int) -> None:
            super().__init__()
            self.at = at

        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            example = super().__getitem__(n)
            if n == self.at:
                example["labels"][-1] = label
            return example

    with pytest.raises(
        InferKitError, match=f"Example 0 of the training data has the label {label}"
    ):
        trainer_of(train_dataset=Wrong(0))
    trainer = trainer_of(train_dataset=Wrong(9))
    with pytest.raises(InferKitError, match=f"A label is {label}, outside the 160 ids"):
        trainer.train()
    with pytest.raises(InferKitError, match="Example 9 has a label outside the 160 ids"):
        trainer_of(PRTConfig(base_cache="full"), train_dataset=Wrong(9)).train()


def test_columns_of_a_table_are_looked_at_alone(trainer_of) -> None:
    from datasets import Dataset

    table = Dataset.from_dict({"input_ids": [[4, 5, 6]] * 3, "labels": [[-100] * 3] * 3})
    with pytest.raises(InferKitError, match="None of the first 3 examples"):
        trainer_of(train_dataset=table)


def test_batches_that_cannot_be(trainer_of) -> None:
    trainer = trainer_of()
    batch = {"input_ids": torch.ones(1, 4).long()}
    with pytest.raises(InferKitError, match="The batch has no labels, only input_ids"):
        trainer.compute_loss(trainer.model, batch)
    with pytest.raises(InferKitError, match="labels are torch.float32; expected one whole number"):
        trainer.compute_loss(trainer.model, batch | {"labels": torch.ones(1, 4)})
    with pytest.raises(InferKitError, match=r"Labels of shape \[1\]; of a causal language model"):
        trainer.compute_loss(trainer.model, batch | {"labels": torch.ones(1).long()})
    with pytest.raises(
        InferKitError, match=r"scores at \[1, 3\] places for labels at \[1, 5\] .af"
    ):
        trainer.compute_loss(trainer.model, batch | {"labels": torch.ones(1, 6).long()})


def test_chunks_and_caches_that_cannot_be(trainer_of) -> None:
    given = {
        "model": Classifier(), "base_model": Classifier(), "kind": "classification",
        "vocab_size": 5, "train_dataset": Digits(), "processing_class": None,
    }  # fmt: skip
    for prt in (PRTConfig(chunk=8), PRTConfig(base_cache="hidden")):
        with pytest.raises(InferKitError, match="Scores of classifiers are not made from hidden"):
            trainer_of(prt, **given)
    with pytest.raises(InferKitError, match="topk is 5, and there are 5 ids"):
        trainer_of(PRTConfig(base_cache="topk", topk=5), **given)


def test_gains_without_data(trainer_of, tmp_path) -> None:
    trainer = trainer_of()
    with pytest.raises(InferKitError, match="There is no held-out data to measure the gain on"):
        trainer.source_gain()
    with pytest.raises(InferKitError, match="The held-out data have no labels"):
        with pytest.warns(UserWarning, match="no label at all"):
            trainer.source_gain(Masked(4, 4))


def test_a_reward_without_names_is_not_saved(trainer_of, tmp_path) -> None:
    pytest.importorskip("infer_kit.reward.portable")
    trainer = trainer_of(processing_class=None, vocab_size=160)
    with pytest.raises(InferKitError, match="saved with its tokens, and the trainer has no token"):
        trainer.save_reward(tmp_path)
    trainer = trainer_of(
        model=Classifier(), base_model=Classifier(), kind="classification", vocab_size=5,
        train_dataset=Digits(), processing_class=None,
    )  # fmt: skip
    with pytest.raises(InferKitError, match="names of its labels; the model has 0 of 5"):
        trainer.save_reward(tmp_path)


@pytest.mark.parametrize("size", [150, 176])
def test_a_reward_of_another_vocabulary_than_its_tokenizer_is_not_saved(
    trainer_of, tmp_path, size
) -> None:
    trainer = trainer_of(vocab_size=size)
    told = f"trained with vocab_size {size}, and its tokenizer has ids for 160 tokens"
    with pytest.raises(InferKitError, match=told):
        trainer.save_reward(tmp_path / "reward")
    assert not (tmp_path / "reward").exists()


def test_what_is_no_model(trainer_of, base, settings) -> None:
    from infer_kit.training.prt import PRTTrainer

    with pytest.raises(InferKitError, match="^model is the text 'gpt2'; expected a model"):
        trainer_of(model="gpt2")
    with pytest.raises(InferKitError, match="base_model is the text 'gpt2'; expected a model"):
        trainer_of(base_model="gpt2")
    with pytest.raises(InferKitError, match="base_model is a dict; expected a model"):
        trainer_of(base_model=dict(base.state_dict()))
    with pytest.raises(InferKitError, match="^model is the text 'gpt2'; expected a model"):
        PRTTrainer("gpt2", settings(), base_model=base, peft_config=object())


def test_data_without_examples(trainer_of) -> None:
    from datasets import Dataset

    for empty in ([], Texts(0), Dataset.from_dict({"input_ids": [], "labels": []})):
        with pytest.raises(InferKitError, match="The training data have no examples"):
            trainer_of(train_dataset=empty)


def test_classifiers_of_other_names(trainer_of) -> None:
    def named(*names: str) -> Classifier:
        model = Classifier(len(names))
        model.config = PretrainedConfig(id2label=dict(enumerate(names)))
        return model

    given = {
        "kind": "classification", "train_dataset": Digits(labels=3), "processing_class": None,
    }  # fmt: skip
    reward = named("cat", "dog", "hen")
    with pytest.raises(InferKitError, match="Label 1 is 'hen' for the base and 'dog' for the rew"):
        trainer_of(model=reward, base_model=named("cat", "hen", "dog"), **given)
    trainer_of(model=reward, base_model=named("cat", "dog", "hen"), **given)
