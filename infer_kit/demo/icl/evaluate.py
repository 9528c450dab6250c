"""How the in-context model answers: `python -m infer_kit.demo.icl.evaluate [--n 400]`.

Accuracy on held-out episodes by number of demonstrations, in full context and in chunks; how many
queries can be known at all (their value was shown); and how sure the model is of its answers where
it was shown and where it was not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from infer_kit.demo.icl import MODEL_DIR, Episode, held_out, load, ways
from infer_kit.demo.icl.episodes import WORDS


def covered(episodes: Sequence[Episode], shots: int) -> list[bool]:
    """Whether each query's word is among its first `shots` demonstrations."""
    return [
        any(shown.answer == episode.query.answer for shown in episode.demonstrations[:shots])
        for episode in episodes
    ]


def confidence(
    model: Any, processor: Any, episodes: Sequence[Episode], shots: int
) -> dict[bool, tuple[float, float]]:
    """Mean probability of the likeliest word and of the true one, by whether it was shown.

    Full context, by the model's own forward.
    """
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for episode, known in zip(episodes, covered(episodes, shots), strict=True):
        row = processor.apply_chat_template(
            episode.chat(range(shots)),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        with torch.no_grad():
            p = model(**row).logits[0, -1].softmax(-1)
        true = processor.tokenizer.convert_tokens_to_ids(episode.query.answer)
        found[known].append((float(p.max()), float(p[true])))
    return {
        known: (sum(a for a, _ in ps) / len(ps), sum(b for _, b in ps) / len(ps))
        for known, ps in found.items()
        if ps
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and print the tables."""
    parser = argparse.ArgumentParser(description="Accuracy of the in-context model by ways.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder of the model")
    parser.add_argument("--n", type=int, default=400, help="number of held-out episodes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = load(options.model)
    episodes = held_out(options.n, max(ways.SHOTS), options.seed)
    with tqdm(total=ways.fitted_steps()) as bar:
        shares = ways.accuracies(model, processor, episodes, lambda name: bar.update())
    known = {shots: sum(covered(episodes, shots)) / options.n for shots in ways.SHOTS}
    print("| way | " + " | ".join(f"{shots} shots" for shots in ways.SHOTS) + " |")
    print("|---" * (1 + len(ways.SHOTS)) + "|")
    for way, row in {"shown at all": known, **shares}.items():
        cells = [f"{row[shots]:.3f}" if shots in row else "" for shots in ways.SHOTS]
        print(f"| {way} | " + " | ".join(cells) + " |")
    print(f"{options.n} episodes, seed {options.seed}; {len(WORDS)} words to guess from")
    for shots in (4, 16):
        for shown, (top, true) in confidence(model, processor, episodes, shots).items():
            name = "shown" if shown else "not shown"
            print(f"{shots} shots, {name}: p of the likeliest {top:.3f}, of the true {true:.3f}")


if __name__ == "__main__":
    main()
