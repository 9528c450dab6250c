"""Noun phrases of captions, by the lexicon and by other taggers."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from infer_kit.concepts import lexicon
from infer_kit.concepts.lexicon import make
from infer_kit.concepts.phrases import (
    LONGEST,
    clean,
    lexicon_noun_phrases,
    noun_phrases,
    wordnet_nouns,
)
from infer_kit.errors import InferKitError, MissingExtra
from tests.concepts.caption_cases import CASES, MISSES

WORDNET = Path("/usr/share/wordnet")


def _listed(phrases: str) -> list[str]:
    return sorted(phrase for phrase in phrases.split(", ") if phrase)


@pytest.mark.parametrize("caption", CASES)
def test_lexicon(caption: str) -> None:
    assert lexicon_noun_phrases([caption], longest=None) == _listed(CASES[caption])


@pytest.mark.parametrize("caption", MISSES)
@pytest.mark.xfail(strict=True, reason="a known miss of the lexicon")
def test_known_misses(caption: str) -> None:
    assert lexicon_noun_phrases([caption], longest=None) == _listed(MISSES[caption])


def test_many_captions_are_one_sorted_list() -> None:
    wanted = {phrase for phrases in CASES.values() for phrase in _listed(phrases)}
    found = noun_phrases((caption for caption in CASES), longest=None)
    assert found == sorted(wanted)
    assert found == lexicon_noun_phrases([*reversed(CASES), *CASES], longest=None)


def test_longest() -> None:
    caption = ["a black and white photo of a train station"]
    assert LONGEST == 20
    assert noun_phrases(caption) == ["train station"]  # the other has 21
    assert noun_phrases(caption, longest=13) == ["train station"]
    assert noun_phrases(caption, longest=12) == []
    assert len(noun_phrases(caption, longest=None)) == 2


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    noun_phrases(["a dog"])
    assert capsys.readouterr().err == ""
    assert noun_phrases(["a dog", "a cat"], progress=True) == ["cat", "dog"]
    assert "captions: 2" in capsys.readouterr().err


def test_captions_are_read_once_and_not_kept() -> None:
    alive: set[int] = set()

    class Caption(str):
        def __del__(self) -> None:
            alive.discard(id(self))

    def captions():
        for i in range(50):
            caption = Caption(f"a dog and {i} cats")
            alive.add(id(caption))
            yield caption
            del caption
            assert len(alive) < 5

    assert noun_phrases(captions()) == ["cats", "dog"]


def test_the_same_whatever_the_hash_seed() -> None:
    code = (
        "from tests.concepts.caption_cases import CASES\n"
        "from infer_kit.concepts.phrases import noun_phrases, wordnet_nouns\n"
        "print(noun_phrases(CASES), wordnet_nouns())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 1_000_000


def test_clean() -> None:
    given = [" Red  ball\t", "dog", "red ball", "", "  ", "x" * 20, "y" * 21, "Ärger"]
    assert clean(given) == ["dog", "red ball", "x" * 20, "ärger"]
    assert clean(given, longest=3) == ["dog"]
    assert "y" * 21 in clean(given, longest=None)
    assert clean(iter(["b", "a"])) == ["a", "b"]


def test_wordnet_nouns() -> None:
    nouns = wordnet_nouns(longest=None)
    assert len(nouns) == 117_798
    assert nouns == sorted(set(nouns)) and not any("_" in noun for noun in nouns)
    assert {"dog", "traffic light", "t-shirt"} <= set(nouns)
    assert wordnet_nouns() == [noun for noun in nouns if len(noun) <= 20]


def test_phrases_that_are_none() -> None:
    with pytest.raises(InferKitError, match="lists of strings, got one string"):
        clean("a dog")
    with pytest.raises(InferKitError, match="Phrase 2 is a int, not a string"):
        clean(iter(["a dog", "a cat", 7]))  # type: ignore[list-item]


@pytest.mark.parametrize("function", [noun_phrases, lexicon_noun_phrases])
def test_texts_that_are_none(function) -> None:
    with pytest.raises(InferKitError, match="is one text") as error:
        function("a dog")
    assert error.value.hint is not None
    with pytest.raises(InferKitError, match=r"\[2\] is no text but int: '7'") as error:
        function(iter(["a dog", "a cat", 7]))
    assert error.value.hint is not None


def test_unknown_taggers() -> None:
    with pytest.raises(InferKitError, match="Unknown tagger 'lexikon'. Did you mean 'lexicon'"):
        noun_phrases(["a dog"], "lexikon")
    with pytest.raises(InferKitError, match="not int"):
        noun_phrases(["a dog"], 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("tags", ["A N", "ADJ NOUN", "ADJ PROPN", "JJ NN", "JJR NNS", "JJS NNP"])
def test_a_function_as_tagger(tags: str) -> None:
    adjective, noun = tags.split()
    kinds = {"Big": adjective, "old": adjective, "dog": noun, "house": noun, "cat": noun}

    def tagger(text: str) -> list[tuple[str, str]]:
        return [(word, kinds.get(word, "DT")) for word in text.split()]

    captions = ["the Big dog house is old", "old Big cat dog a cat", "Big a dog old"]
    assert noun_phrases(captions, tagger) == ["big cat dog", "big dog house", "cat", "dog"]


@pytest.mark.parametrize("answer", [None, ["dog"], [("a", "DT", 0)]])
def test_a_function_that_is_no_tagger(answer) -> None:
    with pytest.raises(InferKitError, match="The tagger gave .* for 'a dog'"):
        noun_phrases(["a dog"], lambda text: answer)


def _document(*pairs: tuple[str, str]) -> list[SimpleNamespace]:
    return [SimpleNamespace(text=text, pos_=tag) for text, tag in pairs]


def test_a_pipeline_as_tagger() -> None:
    documents = [[], _document(("Red", "ADJ"), ("Ball", "NOUN"), (".", "PUNCT"))]
    pipeline = SimpleNamespace(pipe=lambda texts: (documents[len(text)] for text in texts))
    assert noun_phrases(["", "."], pipeline) == ["red ball"]
    blank = SimpleNamespace(pipe=lambda texts: (_document((text, "")) for text in texts))
    with pytest.raises(InferKitError, match="sets no part of speech"):
        noun_phrases(["dog"], blank)


@pytest.mark.parametrize(
    "tagger, module, install",
    [
        ("nltk", "nltk", "pip install nltk"),
        ("spacy", "spacy", "python -m spacy download en_core_web_sm"),
        ("spacy:de_core", "spacy", "python -m spacy download de_core"),
    ],
)
def test_packages_that_are_missing(
    tagger: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as error:
        noun_phrases([], tagger)
    assert install in error.value.hint


def test_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    kinds = {"red": "JJ", "ball": "NN", "dog": "NN", "toy": "NN", "A": "DT"}
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(w, kinds.get(w, ".")) for w in words])
    captions = ["A red ball. A dog's toy, red."]
    assert noun_phrases(captions, "nltk") == ["dog", "red ball", "toy"]


def test_nltk_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(MissingExtra, match="no data") as error:
        noun_phrases([], "nltk")
    assert error.value.hint == "python -m nltk.downloader averaged_perceptron_tagger_eng"


def test_spacy() -> None:
    spacy = pytest.importorskip("spacy")
    with pytest.raises(MissingExtra, match="no_such_pipeline"):
        noun_phrases([], "spacy:no_such_pipeline")
    pipeline = spacy.blank("en")
    with pytest.raises(InferKitError, match="sets no part of speech"):
        noun_phrases(["a dog"], pipeline)
    ruler = pipeline.add_pipe("attribute_ruler")
    for word, tag in (("red", "ADJ"), ("ball", "NOUN"), ("a", "DET")):
        ruler.add([[{"LOWER": word}]], {"POS": tag})
    assert noun_phrases(["a Red ball"], pipeline) == ["red ball"]


def test_speed_and_load() -> None:
    """Ten thousand captions a second here; the test leaves room for busy machines."""
    captions = [caption for caption in CASES if caption] * 40
    noun_phrases(captions[:1])
    start = time.process_time()
    noun_phrases(captions)
    assert len(captions) / (time.process_time() - start) > 2000
    lexicon.load.cache_clear()
    start = time.process_time()
    lexicon.load()
    assert time.process_time() - start < 3


def _fabricated(folder: Path) -> Path:
    (folder / "index.sense").write_text(
        "red%3:00:00:: 1 1 5\nred%1:07:00:: 2 1 2\nred%1:07:01:: 3 2 1\n"
        "traffic_light%1:06:00:: 4 1 0\ndog%1:05:00:: 5 1 42\ndog%2:38:00:: 6 1 2\n"
        "dog%1:18:00:: 7 2 1\nout%4:02:00:: 8 1 9\nhot%5:00:00:warm:00 9 1 0\n"
        "sun_god%1:18:00:: 10 1 0\n"
    )
    (folder / "noun.exc").write_text("wives wife\nmen man\nmen_at_arms man_at_arms\n")
    (folder / "adj.exc").write_text("hotter hot\n")
    return folder


def test_make(tmp_path: Path) -> None:
    text = make.lexicon_text(_fabricated(tmp_path))
    assert text == (
        "[nouns]\ndog\nred\nsun_god\ntraffic_light\n[adjectives]\nhot\nred\n[verbs]\ndog\n"
        "[animate]\ndog\n[counts]\ndog 43 2 0 0\nred 3 0 5 0\n"
        "[plurals]\nmen man\nwives wife\n[comparatives]\nhotter hot\n"
    )
    for name in ("one", "two"):
        make.write(text, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert gzip.decompress((tmp_path / "one").read_bytes()).decode() == text
    words = lexicon.parse(text)
    assert words.nouns == {"dog", "red", "sun god", "traffic light"}
    assert words.counts["red"] == (3, 0, 5, 0) and words.plurals["wives"] == ["wife"]


def test_make_without_a_file(tmp_path: Path) -> None:
    (_fabricated(tmp_path) / "noun.exc").unlink()
    with pytest.raises(InferKitError, match="has no noun.exc"):
        make.lexicon_text(tmp_path)


@pytest.mark.skipif(not (WORDNET / "index.sense").is_file(), reason="WordNet is not installed")
def test_the_lexicon_is_that_of_wordnet(tmp_path: Path) -> None:
    text = make.lexicon_text(WORDNET)
    assert gzip.decompress(make.TARGET.read_bytes()).decode() == text
    make.write(text, tmp_path / "again")
    assert len((tmp_path / "again").read_bytes()) == pytest.approx(
        make.TARGET.stat().st_size, rel=0.1
    )  # another zlib may write other bytes


def test_the_licence_goes_with_it() -> None:
    notice = make.TARGET.with_name("LICENSE.wordnet").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert "appear on ALL copies" in " ".join(notice.split())
    assert make.TARGET.stat().st_size < 1_000_000
