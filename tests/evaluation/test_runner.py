"""The loop: what it answers is what the library answers, however it is cut and shared out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import infer_kit as ik
from infer_kit.demo import MODEL_DIR, PROMPTS
from infer_kit.errors import InferKitError
from infer_kit.evaluation import runner
from infer_kit.evaluation.answering import METHODS, check_method
from infer_kit.evaluation.batches import plan
from infer_kit.evaluation.preparation import Evaluation, prepare
from infer_kit.evaluation.run_folder import Line, config_hash
from infer_kit.evaluation.runner import run
from infer_kit.evaluation.samples import Sample, read_samples
from infer_kit.named_models import NamedModel

Asked = Callable[..., Evaluation]
ROOT = Path(__file__).parents[2]


def lines_of(folder: Any) -> dict[str, Line]:
    """Every line without its time."""
    return {
        id: {key: value for key, value in line.items() if key != "seconds"}
        for id, line in folder.lines().items()
    }


def finished(evaluation: Evaluation, out: Path, model: NamedModel) -> tuple[Any, dict[str, Any]]:
    folder, results = run(prepare(evaluation), out, lambda: model)
    assert results is not None
    return folder, results


def alone(model: NamedModel, make: Callable[..., Any], data: Path) -> dict[str, str]:
    """The answers of a method to one chat at a time."""
    method = make(model.model, model.processor)
    return {
        s.id: method.generate(s.chat(), max_new_tokens=32, do_sample=False).text.strip()
        for s in read_samples(data)
    }


@pytest.mark.parametrize(
    "name, options, make",
    [
        ("direct", {}, lambda m, p: ik.RED(m, p, weight=0.0, prompts=PROMPTS)),
        ("red", {"weight": 1.0}, lambda m, p: ik.RED(m, p, weight=1.0, prompts=PROMPTS)),
        ("vcd", {"alpha": 0.5}, lambda m, p: ik.VCD(m, p, alpha=0.5)),
        ("cfg", {"scale": 1.2}, lambda m, p: ik.CFG(m, p, scale=1.2)),
    ],
)
def test_the_answers_are_those_of_the_method(
    name: str, options: Any, make: Any, asked: Asked, model: NamedModel, tmp_path: Path
) -> None:
    evaluation = asked(method=name, options=options)
    folder, results = finished(evaluation, tmp_path, model)
    expected = alone(model, make, evaluation.data)
    assert {id: line["prediction"] for id, line in folder.lines().items()} == expected
    targets = {s.id: s.answers[0] for s in read_samples(evaluation.data)}
    right = [expected[id] == targets[id] for id in expected]
    assert results["metrics"]["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert results["n"] == len(expected)


def test_chain_of_thought_reads_its_rationale_with_the_picture(
    asked: Asked, model: NamedModel, tmp_path: Path
) -> None:
    folder, _ = finished(asked(method="cot", limit=4), tmp_path, model)
    for sample in read_samples(asked().data)[:4]:
        line = folder.lines()[sample.id]
        chat = sample.chat()
        red = ik.RED(model.model, model.processor, prompts=PROMPTS)
        assert line["rationale"] == red.rationales(chat)
        text = PROMPTS.fill("rationale_context", sample.question, line["rationale"])
        chat[-1]["content"][-1] = {"type": "text", "text": text}
        plain = ik.RED(model.model, model.processor, weight=0.0, prompts=PROMPTS)
        assert line["prediction"] == plain.generate(chat, max_new_tokens=32).text.strip()


def test_parallel_icl_reads_each_samples_own_demonstrations(
    bindings: Path, learner: NamedModel, tmp_path: Path
) -> None:
    evaluation = Evaluation(
        "demo-icl", "exact", bindings, "parallel_icl", {"chunks": 2}, device="cpu"
    )
    folder, _ = finished(evaluation, tmp_path, learner)
    for sample in read_samples(bindings):
        picl = ik.ParallelICL(learner.model, learner.processor, chunks=2)
        picl.fit([shot.turns() for shot in sample.shots])
        alone = replace(sample, shots=()).chat()
        text = picl.generate(alone, max_new_tokens=32).text.strip()
        assert folder.lines()[sample.id]["prediction"] == text


def test_parallel_icl_shares_demonstrations_and_full_context_is_direct(
    bindings: Path, learner: NamedModel, tmp_path: Path, written: Callable[..., Path]
) -> None:
    """One chunk, without a bank, is direct decoding on all demonstrations."""
    first = json.loads(bindings.read_text().splitlines()[0])
    root = bindings.parent
    pool = written(
        *(
            {"id": f"p{n}", "question": shot["question"], "answers": [shot["answer"]],
             "images": [str(root / image) for image in shot["images"]]}
            for n, shot in enumerate(first["demonstrations"])
        ),
        name="pool.jsonl",
    )  # fmt: skip
    queries = written(
        *(
            {**json.loads(row), "demonstrations": [],
             "images": [str(root / image) for image in json.loads(row)["images"]]}
            for row in bindings.read_text().splitlines()
        ),
        name="queries.jsonl",
    )  # fmt: skip
    base = Evaluation("demo-icl", "exact", queries, demonstrations=pool, device="cpu")
    direct, _ = finished(base, tmp_path, learner)
    whole = replace(base, method="parallel_icl", options={"chunks": 1, "bank": False})
    one, _ = finished(whole, tmp_path, learner)
    assert [x["prediction"] for x in direct.lines().values()] == [
        x["prediction"] for x in one.lines().values()
    ]
    drawn = prepare(replace(base, shots=2, shot_seed=3)).asking.shots
    assert len(drawn) == 2 and drawn == prepare(replace(base, shots=2, shot_seed=3)).asking.shots
    with pytest.raises(InferKitError, match=r"4 demonstrations, 9 were asked for"):
        prepare(replace(base, shots=9))
    with pytest.raises(
        InferKitError, match=r"6 demonstrations are samples of the data \('episode-0'"
    ):
        prepare(replace(base, demonstrations=queries))


def test_rationales_that_are_shared_change_no_line(
    asked: Asked, model: NamedModel, tmp_path: Path
) -> None:
    shared: dict[str, dict[str, tuple[str, float]]] = {}
    for method, options in (("red", {"weight": 0.5}), ("red", {"weight": 1.0}), ("cot", {})):
        prepared = prepare(asked(method=method, options=options, batch_size=3))
        alone, _ = run(prepared, tmp_path / "alone", lambda: model)
        together, _ = run(prepared, tmp_path / "together", lambda: model, shared)
        assert lines_of(together) == lines_of(alone)
    assert [len(texts) for texts in shared.values()] == [20]  # asked for once


def test_a_run_that_is_cut_anywhere_ends_alike(
    asked: Asked, model: NamedModel, tmp_path: Path
) -> None:
    """Under sampling, where the order of draws matters."""
    evaluation = asked(
        method="red",
        options={"weight": 1.0},
        generation={"do_sample": True, "temperature": 30.0},
        batch_size=3,
    )
    whole, results = finished(evaluation, tmp_path / "whole", model)
    shard = whole.shards()[0].read_bytes()
    for cut in (0, len(shard) // 3, len(shard) // 2 + 7, len(shard) - 1):
        again = tmp_path / f"cut {cut}"
        folder, _ = run(prepare(evaluation), again / "x", lambda: model)
        folder.shards()[0].write_bytes(shard[:cut])
        (folder.path / "results.json").unlink()
        folder, after = run(prepare(evaluation), again / "x", lambda: model)
        assert lines_of(folder) == lines_of(whole)
        assert after is not None and after["metrics"] == results["metrics"]


def test_a_finished_run_loads_no_model(asked: Asked, model: NamedModel, tmp_path: Path) -> None:
    _, results = finished(asked(limit=2), tmp_path, model)

    def refuse() -> NamedModel:
        raise AssertionError("loaded")

    _, again = run(prepare(asked(limit=2)), tmp_path, refuse)
    assert again is not None and again["metrics"] == results["metrics"]


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_do_what_one_does(
    world: int, asked: Asked, model: NamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = asked(
        method="red", options={"weight": 1.0}, batch_size=3,
        generation={"do_sample": True, "temperature": 30.0},
    )  # fmt: skip
    one, results = finished(evaluation, tmp_path / "one", model)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        many, figures = run(prepare(evaluation), tmp_path / "many", lambda: model)
        assert (figures is None) == (rank < world - 1)
    assert len(many.shards()) == world
    assert lines_of(many) == lines_of(one)
    assert figures is not None and figures["metrics"] == results["metrics"]


def test_a_killed_process_and_torchrun_give_the_same_numbers(
    scenes: Path, asked: Asked, model: NamedModel, tmp_path: Path
) -> None:
    """The real thing: SIGKILL in the middle, then two processes finish it."""
    evaluation = asked(method="cot", batch_size=1)
    whole, results = finished(evaluation, tmp_path / "whole", model)
    script = [str(ROOT / "evals" / "run.py"), "--model", "demo", "--data", str(scenes)]
    options = ["--task", "exact", "--method", "cot", "--batch-size", "1", "--device", "cpu"]
    command = [*script, *options, "--out", str(tmp_path / "cut")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.PIPE)
    shard = tmp_path / "cut" / whole.path.name / "samples-0.jsonl"
    deadline = time.monotonic() + 120
    while not (shard.is_file() and shard.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = shard.read_bytes().count(b"\n")
    assert 3 <= done < len(whole.lines())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    both = [*torchrun, "--master_port", "0", *command]
    subprocess.run(both, env=environment, check=True, capture_output=True)
    folder = runner.RunFolder(shard.parent)
    assert folder.results["metrics"] == results["metrics"]
    assert lines_of(folder) == lines_of(whole)
    assert (shard.parent / "samples-1.jsonl").read_bytes().count(b"\n") > 0


def test_batches_are_a_partition_and_depend_on_the_data_alone() -> None:
    samples = [Sample(str(n), "q" * (n * 7 % 13 + 1), ("a",)) for n in range(101)]
    for size in (1, 2, 8, 64, 200):
        batches = plan(samples, size)
        assert sorted(n for batch in batches for n in batch) == list(range(101))
        assert all(len(batch) <= size for batch in batches)
        assert batches == plan(samples, size)
    assert len(plan(samples, 8)) == 13


class Failing:
    """Answers, but not the samples named."""

    def __init__(self, *ids: str, together: int = 99) -> None:
        self.ids, self.together = ids, together

    def answer(self, samples: list[Sample]) -> list[Any]:
        if len(samples) > self.together:
            raise torch.cuda.OutOfMemoryError("no room")
        for sample in samples:
            if sample.id in self.ids:
                raise RuntimeError(f"broken by {sample.id}")
        return [runner.Answer("red", None, 1) for _ in samples]


def test_a_failing_sample_stops_the_run_and_is_named(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "answerer_for", lambda *_: Failing("scene-5"))
    with pytest.raises(InferKitError, match=r"Sample 'scene-5' failed: RuntimeError: broken by"):
        run(prepare(asked()), tmp_path, lambda: None)  # type: ignore[arg-type, return-value]


def test_some_samples_may_fail_and_are_counted_and_tried_again(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "answerer_for", lambda *_: Failing("scene-5", "scene-7"))
    evaluation = asked(max_errors=2)
    folder, results = run(prepare(evaluation), tmp_path, lambda: None)  # type: ignore[arg-type, return-value]
    assert results is not None and results["errors"] == 2 and results["n"] == 18
    assert {line["id"] for line in folder.failures()} == {"scene-5", "scene-7"}
    monkeypatch.setattr(runner, "answerer_for", lambda *_: Failing("scene-7"))
    _, results = run(prepare(evaluation), tmp_path, lambda: None)  # type: ignore[arg-type, return-value]
    assert results is not None and results["errors"] == 1 and results["n"] == 19


def test_the_allowed_failures_are_the_runs_not_a_processs(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"scene-{n}" for n in range(20)]
    monkeypatch.setattr(runner, "answerer_for", lambda *_: Failing(*ids))
    monkeypatch.setenv("WORLD_SIZE", "3")
    left = 2
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(InferKitError, match="failed: RuntimeError"):
            run(prepare(asked(max_errors=left, batch_size=1)), tmp_path, lambda: None)  # type: ignore[arg-type, return-value]
    (folder,) = tmp_path.iterdir()
    assert len(runner.RunFolder(folder).failures()) == left


def test_what_fails_together_is_answered_in_halves_with_its_memory_let_go(
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held: list[weakref.ref[torch.nn.Module]] = []

    class Hungry(Failing):
        def answer(self, samples: list[Sample]) -> list[Any]:
            assert not any(ref() is not None for ref in held)
            if len(samples) > 2:
                memory = torch.nn.Linear(2, 2)
                held.append(weakref.ref(memory))
                raise torch.cuda.OutOfMemoryError("no room")
            return super().answer(samples)

    monkeypatch.setattr(runner, "answerer_for", lambda *_: Hungry())
    _, results = run(prepare(asked()), tmp_path, lambda: None)  # type: ignore[arg-type, return-value]
    assert results is not None and results["errors"] == 0 and results["n"] == 20
    shown = capsys.readouterr()
    assert "8 samples from 'scene-" in shown.err and not shown.out
    assert len(held) >= 4


def test_a_finished_run_is_shown_as_it_was(
    asked: Asked, model: NamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished(asked(limit=2), tmp_path, model)
    before = (folder.path / "results.json").stat()
    later = replace(prepare(asked(limit=2)), versions={"torch": "9"}, commit="later")
    _, results = run(later, tmp_path, lambda: model)
    after = (folder.path / "results.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert results is not None and results["git"] == folder.config["commits"]


def test_pictures_models_and_members_count_by_their_content(
    asked: Asked, tmp_path: Path, written: Callable[..., Path]
) -> None:
    def config_of(**changes: Any) -> dict[str, Any]:
        return prepare(asked(**changes)).config

    picture = tmp_path / "p.bmp"
    data = written({"id": "1", "question": "q", "answers": ["a"], "images": ["p.bmp"]})
    seen = []
    for colour in ("red", "blue"):  # of equal size
        Image.new("RGB", (8, 8), colour).save(picture)
        seen.append(config_of(data=data)["data"])
    assert seen[0] != seen[1]
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    before = config_of(model=str(folder))["model"]
    assert before == config_of(model="demo")["model"]
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    changed = config_of(model=str(folder))["model"]
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    assert len({before, changed, config_of(model=str(folder))["model"]}) == 3
    text = written({"id": "1", "question": "q", "answers": ["a"]}, name="text.jsonl")
    options = {"others": f"{folder}+demo"}
    first = config_of(data=text, method="ensemble", options=options)["options"]["others"]
    (folder / "adapter" / "more.json").write_text("{}")
    second = config_of(data=text, method="ensemble", options=options)["options"]["others"]
    assert first[0] != second[0] and first[1] == second[1]


def test_a_sample_that_demonstrates_itself_is_refused(
    asked: Asked, written: Callable[..., Path]
) -> None:
    record = {"id": "1", "question": "Who?", "answers": ["Mia"]}
    shots = [{"question": "Who?", "answer": "Mia"}]
    with pytest.raises(InferKitError, match="'1' is one of its own demonstrations"):
        prepare(asked(data=written(record | {"demonstrations": shots})))


def test_an_option_is_no_folder_because_one_is_called_so(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cot").mkdir()
    assert prepare(asked(method="cot", options={"kind": "cot"})).config["options"] == {
        "kind": "cot"
    }


def test_a_file_has_one_name_however_it_is_reached(
    asked: Asked, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scenes.parent / "below").mkdir(exist_ok=True)
    monkeypatch.chdir(scenes.parent / "below")
    names = {prepare(asked(data=path)).name for path in (scenes, Path("../test.jsonl"))}
    assert names == {"scenes-test-direct"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "gqq"}, "Unknown task 'gqq'. Did you mean 'gqa'"),
        ({"method": "rde"}, "Unknown method 'rde'. Did you mean 'red'"),
        ({"method": "red", "options": {"wieght": 1}}, "no option 'wieght'. Did you mean 'weight'"),
        ({"method": "ensemble"}, "An ensemble needs other models"),
        ({"method": "parallel_icl"}, "sample 'scene-0' has none of its own"),
        ({"method": "context_aware"}, "Sample 'scene-0' has no context"),
        ({"method": "reduced"}, "Sample 'scene-0' has a picture; reduced reads text"),
        ({"task": "number"}, "sample 'scene-0': The answer '.*' has no number"),
        ({"task": "pope"}, "neither yes nor no"),
        ({"backend": "tpu"}, "Unknown backend 'tpu'"),
        ({"method": "red", "options": {"weight": "abc"}}, "weight='abc' is neither a number nor"),
        ({"generation": {"max_new_tokens": 0}}, "--max-new-tokens is a number from 1 on, got 0"),
        ({"model": "demoo"}, "Did you mean 'demo'"),
        ({"backend": "vllm", "method": "reduced"}, "method reduced runs on transformers here"),
        ({"model": "no/such"}, "No model at 'no/such'"),
        ({"task": "choice"}, "has no choices, which the task 'choice' needs"),
        ({"task": "bits_per_byte"}, "takes texts"),
        ({"limit": 0}, "--limit is a number from 1 on, got 0"),
        ({"batch_size": 0}, "--batch-size is a number from 1 on, got 0"),
        ({"max_errors": -1}, "--max-errors is a number from 0 on, got -1"),
        ({"shots": 2}, "--shots draws from --demonstrations"),
        ({"chat_template": "none.jinja"}, "--chat-template 'none.jinja' cannot be read"),
        ({"generation": {"num_return_sequences": 2}}, "takes one answer a sample"),
        ({"data": Path("none.jsonl")}, "'none.jsonl' does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(
    changes: dict[str, Any], message: str, asked: Asked
) -> None:
    with pytest.raises(InferKitError, match=message):
        prepare(asked(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "red"},
        {"options": {}, "generation": {"max_new_tokens": 3}},
        {"seed": 1},
        {"batch_size": 4},
        {"limit": 5},
        {"instruction": "Be short."},
        {"model": "demo-icl"},
        {"trace": True},
        {"system": "You see."},
        {"chat_template": "plain"},
        {"processor_arguments": {"do_normalize": False}},
        {"model_arguments": {"dtype": "bfloat16"}},
    ],
)
def test_whatever_changes_answers_changes_the_folder(changes: dict[str, Any], asked: Asked) -> None:
    names = {config_hash(prepare(asked(**c)).config) for c in ({}, changes)}
    assert len(names) == 2


def test_other_data_of_the_same_name_is_another_run(
    asked: Asked, written: Callable[..., Path]
) -> None:
    record = {"id": "1", "question": "what color is the background ?", "answers": ["red"]}
    first = prepare(asked(data=written(record))).config
    second = prepare(asked(data=written(record | {"answers": ["blue"]}))).config
    assert first["data"] != second["data"]


def test_every_method_has_a_way_to_be_checked(asked: Asked) -> None:
    for name in METHODS:
        options = {"others": "demo-text-b"} if name == "ensemble" else {}
        assert check_method(name.replace("_", "-").upper(), options) == name


def test_traces_are_kept_where_they_are_asked_for(
    asked: Asked, model: NamedModel, tmp_path: Path
) -> None:
    folder, _ = finished(
        asked(method="red", options={"weight": 1.0}, limit=2, trace=True), tmp_path, model
    )
    for line in folder.lines().values():
        assert line["trace"]["streams"] == ["image", "rationale"]
        assert len(line["trace"]["parts"]) == line["tokens"]
