"""Writes the pictures and questions of the tasks `demo_scenes` and `demo_words`.

    python evals/tasks/lmms_eval/write_data.py

`demo_scenes`: held-out scenes of the bundled model `demo`, walks and backgrounds. `demo_words`:
one episode of `demo-icl`, its made-up words told by the demonstrations of `shots.jsonl` alone, and
other held-out boards to be named. Lines are `infer_kit.evaluation.samples`; all from seeds.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infer_kit.demo import scenes
from infer_kit.demo.icl import episodes

FOLDER = Path("runs/data")


def write(file: Path, rows: Iterable[tuple[Mapping[str, Any], Any]]) -> int:
    """Lines of samples, and their pictures beside the file; how many."""
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (row, picture) in enumerate(rows):
        image = f"images/{file.stem}-{number}.png"
        picture.save(file.parent / image)
        lines.append(json.dumps({"id": f"{file.stem}-{number}", **row, "images": [image]}) + "\n")
    file.write_text("".join(lines), "utf-8")
    return len(lines)


def scene_rows(count: int) -> Iterable[tuple[dict[str, Any], Any]]:
    for record in scenes.held_out(count):
        row = {"question": record.question, "answers": [record.answer], "category": record.kind}
        yield row, record.picture


def word_rows(shown: Iterable[episodes.Demonstration]) -> Iterable[tuple[dict[str, Any], Any]]:
    for one in shown:
        yield {"question": one.question, "answers": [one.answer]}, one.picture


def queries(episode: episodes.Episode) -> list[episodes.Demonstration]:
    """Held-out boards on the episode's background, not shown, with a word that is."""
    told = {one.answer for one in episode.demonstrations}
    seen = {one.board for one in episode.demonstrations}
    made = [
        episodes.demonstrate(episode.attribute, episode.bindings, board)
        for board in episodes.boards(True)
        if board.background == episode.query.board.background and board not in seen
    ]
    return [one for one in made if one.answer in told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder, default runs/data")
    parser.add_argument("--scenes", type=int, default=200, help="how many, default 200")
    options = parser.parse_args()
    (episode,) = episodes.held_out(1, shots=16)
    words = options.out / "demo_words"
    counts = {
        "demo_scenes": write(
            options.out / "demo_scenes" / "test.jsonl", scene_rows(options.scenes)
        ),
        "demo_words": write(words / "test.jsonl", word_rows(queries(episode))),
        "demo_words shots": write(words / "shots.jsonl", word_rows(episode.demonstrations)),
    }
    print(f"{options.out}: {counts}")


if __name__ == "__main__":
    main()
