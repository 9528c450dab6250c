"""Methods as models of lmms-eval: what is asked, what is written, what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import infer_kit as ik
from evals.tasks.lmms_eval import write_words
from infer_kit import demo
from infer_kit.demo import icl
from infer_kit.demo.scenes import held_out
from infer_kit.errors import InferKitError, UnsupportedArgument
from infer_kit.evaluation.few_shot import shot_of
from infer_kit.evaluation.samples import read_samples

pytestmark = pytest.mark.filterwarnings("ignore:.*not initialized:UserWarning")

RECORDS = held_out(4)
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def asked(lm: Any, records: Any = RECORDS, **kwargs: Any) -> list[Any]:
    """Requests as lmms-eval makes them, about documents that are in its `task_dict`."""
    lm.task_dict = {"scenes": {"test": dict(enumerate(records))}}

    def picture(record: Any) -> list[Any]:
        return [record.picture]

    return [
        SimpleNamespace(args=(record.question, {**GREEDY, **kwargs}, picture, n, "scenes", "test"))
        for n, record in enumerate(records)
    ]


def chats() -> list[Any]:
    return [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": record.picture},
                    {"type": "text", "text": record.question},
                ],
            }
        ]
        for record in RECORDS
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_red_answers_as_red_does(lmms_class: Any, batch: int) -> None:
    lm = lmms_class(pretrained="demo", method="red", weight=1.0, batch_size=batch, device="cpu")
    red = ik.RED(*demo.load(), weight=1.0, prompts=demo.PROMPTS)
    assert lm.generate_until(asked(lm)) == red.generate(chats(), **GREEDY).text


def test_weight_0_is_direct_and_not_red(lmms_class: Any) -> None:
    direct, none, red = (
        lmms_class(pretrained="demo", **options, batch_size=4, device="cpu")
        for options in ({}, {"method": "red", "weight": 0}, {"method": "RED", "weight": "1.0"})
    )
    plain = direct.generate_until(asked(direct))
    assert none.generate_until(asked(none)) == plain
    assert red.generate_until(asked(red)) != plain


def test_other_methods_come_with_their_options(lmms_class: Any) -> None:
    lm = lmms_class(pretrained="demo", method="vcd", alpha=0.5, batch_size=4, device="cpu")
    vcd = ik.VCD(*demo.load(), alpha=0.5)
    assert lm.generate_until(asked(lm)) == vcd.generate(chats(), **GREEDY).text


def test_parallel_icl_learns_from_a_file(lmms_class: Any, tmp_path: Path) -> None:
    (episode,) = icl.held_out(1, shots=8)
    file = tmp_path / "shots.jsonl"
    write_words.write(file, episode.demonstrations)
    lm = lmms_class(
        pretrained="demo-icl", method="parallel_icl", chunks=2, demonstrations=str(file),
        device="cpu", batch_size=2,
    )  # fmt: skip
    picl = ik.ParallelICL(*icl.load(), chunks=2).fit(episode.records())
    expected = picl.generate([episode.query.turn()], max_new_tokens=2, do_sample=False).text
    assert lm.generate_until(asked(lm, [episode.query], max_new_tokens=2)) == [expected]
    assert expected == episode.query.answer


def test_a_demonstration_says_what_most_annotators_say(
    lmms_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(ik.ParallelICL, "fit", lambda self, shots: shown.extend(shots))
    file = tmp_path / "shots.jsonl"
    lines = [
        {"id": "1", "question": "what is it ?", "answers": ["car", "red", "blue", "red"]},
        {"id": "2", "question": "which ?", "choices": ["red", "blue"], "answers": ["B"]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    lmms_class(pretrained="demo-icl", method="parallel_icl", demonstrations=str(file), device="cpu")
    assert shown == [shot_of(sample).turns() for sample in read_samples(file)]
    said = [[part["text"] for turn in shot for part in turn["content"]] for shot in shown]
    assert said == [["what is it ?", "red"], ["which ?\nA. red\nB. blue", "B"]]


def test_answers_end_before_a_stop_text(lmms_class: Any) -> None:
    lm = lmms_class(pretrained="demo", batch_size=4, device="cpu")
    whole = lm.generate_until(asked(lm))
    letter = whole[0][1]
    assert lm.generate_until(asked(lm, until=[letter])) == [t.split(letter)[0] for t in whole]


def test_requests_of_different_settings_are_answered_apart(lmms_class: Any) -> None:
    lm = lmms_class(pretrained="demo", method="red", weight=1.0, batch_size=4, device="cpu")
    one, other = asked(lm), asked(lm, until=[*"aeio"])
    mixed = [one[0], other[1], one[2], other[3]]
    long, short = lm.generate_until(one), lm.generate_until(other)
    assert all(map(str.__ne__, long, short))
    assert lm.generate_until(mixed) == [long[0], short[1], long[2], short[3]]


def test_errors_are_raised_not_answered(lmms_class: Any) -> None:
    lm = lmms_class(pretrained="demo", device="cpu")
    (request, *_) = asked(lm)
    broken = SimpleNamespace(
        args=(*request.args[:2], lambda _: ["/nowhere.png"], *request.args[3:])
    )
    with pytest.raises((InferKitError, OSError), match="nowhere.png"):
        lm.generate_until([broken])
    video = SimpleNamespace(args=(*request.args[:2], lambda _: [object()], *request.args[3:]))
    with pytest.raises(InferKitError, match="scenes 0: expected pictures, got a object"):
        lm.generate_until([video])
    with pytest.raises(UnsupportedArgument, match="Did you mean 'temperature'"):
        lm.generate_until(asked(lm, temperatur=1))
    for kind in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(InferKitError, match="in lmms-eval"):
            getattr(lm, kind)([request])


def test_pictures_stand_where_the_text_marks_them(lmms_class: Any) -> None:
    from infer_kit.harness.lmms_model import parts

    one, two = Image.new("RGB", (2, 2)), Image.new("RGB", (3, 3))
    kinds = [
        part.get("text", part.get("image")) for part in parts("<image> or <image>?", [one, two], "")
    ]
    assert kinds == [one, " or ", two, "?"]
    kinds = [part.get("text", part.get("image")) for part in parts("what?", [one, two], "")]
    assert kinds == [one, two, "what?"]
    assert parts("what?", [], "") == [{"type": "text", "text": "what?"}]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "rde"}, "Unknown method 'rde'. Did you mean 'red'?"),
        ({"method": "red", "wieght": 1}, "no option 'wieght'. Did you mean 'weight'?"),
        ({"pretrained": "nowhere/at/all"}, "pretrained=nowhere/at/all: there is no such model"),
        ({"method": "parallel_icl"}, "parallel_icl learns from demonstrations"),
        ({"demonstrations": "x.jsonl"}, "and no other method does"),
        ({"method": "parallel_icl", "demonstrations": "x.jsonl"}, "'x.jsonl' does not exist"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_refusals_come_before_loading(
    lmms_class: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules[lmms_class.__module__],
        "load_model",
        lambda *_, **__: pytest.fail("a model was loaded"),
    )
    with pytest.raises(InferKitError, match=re.escape(message)):
        lmms_class(**{"pretrained": "demo", **options})


def test_several_processes_are_refused(lmms_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InferKitError, match="evaluated by one process"):
        lmms_class(pretrained="demo")


def test_words_are_told_by_the_demonstrations_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["write_words.py", "--out", str(tmp_path)])
    write_words.main()
    shots, queries = (read_samples(tmp_path / f"{name}.jsonl") for name in ("shots", "test"))
    assert len(shots) == 16 and {s.answers for s in queries} <= {s.answers for s in shots}
    shown = {image.read_bytes() for s in shots for image in s.images}
    assert shown.isdisjoint(image.read_bytes() for s in queries for image in s.images)


def test_lmms_eval_finds_the_model_by_its_entry_point() -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    (entry,) = entry_points(group="lmms_eval.models", name="infer-kit")
    made = entry.load()()
    assert made.model_id == "infer-kit"
    assert made.simple_class_path == "infer_kit.harness.lmms_model.InferKitLMMS"


def test_red_by_lmms_evals_own_command_line(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [
            *(sys.executable, root / "evals/data/scenes.py", "--count", "16"),
            *("--out", tmp_path / "runs/data/demo_scenes"),
        ],
        check=True,
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lmms_eval", "--model", "infer-kit", "--batch_size", "8"),
            *("--model_args", "pretrained=demo,method=red,weight=1.0", "--tasks", "demo_scenes"),
            *("--include_path", str(root / "evals/tasks/lmms_eval"), "--output_path", "out"),
            *("--log_samples", "--verbosity", "DEBUG"),
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    red = ik.RED(*demo.load(), weight=1.0, prompts=demo.PROMPTS)
    records = held_out(16)
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": r.picture},
                                      {"type": "text", "text": r.question}]}] for r in records
    ]  # fmt: skip
    said = [text.split()[0] for text in red.generate(messages, **GREEDY).text]
    right = sum(word == r.answer for word, r in zip(said, records, strict=True)) / len(records)
    found = json.loads(file.read_text())["results"]["demo_scenes"]
    assert found["accuracy,none"] == pytest.approx(right)
