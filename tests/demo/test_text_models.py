"""The two text models: their files, their tokenizers, what their card says, and the training."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from infer_kit import demo
from infer_kit.demo import text
from infer_kit.demo.text import build, corpus, evaluate, train, unigram
from infer_kit.errors import InferKitError

CARD = (text.MODEL_DIR / "README.md").read_text()
OWN = {"a": "errands", "b": "animals"}


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[Any, Any]]:
    return {name: text.load(name) for name in text.NAMES}


def card_figures(figure: str) -> list[float]:
    """The numbers in the row of the card's table that begins with `figure`, in order of `NAMES`."""
    (row,) = re.findall(rf"^\| {re.escape(figure)} \|(.*)\|$", CARD, re.M)
    return [float(cell) for cell in row.split("|")]


# The models that ship


def test_the_folders_are_small() -> None:
    size = {
        folder.name: sum(file.stat().st_size for file in folder.iterdir())
        for folder in text.MODEL_DIR.iterdir()
        if folder.is_dir()
    }
    assert size.keys() == set(text.NAMES)
    assert max(size.values()) <= 1_000_000 and sum(size.values()) <= 1_700_000
    models = Path(demo.__file__).parent.rglob("model/**/*")
    language = [file for file in models if file.is_file() and "clip" not in file.parts]
    assert sum(file.stat().st_size for file in language) <= 4_000_000


