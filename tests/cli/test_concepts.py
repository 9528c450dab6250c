"""`infer-kit concepts` and `infer-kit demo concepts`: what they write, print and refuse."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from infer_kit import cli
from infer_kit.concepts.bank import ConceptBank
from infer_kit.demo import clip
from infer_kit.demo.clip import ways
from tests.tiny.dual import save_dual_encoder


def run(*arguments: object) -> str:
    """What is printed."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said of input that cannot work: exit code 2, and no traceback."""
    sys.argv = ["infer-kit", *(str(a) for a in arguments)]
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and "Traceback" not in said
    return " ".join(said.split())


@pytest.fixture(autouse=True)
def arguments_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("banks") / "bank"
    said = run("concepts", "build", "demo-clip", "--phrases", "demo-clip", "--out", folder)
    assert said == f"47 phrases of 64 numbers in {folder}\n"
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of classes with three pictures each; one name has a space."""
    root = tmp_path_factory.mktemp("pictures of places")
    for n, sample in enumerate(clip.held_out(40)):
        (root / sample.label).mkdir(exist_ok=True)
        if len(list((root / sample.label).iterdir())) < 3:
            sample.picture.save(root / sample.label / f"picture {n}.png")
    return root


def first(pictures: Path) -> Path:
    return sorted(pictures.rglob("*.png"))[0]


def test_a_bank_from_a_file_of_phrases(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("Red circle\nred circle\n\nblue square\nbeach\n" + "x" * 25 + "\n")
    result = CliRunner().invoke(
        cli.app,
        ["concepts", "build", "demo-clip", "--phrases", str(file), "--classes", "beach,castle",
         "--out", str(tmp_path / "bank"), "--dtype", "float16", "--prompt", "a {}"],
        catch_exceptions=False,
    )  # fmt: skip
    for said in ("1 equal to another", "1 too long", "1 class names"):
        assert f"left out: {said}" in result.stderr
    made = ConceptBank.load(tmp_path / "bank", prompt="a {}")
    assert made.phrases == ("blue square", "red circle") and str(made.features.dtype)[-2:] == "16"


def test_a_bank_from_captions(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("A man riding a horse on the beach.\nTwo dogs play with a red ball.\n")
    run("concepts", "build", "demo-clip", "--captions", file, "--out", tmp_path / "bank")
    assert ConceptBank.load(tmp_path / "bank").phrases == (
        "beach", "dogs", "horse", "man", "red ball",
    )  # fmt: skip


def test_wordnet_and_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nouns = ["circle", "red circle", "garden", "the garden", "cross"]
    monkeypatch.setattr("infer_kit.concepts.phrases.wordnet_nouns", lambda longest: nouns)
    run("concepts", "build", "demo-clip", "--phrases", "wordnet", "--out", tmp_path / "bank",
        "--classes", "garden,beach", "--near-classes", 0.9, "--deduplicate", 0.99)  # fmt: skip
    made = ConceptBank.load(tmp_path / "bank")
    assert "the garden" not in made.phrases and "garden" not in made.phrases
    assert made.dropped["close to a class name"] == 1
    assert ConceptBank.load(tmp_path / "bank.all").phrases == (
        "circle", "cross", "red circle", "the garden",
    )  # fmt: skip


def test_a_build_that_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And phrases that are encoded are filtered anew without being encoded again."""
    from infer_kit.concepts import bank_files

    encoded: list[int] = []
    taken = bank_files.text_features

    def counted(encoder: Any, texts: list[str], *more: Any, **options: Any) -> Any:
        if len(encoded) == 2:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return taken(encoder, texts, *more, **options)

    monkeypatch.setattr(bank_files, "_ROWS", 10)
    monkeypatch.setattr(bank_files, "text_features", counted)
    build = ("concepts", "build", "demo-clip", "--phrases", "demo-clip", "--out", tmp_path / "bank")
    result = CliRunner().invoke(cli.app, [str(a) for a in (*build, "--deduplicate", 0.8)])
    assert result.exit_code != 0 and not (tmp_path / "bank").exists()
    near = CliRunner().invoke(
        cli.app, [str(a) for a in (*build, "--deduplicate", 0.8)], catch_exceptions=False
    )
    assert encoded == [10, 10, 0, 10, 10, 7]
    made = ConceptBank.load(tmp_path / "bank")
    left_out = 47 - len(made)
    assert left_out > 0 and f"left out: {left_out} near duplicates" in near.stderr
    cosine = made.features @ made.features.T
    assert float(cosine.fill_diagonal_(0).max()) < 0.8
    shutil.rmtree(tmp_path / "bank")
    assert run(*build, "--deduplicate", 1).startswith("47 phrases") and len(encoded) == 6


