"""How the teaching model answers: `python -m infer_kit.demo.evaluate [--n 600] [--model DIR]`.

Compared on held-out questions, half of each kind, all greedy:

* direct: image and question;
* chain of thought: image, own rationale and question in one turn;
* rationale only: own rationale and question, no image;
* RED at several weights: the product of "direct" and "rationale only", per token;
* RED, chain of thought and rationale only with another question's rationale, which should hurt,
  with an empty one, and with a true one, for diagnosis.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from infer_kit.demo import MODEL_DIR, PROMPTS, load, scenes
from infer_kit.demo.decode import Turn, confidence, greedy_product, pixels_of, write_rationales
from infer_kit.demo.scenes import Record
from infer_kit.demo.ways import accuracy, stranger_rationales

WEIGHT = 1.0
"""The weight of the rationale stream, one for both kinds."""

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)


def contexts(
    records: Sequence[Record], pixels: Sequence[Tensor], rationales: Sequence[str]
) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """The turns of the image stream, of the rationale stream, and of chain of thought."""
    image, text, both = [], [], []
    for record, seen, rationale in zip(records, pixels, rationales, strict=True):
        image.append(Turn(PROMPTS.fill("image_context", record.question), seen))
        text.append(Turn(PROMPTS.fill("rationale_context", record.question, rationale)))
        both.append(Turn(text[-1].text, seen))
    return image, text, both


def answers_of(
    model: Any, processor: Any, records: Sequence[Record], own: Sequence[str]
) -> dict[str, list[str]]:
    """Every method's answers; `own` are the model's own rationales."""
    pixels = pixels_of(processor, records)

    def answer(streams: list[list[Turn]], weights: list[float]) -> list[str]:
        return greedy_product(model, processor, streams, weights)

    image, text, both = contexts(records, pixels, own)
    answers = {
        "direct": answer([image], [1.0]),
        "chain of thought": answer([both], [1.0]),
        "rationale only": answer([text], [1.0]),
    }
    for weight in WEIGHTS:
        answers[f"RED {weight:g}"] = answer([image, text], [1.0, weight])
    others = {
        "another's": stranger_rationales(records, own),
        "no": [""] * len(records),
        "true": [record.rationale for record in records],
    }
    for name, rationales in others.items():
        _, text, both = contexts(records, pixels, rationales)
        answers[f"RED {WEIGHT:g}, {name} rationale"] = answer([image, text], [1.0, WEIGHT])
        answers[f"chain of thought, {name} rationale"] = answer([both], [1.0])
        answers[f"rationale only, {name} rationale"] = answer([text], [1.0])
    return answers


def report(records: Sequence[Record], shares: dict[str, dict[str, float]]) -> str:
    """A table in Markdown: each method's accuracy over all, its standard error, and by kind."""
    lines = ["| method | all | s.e. | " + " | ".join(scenes.KINDS) + " |"]
    lines.append("|---" * (3 + len(scenes.KINDS)) + "|")
    for method, share in shares.items():
        error = (share["all"] * (1 - share["all"]) / len(records)) ** 0.5
        kinds = " | ".join(f"{share[kind]:.3f}" for kind in scenes.KINDS)
        lines.append(f"| {method} | {share['all']:.3f} | {error:.3f} | {kinds} |")
    return "\n".join(lines)


def confidences(
    model: Any, processor: Any, records: Sequence[Record], own: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean probability of each context's favourite answer, by kind: its accuracy, if calibrated."""
    turns = contexts(records, pixels_of(processor, records), own)
    shares = {}
    for name, context in zip(("direct", "rationale only", "chain of thought"), turns, strict=True):
        top = confidence(model, context)
        shares[name] = {
            kind: sum(p for p, r in zip(top, records, strict=True) if r.kind == kind)
            / sum(r.kind == kind for r in records)
            for kind in scenes.KINDS
        }
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description="Accuracy of the teaching model's methods.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder of the model")
    parser.add_argument("--n", type=int, default=600, help="number of held-out questions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions")
    parser.add_argument("--json", action="store_true", help="print accuracies as JSON as well")
    options = parser.parse_args(arguments)
    model, processor = load(options.model)
    records = scenes.held_out(options.n, options.seed)
    start = time.perf_counter()
    own = write_rationales(model, processor, records, pixels_of(processor, records))
    exact = [
        record.answer if record.rationale == text else ""
        for record, text in zip(records, own, strict=True)
    ]
    answers = {"own rationale is the true one": exact}
    answers |= answers_of(model, processor, records, own)
    shares = {method: accuracy(records, given) for method, given in answers.items()}
    print(f"{options.n} held-out questions, seed {options.seed}")
    print(report(records, shares))
    for name, top in confidences(model, processor, records, own).items():
        print(f"mean confidence, {name}: " + ", ".join(f"{k} {p:.3f}" for k, p in top.items()))
    print(f"{time.perf_counter() - start:.0f} s")
    if options.json:
        print(json.dumps({"n": options.n, "seed": options.seed, "accuracy": shares}))


if __name__ == "__main__":
    main()
