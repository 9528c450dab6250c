"""lm-evaluation-harness's own class on a base and its rewards, in scores and in what is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infer_kit.errors import InferKitError
from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward
from tests.harness.requests import requests, scores, texts
from tests.reward.models import VOCAB, gpt2, llama
from tests.tiny import tiny_tokenizer

huggingface = pytest.importorskip(
    "lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = tiny_tokenizer(VOCAB)
ASKED = [("the rain in", " the stone"), ("a stone", " ran"), ("the", " rain in a stone")]
WRITING = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
HERE = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base, a tuned and an untuned model, and two rewards, on disk."""
    root = tmp_path_factory.mktemp("models")
    models = {"base": llama(0), "tuned": llama(1), "untuned": llama(2), "short": gpt2(3)}
    for name, model in models.items():
        model.save_pretrained(root / name)
        TOKENIZER.save_pretrained(root / name)
    PortableReward(gpt2(1), TOKENIZER, beta=0.7).save_pretrained(root / "reward")
    PortableReward(gpt2(2), TOKENIZER).save_pretrained(root / "other")
    return {path.name: str(path) for path in root.iterdir()}


def load(**model_args: Any) -> Any:
    from infer_kit.harness.lm import InferKitLM

    return InferKitLM(**{**HERE, **model_args})


def written(lm: Any) -> list[str]:
    return texts(lm, *[(context, WRITING) for context, _ in ASKED])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_composed_object_is_taken_as_it_is(batch: int) -> None:
    reward = PortableReward(gpt2(1), TOKENIZER)
    mixed = compose(llama(0, rows=164), reward, beta=0.8, tokenizer=TOKENIZER)
    lm = huggingface.HFLM(pretrained=mixed, tokenizer=TOKENIZER, batch_size=batch, max_length=64)
    check_against(lm, mixed)


def check_against(lm: Any, mixed: Any) -> None:
    """Scores and texts of a model in the harness are those of a composed model."""
    for (context, text), (score, _) in zip(ASKED, scores(lm, *ASKED), strict=True):
        ids = TOKENIZER(context + text, return_tensors="pt")["input_ids"]
        before = TOKENIZER(context, return_tensors="pt")["input_ids"].shape[1]
        expected = mixed.score([ids[0, :before]], [ids[0, before:]]).pooled[0].sum()
        assert score == pytest.approx(float(expected), abs=1e-4)
    for (context, _), answer in zip(ASKED, written(lm), strict=True):
        ids = TOKENIZER(context, return_tensors="pt")["input_ids"]
        out = mixed.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert answer == TOKENIZER.decode(out, skip_special_tokens=True).split("\n")[0]


def test_plain_is_the_stock_model(folders: dict[str, str]) -> None:
    stock = huggingface.HFLM(pretrained=folders["base"], **HERE)
    mine = load(pretrained=folders["base"])
    assert scores(mine, *ASKED) == scores(stock, *ASKED)
    assert written(mine) == written(stock)
    rolled = requests("loglikelihood_rolling", ("the rain in a stone",))
    assert mine.loglikelihood_rolling(rolled) == stock.loglikelihood_rolling(rolled)


def test_a_model_may_lie_in_a_folder_of_a_folder(folders: dict[str, str]) -> None:
    above = Path(folders["base"]).parent
    mine = load(pretrained=str(above), subfolder="base")
    assert scores(mine, *ASKED) == scores(load(pretrained=folders["base"]), *ASKED)


def test_strength_0_is_the_base(folders: dict[str, str]) -> None:
    plain = load(pretrained=folders["base"])
    mine = load(pretrained=folders["base"], reward=folders["reward"], beta=0)
    assert scores(mine, *ASKED) == scores(plain, *ASKED)
    assert written(mine) == written(plain)


