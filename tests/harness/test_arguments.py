"""What `--model_args` says is checked before anything is loaded, and told apart by a hash."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from infer_kit.errors import InferKitError, MissingExtra, UnsupportedArgument
from infer_kit.harness.arguments import (
    check_model,
    check_names,
    check_reward,
    configuration_hash,
    parse_weights,
    split_names,
)
from infer_kit.harness.generation import before_stop, read_batch_size, read_generation


def test_names_are_split_at_plus_and_semicolon(tmp_path: Path) -> None:
    assert split_names("a+b", "ensemble") == ["a", "b"]
    assert split_names("a+c;b", "ensemble") == ["a+c", "b"]
    folder = tmp_path / "one+model"
    folder.mkdir()
    assert split_names(str(folder), "ensemble") == [str(folder)]
    with pytest.raises(InferKitError, match="has an empty name"):
        split_names("a+", "ensemble")


@pytest.mark.parametrize("given", ["0.25+0.75", "0.25;0.75", [0.25, 0.75]])
def test_weights_are_numbers(given: Any) -> None:
    assert parse_weights(given, 2) == [0.25, 0.75]


def test_weights_may_be_learnt() -> None:
    assert parse_weights("bayes", 3) == "bayes"
    assert parse_weights(None, 3) is None
    assert parse_weights(1, 1) == [1.0]


@pytest.mark.parametrize(
    "given, message",
    [
        ("bayse", "weights='bayse' are no numbers. Did you mean 'bayes'?"),
        ("0.5", "Got 1 weights for 2 models"),
        ("0.5+nan", "they must be finite"),
    ],
)
def test_weights_that_cannot_be(given: str, message: str) -> None:
    with pytest.raises(InferKitError, match=re.escape(message)):
        parse_weights(given, 2)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(InferKitError, match="has no argument 'wieghts'. Did you mean 'weights'?"):
        check_names(["wieghts"], ["pretrained", "weights"])


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="ensemble=.*there is no such model") as caught:
        check_model(str(tmp_path / "nowhere"), "ensemble")
    assert "demo-text-a" in str(caught.value.hint)
    assert Path(check_model("demo-text-a", "pretrained")).is_dir()


def test_a_folder_that_is_no_reward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferKitError, match="there is no such folder"):
        check_reward(tmp_path / "nowhere")
    with pytest.raises(InferKitError, match="is no reward: it has no prt_config.json"):
        check_reward(tmp_path)


def test_the_hash_tells_configurations_apart(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    given = {"pretrained": str(tmp_path), "ensemble": "demo-text-b", "weights": "0.5+0.5"}
    plain = configuration_hash("infer-kit", given)
    assert plain == configuration_hash("infer-kit", dict(reversed(given.items())))
    assert plain == configuration_hash("infer-kit", {**given, "batch_size": 8, "device": "cpu"})
    others = {
        configuration_hash("hf", given),
        configuration_hash("infer-kit", {**given, "weights": "0.4+0.6"}),
        configuration_hash("infer-kit", {**given, "eps": 0.1}),
    }
    weights.write_bytes(b"other")  # trained anew, in the same folder
    others.add(configuration_hash("infer-kit", given))
    assert len(others | {plain}) == 5


def test_the_hash_follows_every_folder_of_a_list(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    for value in (f"demo-text-b+{tmp_path}", ["demo-text-b", str(tmp_path)]):
        before = configuration_hash("infer-kit", {"ensemble": value})
        file.write_text(file.read_text() + " ")
        assert configuration_hash("infer-kit", {"ensemble": value}) != before


def test_the_hash_follows_every_file_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        return configuration_hash("infer-kit", {"pretrained": str(tmp_path / "model")})

    (tmp_path / "model").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "model/linked").symlink_to(tmp_path / "shared")
    (tmp_path / "model/itself").symlink_to(tmp_path / "model")
    hashes = [told()]
    for name in (
        "model.gguf", "vocab.txt", "tokenizer.model", "adapter/adapter_model.safetensors",
        "adapter/deeper/weights.pt", "linked/weights.bin",
    ):  # fmt: skip
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for content in ("one", "other"):  # there, and then with other content
            path.write_text(content)
            hashes.append(told())
    assert len(set(hashes)) == len(hashes)
    for name in (".gitattributes", ".cache/huggingface/model.lock"):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hidden")
    (tmp_path / "model/gone").symlink_to(tmp_path / "nowhere")
    assert told() == hashes[-1]
    for package in ("torch", "transformers", "infer-kit"):
        monkeypatch.setattr(
            "infer_kit.harness.arguments.version",
            lambda name, package=package: "0" if name == package else version(name),
        )
        hashes.append(told())
    assert len(set(hashes)) == len(hashes)


def test_greedy_tasks_leave_out_what_shapes_sampling() -> None:
    given = {"until": "\n", "do_sample": False, "temperature": 0.0, "top_p": 1, "max_gen_toks": 9}
    assert read_generation(given, 256) == ({"do_sample": False}, ["\n"], 9)
    assert read_generation({}, 256) == ({"do_sample": False}, [], 256)


def test_a_temperature_means_sampling() -> None:
    found = read_generation({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5}, 256)
    assert found == ({"temperature": 0.7, "top_p": 0.9, "do_sample": True}, [], 5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"temprature": 1}, "has 'temprature', which is unknown here. Did you mean 'temperature'"),
        ({"max_gen_toks": 4, "max_new_tokens": 5}, "has several limits"),
        ({"do_sample": True, "temperature": 0}, "needs a temperature above 0"),
    ],
)
def test_what_a_task_cannot_ask_for(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArgument, match=re.escape(message)):
        read_generation(given, 256)


def test_an_answer_ends_before_the_first_stop_text() -> None:
    assert before_stop("one. two\nthree", ["\n", ". "]) == "one"
    assert before_stop("one", ["\n"]) == "one"


def test_batch_sizes() -> None:
    assert read_batch_size("auto:4") == 16
    assert read_batch_size("8") == 8
    with pytest.raises(InferKitError, match="a number from 1 on, or auto"):
        read_batch_size("0")


def test_no_harness_is_loaded_unasked() -> None:
    code = (
        "import sys, infer_kit, infer_kit.harness.arguments, infer_kit.harness.lmms\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(loaded & {'lm_eval', 'lmms_eval', 'datasets'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name, wanted", [("lm", "lm_eval"), ("lmms_model", "lmms_eval")])
def test_a_harness_that_is_not_installed_is_named(
    name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{wanted}.api.model", None)
    monkeypatch.delitem(sys.modules, f"infer_kit.harness.{name}", raising=False)
    with pytest.raises(MissingExtra, match="is not installed") as caught:
        __import__(f"infer_kit.harness.{name}")
    assert wanted in str(caught.value.hint)