def test_a_bank_in_the_folder_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run("concepts", "build", "demo-clip", "--phrases", "demo-clip", "--out", ".",
        "--deduplicate", 0.95)  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"here", "here.all"}
    assert len(ConceptBank.load(tmp_path / "here")) == 47


def test_an_explanation(bank: Path, pictures: Path, tmp_path: Path) -> None:
    common = ("concepts", "explain", "demo-clip", first(pictures), "--bank", bank, "--classes",
              "demo-clip", "--image-mean", pictures, "--alpha", "1e-3")  # fmt: skip
    data = json.loads(run(*common, "--json"))
    assert data["image"].endswith(first(pictures).name) and data["gap"] <= 1e-9
    assert data["label"] in clip.CLASSES and data["candidates"] == 47
    top = data["phrases"][0]["phrase"]
    shown = run(*common, "--top", 3, "--delete", top, "--insert", "red cross=2",
                "--figure", tmp_path / "page.png")  # fmt: skip
    assert shown.count("from the phrases") == 3 and f"without {top}:" in shown
    assert "with red cross=2:" in shown and "+2.000" in shown
    with Image.open(tmp_path / "page.png") as drawn:
        assert drawn.size[0] > 300
    few = json.loads(run(*common, "--k", 3, "--json"))
    assert few["candidates"] == 3 and few["nonzero"] <= 3


