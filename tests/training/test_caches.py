"""Caches of a base: the same training, refusals, and interruptions."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import DataCollatorForSeq2Seq

from infer_kit.errors import InferKitError
from infer_kit.training.prt import PRTConfig
from tests.tiny import text_model
from tests.training.conftest import Classifier, Digits, Texts, V, farthest, weights


class Ragged(Texts):
    """Texts of unequal length, of which some are prompts alone."""

    def __getitem__(self, n: int) -> dict[str, list[int]]:
        example = {name: v[: 6 + n % 7].tolist() for name, v in super().__getitem__(n).items()}
        if n == 5:
            example["labels"] = [-100] * len(example["labels"])
        return example


def trained(trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return weights(trainer.model)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("kind", ["full", "hidden"])
def test_an_exact_cache_trains_the_same_reward(
    trainer_of, tokenizer, tmp_path, kind, chunk
) -> None:
    """Padded batches, shuffled anew in each of three epochs; dropout of the reward is on."""
    base = text_model("gpt2", 192, resid_pdrop=0.2, attn_pdrop=0.0)
    given = {
        "base_model": base, "train_dataset": Ragged(12), "max_steps": 9, "optim": "sgd",
        "learning_rate": 0.1, "data_collator": DataCollatorForSeq2Seq(tokenizer),
    }  # fmt: skip
    prt = PRTConfig(beta=0.7, base_cache=kind, cache_dir=tmp_path / "cache", chunk=chunk)
    want = trained(trainer_of(PRTConfig(beta=0.7), model=copy.deepcopy(base), **given))
    trainer = trainer_of(prt, model=copy.deepcopy(base), **given)
    trainer.build_base_cache()
    trainer._base._prepared = None  # in training the base's body is not called
    assert farthest(want, trained(trainer)) <= 1e-5
    assert farthest(want, weights(base)) > 1e-3


@pytest.mark.parametrize(
    "family, scaled",
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("cohere2", {"logit_scale": 0.25}),
        ("granitemoehybrid", {"logits_scaling": 3.0}),
    ],
)
def test_logits_of_the_hidden_cache_are_the_models_own(
    trainer_of, tmp_path, family, scaled
) -> None:
    base = text_model(family, 192, **scaled)
    prt = PRTConfig(base_cache="hidden", cache_dir=tmp_path / "cache")
    data = Texts(4)
    trainer = trainer_of(prt, base_model=base, model=copy.deepcopy(base), train_dataset=data)
    trainer.build_base_cache()
    batch = trainer.collate_training([trainer.train_dataset[n] for n in range(4)])
    kept = batch["labels"][:, 1:] != -100
    rows = trainer._cached.rows(batch["prt_index"], batch["labels"][:, 1:][kept])
    with torch.no_grad():
        # The base sees what it saw when the cache was made: one batch of these four.
        want = base(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][kept]
    torch.testing.assert_close(rows.head(rows.values), want, rtol=0, atol=1e-5)


def test_hidden_states_are_kept_bit_by_bit(trainer_of, tmp_path) -> None:
    base = text_model("llama", 192).bfloat16()
    prt = PRTConfig(base_cache="hidden", cache_dir=tmp_path / "cache")
    trainer = trainer_of(prt, base_model=base, train_dataset=Texts(4))
    trainer.build_base_cache()
    batch = trainer.collate_training([trainer.train_dataset[n] for n in range(4)])
    places = batch["labels"][:, 1:] != -100
    rows = trainer._cached.rows(batch["prt_index"], batch["labels"][:, 1:][places])
    with trainer._base._head.taps() as tapped, torch.no_grad():
        base(batch["input_ids"], attention_mask=batch["attention_mask"])
    want = tapped.states[0][:, :-1][places]
    assert rows.values.dtype == torch.bfloat16 and torch.equal(rows.values, want)


@pytest.mark.parametrize("tail", ["uniform", "corpus"])
def test_topk_is_near_and_has_its_tail(trainer_of, base, tmp_path, tail) -> None:
    prt = PRTConfig(base_cache="topk", topk=40, tail=tail, cache_dir=tmp_path / "cache")
    trainer = trainer_of(prt)
    trainer.build_base_cache()
    batch = trainer.collate_training([trainer.train_dataset[n] for n in range(4)])
    labels = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
    rows = trainer._cached.rows(batch["prt_index"], labels)
    got = rows.head(rows.values)
    assert got.shape == (len(labels), V) and torch.isfinite(got).all()
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(len(labels)), rtol=0, atol=2e-3)
    with torch.no_grad():
        logits = base(batch["input_ids"]).logits[:, :-1, :V]
    want = logits[batch["labels"][:, 1:] != -100].log_softmax(-1)
    y = labels[:, None]
    torch.testing.assert_close(got.gather(1, y), want.gather(1, y), rtol=0, atol=1e-5)
    head = want.topk(40)
    torch.testing.assert_close(got.gather(1, head.indices), head.values, rtol=0, atol=4e-3)
    # An id that no label of the training data is has its part of the tail too.
    unseen = got[:, 150]
    assert (unseen > -15).all()
    exact = trainer_of()
    whole = exact.compute_loss(exact.model, {k: v for k, v in batch.items() if k != "prt_index"})
    near = trainer.compute_loss(trainer.model, dict(batch))
    assert near.item() == pytest.approx(whole.item(), abs=0.3) and near.item() != whole.item()


def test_full_cache_of_a_classifier(trainer_of, tmp_path) -> None:
    base = Classifier()
    given = {
        "base_model": base, "kind": "classification", "vocab_size": 5, "processing_class": None,
        "train_dataset": Digits(), "max_steps": 12, "learning_rate": 1e-2,
    }  # fmt: skip
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    want = trained(trainer_of(model=copy.deepcopy(base), **given))
    assert farthest(want, trained(trainer_of(prt, model=copy.deepcopy(base), **given))) <= 1e-5


def test_an_interrupted_cache_is_resumed(trainer_of, base, tmp_path, monkeypatch) -> None:
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    trainer = trainer_of(prt)
    calls, forward = [], type(trainer._base).outputs

    def failing(self, inputs, hidden):
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, inputs, hidden)

    monkeypatch.setattr(type(trainer._base), "outputs", failing)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert json.loads((tmp_path / "cache" / "progress.json").read_text()) == {"examples": 8}
    sgd = {"optim": "sgd", "learning_rate": 0.1}
    got = trained(trainer_of(prt, **sgd))
    assert calls == [4] * 5  # two, the one that failed, and the two that were missing
    monkeypatch.undo()
    assert farthest(got, trained(trainer_of(**sgd))) <= 1e-5
    monkeypatch.setattr(type(trainer._base), "outputs", None)  # a complete one is used as it is
    assert farthest(got, trained(trainer_of(prt, **sgd))) == 0


@pytest.mark.parametrize(
    "other, told",
    [
        ("base", "another base."),
        ("data", "another data set."),
        ("size", r"another vocabulary size \(160 there, 161 here\)."),
        ("kind", r"another kind of cache \(full there, hidden here\)"),
        ("dtype", r"another dtype \(float32 there, bfloat16 here\) and another base"),
        ("fewer", r"another data set and another number of examples \(16 there, 12 here\)"),
    ],
)
def test_a_cache_of_something_else_is_refused(trainer_of, base, tmp_path, other, told) -> None:
    given = {"base_cache": "full", "cache_dir": tmp_path / "cache"}
    trainer_of(PRTConfig(**given)).build_base_cache()
    changed = {
        "base": {"base_model": text_model("llama", 192, seed=1)},
        "data": {"train_dataset": Texts(16, seed=1)},
        "size": {"vocab_size": 161},
        "kind": {},
        "dtype": {"base_model": copy.deepcopy(base).bfloat16()},
        "fewer": {"train_dataset": Texts(12)},
    }[other]
    if other == "kind":
        given["base_cache"] = "hidden"
    trainer = trainer_of(PRTConfig(**given), **changed)
    with pytest.raises(InferKitError, match=f"was made with {told}") as caught:
        trainer.train()
    assert "another cache_dir, or delete" in str(caught.value.hint)


def test_a_damaged_cache_is_refused(trainer_of, tmp_path) -> None:
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    trainer_of(prt).build_base_cache()
    (tmp_path / "cache" / "logprobs.bin").write_bytes(b"few")
    with pytest.raises(InferKitError, match=r"logprobs.bin has 3 bytes; expected"):
        trainer_of(prt).build_base_cache()


def test_streams_have_no_cache(trainer_of) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([Texts()[0]])

    with pytest.raises(InferKitError, match="are a stream, without an order to keep the base's"):
        trainer_of(PRTConfig(base_cache="full"), train_dataset=Stream())
    trainer_of(train_dataset=Stream(), per_device_train_batch_size=1, max_steps=1).train()


def test_random_examples_have_no_cache(trainer_of, tmp_path) -> None:
    class Noisy(Texts):
        def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
            example = super().__getitem__(n)
            return example | {"input_ids": torch.randint(4, 40, (12,))}

    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    trainer = trainer_of(prt, train_dataset=Noisy())
    with pytest.raises(InferKitError, match="Example 0 of the training data differs from one read"):
        trainer.train()


def test_a_head_that_does_more_is_refused(trainer_of, tmp_path) -> None:
    class Odd(type(text_model("llama", 192))):  # type: ignore[misc]
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.1
            return out

    base = text_model("llama", 192)
    base.__class__ = Odd
    prt = PRTConfig(base_cache="hidden", cache_dir=tmp_path / "cache")
    trainer = trainer_of(prt, base_model=base)
    with pytest.raises(InferKitError, match=r"base .Odd. does more to its logits than its head"):
        trainer.train()
    with pytest.raises(InferKitError, match=r"reward .Odd. does more to its logits"):
        trainer_of(
            PRTConfig(chunk=8), model=base, base_model=text_model("llama", 192),
            remove_unused_columns=False,
        ).train()  # fmt: skip


def test_columns_that_are_not_used_are_left_out(trainer_of, tmp_path) -> None:
    """With `remove_unused_columns`, the default, the number of an example is still found."""
    from datasets import Dataset

    texts = Texts(8)
    data = Dataset.from_list(
        [{k: v.tolist() for k, v in texts[n].items()} | {"note": "x"} for n in range(8)]
    )
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    sgd = {"train_dataset": data, "optim": "sgd", "learning_rate": 0.1}
    got, want = trained(trainer_of(prt, **sgd)), trained(trainer_of(**sgd))
    assert farthest(got, want) <= 1e-5


def test_the_folder_is_in_the_output_by_default(trainer_of, tmp_path: Path) -> None:
    trainer_of(PRTConfig(base_cache="full")).build_base_cache()
    assert (tmp_path / "out" / "base_cache" / "cache.json").exists()


@pytest.mark.parametrize("chunk, kind", [(5, "none"), (None, "hidden"), (5, "hidden")])
def test_mixed_precision_over_full_weights(trainer_of, tmp_path, chunk, kind) -> None:
    """Accelerate has bf16 inside a model's forward; the heads apart from it run in it too."""
    given = {"bf16": True, "optim": "sgd", "learning_rate": 0.1, "max_steps": 4}
    folder = {} if kind == "none" else {"cache_dir": tmp_path / "cache"}
    runs = []
    for prt in (PRTConfig(), PRTConfig(chunk=chunk, base_cache=kind, **folder)):
        trainer = trainer_of(prt, **given)
        runs.append(trained(trainer))
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append(losses)
    assert farthest(runs[0], runs[2]) <= 1e-3 and runs[1] == pytest.approx(runs[3], abs=8e-3)
    assert farthest(runs[2], weights(trainer._base.source())) > 1e-2
    if kind == "hidden":
        key = json.loads((tmp_path / "cache" / "cache.json").read_text())
        assert key["dtype"] == "float32 bf16"
        with pytest.raises(InferKitError, match=r"dtype \(float32 bf16 there, float32 here\)"):
            trainer_of(prt).build_base_cache()


