"""Vocabularies of transformers tokenizers, with what their models say of them."""

import json
import os
import warnings
from typing import Any

from tokenizers import Tokenizer

from infer_kit.errors import InferKitError
from infer_kit.vocab.spelling import Spec, Spelling, byte_letters, byte_of_piece
from infer_kit.vocab.text_encoder import text_encoder
from infer_kit.vocab.vocabulary import Vocabulary

# Texts that an unknown part of a tokenizer would change; the last for small vocabularies.
_SAMPLES = (
    "Hello, the world's 2nd text\n\n    of  some\tkinds: it is",
    "Über Straße naïve",
    "привет мир 你好 こんにちは 🙂",
    "the cat sat",
)
_PADDED = 1.25  # more token rows than this for each id are no padding


def read_hf(tokenizer: Any, model: Any, name: str) -> Vocabulary:
    """See `Vocabulary.from_hf`."""
    core, wrapper = _backend(tokenizer)
    name = name or str(getattr(wrapper, "name_or_path", "") or "tokenizer")
    spec: Spec = json.loads(core.to_str())
    whole = spec["truncation"] is None and spec["padding"] is None
    spelling = Spelling(spec, name)
    silent = _silent_ids(spec, wrapper, spelling)
    added = {token["id"]: token["content"] for token in spec["added_tokens"]}
    table = {id: spelling.of_added(content) for id, content in added.items() if id not in silent}
    for id, piece in spelling.pieces.items():
        if id not in silent and id not in added:
            table[id] = spelling.of_piece(piece)
    size = max([*spelling.pieces, *added], default=-1) + 1
    tokens = [table.get(id) or None for id in range(size)]
    bos, eos = (getattr(wrapper, key, None) for key in ("bos_token_id", "eos_token_id"))
    ends = [*([] if eos is None else [eos]), *_chat_ends(wrapper, spec)]
    names = {id: content for id, content in added.items() if id in silent}
    encoder, prefix = text_encoder(spec, {i for i, text in enumerate(tokens) if text is None})
    begin = _added_before(core if wrapper is None else wrapper)
    # Without a post-processor, a bos token still belongs before SentencePiece-like text:
    # conversions from GGUF lose the setting.
    piecewise = spelling.kind == "unigram" or (spelling.kind == "bpe" and spelling.byte_fallback)
    if not begin and piecewise and bos is not None:
        begin = (bos,)
    fallback = spelling.pieces.items() if spelling.byte_fallback else ()
    vocabulary = finished(
        tokens,
        model,
        ends=ends,
        start=bos,
        kind=spelling.kind,
        encoder=encoder,
        prefix=prefix,
        begin_ids=begin,
        byte_ids={
            b: id for id, p in fallback if (b := byte_of_piece(p)) is not None and tokens[id]
        },
        special_names=names,
        name=name,
    )
    if whole:
        _check_encodes_alike(vocabulary, core, set(added) - silent)
    _check_spells_alike(vocabulary, core)
    return vocabulary


def finished(
    tokens: list[bytes | None],
    model: Any,
    ends: list[int],
    start: int | None,
    begin_ids: tuple[int, ...],
    name: str,
    **fields: Any,
) -> Vocabulary:
    """A vocabulary with what the model says: its rows, and what else ends a text.

    Args:
        tokens: spelling by id, of the tokenizer.
        ends: candidates for end ids; those with text are dropped.
        start: the bos token, or None.
    """
    rows = _rows(model)
    if rows is not None and rows < len(tokens):
        raise InferKitError(
            f"The model {_model_name(model)!r} has {rows} token rows, but its tokenizer {name!r} "
            f"has {len(tokens)} ids.",
            hint="Is this its own tokenizer? If tokens were added, resize the model's embeddings.",
        )
    if rows is not None and rows > _PADDED * len(tokens):
        warnings.warn(
            f"The model {_model_name(model)!r} has {rows:,} token rows, its tokenizer {name!r} "
            f"only {len(tokens):,} ids. Is this its own tokenizer?",
            stacklevel=4,
        )
    tokens = tokens + [None] * ((rows or 0) - len(tokens))
    candidates = dict.fromkeys([*ends, *_model_ends(model)])
    end_ids = tuple(id for id in candidates if 0 <= id < len(tokens) and tokens[id] is None)
    empty = begin_ids or (end_ids[:1] if start is None else (start,))
    return Vocabulary(
        tokens=tuple(tokens),
        end_ids=end_ids,
        begin_ids=begin_ids,
        empty_ids=empty,
        name=name,
        **fields,
    )


