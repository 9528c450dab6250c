"""What an inspection finds of one tokenizer and of two, and what it advises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import GenerationConfig, LlamaConfig

from infer_kit.errors import InferKitError
from infer_kit.vocab.inspection import inspect_tokenizers
from infer_kit.vocab.vocabulary import Vocabulary
from tests.vocab import trained

TEXT = "The lighthouse keeper's daughter hadn't seen größere Vögel; 机器学习模型 🎉.\n" * 3
TEMPLATE = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files and folders of trained tokenizers."""
    found = {}
    for name, make in (trained.LOSSLESS | {"wordpiece": trained.wordpiece}).items():
        path = tmp_path / f"{name}.json"
        make().save(str(path))
        found[name] = str(path)
    folder = tmp_path / "model"
    tokenizer = trained.wrapped(trained.split_bpe(), chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer) + 8).save_pretrained(folder)
    GenerationConfig(eos_token_id=[2, len(tokenizer)]).save_pretrained(folder)
    found["folder"] = str(folder)
    shutil.copytree(folder, tmp_path / "twin")
    found["twin"] = str(tmp_path / "twin")
    other = trained.wrapped(trained.signed_bpe(), chat_template=TEMPLATE + " ")
    other.save_pretrained(tmp_path / "other")
    found["other"] = str(tmp_path / "other")
    return found


def test_facts_of_a_folder(files: dict[str, str]) -> None:
    found = inspect_tokenizers(files["folder"], text=TEXT)
    (facts,) = found.tokenizers
    vocabulary = Vocabulary.from_hf(trained.wrapped(trained.split_bpe()))
    assert (facts.kind, facts.size) == ("byte_bpe", vocabulary.size + 8)
    assert facts.ends == (2, vocabulary.size)  # of tokenizer, chat and generation config
    assert facts.texts - facts.distinct == 1
    assert facts.longest == max(map(len, filter(None, vocabulary.tokens)))
    assert facts.specials == {0: "<unk>", 1: "<s>", 2: "</s>"}
    assert facts.chat_template == TEMPLATE
    assert facts.single_bytes == 256 and facts.missing_bytes == ()
    assert facts.text_tokens == len(vocabulary.encode(TEXT))
    assert facts.changes == {} and facts.dummy_prefix == "" and facts.fallback == 0
    assert found.pair is None and found.alphabet == "bytes"
    assert found.cost == ((facts.text_tokens / len(TEXT.encode()), 1.0),)


def test_facts_of_a_sentencepiece_like_file(files: dict[str, str]) -> None:
    (facts,) = inspect_tokenizers(files["signed_bpe"], text="é ꙮ").tokenizers
    vocabulary = Vocabulary.from_hf(trained.signed_bpe())
    ids = vocabulary.encode("é ꙮ")
    assert facts.dummy_prefix == " "
    assert facts.fallback == sum(id in vocabulary.byte_ids.values() for id in ids) / len(ids) > 0.3
    assert facts.changes == {"reads U+2581 as a space": ("a▁b", "a b")}


def test_what_a_normaliser_changes(tmp_path: Path) -> None:
    core = Tokenizer.from_str(trained.byte_level_bpe().to_str())
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    core.normalizer = normalizers.Sequence(steps)
    core.save(str(tmp_path / "t.json"))
    (facts,) = inspect_tokenizers(str(tmp_path / "t.json"), text="a").tokenizers
    assert set(facts.changes) == {
        "composes characters", "replaces look-alikes", "lower-cases", "drops spaces at the ends"
    }  # fmt: skip


def test_a_text_that_cannot_be_encoded_is_a_finding(files: dict[str, str]) -> None:
    found = inspect_tokenizers(files["unigram"], files["split_bpe"], text="the ꙮ sign")
    assert found.tokenizers[0].text_tokens is None
    assert "no token for 'ꙮ'" in str(found.tokenizers[0].problem)
    assert found.pair is not None and "no token for 'ꙮ'" in str(found.pair.problem)
    assert found.pair.mismatch == {} and found.alphabet == "bytes"
    assert found.cost[0] == (None, 1.0)


def test_twins_are_pooled_over_their_tokens(files: dict[str, str]) -> None:
    found = inspect_tokenizers(files["folder"], files["twin"], TEXT)
    assert found.pair is not None and found.pair.same and found.pair.same_template is True
    assert found.pair.mismatch == {} and found.pair.shares == (1, 1)
    assert found.alphabet == "tokens" and found.cost[0][0] == found.cost[0][1]
    assert "the coupled engine" in found.why[0]


def test_unlike_tokenizers_are_pooled_over_bytes(files: dict[str, str]) -> None:
    found = inspect_tokenizers(files["folder"], files["other"], TEXT)
    pair = found.pair
    assert pair is not None and not pair.same and pair.same_template is False
    assert set(pair.mismatch) == {"bpe", "greedy"}
    best = min(mismatch.worst for mismatch in pair.mismatch.values())
    assert best > 0.001 and f"{best:.2%}" in found.why[0]
    assert found.alphabet == "bytes" and [steps for _, steps in found.cost] == [1, 1]


def test_a_common_vocabulary_that_fits_is_advised(files: dict[str, str], tmp_path: Path) -> None:
    """The same merges, and ids in another order."""
    spec = json.loads(trained.byte_level_bpe().to_str())
    ids = spec["model"]["vocab"]
    ids["Ġthe"], ids["!"] = ids["!"], ids["Ġthe"]
    (tmp_path / "moved.json").write_text(json.dumps(spec))
    pair = files["byte_level_bpe"], str(tmp_path / "moved.json")
    short = inspect_tokenizers(*pair, TEXT)
    assert short.alphabet == "bytes" and "shows in 1,000 or more" in short.why[0]
    found = inspect_tokenizers(*pair, TEXT * 20)
    assert found.pair is not None and not found.pair.same and found.pair.shares == (1, 1)
    assert (found.alphabet, found.method) == ("common vocabulary", "bpe")
    assert found.cost[0][1] == pytest.approx(found.cost[0][0])


def test_without_merges_symbols_are_compared_by_spelling(files: dict[str, str]) -> None:
    found = inspect_tokenizers(files["unigram"], files["split_bpe"], "the lighthouse keeper")
    assert found.pair is not None and set(found.pair.mismatch) == {"greedy"}


def test_the_default_text_is_in_four_languages(files: dict[str, str]) -> None:
    found = inspect_tokenizers(files["byte_level_bpe"])
    assert 2000 < found.text_bytes < 5000


def test_json_is_plain(files: dict[str, str]) -> None:
    plain = json.loads(
        json.dumps(inspect_tokenizers(files["folder"], files["other"], TEXT).as_json())
    )
    first = plain["tokenizers"][0]
    assert first["tokens_per_byte"] == first["text_tokens"] / plain["text_bytes"]
    example = plain["pair"]["mismatch"]["bpe"]["examples"][0]
    assert set(example) == {"before", "first", "second", "after"}
    assert all(isinstance(symbol, str) for symbol in example["first"] + example["second"])


def test_an_empty_text_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(InferKitError, match="The text to count on is empty"):
        inspect_tokenizers(files["unigram"], text="")
