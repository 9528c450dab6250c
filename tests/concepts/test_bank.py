"""Banks: their phrases, their files, and the encoder that they belong to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from infer_kit.concepts import bank_files
from infer_kit.concepts.bank import ConceptBank
from infer_kit.errors import InferKitError
from tests.concepts.lassos import unit
from tests.concepts.worlds import CLASSES, PHRASES, WordEncoder, bank_of


def test_phrases_are_cleaned_sorted_and_counted() -> None:
    given = ["Red  Ball", "red ball", "  ", "blue_cube", "x" * 21, "Forest", "dog", "DOG", "y" * 20]
    bank = bank_of(WordEncoder(), given, classes=CLASSES)
    assert bank.phrases == ("blue cube", "dog", "red ball", "y" * 20)
    assert bank.dropped == {"equal to another": 2, "empty": 1, "too long": 1, "class names": 1}
    assert len(bank_of(WordEncoder(), given, longest=None)) == 6
    assert len(given) == len(bank) + sum(bank.dropped.values())


def test_features_are_those_of_their_phrases() -> None:
    encoder = WordEncoder()
    bank = bank_of(encoder, prompt="the {}")
    for n in (0, 7, 29):
        expected = unit(encoder.encode_text([f"the {bank.phrases[n]}"])[0])
        torch.testing.assert_close(bank.features[n], expected)
        torch.testing.assert_close(bank.rows(torch.tensor([[n]]))[0, 0], expected)
        assert bank.numbers[bank.phrases[n]] == n
    torch.testing.assert_close(bank.mean, bank.features.mean(0))
    half = bank_of(encoder, prompt="the {}", dtype="float16")
    assert (
        half.features.dtype == torch.float16 and half.rows(torch.tensor(0)).dtype == torch.float32
    )
    torch.testing.assert_close(half.mean, bank.mean, atol=1e-3, rtol=0)


def test_the_order_given_makes_no_difference() -> None:
    encoder = WordEncoder()
    bank, other = bank_of(encoder), bank_of(encoder, set(PHRASES[::-1]))  # type: ignore[arg-type]
    assert bank.phrases == other.phrases and torch.equal(bank.features, other.features)


def test_the_hash_seed_makes_no_difference() -> None:
    code = (
        "from tests.concepts.worlds import *; b = bank_of(WordEncoder(), set(PHRASES) | {'a b'});"
        "print(b.phrases, float(b.features.double().sum()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


def test_without_class_names_and_what_is_close_to_them() -> None:
    encoder = WordEncoder()
    bank = bank_of(encoder, [*PHRASES, "forest", "forest of forest"])
    assert bank.inside(["Forest", "sea"]) == ["Forest"]
    named = bank.without(["Forest"], encoder, cosine=1.0)
    assert set(bank.phrases) - set(named.phrases) == {"forest"}
    assert named.dropped["class names"] == 1
    close = bank.without(["forest"], encoder, cosine=0.8)
    queries = unit(encoder.encode_text(["forest"]))
    expected = [p for p, row in zip(bank.phrases, bank.features, strict=True)
                if p != "forest" and float(row @ queries[0]) < 0.8]  # fmt: skip
    assert list(close.phrases) == expected and "forest of forest" not in expected
    for kept in (named, close):  # the features went with their phrases
        again = unit(encoder.encode_text(list(kept.phrases)))
        torch.testing.assert_close(kept.features, again)
        assert kept.numbers == {phrase: n for n, phrase in enumerate(kept.phrases)}


def test_near_duplicates_go() -> None:
    encoder = WordEncoder()
    bank = bank_of(encoder, ["red ball", "ball red", "blue cube", "the blue cube"])
    kept = bank.deduplicated(0.999)
    assert kept.phrases == ("ball red", "blue cube", "the blue cube")
    assert kept.dropped["near duplicates"] == 1
    torch.testing.assert_close(kept.features, unit(encoder.encode_text(list(kept.phrases))))


def test_saved_and_loaded(tmp_path: Path) -> None:
    encoder = WordEncoder()
    for dtype in ("float32", "float16"):
        bank = bank_of(encoder, dtype=dtype, prompt="a {}", classes=["red ball"])
        bank.save(tmp_path / dtype)
        for mmap in (False, True):
            again = ConceptBank.load(tmp_path / dtype, encoder, "a {}", mmap=mmap)
            assert again.phrases == bank.phrases and torch.equal(again.features, bank.features)
            assert (again.encoder, again.prompt) == ("words", "a {}")
            assert again.dropped == bank.dropped == {"class names": 1}
        with pytest.raises(InferKitError, match="holds a bank"):
            bank.save(tmp_path / dtype)
    with pytest.raises(InferKitError, match=r"made with the prompt 'a {}', wanted is '{}'"):
        ConceptBank.load(tmp_path / "float32", prompt="{}")
    with pytest.raises(InferKitError, match="another encoder or prompt"):
        ConceptBank.load(tmp_path / "float32", WordEncoder(name="others"))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    bank = bank_of(WordEncoder())

    def saved(name: str) -> Path:
        return bank.save(tmp_path / name)

    folder = saved("phrases")
    (folder / "concepts.txt").write_text("\n".join([*bank.phrases[1:], "zebra"]))
    features = saved("features")
    table = np.load(features / "features.npy")
    table[3] = -table[3]
    np.save(features / "features.npy", table)
    short = saved("short")
    np.save(short / "features.npy", table[:-1])
    for changed in (folder, features, short):
        with pytest.raises(InferKitError, match="do not belong together"):
            ConceptBank.load(changed)
    ConceptBank.load(features, mmap=True)  # the features' checksum is not compared
    with pytest.raises(InferKitError, match="holds no bank: there is no bank.json"):
        ConceptBank.load(tmp_path / "none")
    notes = json.loads((saved("format") / "bank.json").read_text())
    (tmp_path / "format" / "bank.json").write_text(json.dumps({**notes, "format": 7}))
    with pytest.raises(InferKitError, match="has format 7; this version reads 1"):
        ConceptBank.load(tmp_path / "format")
    (tmp_path / "format" / "bank.json").write_text("{")
    with pytest.raises(InferKitError, match="cannot be read"):
        ConceptBank.load(tmp_path / "format")


class Failing(WordEncoder):
    """Fails after so many batches."""

    def __init__(self, batches: int, **options: Any) -> None:
        super().__init__(**options)
        self.left = batches

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().encode_text(texts)


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_files, "_ROWS", 8)
    whole = ConceptBank.build(PHRASES, WordEncoder(), folder=tmp_path / "whole", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        ConceptBank.build(PHRASES, Failing(5), folder=tmp_path / "part", batch_size=4)
    with pytest.raises(InferKitError, match="holds no bank: its build did not end"):
        ConceptBank.load(tmp_path / "part")
    with pytest.raises(InferKitError, match="unfinished build of another bank"):
        ConceptBank.build(PHRASES[1:], WordEncoder(), folder=tmp_path / "part")
    with pytest.raises(InferKitError, match="another encoder or prompt"):
        ConceptBank.build(PHRASES, WordEncoder(common=5.0), folder=tmp_path / "part")
    encoder = WordEncoder()
    rest = ConceptBank.build(PHRASES, encoder, folder=tmp_path / "part", batch_size=4)
    assert encoder.encoded == 8 + 14  # eight phrases to recognise it, and 30 less two parts of 8
    assert rest.phrases == whole.phrases and torch.equal(rest.features, whole.features)
    for file in ("features.npy", "concepts.txt", "bank.json"):
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not (tmp_path / "part" / "progress.json").exists()


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    for name in ("concepts.txt", "features.npy"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(InferKitError, match=f"{name}' exists and is of no bank"):
            ConceptBank.build(PHRASES, WordEncoder(), folder=folder)
        with pytest.raises(InferKitError, match=f"{name}' exists and is of no bank"):
            bank_of(WordEncoder()).save(folder)
        assert (folder / name).read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InferKitError, match="cannot be made"):
        bank_of(WordEncoder()).save(tmp_path / "file")


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(InferKitError, match="Another process writes a bank to"):
            ConceptBank.build(PHRASES, WordEncoder(), folder=tmp_path)
    ConceptBank.build(PHRASES, WordEncoder(), folder=tmp_path)


@pytest.mark.parametrize("file", ["features.npy", "concepts.txt", "bank.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "another kind"])
def test_damaged_banks(file: str, damage: str, tmp_path: Path) -> None:
    bank_of(WordEncoder()).save(tmp_path)
    path = tmp_path / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut" else b"[]")
    for mmap in (False, True):
        with pytest.raises(InferKitError):
            ConceptBank.load(tmp_path, mmap=mmap)


def test_damaged_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_files, "_ROWS", 8)
    for name, content in (("progress.json", b"{"), ("features.npy", b"x"), ("features.npy", None)):
        folder = tmp_path / f"{name}{content!r}"
        with pytest.raises(KeyboardInterrupt):
            ConceptBank.build(PHRASES, Failing(5), folder=folder, batch_size=4)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(InferKitError, match="cannot be read"):
            ConceptBank.build(PHRASES, WordEncoder(), folder=folder)
    folder = tmp_path / "phrases"
    with pytest.raises(KeyboardInterrupt):
        ConceptBank.build(PHRASES, Failing(5), folder=folder, batch_size=4)
    (folder / "concepts.txt").write_text("mine")  # written again: the list of the call counts
    again = ConceptBank.build(PHRASES, WordEncoder(), folder=folder)
    assert again.phrases == tuple(sorted(PHRASES))


def test_a_bank_made_by_hand() -> None:
    features = torch.eye(2)
    ConceptBank(("a", "b"), features, "x")
    for phrases in (("a",), ("a", "b", "c"), ("a", "b\nc")):
        with pytest.raises(InferKitError, match="A bank has a feature for each phrase"):
            ConceptBank(phrases, features, "x")


def test_a_finished_build_is_loaded(tmp_path: Path) -> None:
    ConceptBank.build(PHRASES, WordEncoder(), folder=tmp_path)
    encoder = WordEncoder()
    again = ConceptBank.build(PHRASES, encoder, folder=tmp_path)
    assert encoder.encoded == 8 and again.phrases == tuple(sorted(PHRASES))
    for changed in ({"prompt": "a {}"}, {"dtype": "float16"}, {"classes": ["red ball"]}):
        with pytest.raises(InferKitError, match="holds another bank"):
            ConceptBank.build(PHRASES, encoder, folder=tmp_path, **changed)  # type: ignore[arg-type]


def test_the_encoder_of_a_bank_is_recognised() -> None:
    bank = bank_of(WordEncoder())

    class Rounded(WordEncoder):
        def encode_text(self, texts: Sequence[str]) -> Tensor:
            return super().encode_text(texts).bfloat16()

    bank.check(Rounded())
    bank_of(WordEncoder(), dtype="float16").check(WordEncoder())
    with pytest.raises(InferKitError, match="cosine .* to the bank's"):
        bank.check(WordEncoder(common=5.0))
    with pytest.raises(InferKitError, match=r"features of 48 numbers.* makes 12\."):
        bank.check(WordEncoder(dim=12))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"phrases": "red ball"}, "lists of strings, got one string"),
        ({"phrases": ["a", 3]}, "Phrase 1 is a int, not a string"),
        ({"phrases": []}, r"The bank is empty: no phrase is left \(none given\)"),
        ({"phrases": ["x" * 30, ""]}, r"no phrase is left \(1 empty, 1 too long\)"),
        ({"classes": "forest"}, "lists of strings, got one string"),
        ({"prompt": "a photo"}, "The template 'a photo' does not contain '{}' once"),
        ({"prompt": "a {} {z}"}, "and no other braces"),
        ({"prompt": "{{}}"}, "and no other braces"),
        ({"prompt": "{} and {}"}, "does not contain '{}' once"),
        ({"dtype": "int8"}, "Unknown dtype 'int8'"),
        ({"encoder": 3}, "encoder is a int; expected the folder or name of a CLIP"),
    ],
)
def test_bad_builds(change: dict[str, Any], message: str) -> None:
    given = {"phrases": PHRASES, "encoder": WordEncoder(), **change}
    with pytest.raises(InferKitError, match=message):
        ConceptBank.build(**given)


def test_bad_cosines_and_batches() -> None:
    encoder = WordEncoder()
    bank = bank_of(encoder)
    for cosine in (0, -1, 95, float("nan")):
        with pytest.raises(InferKitError, match="cosine is between 0 and 1"):
            bank.deduplicated(cosine)
        with pytest.raises(InferKitError, match="cosine is between 0 and 1"):
            bank.without(CLASSES, encoder, cosine)
    for size in (0, -1):
        with pytest.raises(InferKitError, match=f"batch_size is a number from 1 on, got {size}"):
            bank_of(encoder, batch_size=size)


def test_nothing_left_after_filtering() -> None:
    encoder = WordEncoder()
    with pytest.raises(InferKitError, match="The bank is empty"):
        bank_of(encoder, ["forest"]).without(["forest"], encoder)


def test_features_that_are_no_numbers_are_of_no_encoder() -> None:
    bank = bank_of(WordEncoder())
    with pytest.raises(InferKitError, match="another encoder or prompt"):
        ConceptBank(bank.phrases, bank.features * float("nan"), "words").check(WordEncoder())


@pytest.mark.parametrize("classes", ["forest", [3], ["forest", None]])
def test_class_names_that_are_none(classes: Any) -> None:
    encoder = WordEncoder()
    bank = bank_of(encoder)
    with pytest.raises(InferKitError, match=r"classes is a list of names, got "):
        bank.without(classes, encoder)
    with pytest.raises(InferKitError, match=r"classes is a list of names, got "):
        bank.inside(classes)
    if not isinstance(classes, str):
        with pytest.raises(InferKitError, match=r"classes is a list of names, got "):
            bank_of(encoder, classes=classes)


def test_files_that_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank_of(WordEncoder()).save(tmp_path / "bank")
    (tmp_path / "bank" / "features.npy").write_bytes(b"")
    for mmap in (False, True):
        with pytest.raises(InferKitError, match="cannot be read"):
            ConceptBank.load(tmp_path / "bank", mmap=mmap)
    monkeypatch.setattr(bank_files, "_ROWS", 8)
    with pytest.raises(KeyboardInterrupt):
        ConceptBank.build(PHRASES, Failing(5), folder=tmp_path / "part", batch_size=4)
    (tmp_path / "part" / "features.npy").write_bytes(b"")
    with pytest.raises(InferKitError, match="cannot be read"):
        ConceptBank.build(PHRASES, WordEncoder(), folder=tmp_path / "part")


def test_banks_are_compared_as_objects() -> None:
    """Their tables have no truth value."""
    bank, other = bank_of(WordEncoder()), bank_of(WordEncoder())
    assert bank == bank and bank != other and len({bank, other}) == 2


def test_filtered_banks_know_their_mean_and_numbers_anew() -> None:
    """Whatever was asked of the bank before."""
    encoder = WordEncoder()
    bank = bank_of(encoder, [*PHRASES, "forest"], dtype="float16")
    assert bank.numbers["forest"] == bank.phrases.index("forest") and bank.mean.isfinite().all()
    kept = bank.without(["forest"], encoder, cosine=1.0).deduplicated(0.9999)
    assert kept.features.dtype == torch.float16
    assert kept.numbers == {phrase: n for n, phrase in enumerate(kept.phrases)}
    torch.testing.assert_close(kept.mean, kept.features.double().mean(0).float())


def test_a_mean_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_kit.concepts.bank.CHUNK", 7)
    bank = bank_of(WordEncoder())
    torch.testing.assert_close(bank.mean, bank.features.double().mean(0).float())


def test_a_folder_has_the_bank_that_memory_has(tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        options: dict[str, Any] = {"prompt": "a {}", "classes": ["Red_Ball"], "dtype": dtype}
        bank = bank_of(WordEncoder(), **options)
        there = ConceptBank.build(PHRASES, WordEncoder(), folder=tmp_path / dtype, **options)
        assert bank.phrases == there.phrases and "red ball" not in bank.phrases
        assert (
            torch.equal(bank.features, there.features)
            and there.features.dtype == bank.features.dtype
        )
        assert (bank.prompt, bank.encoder, bank.dropped) == (
            there.prompt,
            there.encoder,
            there.dropped,
        )
        there.check(WordEncoder())
