"""The in-context model: its episodes, its answers, its training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from infer_kit.demo.icl import MODEL_DIR, build, episodes, held_out, load, train, ways
from infer_kit.demo.icl.episodes import ATTRIBUTES, WORDS, Episode
from infer_kit.demo.packing import IGNORED


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load()


@pytest.fixture(scope="module")
def asked() -> list[Episode]:
    return held_out(100, 16, seed=7)


# Episodes


def test_the_same_seed_gives_the_same_episodes() -> None:
    assert held_out(4, 8, 1) == held_out(4, 8, 1)
    assert held_out(4, 8, 1) != held_out(4, 8, 2)
    for short, long in zip(held_out(4, 2, 1), held_out(4, 8, 1), strict=True):
        assert short.demonstrations == long.demonstrations[:2] and short.query == long.query


def test_no_picture_of_training_is_ever_shown(asked: list[Episode]) -> None:
    kept = set(episodes.boards(held_out=True))
    taught = set(episodes.boards(held_out=False))
    assert not kept & taught and len(kept | taught) == 6 * 4 * 6 * 5
    for episode in asked:
        shown = {d.board for d in episode.demonstrations} | {episode.query.board}
        assert shown <= kept
    rng = random.Random(0)
    for values in (None, 2):
        assert {d.board for d in train.lesson(rng, 17, values)} <= taught


def test_answers_come_from_the_bindings_and_never_from_the_query(asked: list[Episode]) -> None:
    """The words are drawn first; a demonstration's is that of its own picture."""
    for episode in asked:
        values = ATTRIBUTES[episode.attribute]
        assert len(set(episode.bindings)) == len(values) and set(episode.bindings) <= set(WORDS)
        for shown in (*episode.demonstrations, episode.query):
            value = shown.board.value(episode.attribute)
            assert shown.answer == episode.bindings[values.index(value)]
        assert episode.query.board not in {d.board for d in episode.demonstrations}


def test_values_of_query_and_demonstrations_are_independent() -> None:
    """How often the query's value is shown is what independent, even draws give."""
    many = held_out(4000, 4, seed=3)
    for attribute, values in ATTRIBUTES.items():
        mine = [e for e in many if e.attribute == attribute]
        share = sum(e.is_covered for e in mine) / len(mine)
        expected = 1 - (1 - 1 / len(values)) ** 4
        assert abs(share - expected) < 3.5 * (expected * (1 - expected) / len(mine)) ** 0.5


def test_the_chat_and_the_records_say_the_same(asked: list[Episode]) -> None:
    episode = asked[0]
    chat = episode.chat([2, 0])
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]
    assert chat[1]["content"][0]["text"] == episode.demonstrations[2].answer
    records = episode.records(3)
    assert [r["answer"] for r in records] == [d.answer for d in episode.demonstrations[:3]]
    assert records[1]["image"] is episode.demonstrations[1].picture


# The model that ships


def test_it_is_small_and_loads_as_any_model(loaded) -> None:
    model, processor = loaded
    assert (MODEL_DIR / "model.safetensors").stat().st_size < 1.2e6
    assert type(model).__name__ == "LlavaForConditionalGeneration" and not model.training
    row = processor.apply_chat_template(
        held_out(1, 2)[0].chat(), tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    words = processor.decode(row["input_ids"][0])
    assert words.count("<image>") == 3 * build.IMAGE_TOKENS and words.endswith("assistant :")
    assert row["pixel_values"].shape == (3, 3, 32, 32)


def test_accuracy_rises_with_demonstrations_to_what_can_be_known(loaded, asked) -> None:
    model, processor = loaded
    share = {}
    for shots in (4, 16):
        texts = ways.answers(model, processor, asked, shots, 1)["full context"]
        share[shots] = sum(t == e.query.answer for t, e in zip(texts, asked, strict=True)) / 100
        known = sum(
            any(d.answer == e.query.answer for d in e.demonstrations[:shots]) for e in asked
        )
        assert share[shots] >= 0.97 * known / 100
    guesses = ways.guesses(model, processor, asked)
    assert sum(t == e.query.answer for t, e in zip(guesses, asked, strict=True)) < 20
    assert share[16] > share[4] + 0.2 and share[16] > 0.85


def test_chunks_know_what_the_full_context_knows(loaded, asked) -> None:
    """Chunks without the answer are unsure, so their product is decided by the one that has it."""
    model, processor = loaded
    some, texts = asked[:40], {}
    for chunks in (1, 2, 4):
        texts |= ways.answers(model, processor, some, 8, chunks)
    right = {
        way: sum(t == e.query.answer for t, e in zip(given, some, strict=True))
        for way, given in texts.items()
    }
    assert set(right) == {ways.name_of(1, "")} | {
        ways.name_of(k, w) for k in (2, 4) for w in ("uniform", "similarity")
    }
    for way, count in right.items():
        assert count >= right["full context"] - 2, way
    for k in (2, 4):
        assert right[ways.name_of(k, "similarity")] >= right[ways.name_of(k, "uniform")] - 1


def test_it_is_unsure_where_it_was_not_told(loaded, asked) -> None:
    model, processor = loaded
    sure = {True: [], False: []}
    for episode in asked[:40]:
        row = processor.apply_chat_template(
            episode.chat(range(4)), tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True,
        )  # fmt: skip
        with torch.no_grad():
            top = float(model(**row).logits[0, -1].softmax(-1).max())
        told = any(d.answer == episode.query.answer for d in episode.demonstrations[:4])
        sure[told].append(top)
    assert min(sure[True]) > 0.5 and max(sure[False]) < 0.5
    assert len(sure[True]) > 10 and len(sure[False]) > 10


# Training


def test_rows_teach_every_answer_and_only_answers(loaded) -> None:
    _, processor = loaded
    shown = train.lesson(random.Random(1), 5)
    row = train.row_of(shown, {d.board: i for i, d in enumerate(shown)})
    assert len(row.images) == 5
    chat = [turn for d in shown for turn in d.turns()]
    rendered = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert row.ids == rendered["input_ids"][0].tolist()
    learnt = [label for label in row.labels if label != IGNORED]
    assert processor.decode(learnt) == " ".join(f"{d.answer} </s>" for d in shown)


def test_the_training_script_runs(tmp_path: Path) -> None:
    train.main(["--out", str(tmp_path), "--smoke"])
    model, processor = load(tmp_path)
    episode = held_out(1, 2)[0]
    assert ways.answers(model, processor, [episode], 2, 1)["full context"]
    again = tmp_path / "again"
    train.main(["--out", str(again), "--smoke"])
    a, b = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path, again))
    assert a == b