def test_an_explanation_as_json(bank: Path, pictures: Path, tmp_path: Path) -> None:
    """One object and nothing else; --delete and --insert are in it."""
    (tmp_path / "classes.txt").write_text("\n".join(clip.CLASSES) + "\n\n")
    picture = first(pictures)

    def explain(*more: object) -> dict[str, Any]:
        result = CliRunner().invoke(
            cli.app,
            ["concepts", "explain", "demo-clip", str(picture), "--bank", str(bank), "--classes",
             str(tmp_path / "classes.txt"), "--image-mean", str(pictures), "--alpha", "1e-3",
             "--json", *map(str, more)],
            catch_exceptions=False,
        )  # fmt: skip
        assert result.exit_code == 0 and result.stderr == ""
        return json.loads(result.stdout)

    def weights(data: dict[str, Any]) -> dict[str, float]:
        return {one["phrase"]: one["weight"] for one in data["phrases"]}

    data = explain()
    assert set(data) == {
        "image", "label", "probabilities", "zero_shot", "phrases", "nonzero", "candidates",
        "cosine", "residual", "gap", "converged", "unique", "lambda", "lambda_max", "remarks",
    }  # fmt: skip
    assert list(data["probabilities"]) == list(data["zero_shot"]) == list(clip.CLASSES)
    assert sum(data["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    before = weights(data)
    assert len(before) == data["nonzero"] and min(before.values()) > 0
    assert list(before.values()) == sorted(before.values(), reverse=True)
    gone, *_, least = before
    less = weights(explain("--delete", gone, "--delete", f"NOT {least}"))
    assert less == {p: w for p, w in before.items() if p not in (gone, least)}
    absent = next(p for p in clip.PHRASES if p not in before)
    more = explain("--insert", f"{absent}=0.25", "--insert", "a red cross=-1")
    assert weights(more) == before | {absent: 0.25, "a red cross": -1.0} and more["gap"] is None
    chosen = explain("--delete", gone, "--insert", gone)  # the lasso gives it back
    assert weights(chosen) == pytest.approx(before, abs=1e-4) and chosen["gap"] <= 1e-9


def test_weights_of_one_sign_where_they_are_asked_for(bank: Path, pictures: Path) -> None:
    common = ("concepts", "explain", "demo-clip", first(pictures), "--bank", bank, "--classes",
              "demo-clip", "--json")  # fmt: skip
    signed, positive = (json.loads(run(*common, *more)) for more in ((), ("--positive",)))
    assert min(one["weight"] for one in signed["phrases"]) < 0
    assert min(one["weight"] for one in positive["phrases"]) > 0


def test_many_classes_with_commas(bank: Path, pictures: Path) -> None:
    """Together they are longer than a file may be named."""
    names = [*clip.CLASSES, *(f"place of number {n}" for n in range(30))]
    found = json.loads(run("concepts", "explain", "demo-clip", first(pictures), "--bank", bank,
                           "--classes", ",".join(names), "--json"))  # fmt: skip
    assert list(found["probabilities"]) == names


def test_several_pictures(bank: Path, pictures: Path, tmp_path: Path) -> None:
    some = sorted(pictures.rglob("*.png"))[:2]
    out = run("concepts", "explain", "demo-clip", *some, "--bank", bank, "--classes",
              "demo-clip", "--json", "--figure", tmp_path / "pages")  # fmt: skip
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(p) for p in some]
    assert {p.stem for p in (tmp_path / "pages").iterdir()} == {p.stem for p in some}


def test_pictures_of_one_name_have_a_figure_each(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is in brackets in a name is no markup."""
    monkeypatch.setenv("COLUMNS", "200")
    for n, sample in enumerate(clip.held_out(2)):
        (tmp_path / f"{n}").mkdir()
        sample.picture.save(tmp_path / f"{n}" / "[red] x.png")
    some = [tmp_path / f"{n}" / "[red] x.png" for n in range(2)]
    (tmp_path / "pages.v2").mkdir()
    shown = run("concepts", "explain", "demo-clip", *some, "--bank", bank, "--classes",
                "demo-clip", "--top", 2, "--figure", tmp_path / "pages.v2")  # fmt: skip
    assert [line.strip() for line in shown.splitlines()].count("[red] x.png") == 2
    drawn = sorted((tmp_path / "pages.v2").iterdir())
    assert [p.name for p in drawn] == ["1 [red] x.png", "2 [red] x.png"]
    assert drawn[0].read_bytes() != drawn[1].read_bytes()


def test_a_phrase_is_taken_from_the_pictures_that_have_it(bank: Path, pictures: Path) -> None:
    some = sorted(pictures.rglob("*.png"))[:6]
    common = ("concepts", "explain", "demo-clip", *some, "--bank", bank, "--classes", "demo-clip",
              "--image-mean", pictures, "--alpha", "1e-3")  # fmt: skip
    before = [json.loads(line) for line in run(*common, "--json").splitlines()]
    have = [[p["phrase"] for p in one["phrases"]] for one in before]
    phrase = next(p for p in have[0] if any(p not in other for other in have))
    after = [json.loads(line) for line in run(*common, "--json", "--delete", phrase).splitlines()]
    assert len(after) == 6
    for old, new in zip(have, after, strict=True):
        assert [p["phrase"] for p in new["phrases"]] == [p for p in old if p != phrase]
    shown = run(*common, "--delete", phrase)
    missing = sum(phrase not in one for one in have)
    assert missing and shown.count(f"{phrase}: no weight here.") == missing


def test_an_evaluation(bank: Path, pictures: Path, tmp_path: Path) -> None:
    common = ("concepts", "eval", "demo-clip", pictures, "--bank", bank, "--alpha", "1e-3",
              "--image-mean", pictures)  # fmt: skip
    shown = run(*common, "--figure", tmp_path / "curve.png", "--delete", "0,2")
    for name in ("the image (zero-shot)", "the phrases", "a random dictionary", "random ones"):
        assert name in shown
    assert (tmp_path / "curve.png").stat().st_size > 1000
    data = json.loads(run(*common, "--json", "--delete", "0,2", "--classes", "demo-clip"))
    assert data["n"] == sum(1 for _ in pictures.rglob("*.png"))
    assert {"model", "zero_shot", "random"} <= set(data) and data["deletion"]["counts"] == [0, 2]
    assert data["model"]["accuracy"] == data["deletion"]["accuracy"]["descending"][0] > 0.8


def test_an_evaluation_of_the_bundled_pictures(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = clip.held_out(12)
    monkeypatch.setattr("infer_kit.demo.clip.held_out", lambda n: some)
    data = json.loads(run("concepts", "eval", "demo-clip", "demo-clip", "--bank", bank,
                          "--classes", "demo-clip", "--positive", "--json"))  # fmt: skip
    assert data["n"] == 12 and data["negative"] == 0
    assert set(data) == {
        "n", "model", "zero_shot", "random", "sparsity", "nonzero", "residual", "cosine",
        "negative", "random_cosine", "gap", "unlabelled", "deletion",
    }  # fmt: skip
    common = ("concepts", "eval", "demo-clip", "demo-clip", "--bank", bank, "--json")
    seeded = [json.loads(run(*common, "--seed", seed)) for seed in (0, 1)]
    assert seeded[0]["model"] == seeded[1]["model"]
    assert seeded[0]["random_cosine"] != seeded[1]["random_cosine"]
    drawn = [one["deletion"]["accuracy"] for one in seeded]
    assert drawn[0]["descending"] == drawn[1]["descending"] and drawn[0] != drawn[1]


def test_the_demo(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app,
        ["demo", "concepts", "--json", "--pictures", "10", "--seed", "3", "--save", str(tmp_path)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0 and result.stderr == ""
    data = json.loads(result.stdout)
    assert set(data) == {"ways", "example", "n", "seed", "seconds"}
    assert (data["n"], data["seed"]) == (10, 3) and set(data["ways"]) == set(ways.WAYS)
    sample = clip.held_out(10, 3)[0]
    assert data["example"]["label"] in clip.CLASSES
    assert data["example"]["true"] == list(sample.phrases)
    for way in data["ways"].values():
        assert set(way) == {"evaluation", "deletion", "phrases", "true"}
        assert {"model", "zero_shot", "random"} <= set(way["evaluation"])
        assert way["deletion"]["counts"] == [0, 1, 2, 4, 8, 16]
        assert way["deletion"]["accuracy"]["random"][0] == way["evaluation"]["model"]["accuracy"]
    assert data["ways"]["published"]["phrases"] == 47 and data["ways"]["centred"]["true"] > 0.9
    assert {p.name for p in tmp_path.iterdir()} == {
        "picture.png", "explanation.png", "deletion.png",
    }  # fmt: skip
    with Image.open(tmp_path / "picture.png") as saved:
        assert saved.tobytes() == sample.picture.tobytes()


def test_the_demo_shows_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("demo", "concepts", "--pictures", 10)
    sample = clip.held_out(10)[0]
    assert f"A picture of a {sample.label}. It shows: {sample.phrases[0]}" in " ".join(
        shown.split()
    )
    assert "Accuracy on 10 held-out pictures" in shown
    assert all(f"│{way}" in shown.replace("│ ", "│") for way in ways.WAYS)


def test_what_cannot_be_built(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ("concepts", "build", "demo-clip", "--out", tmp_path / "new")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for arguments, said in (
        (build, "Give --phrases or --captions"),
        ((*build, "--phrases", empty, "--captions", empty), "Give --phrases or --captions"),
        ((*build, "--phrases", empty), "The bank is empty"),
        ((*build, "--phrases", "none.txt"), "--phrases 'none.txt' cannot be read"),
        ((*build, "--captions", tmp_path), "cannot be read"),
        ((*build, "--phrases", "demo-clip", "--near-classes", 0.9), "needs --classes"),
        ((*build, "--phrases", "demo-clip", "--classes", "beach"), "no list of two or more"),
        ((*build, "--phrases", "demo-clip", "--dtype", "int8"), "Unknown dtype 'int8'"),
        ((*build, "--phrases", "demo-clip", "--prompt", "x"), "does not contain '{}' once"),
        ((*build, "--captions", empty, "--tagger", "lexikon"), "Did you mean 'lexicon'"),
        ((*build, "--phrases", "demo-clip", "--batch-size", -1), "a number from 1 on, got -1"),
        ((*build, "--phrases", "demo-clip", "--device", "nowhere"), "'nowhere' cannot be used"),
        ((*build, "--phrases", "demo-clip", "--batch-size", 0), "a number from 1 on, got 0"),
        ((*build, "--phrases", "demo-clip", "--deduplicate", 95), "at most 1, got 95.0"),
        ((*build, "--phrases", "demo-clip", "--deduplicate", "nan"), "at most 1, got nan"),
        ((*build, "--phrases", "demo-clip", "--near-classes", 0, "--classes", "demo-clip"),
         "--near-classes is a cosine above 0"),
        (("concepts", "build", "no/model", "--phrases", "demo-clip", "--out", tmp_path / "n"),
         "No encoder at 'no/model'"),
        (("concepts", "build", "demo-clip", "--phrases", "demo-clip", "--out", bank),
         "holds a bank"),
    ):  # fmt: skip
        assert said in refused(capsys, *arguments)
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.all").exists()


def test_what_cannot_be_explained(
    bank: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = save_dual_encoder("clip", tmp_path / "clip")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    picture = first(pictures)

    def explain(*more: object, image: Any = picture, model: Any = "demo-clip") -> str:
        given = {"--bank": bank, "--classes": "demo-clip"}
        given |= dict(zip(more[::2], more[1::2], strict=True))  # type: ignore[arg-type]
        flat = [part for pair in given.items() for part in pair]
        return refused(capsys, "concepts", "explain", model, image, *flat)

    assert "there is no bank.json" in explain("--bank", tmp_path / "none")
    assert "features of 64 numbers" in explain(model=encoder)
    assert "cannot be read" in explain(image=tmp_path / "broken.png")
    assert "there is no such file" in explain(image="none.png")
    assert "alpha is above 0, got 0.0" in explain("--alpha", 0)
    assert "alpha is above 0, got -1.0" in explain("--alpha", -1)
    assert "k=48 phrases are asked for, the bank has 47" in explain("--k", 48)
    assert "--classes 'beach' is no file" in explain("--classes", "beach")
    assert "--top is a number from 1 on" in explain("--top", 0)
    assert "is no folder of images" in explain("--image-mean", tmp_path / "none")
    assert "has no weight in this explanation" in explain("--delete", "a sofa")
    assert "does not contain '{}' once" in explain("--template", "a photo")
    both = ("concepts", "explain", "demo-clip", picture, picture, "--bank", bank, "--classes",
            "demo-clip", "--figure", "page.png")  # fmt: skip
    assert "--figure takes a folder where several" in refused(capsys, *both)
    assert "no phrase=weight" in explain("--insert", "sofa=nan")
    assert "no phrase=weight" in explain("--insert", "sofa=inf")
    assert "No phrase is given" in explain("--insert", "=2")
    twice = ("concepts", "explain", "demo-clip", picture, "--bank", bank, "--classes",
             "demo-clip", "--insert", "sofa=1", "--insert", "sofa=2")  # fmt: skip
    assert "'x.gif' is no name of a figure" in explain("--figure", "x.gif")
    assert "is no name of a figure" in explain("--figure", tmp_path)
    assert "--device 'nowhere' cannot be used here" in explain("--device", "nowhere")
    assert "--insert gives 'sofa' twice" in refused(capsys, *twice)
    mixed = ("concepts", "explain", "demo-clip", picture, "--bank", bank, "--classes",
             "demo-clip", "--insert", "sofa", "--insert", "chair=2")  # fmt: skip
    assert "--insert 'sofa' is no phrase=weight" in refused(capsys, *mixed)


def test_what_cannot_be_evaluated(
    bank: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ("concepts", "eval", "demo-clip")
    for name in ("empty/beach", "one/beach", "bad/beach", "bad/city"):
        (tmp_path / name).mkdir(parents=True)
    broken = tmp_path / "bad" / "city" / "2.png"
    broken.write_bytes(b"no picture")
    for name in ("one/beach", "bad/beach"):
        shutil.copy(first(pictures), tmp_path / name / "1.png")
    for arguments, said in (
        ((*evaluate, tmp_path / "none", "--bank", bank), "is no folder"),
        ((*evaluate, first(pictures).parent, "--bank", bank), "has no folders in it"),
        ((*evaluate, tmp_path / "empty", "--bank", bank), "has no images"),
        ((*evaluate, pictures, "--bank", bank, "--delete", "one"), "'one' is no list of numbers"),
        ((*evaluate, pictures, "--bank", bank, "--delete", "-1"), "a list of numbers from 0 on"),
        ((*evaluate, pictures, "--bank", bank, "--classes", "sofa,chair"), "no class of the model"),
        ((*evaluate, pictures, "--bank", bank, "--delete", ""), "'' is no list of numbers"),
        ((*evaluate, pictures, "--bank", bank, "--figure", tmp_path), "is no name of a figure"),
        ((*evaluate, pictures, "--bank", bank, "--seed", -1), "--seed is a number from 0 on"),
        ((*evaluate, pictures, "--bank", bank, "--seed", 2**70), "--seed is a number from 0 on"),
        ((*evaluate, tmp_path / "one", "--bank", bank), "expected two or more"),
        ((*evaluate, tmp_path / "bad", "--bank", bank), f"{str(broken)!r} cannot be read"),
        (("demo", "concepts", "--seed", -1), "--seed is a number from 0 on"),
        (("demo", "concepts", "--save", first(pictures)), "--save takes a folder"),
        (("demo", "concepts", "--pictures", 3), "--pictures must be at least 10, got 3"),
    ):
        assert said in refused(capsys, *arguments)


def test_a_warning_is_one_line(
    bank: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No source line of this package; --debug shows where it was raised."""
    explain = ["infer-kit", "concepts", "explain", "demo-clip", str(first(pictures)), "--bank",
               str(bank), "--classes", "demo-clip", "--alpha", "0.5"]  # fmt: skip
    sys.argv = explain
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    said = capsys.readouterr().err
    assert exit_.value.code == 0
    assert "Warning: 1 of 1 explanations say nothing (first: image 0)" in said
    assert ".py" not in said
