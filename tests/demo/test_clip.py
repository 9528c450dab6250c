"""The tiny CLIP: its world, what it has learnt, its training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from infer_kit.concepts.classes import TEMPLATE
from infer_kit.demo.clip import (
    CLASSES,
    MODEL_DIR,
    PHRASES,
    Sample,
    build,
    evaluate,
    held_out,
    load,
    train,
    world,
)
from infer_kit.demo.scenes import BACKGROUNDS, CELL_PIXELS, COLORS, draw_object


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return held_out(200, seed=7)


def is_true(phrase: str, sample: Sample) -> bool:
    """Whether a phrase is true of a picture, from its words alone."""
    *first, last = phrase.split()
    things = [thing for thing in sample.things if thing is not None]
    if last == "background":
        return first == [sample.ground]
    if first == ["something"]:
        return any(color == last for color, _ in things)
    if phrase in CLASSES:
        return phrase == sample.label
    return any(shape == last and first in ([], [color]) for color, shape in things)


# The world


def test_the_same_seed_gives_the_same_pictures() -> None:
    assert held_out(20, 1) == held_out(20, 1)
    assert held_out(20, 1) != held_out(20, 2)
    assert held_out(10, 1) != held_out(20, 1)[:10]  # another number is another draw


def test_training_draws_no_held_out_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[world.Boards] = []
    taken = train.boards

    def noted(*given: Any) -> world.Boards:
        drawn.append(taken(*given))
        return drawn[-1]

    monkeypatch.setattr(train, "boards", noted)
    processor = build.make_processor()
    table = build.cell_pixels(processor)
    train.fit(build.make_model(0), processor, table, train.Stage("all", 3, slow=1e-3), 0)
    kept = world.boards(2000, np.random.default_rng(0), held_out=True)
    assert len(drawn) == 3 and world.is_held_out(kept).all()
    assert not any(world.is_held_out(some).any() for some in drawn)
    shown = [{(b.ground[n], *b.cells[n]) for n in range(len(b))} for b in (kept, *drawn)]
    assert all(len(some) > 250 and not some & shown[0] for some in shown[1:])


def test_a_picture_that_fits_two_places_is_on_one_side() -> None:
    some = world._any_boards(500, np.random.default_rng(2))
    elsewhere = world.Boards((some.place + 1) % len(CLASSES), some.ground, some.cells)
    assert (world.is_held_out(some) == world.is_held_out(elsewhere)).all()


def test_held_out_is_about_one_picture_in_eight() -> None:
    some = world._any_boards(8000, np.random.default_rng(3))
    assert abs(world.is_held_out(some).mean() - 1 / 8) < 4 * (7 / 64 / 8000) ** 0.5


def test_phrases_are_the_true_ones_and_name_no_place(samples: list[Sample]) -> None:
    assert list(PHRASES) == sorted(set(PHRASES)) and not set(PHRASES) & set(CLASSES)
    for sample in samples:
        assert sample.phrases == tuple(p for p in PHRASES if is_true(p, sample))
    said = [sum(p in sample.phrases for sample in samples) for p in PHRASES]
    assert min(said) > 0 and max(said) < len(samples)


def test_pictures_show_what_samples_say(samples: list[Sample]) -> None:
    for sample in samples[:40]:
        assert sample.picture.getpixel((0, 0)) == BACKGROUNDS[sample.ground]
        for n, thing in enumerate(sample.things):
            row, column = divmod(n, 3)
            middle = (int((column + 0.5) * CELL_PIXELS), int((row + 0.5) * CELL_PIXELS))
            expected = BACKGROUNDS[sample.ground] if thing is None else COLORS[thing[0]]
            assert sample.picture.getpixel(middle) == expected


def test_a_picture_is_its_things_and_its_ground(samples: list[Sample]) -> None:
    """Drawn anew from its true phrases and where each thing is, pixel by pixel."""
    for sample in samples[:20]:
        named = {tuple(p.split()) for p in sample.phrases if len(p.split()) == 2}
        (ground,) = (a for a, b in named if b == "background")
        things = {(a, b) for a, b in named if a != "something" and b != "background"}
        assert things == set(sample.things) - {None} and len(things) == 6
        image = Image.new("RGB", (3 * CELL_PIXELS, 3 * CELL_PIXELS), BACKGROUNDS[ground])
        pen = ImageDraw.Draw(image)
        for thing in things:
            row, column = divmod(sample.things.index(thing), 3)
            draw_object(pen, *thing, (column + 0.5) * CELL_PIXELS, (row + 0.5) * CELL_PIXELS)
        assert image.tobytes() == sample.picture.tobytes()


def test_attributes_are_those_of_single_pictures() -> None:
    some = world.boards(60, np.random.default_rng(9))
    found = some.attributes()
    assert found.dtype == torch.bool and found.shape == (60, len(world.ATTRIBUTES))
    for n, sample in enumerate(world.samples_of(some)):
        assert found[n].tolist() == [is_true(a, sample) for a in world.ATTRIBUTES]
        assert torch.equal(some[n : n + 1].attributes()[0], found[n])


def test_places_are_told_by_several_things_and_by_none_alone() -> None:
    some = world.boards(6000, np.random.default_rng(4))
    seen = some.attributes()[:, : world.N_THINGS].numpy()
    typical = np.zeros((len(CLASSES), world.N_THINGS), dtype=bool)
    typical[np.arange(len(CLASSES))[:, None], world.TYPICAL_THINGS] = True
    assert ((seen & typical[some.place]).sum(1) == world.SHOWN).all()
    assert (seen.sum(1) == world.SHOWN + world.OTHERS).all()
    assert set(typical.sum(0)) == {1, 2}  # some things are typical of two places
    for thing in range(world.N_THINGS):
        of = np.bincount(some.place[seen[:, thing]], minlength=len(CLASSES))
        assert of.min() > 0 and of.max() < 0.6 * of.sum()


@pytest.mark.parametrize("places", [False, True])
def test_captions_fit_exactly_the_pictures_that_they_are_true_of(places: bool) -> None:
    some = world.boards(150, np.random.default_rng(5))
    pictures = world.samples_of(some)
    texts, fits = train.captions(some.attributes(), np.random.default_rng(6), places)
    named = 0
    for column, text in enumerate(texts):
        said = [
            part.removeprefix("a photo of ").removeprefix("a ").removeprefix("the ")
            for part in text.split(" and ")
        ]
        named += said[0] in CLASSES
        for row, sample in enumerate(pictures):
            assert bool(fits[row, column]) == all(is_true(phrase, sample) for phrase in said)
    assert fits.diagonal().all() and (25 < named < 85 if places else named == 0)
    assert any(" and " in text for text in texts)


# The loss


def test_one_true_caption_a_picture_is_the_loss_of_clip() -> None:
    torch.manual_seed(0)
    images, texts, scale = torch.randn(9, 8), torch.randn(9, 8), torch.tensor(1.5)
    logits = scale.exp() * torch.cosine_similarity(images[:, None], texts[None], dim=2)
    cross_entropy, same = torch.nn.functional.cross_entropy, torch.arange(9)
    expected = (cross_entropy(logits, same) + cross_entropy(logits.T, same)) / 2
    found = train.loss_of(images, texts, scale, torch.eye(9, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_the_loss_is_the_mean_of_the_true_pairs_of_each() -> None:
    torch.manual_seed(2)
    images, texts, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(0.7)
    fits = torch.rand(5, 5) < 0.5
    fits.fill_diagonal_(True)
    logits = [[math.exp(0.7) * float(torch.cosine_similarity(image, text, dim=0))
               for text in texts] for image in images]  # fmt: skip
    total = 0.0
    for n in range(5):
        for row, true in (
            (logits[n], fits[n]),
            ([logits[m][n] for m in range(5)], fits[:, n]),
        ):
            whole = math.log(sum(math.exp(x) for x in row))
            losses = [whole - x for x, is_one in zip(row, true.tolist(), strict=True) if is_one]
            total += sum(losses) / len(losses)
    assert float(train.loss_of(images, texts, scale, fits)) == pytest.approx(total / 10, abs=1e-5)


def test_pictures_and_captions_may_change_sides() -> None:
    torch.manual_seed(1)
    images, texts, scale = torch.randn(6, 8), torch.randn(6, 8), torch.tensor(1.0)
    fits = torch.rand(6, 6) < 0.4
    fits.fill_diagonal_(True)
    assert fits.sum(0).tolist() != fits.sum(1).tolist()
    torch.testing.assert_close(
        train.loss_of(images, texts, scale, fits), train.loss_of(texts, images, scale, fits.T)
    )


def test_all_that_is_true_is_pulled_alike() -> None:
    """Two captions true of one picture: the loss is least where both are as near."""
    fits = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    texts = torch.eye(3)

    def loss(image: list[float]) -> float:
        images = torch.tensor([image, [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        return float(train.loss_of(images, texts, torch.tensor(1.0), fits))

    middle = loss([1.0, 1.0, 0.0])
    assert middle < min(loss([1.0, 0.5, 0.0]), loss([1.0, 0.0, 0.0]), loss([1.0, 1.0, 0.5]))


# The model that ships


def test_it_is_small_and_loads_as_any_model() -> None:
    from transformers import AutoProcessor, CLIPModel

    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) < 0.8e6
    model = CLIPModel.from_pretrained(MODEL_DIR, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(MODEL_DIR)
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    inputs = processor(
        text=["a red circle"], images=held_out(1)[0].picture, return_tensors="pt", padding=True
    )
    assert processor.decode(inputs["input_ids"][0]) == "<s> a red circle </s>"
    assert model(**inputs).logits_per_image.shape == (1, 1)


def test_it_knows_every_word_of_its_world(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    texts = [*PHRASES, *CLASSES, *(TEMPLATE.format(name) for name in CLASSES)]
    ids = processor.tokenizer([*texts, *(text.upper() for text in texts)])["input_ids"]
    assert ids[: len(texts)] == ids[len(texts) :]
    assert all(processor.tokenizer.unk_token_id not in row for row in ids)
    assert processor.tokenizer("zebra")["input_ids"][1] == processor.tokenizer.unk_token_id


@torch.no_grad()
def test_the_feature_of_a_text_is_read_at_its_end(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    row = processor.tokenizer(
        ["garden", "a photo of a red circle and a teal cross"], padding=True, return_tensors="pt"
    )
    out = model.text_model(**row)
    ends = (row["input_ids"] == processor.tokenizer.eos_token_id).int()
    assert ends.sum(1).tolist() == [1, 1] and ends.argmax(1).tolist() == [2, 11]
    expected = out.last_hidden_state[torch.arange(2), ends.argmax(1)]
    torch.testing.assert_close(out.pooler_output, expected)
    after, before = row["input_ids"][:1].clone(), row["input_ids"][:1].clone()
    after[0, 3:] = torch.arange(4, 4 + len(after[0, 3:]))
    before[0, 1] = row["input_ids"][1, 5]
    same, other = (model.text_model(input_ids=ids).pooler_output[0] for ids in (after, before))
    torch.testing.assert_close(same, out.pooler_output[0], rtol=1e-4, atol=1e-5)
    assert float((other - same).norm()) > 0.1 * float(same.norm())


@torch.no_grad()
def test_padding_changes_no_feature(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    texts = ["garden", "a photo of a garden", "red circle and teal cross"]
    longest = model.config.text_config.max_position_embeddings

    def features(some: list[str], **how: Any) -> torch.Tensor:
        row = processor.tokenizer(some, return_tensors="pt", **how)
        return model.get_text_features(**row).pooler_output

    alone = torch.cat([features([text]) for text in texts])
    assert float((alone[0] - alone[1]).norm()) > 0.1
    for how in ({"padding": True}, {"padding": "max_length", "max_length": longest}):
        torch.testing.assert_close(features(texts, **how), alone, rtol=1e-4, atol=1e-5)


def test_it_knows_places_and_phrases_of_fresh_pictures(tmp_path: Path) -> None:
    """The model without training is the control."""
    found = evaluate.figures(n=400, seed=11)
    assert found["zero-shot accuracy"] > 0.95
    assert found["mean average precision of true phrases"] > 0.99
    build.save(build.make_model(0), build.make_processor(), tmp_path)
    control = evaluate.figures(tmp_path, n=400, seed=11)
    assert control["zero-shot accuracy"] < 0.25
    assert control["mean average precision of true phrases"] < 0.6


# Training


def test_pixels_from_cells_are_those_of_the_processor(samples: list[Sample]) -> None:
    processor = build.make_processor()
    some = world.boards(30, np.random.default_rng(8))
    pictures = [sample.picture for sample in world.samples_of(some)]
    expected = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    found = train.pixels_of(build.cell_pixels(processor), some)
    torch.testing.assert_close(found, expected, rtol=0, atol=2.1 / 255)


def test_the_script_repeats_itself_and_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        train.main(["--out", str(tmp_path / name), "--smoke"])
    fit = train.fit

    def cut(model: Any, processor: Any, table: Any, stage: train.Stage, seed: int) -> None:
        if stage.name == train.STAGES[-1].name:
            raise KeyboardInterrupt
        fit(model, processor, table, stage, seed)

    monkeypatch.setattr(train, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--out", str(tmp_path / "cut"), "--smoke"])
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    done: list[str] = []
    monkeypatch.setattr(train, "fit", lambda *given: (done.append(given[3].name), fit(*given)))
    train.main(["--out", str(tmp_path / "cut"), "--smoke"])
    assert done == [train.STAGES[-1].name]
    train.main(["--out", str(tmp_path / "other"), "--smoke", "--seed", "1"])
    one, two, whole, other = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("one", "two", "cut", "other")
    )
    assert one == two == whole != other
    assert not [path for path in (tmp_path / "cut").iterdir() if path.is_dir()]
    load(tmp_path / "one")
