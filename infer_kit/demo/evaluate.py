"""How the teaching model answers: `python -m infer_kit.demo.evaluate [--n 600] [--model DIR]`.

Compared on held-out questions, half of each kind, all greedy:

* direct: image and question;
* chain of thought: image, own rationale and question in one turn;
* rationale only: own rationale and question, no image;
* RED at several weights: the product of "direct" and "rationale only", per token;
* RED with the next question's rationale, which should hurt;
* RED, chain of thought and rationale only with a true rationale, for diagnosis.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infer_kit.demo import MODEL_DIR, PROMPTS, load, scenes
from infer_kit.demo.decode import Turn, greedy_product, pixels_of, write_rationales
from infer_kit.demo.scenes import Record

WEIGHT = 1.0
"""The weight of the rationale stream, one for both kinds."""

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)


def accuracy(records: Sequence[Record], answers: Sequence[str]) -> dict[str, float]:
    """The share of right answers, of each kind and over all records."""
    right = [record.answer == answer for record, answer in zip(records, answers, strict=True)]
    shares = {"all": sum(right) / len(right)}
    for kind in scenes.KINDS:
        of_kind = [hit for record, hit in zip(records, right, strict=True) if record.kind == kind]
        if of_kind:
            shares[kind] = sum(of_kind) / len(of_kind)
    return shares


def answers_of(model: Any, processor: Any, records: Sequence[Record]) -> dict[str, list[str]]:
    """Every method's answers; "rationale" holds the model's own rationales."""
    pixels = pixels_of(processor, records)
    own = write_rationales(model, processor, records, pixels)
    notes = {
        "own": own,
        "next": [*own[1:], own[0]],
        "true": [record.rationale for record in records],
    }
    image = [
        Turn(PROMPTS.fill("image_context", record.question), seen)
        for record, seen in zip(records, pixels, strict=True)
    ]
    texts = {
        source: [
            Turn(PROMPTS.fill("rationale_context", record.question, text))
            for record, text in zip(records, rationales, strict=True)
        ]
        for source, rationales in notes.items()
    }
    both = {
        source: [Turn(turn.text, seen) for turn, seen in zip(turns, pixels, strict=True)]
        for source, turns in texts.items()
    }

    def answer(streams: list[list[Turn]], weights: list[float]) -> list[str]:
        return greedy_product(model, processor, streams, weights)

    answers = {
        "rationale": own,
        "direct": answer([image], [1.0]),
        "chain of thought": answer([both["own"]], [1.0]),
        "rationale only": answer([texts["own"]], [1.0]),
    }
    for weight in WEIGHTS:
        answers[f"RED {weight:g}"] = answer([image, texts["own"]], [1.0, weight])
    answers[f"RED {WEIGHT:g}, next rationale"] = answer([image, texts["next"]], [1.0, WEIGHT])
    answers["chain of thought, next rationale"] = answer([both["next"]], [1.0])
    answers[f"RED {WEIGHT:g}, true rationale"] = answer([image, texts["true"]], [1.0, WEIGHT])
    answers["chain of thought, true rationale"] = answer([both["true"]], [1.0])
    answers["rationale only, true rationale"] = answer([texts["true"]], [1.0])
    return answers


def report(records: Sequence[Record], answers: dict[str, list[str]]) -> str:
    """A table in Markdown: accuracy of each method over all, its standard error, and by kind."""
    lines = ["| method | all | s.e. | " + " | ".join(scenes.KINDS) + " |"]
    lines.append("|---" * (3 + len(scenes.KINDS)) + "|")
    for method, given in answers.items():
        name, truth = method, records
        if method == "rationale":
            name = "own rationale is the true one"
            exact = [r.rationale == text for r, text in zip(records, given, strict=True)]
            given = [r.answer if hit else "" for r, hit in zip(truth, exact, strict=True)]
        share = accuracy(truth, given)
        error = (share["all"] * (1 - share["all"]) / len(records)) ** 0.5
        kinds = " | ".join(f"{share[kind]:.3f}" for kind in scenes.KINDS)
        lines.append(f"| {name} | {share['all']:.3f} | {error:.3f} | {kinds} |")
    return "\n".join(lines)


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
    answers = answers_of(model, processor, records)
    print(f"{options.n} held-out questions, seed {options.seed}")
    print(report(records, answers))
    print(f"{time.perf_counter() - start:.0f} s")
    if options.json:
        rationale = answers.pop("rationale")
        shares = {method: accuracy(records, given) for method, given in answers.items()}
        print(json.dumps({"n": len(rationale), "seed": options.seed, "accuracy": shares}))


if __name__ == "__main__":
    main()
