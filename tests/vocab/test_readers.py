"""What is read from transformers tokenizers and models beside the spelling."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from infer_kit.errors import InferKitError
from infer_kit.vocab.vocabulary import Vocabulary, as_vocabulary
from tests.tiny.text import text_model
from tests.tiny.tokenizers import tiny_processor, tiny_tokenizer
from tests.vocab import trained

CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def changed(core: Tokenizer, **parts: object) -> Tokenizer:
    """A copy of a tokenizer with other parts."""
    copy = Tokenizer.from_str(core.to_str())
    for name, part in parts.items():
        setattr(copy, name, part)
    return copy


def with_bos(core: Tokenizer) -> Tokenizer:
    processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return changed(core, post_processor=processor)


# What is fed before a text --------------------------------------------------------------------


def test_begin_ids_are_what_the_tokenizer_adds_before_a_text() -> None:
    core = with_bos(trained.byte_level_bpe())
    assert Vocabulary.from_hf(trained.wrapped(core)).begin_ids == (1,)
    assert Vocabulary.from_hf(core).begin_ids == (1,)


def test_sentencepiece_like_tokenizers_that_add_no_bos_begin_with_it() -> None:
    """As those read from GGUF files, which lose the setting."""
    for make in (trained.signed_bpe, trained.unigram):
        assert Vocabulary.from_hf(trained.wrapped(make())).begin_ids == (1,)
        assert Vocabulary.from_hf(trained.wrapped(make(), bos_token=None)).begin_ids == ()


def test_byte_level_tokenizers_that_add_no_bos_begin_with_nothing() -> None:
    vocabulary = Vocabulary.from_hf(trained.wrapped(trained.byte_level_bpe()))
    assert vocabulary.begin_ids == () and vocabulary.empty_ids == (1,)
    without = Vocabulary.from_hf(trained.wrapped(trained.byte_level_bpe(), bos_token=None))
    assert without.empty_ids == without.end_ids == (2,)


# What ends a text -----------------------------------------------------------------------------


def test_end_ids_are_of_tokenizer_model_and_chat() -> None:
    tokenizer = trained.wrapped(trained.byte_level_bpe(), chat_template=CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|done|>"]})
    turn, done = tokenizer.convert_tokens_to_ids(["<|turn|>", "<|done|>"])
    assert Vocabulary.from_hf(tokenizer).end_ids == (2, done)
    model = text_model("llama", vocab_size=len(tokenizer) + 3)
    model.generation_config.eos_token_id = [turn, len(tokenizer), 300]
    ends = Vocabulary.from_hf(tokenizer, model).end_ids
    assert ends == (2, done, turn, len(tokenizer))  # 300 has text


def test_a_chat_template_that_fails_says_nothing_about_ends() -> None:
    template = "{{ raise_exception('only one turn') }}"
    tokenizer = trained.wrapped(trained.byte_level_bpe(), chat_template=template)
    assert Vocabulary.from_hf(tokenizer).end_ids == (2,)


# Rows of the model ----------------------------------------------------------------------------


def test_rows_beyond_the_tokenizer_have_no_text() -> None:
    tokenizer = trained.wrapped(trained.byte_level_bpe())
    vocabulary = Vocabulary.from_hf(tokenizer, text_model("llama", vocab_size=len(tokenizer) + 5))
    assert vocabulary.size == len(tokenizer) + 5
    assert vocabulary.tokens[-5:] == (None,) * 5
    assert vocabulary.banned_ids.tolist()[-5:] == list(range(len(tokenizer), vocabulary.size))


def test_a_model_with_fewer_rows_than_its_tokenizer_is_refused() -> None:
    tokenizer = trained.wrapped(trained.byte_level_bpe())
    model = text_model("llama", vocab_size=len(tokenizer) - 1)
    with pytest.raises(
        InferKitError,
        match="'LlamaForCausalLM' has 899 token rows, but its tokenizer 'tokenizer' has 900 ids",
    ):
        Vocabulary.from_hf(tokenizer, model)


# Special and added tokens ---------------------------------------------------------------------


def test_added_tokens_are_raw_text_and_special_ones_have_none() -> None:
    core = changed(trained.byte_level_bpe())
    core.add_tokens([AddedToken("naïve ▁", normalized=False, lstrip=True)])
    core.add_special_tokens([AddedToken("<|call|>")])
    vocabulary = Vocabulary.from_hf(core)
    assert vocabulary.tokens[900:] == ("naïve ▁".encode(), None)
    assert vocabulary.conditioned("so naïve ▁! <|call|>") == "so naïve ▁! <|call|>"
    assert 900 in vocabulary.encode("so naïve ▁!")


def test_added_tokens_write_spaces_with_the_sign() -> None:
    core = changed(trained.signed_bpe())
    core.add_tokens([AddedToken("▁▁▁", normalized=True)])
    assert Vocabulary.from_hf(core).tokens[-1] == b"   "


def test_a_padding_token_that_is_a_letter_keeps_its_text() -> None:
    tokenizer = trained.wrapped(trained.byte_level_bpe(), pad_token="!")
    vocabulary = Vocabulary.from_hf(tokenizer)
    assert vocabulary.conditioned("Hello! Oh!") == "Hello! Oh!"
    pad = tokenizer.pad_token_id
    assert vocabulary.tokens[pad] == b"!" and pad in vocabulary.encode("a!")


def test_an_end_token_that_merges_make_is_no_text() -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "abb": 3}
    core = Tokenizer(models.BPE(vocab, [("a", "b"), ("ab", "b")]))
    vocabulary = Vocabulary.from_hf(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="ab"))
    assert vocabulary.tokens == (b"a", b"b", None, b"abb") and vocabulary.end_ids == (2,)
    assert vocabulary.encode("abb") == [0, 1, 1]
    assert vocabulary.merges.shape == (0, 3)


# Normalisers and prefixes -----------------------------------------------------------------------


def test_conditioned_is_what_normalisers_leave() -> None:
    steps = [normalizers.NFC(), normalizers.Lowercase()]
    core = changed(trained.byte_level_bpe(), normalizer=normalizers.Sequence(steps))
    assert Vocabulary.from_hf(core).conditioned("Cafe\u0301 A") == "caf\u00e9 a"


def test_a_byte_level_prefix_space_is_taken_out_of_the_encoder() -> None:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core = changed(trained.byte_level_bpe(), pre_tokenizer=cut)
    vocabulary = Vocabulary.from_hf(core)
    assert vocabulary.prefix == b" "
    assert vocabulary.encode("the sea") == core.encode("the sea").ids
    assert vocabulary.spell(vocabulary.encoder.encode("the sea").ids) == b"the sea"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["signed_bpe", "unigram"])
def test_a_dummy_prefix_is_taken_out_of_the_encoder(kind: str) -> None:
    vocabulary = Vocabulary.from_hf(trained.LOSSLESS[kind]())
    assert vocabulary.encoder is not None and vocabulary.prefix == b" "
    assert vocabulary.spell(vocabulary.encoder.encode("the sea").ids) == b"the sea"


def test_sentencepiece_without_dummy_prefix_has_none() -> None:
    core = changed(trained.signed_bpe(), normalizer=normalizers.Replace(" ", "▁"))
    vocabulary = Vocabulary.from_hf(core)
    assert vocabulary.prefix == b""
    assert vocabulary.conditioned("  the sea ") == "  the sea "


def test_words_then_signs_as_in_older_unigram_files() -> None:
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")]
    )
    core = changed(trained.unigram(), pre_tokenizer=cut)
    vocabulary = Vocabulary.from_hf(core)
    assert vocabulary.prefix == b" "
    assert vocabulary.encode("the  sea\nis old") == core.encode("the  sea\nis old").ids
    assert vocabulary.conditioned("the  sea\nis old") == "the sea is old"


def test_characters_without_any_splitting() -> None:
    vocabulary = Vocabulary.from_hf(tiny_processor())
    assert vocabulary.kind == "bpe" and vocabulary.begin_ids == (1,) and not vocabulary.byte_ids
    assert vocabulary.conditioned(" the hat\n<image>") == " the hat\n<image>"
    assert as_vocabulary(vocabulary) is vocabulary
    assert as_vocabulary(tiny_tokenizer()).fingerprint == vocabulary.fingerprint


# Real models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260K", "aidreams260K"])
def test_real_small_models(name: str) -> None:
    vocabulary = Vocabulary.from_hf(
        AutoTokenizer.from_pretrained(trained.data(f"models/{name}/hf"))
    )
    assert (vocabulary.kind, vocabulary.size, vocabulary.prefix) == ("bpe", 512, b" ")
    assert vocabulary.begin_ids == (1,) and vocabulary.end_ids == (2,)
    assert len(vocabulary.byte_ids) == 256 and len(vocabulary.text_ids) == 509
    assert vocabulary.conditioned("Once, 日本!\n ü") == "Once, 日本!\n ü"


# Refusals ---------------------------------------------------------------------------------------


def words(*names: str) -> Tokenizer:
    return Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))


def test_words_cut_at_white_space_alone_are_spelt() -> None:
    core = changed(
        words("<unk>", "the", "cat", "."), pre_tokenizer=pre_tokenizers.WhitespaceSplit()
    )
    vocabulary = Vocabulary.from_hf(core)
    assert vocabulary.kind == "words" and vocabulary.tokens == (None, b" the", b" cat", b" .")
    assert vocabulary.conditioned("the cat .") == "the cat ."


@pytest.mark.parametrize(
    "names", [["Whitespace"], ["BertPreTokenizer"], ["WhitespaceSplit", "Punctuation"]]
)
def test_words_cut_at_punctuation_are_refused(names: list[str]) -> None:
    cut = pre_tokenizers.Sequence([getattr(pre_tokenizers, name)() for name in names])
    core = changed(words("<unk>", "the", "cat", "."), pre_tokenizer=cut)
    message = r"'w' cannot be spelled as bytes: .* drops spaces, so that '\.' spells '\.' or ' \.'"
    with pytest.raises(InferKitError, match=f"tokens of the WordLevel tokenizer {message}"):
        Vocabulary.from_hf(core, name="w")


def test_wordpiece_cut_at_punctuation_is_refused() -> None:
    core = changed(trained.wordpiece(), pre_tokenizer=pre_tokenizers.BertPreTokenizer())
    with pytest.raises(
        InferKitError, match="WordPiece tokenizer .* pre-tokenizer BertPreTokenizer"
    ):
        Vocabulary.from_hf(core)


def test_an_added_token_among_words_is_refused() -> None:
    core = changed(trained.wordpiece())
    core.add_tokens(["New York"])
    with pytest.raises(InferKitError, match="its added token 'New York' depends on the text"):
        Vocabulary.from_hf(core)


def test_marks_at_the_ends_of_words_are_refused() -> None:
    core = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    with pytest.raises(InferKitError, match="BPE tokenizer 'clip' .*: 'b</w>' ends a word"):
        Vocabulary.from_hf(core, name="clip")


def test_letters_that_stand_for_no_byte_are_named() -> None:
    spec = json.loads(trained.byte_level_bpe().to_str())
    spec["model"]["vocab"]["日x"] = len(spec["model"]["vocab"])
    with pytest.raises(InferKitError, match="'日x' has a letter '日' that stands for no byte"):
        Vocabulary.from_hf(Tokenizer.from_str(json.dumps(spec)))


def test_a_tokenizer_without_rust_is_refused() -> None:
    with pytest.raises(InferKitError, match="SimpleNamespace has no Rust tokenizer behind it"):
        Vocabulary.from_hf(SimpleNamespace(vocab_size=5))


def test_spellings_that_are_not_what_is_decoded_are_refused() -> None:
    """A sign for the space that is not SentencePiece's."""
    core = changed(
        trained.signed_bpe(),
        normalizer=normalizers.Replace(" ", "_"),
        decoder=decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()]),
    )
    with pytest.raises(
        InferKitError, match="cannot be spelled as bytes: those of .* spell .Hello,_the"
    ):
        Vocabulary.from_hf(PreTrainedTokenizerFast(tokenizer_object=core))
