"""The two untrained text models, their tokenizers, and the folders that they are saved to.

They differ in all that may differ between two language models of one language:

| | a | b |
|---|---|---|
| tokenizer | byte-level BPE, pre-tokenizer of Llama 3 | Unigram with Metaspace and byte fallback |
| before a text | nothing | `<s>`, and a space |
| end | `<|endoftext|>`; of a chat turn `<|im_end|>` | `</s>` |
| chat | `<|im_start|>role ...` | `User: ...`, `Helper: ...` |
| mostly trained on | errands | animals |
"""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from infer_kit.demo.build import match_init
from infer_kit.demo.text import corpus, unigram

SIZES = {"a": 512, "b": 640}
"""Tokens of each vocabulary."""

ERRANDS_SHARE = {"a": 0.95, "b": 0.05}
LONGEST = 1024
WIDTH, LAYERS, HEADS, HEAD_WIDTH, INNER = 96, 4, 3, 32, 160
INIT_STD = 0.05

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATES = {
    "a": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "b": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %} User: "
        "{{ m['content'] }}\nHelper:{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}
BYTE_SCORE = -1000.0
"""Of the byte tokens of b, so low that text such as "<0x41>" is never read as one."""

SAMPLE = 6000
SAMPLE_SHARE = {"a": 0.6, "b": 0.4}
"""Texts that a tokenizer is trained on, and how many of them are errands."""


def make_tokenizer(name: str) -> Any:
    """The tokenizer of a model, trained on texts in the shares of the model."""
    rng = random.Random(f"tokenizer {name}")
    lines = []
    for _ in range(SAMPLE):
        made = corpus.text(corpus.DOMAINS[rng.random() >= SAMPLE_SHARE[name]], rng)
        question, answer = rng.choice(made.questions + made.facts)
        lines.append(f"{made.title}\n\n{made.body}")
        if rng.random() < corpus.ASKED_SHARE:
            lines.append(f"{corpus.plain_question('', question)} {answer}")
    return _byte_level(lines) if name == "a" else _unigram(lines)


def _byte_level(lines: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["a"],
        special_tokens=[END, TURN, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[TURN, TURN_END],
        chat_template=TEMPLATES["a"],
        **_COMMON,
    )


def _unigram(lines: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    visible = string.ascii_letters + string.digits + string.punctuation + "\n" + unigram.SPACE
    pieces = unigram.train(lines, visible, SIZES["b"] - len(special) - len(fallback))
    table = [(token, 0.0) for token in special] + [(token, BYTE_SCORE) for token in fallback]
    tokenizer = Tokenizer(models.Unigram([*table, *pieces.items()], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(unigram.SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=TEMPLATES["b"],
        **_COMMON,
    )


_COMMON: dict[str, Any] = {
    "clean_up_tokenization_spaces": False,
    "model_max_length": LONGEST,
    "model_input_names": ["input_ids", "attention_mask"],
}


def make_model(name: str, tokenizer: Any, seed: int) -> Any:
    """The untrained model, a small Llama; its attention starts as in the other teaching models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SIZES[name],
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=HEAD_WIDTH,
            max_position_embeddings=LONGEST,
            initializer_range=INIT_STD,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # It was written for the language model inside a LLaVA.
    match_init(SimpleNamespace(model=SimpleNamespace(language_model=model.model)))
    ends = [tokenizer.eos_token_id]
    if name == "a":
        ends.append(tokenizer.convert_tokens_to_ids(TURN_END))
    config = model.generation_config
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    config.max_new_tokens, config.do_sample = 200, False
    config._from_model_config = False  # else loading may take it from the model's config again
    return model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save in half precision."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.float16
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {
        name: value.detach().half().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("lm_head.")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = folder / "tokenizer_config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()), indent=2, sort_keys=True) + "\n"
    )