def _backend(tokenizer: Any) -> tuple[Tokenizer, Any]:
    """The Rust tokenizer, and the transformers one around it if there is one."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer, None
    if not hasattr(tokenizer, "backend_tokenizer") and hasattr(tokenizer, "tokenizer"):
        tokenizer = tokenizer.tokenizer
    core = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(tokenizer, str | os.PathLike):
        raise InferKitError(
            f"Expected a tokenizer, got the text {str(tokenizer)!r}.",
            hint="Load it first: AutoTokenizer.from_pretrained(...).",
        )
    if not isinstance(core, Tokenizer):
        raise InferKitError(
            f"Expected a tokenizer; {type(tokenizer).__name__} has no Rust tokenizer behind it, so "
            "what tokens spell cannot be read.",
            hint="Load the fast tokenizer (AutoTokenizer), or give its vocabulary file to "
            "Vocabulary.from_sentencepiece or Vocabulary.from_tiktoken.",
        )
    return core, tokenizer


def _silent_ids(spec: Spec, wrapper: Any, spelling: Spelling) -> set[int]:
    """Ids without text: special tokens and the unknown token.

    A special token that plain text is encoded to as well (`pad_token="!"`) keeps its text, unless
    texts begin or end with it.
    """
    model, pieces = spec["model"], spelling.pieces
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    special.update(getattr(wrapper, "all_special_ids", ()))
    if isinstance(model["vocab"], list):
        special.update([] if model["unk_id"] is None else [model["unk_id"]])
    else:
        special.update(model["vocab"].get(key, -1) for key in [model.get("unk_token")])
    keys = ("bos_token_id", "eos_token_id", "unk_token_id")
    fixed = {getattr(wrapper, key, None) for key in keys}
    doubtful = [id for id in special if id in pieces and id not in fixed]
    if model["type"] == "BPE" and doubtful:
        made = {"".join(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]}
        made.update(byte_letters() if spelling.byte_level else ())
        special.difference_update(id for id in doubtful if pieces[id] in made)
    return special


# What surrounds a text -----------------------------------------------------------------------


def _added_before(tokenizer: Any) -> tuple[int, ...]:
    """Ids that the tokenizer itself puts before a text."""

    def encode(special: bool) -> list[int]:
        if isinstance(tokenizer, Tokenizer):
            return list(tokenizer.encode("a", add_special_tokens=special).ids)
        return list(tokenizer("a", add_special_tokens=special)["input_ids"])

    plain, full = encode(False), encode(True)
    for start in range(len(full) - len(plain) + 1):
        if plain and full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _chat_ends(wrapper: Any, spec: Spec) -> list[int]:
    """The special token with which the chat template ends an assistant's turn."""
    if getattr(wrapper, "chat_template", None) is None:
        return []
    answer = "infer kit"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        shown = wrapper.apply_chat_template(chat, tokenize=False)
    except Exception:  # templates raise what they like; such a one says nothing about ends
        return []
    after = str(shown).rpartition(answer)[2].lstrip()
    special = [token for token in spec["added_tokens"] if token["special"] and answer in shown]
    ending = [(len(t["content"]), t["id"]) for t in special if after.startswith(t["content"])]
    return [max(ending)[1]] if ending else []


def _rows(model: Any) -> int | None:
    """How many token rows a model has: those of its head, or else of its embedding."""
    if model is None:
        return None
    for part in (model.get_output_embeddings(), model.get_input_embeddings()):
        weight = getattr(part, "weight", None)
        if weight is not None:
            return int(weight.shape[0])
    return None


def _model_ends(model: Any) -> list[int]:
    """What the model's generation config says ends a text."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return []
    return [int(id) for id in ends] if isinstance(ends, (list, tuple)) else [int(ends)]


def _model_name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


# Checks --------------------------------------------------------------------------------------


def _check_encodes_alike(vocabulary: Vocabulary, core: Tokenizer, added: set[int]) -> None:
    """Raise where taking the tokenizer apart has changed how it encodes.

    Texts with added tokens are left out: some tokenizers put a dummy prefix after each, which is
    not in the text.
    """
    for text in _SAMPLES:
        theirs = core.encode(text, add_special_tokens=False).ids
        assert vocabulary.encoder is not None
        full = vocabulary.prefix.decode() + text
        ours = vocabulary.encoder.encode(full, add_special_tokens=False).ids
        if theirs != ours and added.isdisjoint(ours):
            place = next(
                (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), 0
            )
            raise InferKitError(
                f"The tokenizer {vocabulary.name!r} has a part that infer_kit does not know: it "
                f"encodes {text!r} with {core.id_to_token(theirs[place])!r} at place {place}, "
                "and otherwise when it is taken apart."
            )


def _check_spells_alike(vocabulary: Vocabulary, core: Tokenizer) -> None:
    """Raise where tokens spell neither their text nor what the tokenizer itself decodes."""
    if core.decoder is None or vocabulary.kind in ("wordpiece", "words"):
        return  # these decode with spaces of their own
    for text in _SAMPLES:
        try:
            ids = vocabulary.encode(text)
        except InferKitError:
            continue
        spelt = vocabulary.spell(ids).removeprefix(vocabulary.prefix).decode("utf-8", "replace")
        decoded = core.decode(ids)
        if spelt not in (text, decoded, decoded.removeprefix(" ")):
            token = core.id_to_token(ids[0])
            raise InferKitError(
                f"The tokens of the tokenizer {vocabulary.name!r} cannot be spelled as bytes: "
                f"those of {text!r} (the first is {token!r}) spell {spelt!r}, but decode to "
                f"{decoded!r}."
            )
