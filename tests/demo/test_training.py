"""The training script: packed rows equal separate ones, and it runs from nothing and resumes."""

import random

import pytest
import torch

from infer_kit import demo
from infer_kit.demo import build, lessons, scenes, train
from infer_kit.demo.packing import IGNORED, Batch, Row, losses, project


@pytest.fixture(scope="module")
def untrained():
    return build.make_model(0).eval(), build.cell_patches(build.make_processor())


@torch.no_grad()
def test_a_packed_row_equals_its_texts_run_alone(untrained):
    model, patches = untrained
    scene = scenes.random_scene(random.Random(0))
    records = [scenes.walk(scene, random.Random(1)), scenes.background(scene)]
    pixels = train.pixels_of(patches, scene)[None]
    rows = [lessons.question_row(0, records), Row()]  # the second: padding only, must not disturb
    rows[1].add(build.encode("<s> user :"))
    loss, _, lesson = losses(model, Batch.of(rows), project(model, pixels))
    expected = []
    for record in records:
        for prompt, reply in (
            ("image_context", record.answer),
            ("rationale_request", record.rationale),
        ):
            ids = lessons.prompt_ids(demo.PROMPTS.fill(prompt, record.question), image=True)
            words = build.encode(reply + " </s>")
            everything = torch.tensor([ids + words])
            logits = model(input_ids=everything, pixel_values=pixels).logits[0]
            score = logits.log_softmax(-1)[len(ids) - 1 : -1]
            expected.append(-score.gather(1, torch.tensor(words)[:, None])[:, 0])
    torch.testing.assert_close(loss, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert len(set(lesson.tolist())) == 3


def test_look_up_rows_ask_only_for_what_the_image_shows():
    scene = scenes.random_scene(random.Random(2))
    row = lessons.look_up_row(0, scene, random.Random(3), places=0.5)
    asked = [build.WORDS[label] for label in row.labels if label != IGNORED]
    allowed = {*scenes.CELLS, *scenes.COLORS, *scenes.SHAPES}
    assert set(asked) <= allowed
    assert len(row.segments) == 1 + len(scenes.CELLS)


def test_the_script_runs_from_nothing_and_repeats_itself(tmp_path):
    for name in ("one", "two"):
        train.main(["--out", str(tmp_path / name), "--smoke"])
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")
    )
    assert first == second
    model, processor = demo.load(tmp_path / "one")
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert not list((tmp_path / "one").glob("stages*"))


def test_an_interrupted_run_resumes_with_the_same_weights(tmp_path, monkeypatch):
    train.train(tmp_path / "whole", smoke=True)
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(train, "write_pool", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path / "cut", smoke=True)
    train.train(tmp_path / "cut", smoke=True)
    whole, cut = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert whole == cut