@pytest.mark.parametrize("beta", [None, 2.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_reward_counts_in_scores_and_in_what_is_written(
    folders: dict[str, str], beta: float | None, batch: int
) -> None:
    lm = load(pretrained=folders["base"], reward=folders["reward"], beta=beta, batch_size=batch)
    mixed = compose(llama(0), folders["reward"], beta=beta or 0.7, tokenizer=TOKENIZER)
    check_against(lm, mixed)
    assert written(lm) != written(load(pretrained=folders["base"]))


def test_several_rewards(folders: dict[str, str]) -> None:
    both = f"{folders['reward']}+{folders['other']}"
    lm = load(pretrained=folders["base"], reward=both, beta=0.5)
    rewards = [folders["reward"], folders["other"]]
    check_against(lm, compose(llama(0), rewards, beta=0.5, tokenizer=TOKENIZER))


def test_a_tuned_and_an_untuned_model(folders: dict[str, str]) -> None:
    pair = {"tuned": folders["tuned"], "untuned": folders["untuned"]}
    lm = load(pretrained=folders["base"], **pair, beta=1.5)
    implicit = ((llama(1), TOKENIZER), (llama(2), TOKENIZER))
    check_against(lm, compose(llama(0), implicit=implicit, beta=1.5, tokenizer=TOKENIZER))


def test_the_base_as_the_untuned_model_is_loaded_once(folders: dict[str, str]) -> None:
    lm = load(pretrained=folders["base"], tuned=folders["tuned"], untuned=folders["base"])
    assert len(lm.model.members) == 2
    mixed = compose(llama(0), implicit=((llama(1), TOKENIZER), (llama(0), TOKENIZER)), beta=1.0,
                    tokenizer=TOKENIZER)  # fmt: skip
    check_against(lm, mixed)


def test_an_adapter_shares_the_bases_weights(folders: dict[str, str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folders["base"])
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapter = peft.get_peft_model(base, config)
    PortableReward(adapter, TOKENIZER).save_pretrained(tmp_path / "adapter")
    lm = load(pretrained=folders["base"], reward=str(tmp_path / "adapter"))
    plain, tilted = lm.model.members
    shared = {tensor.data_ptr() for tensor in plain.parameters()}
    own = [n for n, tensor in tilted.named_parameters() if tensor.data_ptr() not in shared]
    assert own and all("lora" in name for name in own)


def test_the_context_is_the_shortest_members(folders: dict[str, str]) -> None:
    PortableReward(llama(5, max_position_embeddings=48), TOKENIZER).save_pretrained(
        short := Path(folders["base"]).parent / "short reward"
    )
    assert load(pretrained=folders["base"]).max_length == 128
    assert load(pretrained=folders["base"], reward=str(short)).max_length == 48


def test_results_name_the_configuration(folders: dict[str, str]) -> None:
    found = [
        load(pretrained=folders["base"], reward=folders["reward"], beta=beta).get_model_info()
        for beta in (0.5, 1.0)
    ]
    assert found[0]["infer_kit"] != found[1]["infer_kit"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"wieghts": "1+1"}, "has no argument 'wieghts'. Did you mean 'weights'?"),
        ({"rewrad": "r"}, "has no argument 'rewrad'. Did you mean 'reward'?"),
        ({"pretrained": "nowhere/at/all"}, "pretrained=nowhere/at/all: there is no such model"),
        ({"pretrained": None}, "pretrained= needs a folder or a name on the hub"),
        ({"reward": "nowhere"}, "reward=nowhere: there is no such folder"),
        ({"tuned": "x"}, "tuned= and untuned= go together"),
        ({"tuned": "x/y", "untuned": "x/y"}, "tuned=x/y: there is no such model"),
        ({"beta": 1.0}, "beta= is the strength of a reward"),
        ({"beta": "strong"}, "beta is 'strong'; expected a finite number"),
    ],
)
def test_refusals_come_before_loading(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        huggingface.HFLM, "_create_tokenizer", lambda *_, **__: pytest.fail("loading began")
    )
    with pytest.raises(InferKitError, match=re.escape(message)):
        load(**{"pretrained": "demo-text-a", **options})


@pytest.mark.parametrize(
    "given, message",
    [({"parallelize": True}, "parallelize= cannot work here"), ({}, "evaluated by one process")],
)
def test_a_composed_model_is_on_one_device_in_one_process(
    folders: dict[str, str],
    given: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not given:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InferKitError, match=message):
        load(pretrained=folders["base"], reward=folders["reward"], **given)
