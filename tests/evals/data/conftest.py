"""Small pictures, files in the formats of releases, and a call of a converter."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infer_kit.evaluation.samples import Sample, read_samples

Convert = Callable[..., list[Sample]]


def png(color: int = 0, kind: str = "PNG") -> bytes:
    """A picture of 4 by 4 pixels; different colours are different bytes."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (color, 20, 30)).save(file, kind)
    return file.getvalue()


def pictures(folder: Path, *names: str) -> Path:
    """The folder with a picture of each name, no two alike."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def as_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def as_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def arguments_of(*given: Any, **options: Any) -> list[str]:
    """`--name value` of each option; a list gives several values."""
    words = [str(item) for item in given]
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        words += [str(item) for item in (value if isinstance(value, list) else [value])]
    return words


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Runs a converter of that name, and reads what it wrote as an evaluation does."""

    def call(name: str, split: str = "test", **options: Any) -> list[Sample]:
        out = options.setdefault("out", tmp_path / "out")
        module = importlib.import_module(f"evals.data.{name}")
        module.main(arguments_of(split=split, **options))
        return read_samples(out / f"{split}.jsonl")

    return call


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a converter that ends with exit code 2; what it said, without traceback."""

    def call(name: str, **options: Any) -> str:
        options.setdefault("out", tmp_path / "out")
        module = importlib.import_module(f"evals.data.{name}")
        with pytest.raises(SystemExit) as end:
            module.main(arguments_of(**options))
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("Error: ") and "Traceback" not in said
        assert not list(tmp_path.rglob("*.part"))
        assert not list((tmp_path / "out").glob("*.jsonl"))
        return said

    return call