def test_chunks_in_mixed_precision_before_any_training(trainer_of) -> None:
    """The trainer wraps the reward for mixed precision only once it trains or evaluates."""
    losses = []
    for chunk in (5, None):
        trainer = trainer_of(PRTConfig(chunk=chunk), bf16=True)
        batch = trainer.collate_training([trainer.train_dataset[n] for n in range(4)])
        with trainer.accelerator.autocast():
            losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
        if chunk:
            losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=8e-3)


@pytest.mark.parametrize("kind", ["full", "hidden"])
@pytest.mark.parametrize("own", [True, False])
def test_heads_apart_in_mixed_precision_give_the_models_scores(
    trainer_of, base, tmp_path, kind, own
) -> None:
    """Also of an adapter's base, which no trainer has wrapped when its cache is made."""
    model = None
    if not own:
        peft = pytest.importorskip("peft")
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
        model = peft.get_peft_model(copy.deepcopy(base), lora)
    prt = PRTConfig(base_cache=kind, cache_dir=tmp_path / "cache")
    trainer = trainer_of(
        prt, model=model, base_model=base if own else None, train_dataset=Texts(4), bf16=True
    )
    trainer.build_base_cache()
    batch = trainer.collate_training([trainer.train_dataset[n] for n in range(4)])
    kept = batch["labels"][:, 1:] != -100
    rows = trainer._cached.rows(batch["prt_index"], batch["labels"][:, 1:][kept])
    got = rows.head(rows.values)[:, :V].float().log_softmax(-1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = copy.deepcopy(trainer._base.source())
        want.__dict__.pop("forward", None)
        logits = type(want).forward(want, batch["input_ids"]).logits[:, :-1, :V][kept].float()
    torch.testing.assert_close(got, logits.log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("logprobs.bin", None, "logprobs.bin is missing"),
        ("cache.json", None, "cache.json is missing, so nothing tells what the cache"),
        ("cache.json", "", "cache.json cannot be read"),
        ("cache.json", "[]", "cache.json holds a list; expected names and values"),
        ("progress.json", '{"exam', "progress.json cannot be read"),
        ("progress.json", "{}", "progress.json says that None of 16 examples are written"),
        ("progress.json", '{"examples": 17}', "says that 17 of 16 examples are written"),
    ],
)
def test_files_that_are_missing_or_damaged(trainer_of, tmp_path, name, text, told) -> None:
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    trainer_of(prt).build_base_cache()
    if text is None:
        (tmp_path / "cache" / name).unlink()
    else:
        (tmp_path / "cache" / name).write_text(text)
    with pytest.raises(InferKitError, match=told) as caught:
        trainer_of(prt).build_base_cache()
    assert "The cache is damaged: delete its folder" in str(caught.value.hint)


@pytest.mark.parametrize(
    "family, first, second",
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}},
        ),
        ("gemma2", {"final_logit_softcapping": 3.0}, {"final_logit_softcapping": 4.0}),
        ("cohere2", {"logit_scale": 0.25}, {"logit_scale": 0.5}),
    ],
)
def test_the_same_weights_under_another_config_are_another_base(
    trainer_of, tmp_path, family, first, second
) -> None:
    prt = PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")
    one, other = text_model(family, 192, **first), text_model(family, 192, **second)
    other.load_state_dict(one.state_dict())
    trainer_of(prt, base_model=one).build_base_cache()
    with pytest.raises(InferKitError, match="was made with another base."):
        trainer_of(prt, base_model=other).build_base_cache()
    # What tells nothing of its arithmetic does not matter.
    one.config.name_or_path, one.config.use_cache = "elsewhere", False
    one.config.transformers_version, one.config.pad_token_id = "1.0", 3
    trainer_of(prt, base_model=one).build_base_cache()
