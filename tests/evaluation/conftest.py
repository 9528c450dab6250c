"""Files of samples of the teaching models, made once a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infer_kit.demo.samples import write_bindings, write_scenes
from infer_kit.evaluation.preparation import Evaluation
from infer_kit.named_models import NamedModel, load_model

COUNT = 20


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions about scenes."""
    out = tmp_path_factory.mktemp("data") / "scenes" / "test.jsonl"
    write_scenes(out, COUNT)
    return out


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of episodes with demonstrations of their own."""
    out = tmp_path_factory.mktemp("data") / "bindings" / "test.jsonl"
    write_bindings(out, 6, shots=4)
    return out


@pytest.fixture(scope="session")
def model() -> NamedModel:
    return load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def learner() -> NamedModel:
    return load_model("demo-icl", device="cpu")


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes records as a file of samples."""

    def write(*records: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture
def asked(scenes: Path) -> Callable[..., Evaluation]:
    """An evaluation of the teaching model on its scenes."""

    def make(**changes: Any) -> Evaluation:
        given = {"model": "demo", "task": "exact", "data": scenes, "device": "cpu", **changes}
        return Evaluation(**given)

    return make