@pytest.mark.parametrize("name", text.NAMES)
def test_a_folder_has_the_usual_files_and_weights(name: str, loaded) -> None:
    from safetensors.torch import load_file

    files = {file.name for file in (text.MODEL_DIR / name).iterdir()}
    assert files == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    stored = load_file(text.MODEL_DIR / name / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model, tokenizer = loaded[name]
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert 250_000 <= model.num_parameters() <= 400_000
    assert model.config.vocab_size == len(tokenizer) == build.SIZES[name]


def test_another_name_is_refused() -> None:
    with pytest.raises(InferKitError, match="no text model 'c'"):
        text.load("c")


def test_the_tokenizers_differ_in_kind(loaded) -> None:
    (_, one), (_, two) = loaded["a"], loaded["b"]
    assert json.loads(one.backend_tokenizer.to_str())["model"]["type"] == "BPE"
    assert json.loads(two.backend_tokenizer.to_str())["model"]["type"] == "Unigram"
    assert one.tokenize(" the") == ["Ġthe"] and two.tokenize("the") == ["▁the"]
    assert one("red")["input_ids"][0] != one.bos_token_id
    assert two("red")["input_ids"][0] == two.bos_token_id
    assert loaded["a"][0].generation_config.eos_token_id == [
        one.eos_token_id,
        one.convert_tokens_to_ids(build.TURN_END),
    ]
    assert loaded["b"][0].generation_config.eos_token_id == two.eos_token_id


@pytest.mark.parametrize("name", text.NAMES)
def test_any_text_comes_back(name: str, loaded) -> None:
    _, tokenizer = loaded[name]
    texts = [made.body for domain in corpus.DOMAINS for made in corpus.held_out(50, domain, 3)]
    texts += [
        "Zoë und José: 12 €\n\n  (naïve)\t日本語 🙂.",
        "<0x41> is no byte token",
        "two  spaces ",
    ]
    for given in texts:
        ids = tokenizer(given, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == given
        assert tokenizer.unk_token_id not in ids
    fallback = tokenizer.tokenize("Zoë")
    assert ("<0xC3>" in fallback) == (name == "b")


@pytest.mark.parametrize("name", text.NAMES)
def test_chats_read_as_in_the_training(name: str, loaded) -> None:
    _, tokenizer = loaded[name]
    chat = corpus.chat_question("Mia has a ball.", "Who has the ball?")
    whole = [*chat, {"role": "assistant", "content": "Mia has the ball."}]
    ids, number = train.row_of(name, tokenizer, corpus.Document(chat=whole), random.Random(0))
    assert number == 1
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer = tokenizer.decode(ids[len(prompt) :])
    assert ids[: len(prompt)] == prompt
    assert answer == {"a": "Mia has the ball.<|im_end|>\n", "b": "Mia has the ball.</s>"}[name]


@pytest.mark.parametrize("name", text.NAMES)
def test_it_is_better_in_its_own_domain(name: str, loaded) -> None:
    model, tokenizer = loaded[name]
    bits = {
        domain: evaluate.bits_per_byte(
            model, tokenizer, [made.body for made in corpus.held_out(40, domain, seed=1)]
        )
        for domain in corpus.DOMAINS
    }
    own = bits.pop(OWN[name])
    assert own < 0.5 and own < 0.7 * min(bits.values())


def test_bits_per_byte_are_what_the_card_says(loaded) -> None:
    """On the first texts of those that the card's figures are of."""
    for domain in corpus.DOMAINS:
        texts = [made.body for made in corpus.held_out(80, domain)]
        said = card_figures(f"bits per byte, {domain}")
        for name, stated in zip(text.NAMES, said, strict=True):
            found = evaluate.bits_per_byte(*loaded[name], texts)
            assert found == pytest.approx(stated, rel=0.1), (name, domain)


def test_answers_are_as_good_as_the_card_says(loaded) -> None:
    for kind in evaluate.KINDS:
        asked = evaluate.questions(40, kind)
        for name, stated in zip(text.NAMES, card_figures(f"answers, {kind}"), strict=True):
            found = evaluate.accuracy(*loaded[name], asked)
            assert abs(found - stated) < 0.2, (name, kind)


@pytest.mark.parametrize("name", text.NAMES)
def test_it_writes_tokens_as_its_tokenizer_does(name: str, loaded) -> None:
    model, tokenizer = loaded[name]
    written = evaluate.samples(model, tokenizer, 40, seed=1)
    assert evaluate.canonical_share(tokenizer, written) > 0.99
    ends = [len(row) < 300 for row in written]
    assert sum(ends) >= 30  # most texts end by themselves


def test_greedy_text_ends_by_itself_and_has_no_odd_words(loaded) -> None:
    known = {
        word
        for seed in range(3)
        for domain in corpus.DOMAINS
        for made in corpus.held_out(300, domain, seed)
        for word in re.findall(r"\w+", f"{made.title} {made.body}")
    }
    for name in text.NAMES:
        model, tokenizer = loaded[name]
        row = tokenizer("One day ", return_tensors="pt")
        written = model.generate(**row)[0]
        assert int(written[-1]) == tokenizer.eos_token_id
        words = re.findall(r"\w+", tokenizer.decode(written, skip_special_tokens=True))
        assert len(words) > 15 and set(words) <= known


# Measures


def test_bits_per_byte_is_the_sum_over_the_forward(loaded) -> None:
    """One token at a time, from nothing but the model's own forward."""
    model, tokenizer = loaded["b"]
    said = "Zoë had a ball."
    ids = tokenizer(said)["input_ids"] + [tokenizer.eos_token_id]
    total = 0.0
    for place in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        total -= float(logits.log_softmax(-1)[ids[place]]) / torch.tensor(2.0).log().item()
    assert evaluate.bits_per_byte(model, tokenizer, [said]) == pytest.approx(total / 16, rel=1e-5)


def test_the_canonical_share_counts_other_spellings(loaded) -> None:
    _, tokenizer = loaded["a"]
    ids = tokenizer(" was the present")["input_ids"]
    assert evaluate.canonical_share(tokenizer, [ids]) == 1.0
    letters = tokenizer.convert_tokens_to_ids(["Ġ", "t", "h", "e"])  # for "Ġthe"
    odd = [ids[0], *letters, *ids[2:]]
    assert evaluate.canonical_share(tokenizer, [odd, ids]) == pytest.approx((3 + 4) / 11)


def test_questions_are_held_out_and_of_their_kind() -> None:
    for kind in evaluate.KINDS:
        asked = evaluate.questions(20, kind, seed=5)
        assert asked == evaluate.questions(20, kind, seed=5) != evaluate.questions(20, kind, 6)
        assert all(bool(body) == (kind != evaluate.FACTS) for body, _ in asked)


def test_the_command_prints_table_and_json(capsys) -> None:
    evaluate.main(["--n", "3", "--seed", "2", "--json"])
    printed = capsys.readouterr().out
    assert "3 texts or questions a row, seed 2" in printed
    last = json.loads(printed.splitlines()[-1])
    assert last["figures"]["a"].keys() == last["figures"]["b"].keys()
    assert "| bits per byte, errands |" in printed


# Training


@pytest.mark.parametrize("name", text.NAMES)
def test_the_shipped_tokenizer_is_what_the_script_makes(name: str, loaded) -> None:
    made = build.make_tokenizer(name)
    assert made.backend_tokenizer.to_str() == loaded[name][1].backend_tokenizer.to_str()
    assert made.chat_template == loaded[name][1].chat_template


def test_unigram_pieces_are_the_likely_ones() -> None:
    lines = ["ban banana bandana", "ban ban"] * 20
    scores = unigram.train(lines, "abdn▁", 9)
    assert len(scores) == 9 and set("abdn▁") <= set(scores)
    assert "▁ban" in scores and scores["▁ban"] == max(scores.values())
    assert unigram.train(lines, "abdn▁", 9) == scores
    total = sum(torch.tensor(list(scores.values()), dtype=torch.float64).exp().tolist())
    assert total == pytest.approx(1, abs=0.02)


def test_losses_are_the_models_own_whatever_the_padding(loaded) -> None:
    model, tokenizer = loaded["a"]
    rows = [
        (tokenizer("The red ball was gone.")["input_ids"], 0),
        (tokenizer("Mia")["input_ids"], 1),
    ]
    with torch.no_grad():
        loss, hit, number = train.losses(model, rows)
        expected = [model(torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids, _ in rows]
    first = number == 0
    assert int(first.sum()) == len(rows[0][0]) - 1 and len(loss) == len(hit)
    torch.testing.assert_close(loss[first].mean(), expected[0])
    torch.testing.assert_close(loss[~first].mean(), expected[1])


def test_batches_are_full_of_documents_of_one_length(loaded) -> None:
    _, tokenizer = loaded["b"]
    fresh = train.batches("b", tokenizer, random.Random(0))
    for _ in range(10):
        lengths = [len(ids) for ids, _ in next(fresh)]
        assert max(lengths) * len(lengths) <= train.TOKENS
        assert max(lengths) < build.LONGEST
    ends = [ids[-1] == tokenizer.eos_token_id for ids, _ in next(fresh)]
    assert all(ends)


def test_the_script_runs_from_nothing_and_repeats_itself(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        train.main(["--out", str(tmp_path / folder), "--smoke"])
    for name in text.NAMES:
        one, two = (tmp_path / folder / name for folder in ("one", "two"))
        assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
        for file in one.iterdir():
            assert file.read_bytes() == (two / file.name).read_bytes(), file
        model, tokenizer = text.load(name, tmp_path / "one")
        assert model.config.vocab_size == len(tokenizer)
        assert not list(one.glob("stages*"))


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    """The training learns: after 30 steps a text costs far less than before any."""
    tokenizer = build.make_tokenizer("b")
    model = build.make_model("b", tokenizer, seed=0)
    texts = [made.body for made in corpus.held_out(5, "animals")]
    before = evaluate.bits_per_byte(model, tokenizer, texts)
    train.teach("b", model, tokenizer, train.Stage("texts", 30, 2e-2, 3e-3, 1e-2), random.Random(0))
    assert evaluate.bits_per_byte(model.eval(), tokenizer, texts) < 0.6 * before
