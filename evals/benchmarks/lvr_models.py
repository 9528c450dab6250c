"""The models that the vocabulary benchmark runs on: nothing is downloaded, all in some ten seconds.

Speed depends on the shape of a model; what a reducer has to follow depends on how peaked the model
is. Random weights are flat, so that every token lives and pruning looks hopeless; hence the models
are fitted for some seconds, until a text costs them what prose costs a pretrained model of a
hundred million parameters: `BITS` bits a byte. The text is of two pages of the Python reference,
which comes with every Python; the passage that is scored is of the first. So short a fit says
nothing of a text that it has not seen, and is not meant to: it gives genuine text the probability
that a large model gives it, and the tokens beside it a tail.

`large_vocabulary` has 151,643 tokens and one special: Qwen's where the environment variable
INFER_KIT_TEST_DATA names a folder with the file, else a byte-level BPE trained on the spot on the
reference, on words put together from halves of its words, on Chinese characters and on runs of
spaces, so that tokens nest as they do in a real vocabulary, down to 128 spaces. The same seed gives
the same tokens. `small_vocabulary` has 512.
"""

import math
import os
import random
import re
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from infer_kit.vocab.vocabulary import Vocabulary

LARGE, SMALL = 151_643, 511
END = "<|endoftext|>"
PAGES = ("exceptions", "objects")
LENGTH = 6_000
BITS = 1.0
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def unwrapped(page: str) -> str:
    """A page of the reference with its lines joined into paragraphs."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", topics[page])


def fitted_text() -> str:
    """What the models are fitted on: prose, `LENGTH` characters."""
    return "\n\n".join(unwrapped(page) for page in PAGES)[:LENGTH]


def passage(length: int) -> str:
    """The text that is scored: whole words, at most `length` characters, of the first page."""
    page = unwrapped(PAGES[0])
    start = page.index("Exceptions are a means")
    return page[start : start + length].rsplit(" ", 1)[0]


def large_vocabulary() -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """A Llama of 0.2 million parameters and 151,644 rows, its tokenizer, and the tokens' origin."""
    folder = os.environ.get("INFER_KIT_TEST_DATA")
    file = Path(folder or ".") / "tokenizers" / "qwen.tiktoken"
    if folder and file.exists():
        core, origin = Vocabulary.from_tiktoken(file).encoder, "Qwen's tokens"
    else:
        core, origin = trained(invented_corpus(), LARGE), "tokens trained on the spot"
    tokenizer = wrapped(core)
    return fitted(tokenizer, fitted_text()), tokenizer, origin


def small_vocabulary() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The same Llama with 512 rows, and a byte-level BPE trained on what the model is fitted on."""
    tokenizer = wrapped(trained([fitted_text()], SMALL))
    return fitted(tokenizer, fitted_text()), tokenizer


def wrapped(core: Tokenizer | None) -> PreTrainedTokenizerFast:
    """A tokenizer as models come with it; `END` begins and ends its texts."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END
    )


def trained(corpus: list[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet),
    )
    return core


def invented_corpus() -> list[str]:
    """Texts with enough different words for a large vocabulary."""
    reference = "\n\n".join(unwrapped(page) for page in sorted(topics))
    words = sorted(set(re.findall(r"\b[A-Za-z]{3,9}\b", reference)))
    endings = defaultdict(list)
    for word in words:
        for cut in range(1, len(word)):
            endings[word[cut - 1 : cut + 1]].append(word[cut + 1 :])
    chance = random.Random(0)

    def invented() -> str:
        """The beginning of a word and the end of another that shares two letters with it."""
        word = chance.choice(words)
        cut = chance.randrange(1, len(word))
        return word[: cut + 1] + chance.choice(endings[word[cut - 1 : cut + 1]])

    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 2500)]
    chinese = ("".join(chance.choices(characters, k=2)) for _ in range(20_000))
    spaces = "\n".join(" " * n + "x" for n in range(1, 130))
    inside = " ".join(invented() for _ in range(340_000))
    first = "\n".join(invented() for _ in range(120_000))
    return [reference] * 3 + [inside, first, "\n".join(chinese)] + [spaces] * 8


def fitted(tokenizer: PreTrainedTokenizerFast, text: str) -> PreTrainedModel:
    """A tiny Llama to which `text` costs `BITS` bits a byte, give or take.

    The rows of tokens that occur in the text are trained. All the others are one trained vector and
    noise of their own, so that a sample of them stands for all of them in the normaliser.
    """
    generator = torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = LlamaForCausalLM(config)
    ids = torch.tensor(tokenizer.encode(text))
    seen, position = torch.cat([ids, torch.tensor([end])]).unique(return_inverse=True)
    body, start = position[:-1], position[-1]
    unseen = torch.ones(len(tokenizer), dtype=torch.bool)
    unseen[seen] = False
    others = unseen.nonzero()[:, 0]
    noise = 0.1 * torch.randn(len(tokenizer), config.hidden_size)
    rows = torch.nn.Parameter(0.05 * torch.randn(len(seen), config.hidden_size))
    shared = torch.nn.Parameter(torch.zeros(config.hidden_size))
    network = [*model.model.layers.parameters(), *model.model.norm.parameters()]
    weights = [*network, rows, shared]
    optimizer = torch.optim.Adam(weights, lr=1e-2, betas=(0.9, 0.98))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.03, total_iters=30)
    sample, width, batch = min(256, len(others)), 64, 8
    bits = math.log2(len(tokenizer))
    while bits > BITS:
        at = torch.randint(len(body), (batch, 1), generator=generator)
        target = body[(at + torch.arange(width)) % len(body)]  # [batch, width]
        given = torch.cat([start.expand(batch, 1), target[:, :-1]], dim=1)
        hidden: Tensor = model.model(inputs_embeds=rows[given], use_cache=False)[0]
        logits = hidden @ rows.T
        if sample:
            drawn = others[torch.randint(len(others), (sample,), generator=generator)]
            tail = hidden @ (shared + noise[drawn]).T + math.log(len(others) / sample)
            logits = torch.cat([logits, tail], dim=-1)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        warm.step()
        step = float(loss.detach()) / math.log(2) * len(ids) / len(text.encode())
        bits = 0.9 * bits + 0.1 * step
    with torch.no_grad():
        table: Any = model.get_input_embeddings()
        table.weight.copy_(shared + noise)
        table.weight[seen] = rows
    return model.eval().requires_grad_(False)
