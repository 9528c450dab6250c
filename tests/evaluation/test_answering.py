"""Ensembles and texts in the loop: what the ensemble itself writes and scores."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import infer_kit as ik
from infer_kit.demo import text
from infer_kit.engine.rows import RowMaker
from infer_kit.errors import InferKitError
from infer_kit.evaluation.answering import PLAIN, answerer_for
from infer_kit.evaluation.preparation import Evaluation, prepare
from infer_kit.evaluation.runner import run
from infer_kit.evaluation.samples import read_samples
from infer_kit.named_models import load_model

PASSAGES = ["Mia hid behind a bench.", "The lion ran. It was hungry.", "Été: café."]


def lines(evaluation: Evaluation, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder, results = run(prepare(evaluation), out, lambda: load_model("demo-text-a", device="cpu"))
    assert results is not None
    return folder.lines(), results


@pytest.fixture
def passages(written: Callable[..., Path]) -> Path:
    return written(*({"id": str(n), "text": passage} for n, passage in enumerate(PASSAGES)))


@pytest.mark.parametrize("method", ["direct", "reduced", "ensemble"])
def test_texts_are_scored_by_the_ensemble_itself(
    method: str, passages: Path, tmp_path: Path
) -> None:
    options = {"others": "demo-text-b", "weights": "bayes"} if method == "ensemble" else {}
    found, results = lines(
        Evaluation("demo-text-a", "bits_per_byte", passages, method, options, device="cpu"),
        tmp_path,
    )
    expected = (
        ik.Ensemble([text.load("a"), text.load("b")], weights="bayes")
        if method == "ensemble"
        else ik.ReducedLM(*text.load("a"))
    )
    bits = 0.0
    for n, passage in enumerate(PASSAGES):
        score = expected.logprob(passage)
        assert found[str(n)]["logprob"] == pytest.approx([score.low, score.high], abs=2e-3)
        assert found[str(n)]["bytes"] == len(passage.encode())
        bits += score.bits_per_byte * len(passage.encode())
    total = sum(len(passage.encode()) for passage in PASSAGES)
    assert results["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits / total, abs=1e-3)


def test_questions_are_answered_by_the_ensemble_itself(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    data = written(
        {"id": "1", "question": "Who hid?", "answers": ["Mia"]},
        {"id": "2", "question": "What did the lion eat?", "answers": ["meat"]},
    )
    for template in (None, "plain"):
        found, _ = lines(
            Evaluation(
                "demo-text-a", "exact", data, "ensemble", {"others": "demo-text-b"}, device="cpu",
                chat_template=template, generation={"max_new_tokens": 20},
            ),
            tmp_path,
        )  # fmt: skip
        ens = ik.Ensemble([text.load("a"), text.load("b")])
        for sample in read_samples(data):
            prompt = f"{sample.question}\n" if template else sample.chat()
            alone = ens.generate(prompt, max_new_tokens=20, do_sample=False).text.strip()
            assert found[sample.id]["prediction"] == alone


def test_bare_texts_are_the_same_for_recipes_and_ensembles() -> None:
    from infer_kit.evaluation.answering import _bare
    from infer_kit.evaluation.samples import Sample, Shot

    sample = Sample("1", "And 2?", ("4",), shots=(Shot("What is 1?", "one"),))
    chat = sample.chat("Be short.", system="You count.")
    model, tokenizer = text.load("a")
    rows = RowMaker(tokenizer, model, PLAIN)
    assert (
        rows.text(chat, 0)[0]
        == _bare(chat)
        == ("You count.\nWhat is 1?\nBe short.\n one\n\nAnd 2?\nBe short.\n")
    )


def test_a_template_of_ones_own_is_not_for_ensembles(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    data = written({"id": "1", "question": "Who hid?", "answers": ["Mia"]})
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    evaluation = Evaluation(
        "demo-text-a", "exact", data, "ensemble", {"others": "demo-text-b"}, device="cpu",
        chat_template=str(tmp_path / "own.jinja"),
    )  # fmt: skip
    with pytest.raises(InferKitError, match="has a chat template of its own"):
        lines(evaluation, tmp_path)


class Written:
    """Keeps the chats that a method renders."""

    def __init__(self, recipe: Any) -> None:
        self.texts: list[str] = []
        render = recipe.backend.render

        def kept(chat: Any, request: int, answer: bool = True) -> Any:
            self.texts.append("".join(p.get("text", "") for p in chat[-1]["content"]))
            return render(chat, request, answer)

        recipe.backend.render = kept


@pytest.mark.parametrize("method", ["direct", "red", "cot"])
def test_the_instruction_is_for_the_answer_and_not_for_the_rationale(
    method: str, written: Callable[..., Path]
) -> None:
    data = written({"id": "1", "question": "Who hid?", "answers": ["Mia"]})
    settings = {"rationale_generation": {"max_new_tokens": 4}} if method != "direct" else {}
    evaluation = Evaluation(
        "demo-text-a", "exact", data, method, settings, device="cpu", instruction="In one word.",
        generation={"max_new_tokens": 2}, demonstrations=None,
    )  # fmt: skip
    prepared = prepare(evaluation)
    loaded = load_model("demo-text-a", device="cpu")
    answerer: Any = answerer_for(prepared.method, loaded, settings, prepared.asking)
    kept = Written(answerer.recipe)
    with pytest.warns(UserWarning, match="was cut") if method != "direct" else nullcontext():
        answerer.answer(prepared.samples)
    request = [text for text in kept.texts if "Do not answer yet" in text]
    others = [text for text in kept.texts if text not in request]
    assert len(request) == (method != "direct") and len(others) == (2 if method == "red" else 1)
    assert all("In one word." not in text for text in request)
    assert all("Who hid?\nIn one word." in text for text in others)


def test_a_model_without_pictures_is_named_with_the_sample(scenes: Path, tmp_path: Path) -> None:
    evaluation = Evaluation("demo-text-a", "exact", scenes, device="cpu")
    with pytest.raises(InferKitError, match="Sample 'scene-0' has a picture, and the model takes"):
        lines(evaluation, tmp_path)
