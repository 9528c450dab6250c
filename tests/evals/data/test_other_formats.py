"""Converters of parquet, folders and JSON lines: MMMU, MathVista, MME, MIBench, GSM8K, any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from infer_kit.evaluation.samples import parts_of
from tests.evals.data.conftest import as_json, as_lines, pictures, png


def as_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def mmmu_row(id: str, **change: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": id, "question": "<image 1> Which of <image 2>?",
        "options": "['$6', \"it's <image 2>\"]",
        "explanation": "", "img_type": "['Tables']", "answer": "B", "topic_difficulty": "Medium",
        "question_type": "multiple-choice", "subfield": "Managerial Accounting",
        "image_1": {"bytes": png(1), "path": f"{id}_1.png"},
        "image_2": {"bytes": png(2, "JPEG"), "path": None},
        **{f"image_{n}": None for n in range(3, 8)},
    }  # fmt: skip
    return row | change


def test_mmmu(convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_parquet(
        tmp_path / "validation-00000-of-00001.parquet",
        mmmu_row("validation_Accounting_1"),
        mmmu_row("validation_Art_Theory_2", options="[]", answer="2.5", question_type="open"),
        mmmu_row(
            "validation_Math_3",
            options="[]",
            answer="['24/7', '3.43']",
            image_2=None,
            question="Which is <image 1>?",
        ),
    )
    one, two, three = convert("mmmu", split="validation", questions=[path])
    assert (one.answers, one.category) == (("B",), "Accounting")
    assert one.choices == ("$6", "it's <image 2>")
    assert two.category == "Art_Theory" and two.answers == ("2.5",) and not two.choices
    assert three.answers == ("24/7", "3.43") and len(three.images) == 1
    assert [p.name for p in one.images] == [
        "validation_Accounting_1_1.png", "validation_Accounting_1_2.jpg",
    ]  # fmt: skip
    assert one.images[0].read_bytes() == png(1)  # as they came, not encoded again
    assert one.images[1].read_bytes() == png(2, "JPEG")
    kinds = [part["type"] for part in parts_of(one.question, one.images)]
    assert kinds == ["image", "text", "image", "text"]
    assert "5 pictures in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "?"}, "row 1: the answer is hidden."),
        ({"answer": "E"}, "row 1: the answers ['E'] are not letters of the 2 choices"),
        ({"options": "[1"}, "row 1: '[1' is no list of texts"),
        ({"image_1": None}, "row 1: a picture between others is missing"),
        ({"image_1": {"bytes": b"no", "path": ""}}, "picture 'test_Art_1_1' is no image"),
        ({"question": " "}, "row 1: the question is empty"),
        ({"question": None}, "row 1: no field 'question'; it has id, question"),
    ],
)
def test_mmmu_refused(fails, tmp_path: Path, change: dict, message: str) -> None:
    path = as_parquet(tmp_path / "test.parquet", mmmu_row("test_Art_1", **change))
    assert message in fails("mmmu", questions=[path])


def test_parquet_that_is_none(fails, tmp_path: Path) -> None:
    pointer = tmp_path / "a.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    said = fails("mmmu", questions=[pointer])
    assert f"{pointer} cannot be read as parquet" in said and "Git LFS pointer" in said
    assert "does not exist" in fails("mmmu", questions=[tmp_path / "b.parquet"])


def problem(**change: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "question": "What is the area?", "image": "images/1.jpg", "choices": None, "unit": None,
        "precision": 1.0, "answer": "1.2", "question_type": "free_form", "answer_type": "float",
        "metadata": {"category": "math-targeted-vqa", "task": "geometry problem solving"},
        "query": "Hint: …",
    }  # fmt: skip
    return row | change


CHOSEN = {
    "choices": ["3/4 cm", "1 cm.", "2 cm"], "answer": "1 cm", "answer_type": "text",
    "question_type": "multi_choice", "precision": None,
}  # fmt: skip


def test_mathvista_parquet(convert, tmp_path: Path) -> None:
    decoded = {"bytes": png(3), "path": "1.jpg"}
    path = as_parquet(
        tmp_path / "testmini.parquet",
        problem(pid="1", decoded_image=decoded, unit="m²"),
        problem(pid="2", decoded_image=decoded, **CHOSEN),
        problem(pid="3", decoded_image=decoded, **{**CHOSEN, "choices": ["1 cm", "2", "1 cm"]}),
    )
    one, two, three = convert("mathvista", split="testmini", questions=[path])
    assert one.question == (
        "What is the area? (Unit: m²)\nAnswer with a number to one decimal place."
    )
    assert (one.id, one.answers, one.category) == ("1", ("1.2",), "geometry problem solving")
    assert (two.answers, two.question) == (("B",), "What is the area?")
    assert one.images[0].read_bytes() == png(3)
    assert three.answers == ("A", "C")  # of equal choices either is right


def test_mathvista_json(convert, tmp_path: Path) -> None:
    pictures(tmp_path, "images/1.jpg")
    path = as_json(
        tmp_path / "testmini.json",
        {
            "1": problem(pid="1", answer="7", answer_type="integer", precision=None),
            "2": problem(pid="2", answer="[1, 2]", answer_type="list", precision=None),
            "3": problem(pid="3", answer="Yes", answer_type="text", precision=None),
        },
    )
    one, two, three = convert("mathvista", questions=[path], images=tmp_path)
    assert one.question.endswith("\nAnswer with a whole number.")
    assert two.question.endswith("\nAnswer with a list, such as [1, 2, 3].")
    assert three.question == "What is the area?"
    assert three.images == (tmp_path / "images/1.jpg",)


def test_mathvista_without_answers(fails, tmp_path: Path) -> None:
    pictures(tmp_path, "images/1.jpg")
    path = as_json(tmp_path / "test.json", {"5": problem(answer="")})
    said = fails("mathvista", questions=[path], images=tmp_path)
    assert f"{path}, problem 5: there is no answer." in said


def mme_folder(root: Path) -> Path:
    text = "Is it {}? Please answer yes or no.\tYes\nIs it {}? Please answer yes or no.\tNo\n"
    pictures(root, "count/000.jpg", "artwork/images/10002.jpg", "artwork/images/unused.jpg")
    (root / "count/000.txt").write_text(text.format("a", "b"))
    (root / "artwork/questions_answers_YN").mkdir()
    (root / "artwork/questions_answers_YN/10002.txt").write_text(text.format("c", "d") + "\n")
    (root / "eval_tool").mkdir()
    return root


def test_mme_in_both_layouts(convert, tmp_path: Path) -> None:
    root = mme_folder(tmp_path / "MME_Benchmark_release_version")
    samples = convert("mme", questions=root)
    assert [s.id for s in samples] == [
        "count/000/1", "count/000/2", "artwork/10002/1", "artwork/10002/2",
    ]  # fmt: skip
    assert [s.answers[0] for s in samples] == ["yes", "no", "yes", "no"]
    assert [s.category for s in samples] == ["count", "count", "artwork", "artwork"]
    assert samples[3].question == "Is it d? Please answer yes or no."
    assert samples[3].images == (root / "artwork/images/10002.jpg",)


def test_mme_refused(fails, tmp_path: Path) -> None:
    assert "has no folder of a task of MME" in fails("mme", questions=tmp_path)
    root = mme_folder(tmp_path / "m")
    (root / "count/000.txt").write_text("Is it?\tYes\nIs it\tmaybe\n")
    assert "000.txt, line 2: 'question TAB Yes'" in fails("mme", questions=root)
    (root / "count/000.jpg").unlink()
    assert "there is no image 000.jpg" in fails("mme", questions=root)


def shot(n: int) -> dict[str, Any]:
    return {"image": [f"image/{n}.png"], "question": f"<image>What is {n}?", "answer": f"a {n}"}


def test_mibench_in_context(convert, tmp_path: Path) -> None:
    pictures(tmp_path, *(f"image/{n}.png" for n in range(5)))
    record = {
        "id": "close_vqa_1", "task": "close-ended VQA", "image": ["image/0.png"],
        "question": "<image>What is 0?", "answer": "a 0",
        "context": {"1-shot": [shot(1)], "4-shot": [shot(n) for n in (1, 2, 3, 4)]},
    }  # fmt: skip
    path = as_json(tmp_path / "multimodal_in_context_learning.json", [record])
    (sample,) = convert("mibench", questions=[path], images=tmp_path)
    assert (sample.answers, sample.category) == (("a 0",), "close-ended VQA")
    assert [s.answer for s in sample.shots] == ["a 1", "a 2", "a 3", "a 4"]
    assert sample.shots[1].images == (tmp_path / "image/2.png",)
    turn, _ = sample.shots[1].turns()
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert turn["content"][1]["text"] == "What is 2?"
    (sample,) = convert("mibench", questions=[path], images=tmp_path, shots=2)
    assert [s.answer for s in sample.shots] == ["a 1", "a 2"]


def test_mibench_choices_in_lines(convert, fails, tmp_path: Path) -> None:
    pictures(tmp_path, *(f"image/{n}.png" for n in range(2)))
    record = {
        "id": "general_comparison_1", "task": "General Comparison",
        "image": ["image/0.png", "image/1.png"], "question": "Left <image>, right <image>. Alike?",
        "options": ["Yes", "No"], "answer": "No.",
    }  # fmt: skip
    path = as_lines(tmp_path / "m.jsonl", record)
    (sample,) = convert("mibench", questions=[path], images=tmp_path)
    assert (sample.answers, sample.choices) == (("B",), ("Yes", "No"))
    assert sample.question == "Left <image 1>, right <image 2>. Alike?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Perhaps"}, "the answer 'Perhaps' is not one of the choices ['Yes', 'No']"),
        ({"question": "<image><image>?"}, "2 places of images and 1 images"),
        ({"context": {"1-shot": [shot(0)]}}, "has 1 demonstrations, --shots is 4"),
        ({"image": ["image/9.png"]}, "there is no image"),
    ],
)
def test_mibench_refused(fails, tmp_path: Path, change: dict, message: str) -> None:
    pictures(tmp_path, "image/0.png")
    record = {"id": "1", "image": ["image/0.png"], "question": "?", "answer": "No"}
    path = as_json(tmp_path / "m.json", [{**record, "options": ["Yes", "No"], **change}])
    assert message in fails("mibench", questions=[path], images=tmp_path, shots=4)


def test_gsm8k(convert, tmp_path: Path) -> None:
    path = as_lines(
        tmp_path / "test.jsonl",
        {"question": "Janet’s ducks?", "answer": "She sells 16 - 7 = <<16-7=9>>9.\n#### 18"},
        {"question": "How many?", "answer": "#### 1,200"},
    )
    one, two = convert("gsm8k", questions=path)
    assert (one.id, one.answers) == ("test-0", ("18",))
    assert (two.id, two.answers) == ("test-1", ("1,200",))


def test_gsm8k_without_mark(fails, tmp_path: Path) -> None:
    path = as_lines(tmp_path / "test.jsonl", {"question": "q", "answer": "18"})
    assert "line 1: there is no '####'" in fails("gsm8k", questions=path)


def test_any_lines(convert, tmp_path: Path) -> None:
    path = as_lines(
        tmp_path / "a.jsonl", {"q": "why?", "a": ["x", 3], "n": 7, "c": "k", "d": "doc"}
    )
    fields = {"question": "q", "answer": "a", "id": "n", "category": "c", "context": "d"}
    (sample,) = convert("jsonl", questions=path, **fields)
    assert (sample.id, sample.question, sample.answers) == ("7", "why?", ("x", "3"))
    assert (sample.category, sample.context) == ("k", "doc")


@pytest.mark.parametrize(
    ("kind", "answer", "letter"),
    [("letter", "b", "B"), ("text", "two", "B"), ("index", 1, "B"), ("index", "0", "A")],
)
def test_any_lines_with_choices(convert, tmp_path: Path, kind, answer, letter) -> None:
    images = pictures(tmp_path / "i", "x.png")
    record = {"q": "?", "a": answer, "o": ["one", "two"], "i": "x.png"}
    path = as_lines(tmp_path / "a.jsonl", record)
    fields = {"question": "q", "answer": "a", "choices": "o", "image": "i", "answer_is": kind}
    (sample,) = convert("jsonl", questions=path, images=images, **fields)
    assert (sample.answers, sample.choices) == ((letter,), ("one", "two"))
    assert sample.images == (images / "x.png",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": "o"}, "--choices and --answer-is are given together"),
        ({"choices": "o", "answer_is": "text"}, "the answer '3' is not one of the choices"),
        ({"choices": "o", "answer_is": "index"}, "line 1: '3' is no place of 2 choices"),
        ({"choices": "o", "answer_is": "letter"}, "the answers ['3'] are not letters"),
        ({"id": "x"}, "line 1: no field 'x'; it has q, a, o, i"),
        ({"id": "o"}, "line 1: 'o' is a text or a number, got ['one', 'two']"),
        ({"image": "i"}, "line 1 has the image 'x.png'"),
    ],
)
def test_any_lines_refused(fails, tmp_path: Path, fields: dict, message: str) -> None:
    record = {"q": "?", "a": "3", "o": ["one", "two"], "i": "x.png"}
    path = as_lines(tmp_path / "a.jsonl", record)
    assert message in fails("jsonl", questions=path, question="q", answer="a", **fields)
