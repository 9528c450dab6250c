"""The evaluation loop on vLLM gives the lines that it gives on transformers, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from infer_kit.evaluation.preparation import Evaluation, prepare
from infer_kit.evaluation.runner import run
from infer_kit.named_models import NamedModel, load_model
from tests.vllm.engines import engine
from tests.vllm.folders import llava_folder
from tests.vllm.laws import picture


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, NamedModel, NamedModel]]:
    """The folder of a tiny model, and the model on transformers and on vLLM."""
    folder = llava_folder(tmp_path_factory.mktemp("llava"))
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    with engine(folder) as llm:
        yield folder, loaded, NamedModel(llm, loaded.processor)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about pictures, each with demonstrations of its own."""
    root = tmp_path_factory.mktemp("data")
    for n in range(9):
        picture(n).save(root / f"{n}.png")
    records = (
        {"id": str(n), "question": f"what is in {n}?", "answers": ["the ring"],
         "images": [f"{n}.png"]}
        for n in range(5)
    )  # fmt: skip
    (root / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    shots = (
        {"id": str(n), "question": f"what is in {n}?", "answers": ["the ring"],
         "images": [f"{n}.png"]}
        for n in range(5, 9)
    )  # fmt: skip
    (root / "shots.jsonl").write_text("".join(json.dumps(r) + "\n" for r in shots))
    return root


METHODS: dict[str, dict[str, Any]] = {
    "direct": {},
    "cot": {"rationale_generation": {"max_new_tokens": 6}},
    "red": {"weight": 0.7, "rationale_generation": {"max_new_tokens": 6}},
    "vcd": {"alpha": 0.5},
    "parallel_icl": {"chunks": 2},
}


@pytest.mark.filterwarnings("ignore:.*cut at the length limit")
@pytest.mark.parametrize("method", list(METHODS))
def test_the_lines_are_equal(method: str, both: Any, data: Path, tmp_path: Path) -> None:
    folder, on_transformers, on_vllm = both
    tables = []
    for backend, model in (("transformers", on_transformers), ("vllm", on_vllm)):
        evaluation = Evaluation(
            str(folder),
            "exact",
            data / "test.jsonl",
            method,
            METHODS[method],
            backend=backend,
            demonstrations=data / "shots.jsonl" if method == "parallel_icl" else None,
            generation={"max_new_tokens": 8},
        )
        found, results = run(prepare(evaluation), tmp_path, lambda model=model: model)
        assert results is not None and results["n"] == 5
        lines = found.lines()
        for line in lines.values():
            del line["seconds"]
        tables.append(lines)
    assert tables[0] == tables[1]
    assert len({line["prediction"] for line in tables[0].values()}) > 1
