"""Converters of JSON files with images beside them: GQA, TextVQA, VQAv2, POPE, captions, SEED."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.data.conftest import as_json, as_lines, pictures

COCO = "COCO_val2014_000000000042.jpg"
TEN = ["yes"] * 7 + ["no"] * 3


def gqa_file(folder: Path) -> Path:
    def record(image: str, question: str, answer: str) -> dict:
        return {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "cat (7)"}],
            "entailed": [], "equivalent": ["1"], "question": question, "imageId": image,
            "isBalanced": True, "groups": {"global": None, "local": "10c"}, "answer": answer,
            "semanticStr": "select: cat (7)", "annotations": {"answer": {}, "question": {}},
            "types": {"detailed": "existAttr", "semantic": "attr", "structural": "verify"},
            "fullAnswer": "Yes, it is.",
        }  # fmt: skip

    return as_json(
        folder / "testdev_balanced_questions.json",
        {
            "201307251": record("n161313", "Is it overcast?", "no"),
            "201640614": record("n235859", "Who is wearing the dress?", "woman"),
        },
    )


def test_gqa(convert, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", "n161313.jpg", "n235859.jpg")
    one, two = convert("gqa", questions=gqa_file(tmp_path), images=images)
    assert (one.id, one.question, one.answers) == ("201307251", "Is it overcast?", ("no",))
    assert one.category == "verify" and two.answers == ("woman",)
    assert two.images == (images / "n235859.jpg",)


def textvqa_file(folder: Path, **change: object) -> Path:
    record = {
        "question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck"], "flickr_original_url": "https://farm4.staticflickr.com/",
        "flickr_300k_url": "", "image_width": 1024, "image_height": 664, "question_id": 34602,
        "answers": ["nous les gosses"] + ["dakota"] * 8 + [""],
        "question_tokens": ["what", "is"], "set_name": "val",
    }  # fmt: skip
    record.update(change)
    data = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    return as_json(folder / "TextVQA_0.5.1_val.json", {**data, "data": [record]})


def test_textvqa_keeps_all_annotators_but_empty_answers(convert, tmp_path: Path) -> None:
    images = pictures(tmp_path / "train_images", "003a8ae2ef43b901.jpg")
    (sample,) = convert("textvqa", questions=textvqa_file(tmp_path), images=images)
    assert sample.id == "34602"
    assert sample.answers == ("nous les gosses", *["dakota"] * 8)


def test_textvqa_without_answers(fails, tmp_path: Path) -> None:
    images = pictures(tmp_path / "train_images", "003a8ae2ef43b901.jpg")
    path = textvqa_file(tmp_path)
    as_json(path, {"data": [{"question": "q", "image_id": "003a8ae2ef43b901", "question_id": 1}]})
    said = fails("textvqa", questions=path, images=images)
    assert f"{path}, record 1: there is no answer." in said
    assert "Hint:  Test splits are often released without answers" in said


def vqav2_files(folder: Path) -> dict[str, Path]:
    head = {"info": {}, "license": {}, "data_subtype": "val2014", "data_type": "mscoco"}
    questions = [{"image_id": 42, "question": "Is it?", "question_id": 42000}]
    answers = [
        {"answer": answer, "answer_confidence": "yes", "answer_id": n}
        for n, answer in enumerate(TEN, 1)
    ]
    annotations = [
        {
            "question_type": "is it", "multiple_choice_answer": "yes", "answers": answers,
            "image_id": 42, "answer_type": "yes/no", "question_id": 42000,
        }
    ]  # fmt: skip
    return {
        "questions": as_json(
            folder / "v2_OpenEnded_mscoco_val2014_questions.json",
            {**head, "task_type": "Open-Ended", "questions": questions},
        ),
        "annotations": as_json(
            folder / "v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations}
        ),
    }


def test_vqav2(convert, tmp_path: Path) -> None:
    images = pictures(tmp_path / "val2014", COCO)
    (sample,) = convert("vqav2", **vqav2_files(tmp_path), images=images)
    assert (sample.id, sample.question, sample.category) == ("42000", "Is it?", "yes/no")
    assert sample.answers == tuple(TEN)
    assert sample.images == (images / COCO,)


def test_vqav2_of_two_splits(fails, tmp_path: Path) -> None:
    files = vqav2_files(tmp_path)
    as_json(files["annotations"], {"annotations": []})
    said = fails("vqav2", **files, images=pictures(tmp_path / "val2014", COCO))
    assert "record 1: question 42000 has no annotation in" in said


def test_pope_of_several_files(convert, tmp_path: Path) -> None:
    images = pictures(tmp_path / "val2014", COCO)
    files = [
        as_lines(
            tmp_path / f"coco_pope_{kind}.json",
            {
                "question_id": 1,
                "image": COCO,
                "text": "Is there a cat?",
                "label": "yes",
            },
            {"question_id": 2, "image": COCO, "text": f"Is there a {kind}?", "label": "no"},
        )
        for kind in ("random", "popular", "adversarial")
    ]
    samples = convert("pope", questions=files, images=images)
    assert [s.id for s in samples[:3]] == ["random-1", "random-2", "popular-1"]
    assert [s.category for s in samples[::2]] == ["random", "popular", "adversarial"]
    assert samples[0].answers == ("yes",) and samples[1].answers == ("no",)


def caption(image: int, text: str) -> dict:
    return {"image_id": image, "id": len(text), "caption": text}


def test_coco_captions(convert, tmp_path: Path) -> None:
    content = {
        "info": {}, "licenses": [], "type": "captions",
        "images": [{"license": 3, "file_name": COCO, "id": 42, "height": 4, "width": 4}],
        "annotations": [caption(42, "A cat. "), caption(7, "Not this."), caption(42, "The cat")],
    }  # fmt: skip
    path = as_json(tmp_path / "captions_val2014.json", content)
    (sample,) = convert("coco_captions", captions=path, images=pictures(tmp_path / "v", COCO))
    assert (sample.id, sample.answers) == ("42", ("A cat.", "The cat"))


def karpathy_file(folder: Path) -> Path:
    def image(id: int, split: str) -> dict:
        return {
            "filepath": "val2014", "sentids": [1], "filename": f"COCO_val2014_{id:012d}.jpg",
            "imgid": id, "split": split, "cocoid": id,
            "sentences": [{"tokens": ["a"], "raw": f"A {id}.", "imgid": id, "sentid": 1}],
        }  # fmt: skip

    images = [image(41, "test"), image(42, "val"), image(43, "test")]
    return as_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def test_karpathys_split(convert, tmp_path: Path) -> None:
    pictures(tmp_path / "coco/val2014", *(f"COCO_val2014_{n:012d}.jpg" for n in (41, 42, 43)))
    options = {"captions": karpathy_file(tmp_path), "images": tmp_path / "coco"}
    assert [s.id for s in convert("coco_captions", **options)] == ["41", "43"]
    assert [s.id for s in convert("coco_captions", split="val", **options)] == ["42"]


def test_a_split_that_karpathys_file_has_not(fails, tmp_path: Path) -> None:
    path = karpathy_file(tmp_path)
    said = fails("coco_captions", split="dev", captions=path, images=tmp_path)
    assert "has no split 'dev'; it has ['test', 'val']" in said


def seed_file(folder: Path) -> Path:
    def question(id: str, kind: str, answer: str) -> dict:
        return {
            "answer": answer, "choice_a": "One", "choice_b": "Two", "choice_c": "Three",
            "choice_d": "Four", "data_id": f"img_{id}", "data_type": kind,
            "question": "How many towels are in the image?", "question_id": id,
            "question_type_id": 5,
        }  # fmt: skip

    return as_json(
        folder / "SEED-Bench.json",
        {
            "question_type": {"Scene Understanding": 1, "Instances Counting": 5},
            "questions": [
                question("101669", "image", "A"),
                question("7", "video", "B"),
                question("8", "image", "D"),
            ],
        },
    )


def test_seed_bench(convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(tmp_path / "SEED-Bench-image", "img_101669", "img_8.jpg")
    one, two = convert("seed", questions=seed_file(tmp_path), images=images)
    assert (one.id, one.answers, one.category) == ("101669", ("A",), "Instances Counting")
    assert one.choices == ("One", "Two", "Three", "Four")
    assert one.images == (images / "img_101669",)  # as released, without extension
    assert two.images == (images / "img_8.jpg",)
    said = capsys.readouterr().out
    assert "2 samples" in said and "left out, about a video: 1" in said
