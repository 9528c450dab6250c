"""lm-evaluation-harness's HuggingFace class takes a composed model as it is."""

from __future__ import annotations

import pytest

from infer_kit.reward.compose import compose
from infer_kit.reward.portable import PortableReward
from tests.reward.models import VOCAB, gpt2, llama
from tests.tiny import tiny_tokenizer

huggingface = pytest.importorskip("lm_eval.models.huggingface")

TOKENIZER = tiny_tokenizer(VOCAB)
ASKED = [("the rain in", " the stone"), ("a stone", " ran")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 2])
def test_scores_and_answers_are_those_of_the_composed_model(batch: int) -> None:
    from lm_eval.api.instance import Instance

    reward = PortableReward(gpt2(1), TOKENIZER)
    mixed = compose(llama(0, rows=164), reward, beta=0.8, tokenizer=TOKENIZER)
    lm = huggingface.HFLM(pretrained=mixed, tokenizer=TOKENIZER, batch_size=batch, max_length=64)
    found = lm.loglikelihood(
        [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(ASKED)], disable_tqdm=True
    )
    for (context, text), (score, _) in zip(ASKED, found, strict=True):
        ids = TOKENIZER(context + text, return_tensors="pt")["input_ids"]
        before = TOKENIZER(context, return_tensors="pt")["input_ids"].shape[1]
        expected = mixed.score([ids[0, :before]], [ids[0, before:]]).pooled[0].sum()
        assert score == pytest.approx(float(expected), abs=1e-4)
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    answers = lm.generate_until(
        [Instance("generate_until", {}, (c, options), n) for n, (c, _) in enumerate(ASKED)],
        disable_tqdm=True,
    )
    for (context, _), answer in zip(ASKED, answers, strict=True):
        ids = TOKENIZER(context, return_tensors="pt")["input_ids"]
        out = mixed.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert answer == TOKENIZER.decode(out, skip_special_tokens=True).split("\n")[0]
