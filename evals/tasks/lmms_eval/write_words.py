"""Writes the pictures, questions and demonstrations of the task `demo_words`.

    python evals/tasks/lmms_eval/write_words.py --out runs/data/demo_words

One held-out episode of the bundled model `demo-icl`: its made-up words are told by the
demonstrations of `shots.jsonl` alone, and `test.jsonl` has other held-out boards to be named. A
harness knows no demonstrations of one sample, so all questions share these. Lines are
`infer_kit.evaluation.samples`.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infer_kit.demo.icl.episodes import Demonstration, Episode, boards, demonstrate, held_out


def write(file: Path, shown: Iterable[Demonstration]) -> int:
    """Samples, a line each, and their pictures beside the file; how many."""
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, one in enumerate(shown):
        name = f"{file.stem}-{number}"
        one.picture.save(file.parent / "images" / f"{name}.png")
        line = {"id": name, "question": one.question, "answers": [one.answer]}
        lines.append(json.dumps({**line, "images": [f"images/{name}.png"]}) + "\n")
    file.write_text("".join(lines), "utf-8")
    return len(lines)


def queries(episode: Episode) -> list[Demonstration]:
    """Held-out boards on the episode's background, not shown, with a word that is."""
    told = {one.answer for one in episode.demonstrations}
    seen = {one.board for one in episode.demonstrations}
    made = [
        demonstrate(episode.attribute, episode.bindings, board)
        for board in boards(True)
        if board.background == episode.query.board.background and board not in seen
    ]
    return [one for one in made if one.answer in told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args()
    (episode,) = held_out(1, shots=16)
    shots = write(options.out / "shots.jsonl", episode.demonstrations)
    asked = write(options.out / "test.jsonl", queries(episode))
    print(f"{options.out}: {asked} questions, {shots} demonstrations")


if __name__ == "__main__":
    main()
