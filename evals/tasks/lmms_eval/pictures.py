"""Readers and scores of the tasks in this folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def _folder(name: str) -> Path:
    """Where the data was written; INFER_KIT_TASK_DATA names another place."""
    return Path(os.environ.get("INFER_KIT_TASK_DATA", "runs/data")) / name


def scene_pictures(doc: Mapping[str, Any]) -> list[Image.Image]:
    return _pictures(doc, "demo_scenes")


def word_pictures(doc: Mapping[str, Any]) -> list[Image.Image]:
    return _pictures(doc, "demo_words")


def _pictures(doc: Mapping[str, Any], name: str) -> list[Image.Image]:
    return [Image.open(_folder(name) / path).convert("RGB") for path in doc["images"]]


def question(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return str(doc["question"])


def answer(doc: Mapping[str, Any]) -> str:
    return str(doc["answers"][0])


def correct(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the first word is the answer; of scenes, by kind of question too."""
    said = (results[0].split() or [""])[0]
    right = float(said == doc["answers"][0])
    kind = doc.get("category")
    return {"accuracy": right} | ({str(kind): right} if kind else {})


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
