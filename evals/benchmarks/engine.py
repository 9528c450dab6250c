"""What the coupled engine costs beside plain `generate()` and beside the bare model.

Compares, in CPU time of one thread and interleaved rounds: one stream with `model.generate()`; K
streams with a bare loop over a K-row forward of the same model (the limit: nothing but the model);
prefilling prompts alone and merging with prefilling them as one padded batch; and counts passes
through the vision tower. Random weights: speed does not depend on them.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_most,
    exactly,
    interleaved,
    median_ratio,
    report,
)
from infer_kit.engine.cache_name import CACHE
from infer_kit.engine.coupled_lm import CoupledLM

NEW_TOKENS = 24
PROMPT = 32
VOCABULARY = 16_000


def llama() -> PreTrainedModel:
    """A Llama of 66 million parameters, random."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=9,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def prompt(length: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (1, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def bare_loop(model: PreTrainedModel, ids: Tensor) -> None:
    """Greedy decoding of a K-row batch with nothing around the model."""
    cache = DynamicCache(config=model.config)
    for _ in range(NEW_TOKENS):
        logits = model(ids, **{CACHE: cache}, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1].float().sum(0).argmax()
        ids = token.expand(len(ids), 1)


def decoding(model: PreTrainedModel, rounds: int) -> tuple[list[Claim], list[dict]]:
    """K = 1 beside plain generate; K = 2 and 4 beside the bare loop."""
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    rows = {k: [[prompt(PROMPT, seed) for seed in range(k)]] for k in (1, 2, 4)}
    ids = {k: torch.cat([r["input_ids"] for r in rows[k][0]]) for k in rows}
    lms = {k: CoupledLM([model] * k) for k in rows}
    sides: dict[str, Callable[[], Any]] = {
        "plain generate": lambda: model.generate(**rows[1][0][0], **options)
    }
    for k in rows:
        sides[f"ours, K={k}"] = partial(lms[k].generate, rows[k], **options)
        sides[f"bare loop, K={k}"] = partial(bare_loop, model, ids[k])
    traced = options | {"trace": True, "return_dict_in_generate": True}
    sides["ours, K=2, with a trace"] = lambda: lms[2].generate(rows[2], **traced)
    unequal = [[prompt(PROMPT, 0), prompt(PROMPT // 2, 1)]]
    sides["ours, K=2, prompts of unequal length"] = lambda: lms[2].generate(unequal, **options)
    times = interleaved(sides, rounds)
    table = [
        {"what": name, "tokens / CPU second": NEW_TOKENS / statistics.median(t)}
        for name, t in times.items()
    ]
    claims = [
        at_most("k1_vs_plain", median_ratio(times, "ours, K=1", "plain generate"), 1.05),
        at_most("k2_vs_bare", median_ratio(times, "ours, K=2", "bare loop, K=2"), 1.10),
        at_most("k4_vs_bare", median_ratio(times, "ours, K=4", "bare loop, K=4"), 1.10),
    ]
    return claims, table


def prefilling(model: PreTrainedModel, rounds: int) -> tuple[list[Claim], list[dict]]:
    """600 + 80 tokens: alone and merged, against one padded batch."""
    streams = [prompt(600, 0), prompt(80, 1)]
    padded = torch.zeros(2, 600, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, stream in enumerate(streams):
        length = stream["input_ids"].shape[1]
        padded[row, 600 - length :] = stream["input_ids"]
        mask[row, 600 - length :] = 1
    lm = CoupledLM([model] * 2)
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False}
    times = interleaved(
        {
            "ours, 600 + 80": lambda: lm.generate([streams], **options),
            "padded batch, 2 × 600": lambda: model.generate(padded, attention_mask=mask, **options),
        },
        rounds,
    )
    table = [
        {"what": name, "tokens / CPU second": 680 / statistics.median(t)}
        for name, t in times.items()
    ]
    ratio = median_ratio(times, "ours, 600 + 80", "padded batch, 2 × 600")
    return [at_most("prefill_ours_vs_padded", ratio, 0.65)], table


def tower_passes() -> tuple[list[Claim], list[dict]]:
    """Six image streams in three requests that show two distinct images."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
        text_config=LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        image_token_index=4,
    )
    model = LlavaForConditionalGeneration(config).eval()
    images = [torch.randn(1, 3, 32, 32) for _ in range(2)]

    def row(image: int, seed: int) -> dict[str, Tensor]:
        text = prompt(8 + seed, seed)["input_ids"] % 90 + 5
        ids = torch.cat([torch.full((1, 4), 4), text], dim=1)
        return {"input_ids": ids, "pixel_values": images[image].clone()}

    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    rows = [[row(0, 0), row(0, 1)], [row(1, 2), row(1, 3)], [row(0, 4), row(1, 5)]]
    CoupledLM([model] * 2).generate(rows, max_new_tokens=2, do_sample=False)
    handle.remove()
    return [exactly("vision_tower_calls", len(calls), len(images))], []


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    model = llama()
    rounds = 3 if options.quick else 15
    claims, rows = [], []
    for part in (
        decoding(model, rounds),
        prefilling(model, max(3, rounds // 2)),
        tower_passes(),
    ):
        claims += part[0]
        rows += part[1]
    report("Coupled engine, one thread", claims, rows, options.json)


if __name__ == "__main__":
    main()
