"""The shipped model: its files, its language, and that it does what its card says."""

import json
import random

import pytest
import torch

from infer_kit import demo
from infer_kit.demo import build, evaluate, lessons, scenes


@pytest.fixture(scope="module")
def shipped():
    return demo.load()


@pytest.fixture(scope="module")
def answers(shipped):
    records = scenes.held_out(60, seed=1)
    pixels = evaluate.pixels_of(shipped[1], records)
    own = evaluate.write_rationales(*shipped, records, pixels)
    return records, own, evaluate.answers_of(*shipped, records, own)


def chat(text, picture=None):
    image = [] if picture is None else [{"type": "image", "image": picture}]
    return [{"role": "user", "content": [*image, {"type": "text", "text": text}]}]


def prepare(processor, messages):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in demo.MODEL_DIR.iterdir()) <= 1_200_000


def test_every_word_is_known(shipped):
    tokenizer = shipped[1].tokenizer
    records = scenes.held_out(60) + [
        scenes.walk(scenes.held_out(1)[0].scene, random.Random(seed)) for seed in range(60)
    ]
    for record in records:
        for prompt in ("rationale_request", "image_context", "rationale_context"):
            text = demo.PROMPTS.fill(prompt, record.question, record.rationale)
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        answer = tokenizer(record.answer)["input_ids"]
        assert len(answer) == 1
        assert tokenizer.decode(answer) == record.answer


def test_every_word_of_the_vocabulary_is_used():
    used = set(build.SPECIAL) | {"user", "assistant", ":"}
    for seed in range(40):
        for record in scenes.held_out(20, seed):
            used |= set(demo.PROMPTS.fill("rationale_request", record.question).split())
            used |= set(
                demo.PROMPTS.fill("rationale_context", record.question, record.rationale).split()
            )
            used.add(record.answer)
    assert used == set(build.WORDS)


def test_text_comes_back_readable(shipped):
    tokenizer = shipped[1].tokenizer
    text = "Start at the RED circle, go up. What color is there?"
    assert (
        tokenizer.decode(tokenizer(text)["input_ids"])
        == "start at the red circle , go up . what color is there ?"
    )


def test_the_chat_template_gives_the_prompts_of_the_training(shipped):
    _, processor = shipped
    record = scenes.held_out(1)[0]
    text = demo.PROMPTS.fill("rationale_context", record.question, record.rationale)
    for picture in (None, record.picture):
        inputs = prepare(processor, chat(text, picture))
        assert set(inputs) - {"pixel_values"} == {"input_ids", "attention_mask"}
        assert inputs["input_ids"][0].tolist() == lessons.prompt_ids(text, picture is not None)


def test_generation_is_greedy_and_ends_by_itself(shipped):
    model, processor = shipped
    config = model.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert not config.do_sample
    record = scenes.held_out(1)[0]
    text = demo.PROMPTS.fill("rationale_request", record.question)
    inputs = prepare(processor, chat(text, record.picture))
    written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert written[-1] == config.eos_token_id
    own = processor.tokenizer.decode(written, skip_special_tokens=True)
    pixels = [inputs["pixel_values"][0]]
    assert [own] == evaluate.write_rationales(model, processor, [record], pixels)


def test_weights_are_stored_in_half_precision_and_loaded_in_full(shipped):
    from safetensors.torch import load_file

    stored = load_file(demo.MODEL_DIR / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert {value.dtype for value in shipped[0].parameters()} == {torch.float32}
    prefixes = ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.")
    assert all(name.startswith(prefixes) for name in stored)


def test_the_two_contexts_are_complementary(answers):
    records, _, given = answers
    share = {method: evaluate.accuracy(records, texts) for method, texts in given.items()}
    red = share[f"RED {evaluate.WEIGHT:g}"]
    assert share["direct"]["walk"] <= 0.7
    assert share["direct"]["background"] >= 0.9
    assert share["rationale only"]["walk"] >= 0.85
    assert share["rationale only"]["background"] <= 0.45
    assert red["walk"] >= 0.85
    assert red["background"] >= 0.9
    assert red["all"] >= share["direct"]["all"] + 0.1
    assert red["all"] >= share["rationale only"]["all"] + 0.1
    assert red["all"] >= share[f"RED {evaluate.WEIGHT:g}, another's rationale"]["all"] + 0.1


def test_the_model_writes_true_rationales(answers):
    records, own, _ = answers
    exact = [r.rationale == text for r, text in zip(records, own, strict=True)]
    assert sum(exact) / len(exact) >= 0.85


def test_accuracy_counts_by_kind_and_report_has_every_method():
    records = scenes.held_out(4)
    right = [record.answer for record in records]
    half = [right[0], right[1], "no", "no"]
    assert evaluate.accuracy(records, right) == {"all": 1.0, "walk": 1.0, "background": 1.0}
    assert evaluate.accuracy(records, half) == {"all": 0.5, "walk": 0.5, "background": 0.5}
    assert evaluate.accuracy(records[:1], ["no"]) == {"all": 0.0, "walk": 0.0}
    table = evaluate.report(records, {"x": evaluate.accuracy(records, half)})
    assert "| x | 0.500 | 0.250 | 0.500 | 0.500 |" in table


def test_each_context_knows_what_it_does_not_know(shipped, answers):
    records, own, _ = answers
    top = evaluate.confidences(*shipped, records, own)
    assert top["rationale only"]["background"] < 0.4
    assert top["rationale only"]["walk"] > 0.8
    assert top["direct"]["walk"] < 0.7
    assert top["direct"]["background"] > 0.9


def test_the_command_prints_table_and_json(capsys):
    evaluate.main(["--n", "8", "--seed", "2", "--json"])
    printed = capsys.readouterr().out
    assert "8 held-out questions, seed 2" in printed
    last = json.loads(printed.splitlines()[-1])
    assert last["accuracy"]["RED 1"].keys() == {"all", "walk", "background"}
