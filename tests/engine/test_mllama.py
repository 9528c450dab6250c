"""Cross-attention caches are told from others by the model's structure, never by their length."""

import pytest
import torch

from infer_kit.engine.coupled_lm import CoupledLM
from tests.tiny import reference_logits, shared_lvlm

VISION_STATES = 68


@pytest.mark.filterwarnings("ignore:MllamaForConditionalGeneration. streams are decoded one by one")
@pytest.mark.parametrize("length", [VISION_STATES - 1, VISION_STATES, VISION_STATES + 1])
@pytest.mark.parametrize("text_stream", [False, True])
def test_a_prompt_as_long_as_its_image(length: int, text_stream: bool) -> None:
    """Drafts are rejected on the way, so the image would be cropped if it passed for tokens."""
    tiny = shared_lvlm("mllama")
    markers = tiny.row([0], 5, 0)["input_ids"].shape[1] - 5
    rows = [tiny.row([0], length - markers, 0)]
    assert rows[0]["input_ids"].shape[1] == length
    if text_stream:
        rows.append(tiny.row((), 9, 1))
    out = CoupledLM(tiny.model).generate(
        [rows],
        max_new_tokens=6,
        do_sample=False,
        prompt_lookup_num_tokens=2,
        suppress_tokens=tiny.image_token_ids,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert out.engines == ("serial",)
    ids = out.sequences[:, length:]
    expected = sum(reference_logits(tiny.model, row, ids[:, :-1]) for row in rows)
    torch.testing.assert_close(torch.cat(out.logits), expected, atol=1e-5, rtol=0)
