"""What the two text models know: `python -m infer_kit.demo.text.evaluate [--n 300] [--seed 0]`.

* Bits per byte of held-out texts of both domains: the negative log-likelihood of the tokens and of
  the end after them, by the model's own forward, over the bytes of the text. Other spellings of the
  text are not summed, so this is an upper bound of what the model gives the text.
* Answers to questions about held-out texts, and about what is known without a text, greedy, in the
  model's own chat template: the share that is the true sentence, letter for letter.
* Share of the tokens of its own samples that are the tokens of the text that they spell.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infer_kit.demo.text import MODEL_DIR, NAMES, corpus, load
from infer_kit.demo.text.tale import QA

FACTS = "animals, no text"
KINDS: tuple[str, ...] = (*corpus.DOMAINS, FACTS)
"""Kinds of questions."""


@torch.no_grad()
def nats(model: Any, tokenizer: Any, text: str) -> float:
    """Negative log-likelihood of a text's tokens and of the end after them."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    row = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
    log_p = model(input_ids=row).logits[0, :-1].log_softmax(-1)
    return -float(log_p.gather(1, row[0, 1:, None]).sum())


def bits_per_byte(model: Any, tokenizer: Any, texts: Iterable[str]) -> float:
    """Bits of all texts together over their bytes."""
    total, size = 0.0, 0
    for text in texts:
        total += nats(model, tokenizer, text)
        size += len(text.encode())
    return total / size / math.log(2)


def questions(n: int, kind: str, seed: int = 0) -> list[tuple[str, QA]]:
    """`n` held-out texts, each with one of the questions about it; without a text for `FACTS`."""
    rng = random.Random(f"questions {kind} {seed}")
    alone = kind == FACTS
    made: list[tuple[str, QA]] = []
    while len(made) < n:
        about = corpus.text("animals" if alone else kind, rng, held_out=True)
        asked = about.facts if alone else about.questions
        if asked:
            made.append(("" if alone else about.body, rng.choice(asked)))
    return made


@torch.no_grad()
def answer(model: Any, tokenizer: Any, body: str, question: str) -> str:
    """The model's greedy answer in its own chat template."""
    row = tokenizer.apply_chat_template(
        corpus.chat_question(body, question),
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**row, max_new_tokens=32)[0, row["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()


def accuracy(model: Any, tokenizer: Any, asked: Sequence[tuple[str, QA]]) -> float:
    """Share of the questions that are answered with the true sentence."""
    right = [answer(model, tokenizer, body, question) == true for body, (question, true) in asked]
    return sum(right) / len(right)


@torch.no_grad()
def samples(model: Any, tokenizer: Any, n: int, seed: int = 0) -> list[list[int]]:
    """Token ids of `n` texts that the model writes by itself, without the end; temperature 1."""
    torch.manual_seed(seed)
    start = torch.full((n, 1), tokenizer.bos_token_id)
    rows = model.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=300,
    )
    ends: Tensor = torch.isin(rows, torch.tensor(model.generation_config.eos_token_id))
    written = []
    for row, end in zip(rows[:, 1:].tolist(), ends[:, 1:].tolist(), strict=True):
        written.append(row[: end.index(True)] if True in end else row)
    return written


def canonical_share(tokenizer: Any, rows: Iterable[Sequence[int]]) -> float:
    """Share of the tokens that the tokenizer gives, in their order, for what they spell."""
    same = total = 0
    for row in rows:
        again = tokenizer(tokenizer.decode(row), add_special_tokens=False)["input_ids"]
        blocks = SequenceMatcher(None, list(row), again, autojunk=False).get_matching_blocks()
        same += sum(block.size for block in blocks)
        total += len(row)
    return same / total


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and print the tables."""
    parser = argparse.ArgumentParser(description="What the two text models know.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder of the models")
    parser.add_argument("--n", type=int, default=300, help="texts, questions of a kind, samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the texts")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    for name in NAMES:
        model, tokenizer = load(name, options.model)
        row = figures[name] = {}
        for domain in corpus.DOMAINS:
            texts = [made.body for made in corpus.held_out(options.n, domain, options.seed)]
            row[f"bits per byte, {domain}"] = bits_per_byte(model, tokenizer, texts)
        for kind in KINDS:
            asked = questions(options.n, kind, options.seed)
            row[f"answers, {kind}"] = accuracy(model, tokenizer, asked)
        written = samples(model, tokenizer, options.n, options.seed)
        row["canonical tokens"] = canonical_share(tokenizer, written)
    print("| figure | " + " | ".join(NAMES) + " |")
    print("|---" * (1 + len(NAMES)) + "|")
    for figure in figures[NAMES[0]]:
        print(f"| {figure} | " + " | ".join(f"{figures[n][figure]:.3f}" for n in NAMES) + " |")
    print(f"{options.n} texts or questions a row, seed {options.seed}")
    if options.json:
        print(json.dumps({"figures": figures, "n": options.n, "seed": options.seed}))


if __name__ == "__main__":
    main()
