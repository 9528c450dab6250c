"""The loss in TRL's SFTTrainer, with TRL's data and masks."""

import copy
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from infer_kit.errors import InferKitError
from infer_kit.training import prt as package
from infer_kit.training.prt import PRTConfig
from tests.tiny import text_model, tiny_tokenizer
from tests.training.conftest import V, farthest, weights

PAIRS = [
    {"prompt": "the " + "ab" * n, "completion": "cd" * (1 + n % 3) + " end"} for n in range(1, 9)
]


def test_trl_is_imported_when_it_is_asked_for() -> None:
    import subprocess

    told = subprocess.run(
        [sys.executable, "-c", "import sys, infer_kit.training.prt; print('trl' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'PRTOtherTrainer'"):
        package.PRTOtherTrainer  # noqa: B018


def test_without_trl_the_name_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    package.__dict__.pop("PRTSFTTrainer", None)
    with pytest.raises(InferKitError, match="PRTSFTTrainer needs TRL, which is not installed"):
        package.PRTSFTTrainer  # noqa: B018


@pytest.fixture
def sft(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    def make(prt=None, model=None, base="same", loss_type=None, rows=PAIRS, **changed):
        own = {"eval_dataset": changed.pop("eval_dataset", None)}
        config = {
            "output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": [],
            "disable_tqdm": True, "max_steps": 2, "per_device_train_batch_size": 4,
            "logging_steps": 1, "save_strategy": "no", "dataloader_pin_memory": False,
            "optim": "sgd", "learning_rate": 0.1, "bf16": False, "max_length": 64,
            "gradient_checkpointing": False,
        }  # fmt: skip
        args = trl.SFTConfig(**(config | changed))
        if loss_type is not None:
            args.loss_type = loss_type
        base = text_model("llama", 192) if isinstance(base, str) else base
        return package.PRTSFTTrainer(
            model=copy.deepcopy(base) if model is None else model, base_model=base, args=args,
            prt=prt, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(V),
            **own,
        )  # fmt: skip

    return make


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:trl.*")
def test_completions_alone_have_labels(sft) -> None:
    base = text_model("llama", 192)
    trainer = sft(base=base, per_device_train_batch_size=8, max_steps=1)
    tokenizer = trainer.processing_class
    trainer.train()
    total, labels = 0.0, 0
    for example in trainer.train_dataset:
        ids = torch.tensor(example["input_ids"])
        mask = torch.tensor(example["labels"]) != -100
        text = tokenizer.decode(ids[mask], skip_special_tokens=True)
        assert text in {pair["completion"] for pair in PAIRS}
        with torch.no_grad():
            z = base(ids[None]).logits[0, :, :V]
        places = mask[1:].nonzero()[:, 0]
        total += float(cross_entropy(2 * z[places], ids[places + 1], reduction="sum"))
        labels += len(places)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / labels, abs=2e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:trl.*")
@pytest.mark.parametrize("base_cache, chunk", [("full", None), ("hidden", 5), ("none", 5)])
def test_caches_and_chunks_train_the_same(sft, tmp_path, base_cache, chunk) -> None:
    base = text_model("llama", 192)
    runs = []
    for prt in (None, PRTConfig(base_cache=base_cache, chunk=chunk)):
        trainer = sft(prt, base=base)
        trainer.train()
        runs.append(weights(trainer.model))
    assert farthest(*runs) <= 1e-5 and farthest(runs[0], weights(base)) > 1e-3


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:trl.*")
@pytest.mark.parametrize("flat", [{"padding_free": True, "max_length": None}, {"packing": True}])
def test_texts_of_one_row_do_not_see_one_another(sft, tmp_path, flat) -> None:
    """Neither those of the base nor those of the reward, with a cache or without."""
    base = text_model("llama", 192)
    runs = [weights(base)]
    for prt in (None, PRTConfig(base_cache="full", cache_dir=tmp_path / "cache")):
        trainer = sft(prt, base=base, **flat)
        trainer.train()
        runs.append(weights(trainer.model))
    assert farthest(runs[1], runs[2]) <= 1e-5 and farthest(runs[0], runs[1]) > 1e-3
    if "padding_free" in flat:
        padded = sft(base=base)
        padded.train()
        assert farthest(runs[1], weights(padded.model)) <= 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:trl.*")
def test_evaluation_and_adapters(sft) -> None:
    peft = pytest.importorskip("peft")
    from datasets import Dataset

    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(text_model("llama", 192), config)
    trainer = sft(model=model, base=None, eval_dataset=Dataset.from_list(PAIRS[:4]), max_steps=1)
    found = trainer.evaluate()
    assert found["eval_loss"] > 0 and "eval_source_gain" in found
    assert trainer.source_gain().examples == 4


@pytest.mark.parametrize("loss_type", ["chunked_nll", "dft"])
def test_losses_of_its_own_are_refused(sft, loss_type) -> None:
    with pytest.raises(InferKitError, match=f"loss_type is '{loss_type}'") as caught:
        sft(loss_type=loss_type)
    assert 'loss_type="nll"' in str(caught.value.hint)


def test_a_name_is_not_a_model(sft) -> None:
    with pytest.raises(InferKitError, match="model is the text 'gpt2'; expected a model"):
        sft(model="gpt2")
