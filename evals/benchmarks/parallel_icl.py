"""What a query costs in context and in chunks: prefill tokens, and time.

A random LLaVA of 13 million parameters answers queries after 32 demonstrations of one picture (64
tokens) each: by plain `generate()` on the whole context, and by `ParallelICL` in one chunk and in
2, 4 and 8, with and without the bank of chunk states. A query's time is everything from chat to
answer: image processing, rendering, features, weights, prefill and 4 new tokens. Fitting, once for
all queries, is in a row of its own. CPU time of one thread, interleaved; random weights: speed does
not depend on them.

Then the pool alone: one step at V = 152,064 and K = 8 beside a forward of 8 rows of a model of 0.1
billion parameters.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evals.benchmarks.measuring import (
    Claim,
    arguments,
    at_most,
    interleaved,
    median_ratio,
    report,
)
from infer_kit.engine.cache_name import CACHE
from infer_kit.methods.parallel_icl import ParallelICL
from infer_kit.pooling import resolve_pooling

SHOTS = 32
SIDE, PATCH = 128, 16
WORDS = 200
CHUNKS = (1, 2, 4, 8)
ANSWER: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
TEMPLATE = (
    "<s>{% for m in messages %} {{ m['role'] }} :{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %} <image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=4096,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=8192,
        ),
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.generation_config.suppress_tokens = [4]
    return model


def make_processor() -> Any:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "assistant", ":"]
    words += [f"word{n}" for n in range(WORDS)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    side = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def pictures(seed: int) -> Iterator[Image.Image]:
    """Noise, always new."""
    random = np.random.default_rng(seed)
    while True:
        yield Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def demonstrations() -> list[dict[str, Any]]:
    some = pictures(0)
    return [
        {
            "image": next(some),
            "question": f"word{n} word{n + 1} word{n + 2}",
            "answer": f"word{n + 50}",
        }
        for n in range(SHOTS)
    ]


def chat_of(item: dict[str, Any]) -> list[dict[str, Any]]:
    content = [
        {"type": "image", "image": item["image"]},
        {"type": "text", "text": item["question"]},
    ]
    turns = [{"role": "user", "content": content}]
    if "answer" in item:
        answer = [{"type": "text", "text": item["answer"]}]
        turns.append({"role": "assistant", "content": answer})
    return turns


class PrefillCount:
    """Counts the tokens of the first forwards of a call, by the language model's own inputs."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        model.model.language_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        rows, length = kwargs["inputs_embeds"].shape[:2]
        self.tokens += rows * length if length > 1 else 0

    def of(self, call: Callable[[], Any]) -> int:
        self.tokens = 0
        call()
        return self.tokens


def querying(rounds: int) -> tuple[list[Claim], list[dict]]:
    """A query in full context and in chunks."""
    model, processor = make_model(), make_processor()
    count = PrefillCount(model)
    demos, queries = demonstrations(), pictures(1)

    def query() -> list[dict[str, Any]]:
        return chat_of({"image": next(queries), "question": "word7 word8 word9"})

    def plain() -> None:
        chat = [turn for demo in demos for turn in chat_of(demo)] + query()
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        model.generate(**inputs, **ANSWER)

    def ours(picl: ParallelICL) -> None:
        picl.generate(query(), **ANSWER)

    sides: dict[str, Callable[[], Any]] = {"plain generate(), full context": plain}
    for k in CHUNKS:
        for bank in (False, True):
            picl = ParallelICL(
                model, processor, chunks=k, chunking="balanced", bank=bank, trace=False
            ).fit(demos)
            name = "bank" if bank else "no bank"
            sides[f"ParallelICL, {k} chunk{'s' * (k > 1)}, {name}"] = partial(ours, picl)
    tokens = {name: count.of(side) for name, side in sides.items()}
    times = interleaved(sides, rounds)
    full = "plain generate(), full context"
    rows = [
        {
            "what": name,
            "prefill tokens": tokens[name],
            "CPU s": statistics.median(t),
            "ratio": median_ratio(times, name, full),
            "to": "full context",
        }
        for name, t in times.items()
    ]

    def fit() -> None:
        ParallelICL(model, processor, chunks=4, chunking="balanced", trace=False).fit(demos)

    once = interleaved({"fit": fit}, 1)["fit"][0]
    rows.append(
        {
            "what": "fit, 4 chunks (once: features, chunks, bank)",
            "prefill tokens": count.of(fit),
            "CPU s": once,
            "ratio": once / statistics.median(times[full]),
            "to": "full context",
        }
    )
    claims = [
        at_most("k4_bank_vs_full", median_ratio(times, "ParallelICL, 4 chunks, bank", full), 0.5),
        at_most(
            "k4_no_bank_vs_full", median_ratio(times, "ParallelICL, 4 chunks, no bank", full), 0.8
        ),
    ]
    return claims, rows


def pooling_step(rounds: int) -> tuple[list[Claim], list[dict]]:
    """One pooled step at V = 152,064, K = 8, beside a forward of 8 rows."""
    vocabulary, streams = 152_064, 8
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    cache = DynamicCache(config=config)
    ids = torch.randint(0, vocabulary, (streams, 64))
    with torch.no_grad():
        model(ids, **{CACHE: cache}, logits_to_keep=1)
    logits = torch.randn(1, streams, 1, vocabulary)
    request = torch.zeros(1, dtype=torch.long)
    present = torch.ones(1, streams, dtype=torch.bool)

    @torch.no_grad()
    def forward() -> None:
        model(ids[:, :1], **{CACHE: cache})
        cache.crop(-1)

    def pool(kind: str) -> None:
        pooling = pools[kind]
        pooling(logits, pooling.weights_at(logits, request, 0), request)

    weights = [1 / streams] * streams
    pools = {kind: resolve_pooling(kind, weights, present) for kind in ("product", "mixture")}
    sides: dict[str, Callable[[], Any]] = {"forward": forward}
    sides |= {kind: partial(pool, kind) for kind in pools}
    times = interleaved(sides, rounds)
    rows = [
        {
            "what": f"one step, K = 8, V = 152,064: {name}",
            "prefill tokens": 0,
            "CPU s": statistics.median(t),
            "ratio": median_ratio(times, name, "forward"),
            "to": "forward",
        }
        for name, t in times.items()
    ]
    share = median_ratio(times, "product", "forward")
    return [at_most("pooled_step_share_v152064_k8", share, 0.02)], rows


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    claims, rows = [], []
    for part in (querying(1 if options.quick else 7), pooling_step(7 if options.quick else 15)):
        claims += part[0]
        rows += part[1]
    report("Parallel in-context learning, one thread", claims, rows, options.json)


if __name__ == "__main__":
    main()
