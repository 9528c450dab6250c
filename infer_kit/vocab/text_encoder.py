"""A tokenizer made ready for text alone: nothing added, no special tokens found in it."""

import json

from tokenizers import Tokenizer

from infer_kit.vocab.spelling import SPACE_SIGN, Spec, parts_of


def text_encoder(spec: Spec, silent: set[int]) -> tuple[Tokenizer, bytes]:
    """A tokenizer for text alone, and the dummy prefix that it leaves to its caller.

    No special token is added, or found in a text: ids without text get names that no text has.

    Args:
        spec: the tokenizer's description; changed.
        silent: ids without text.
    """
    spec["truncation"] = spec["padding"] = spec["post_processor"] = None
    if "dropout" in spec["model"]:
        spec["model"]["dropout"] = None
    _hide(spec, silent)
    prefix = ""
    kept = []
    for part in parts_of(spec, "normalizer"):
        if part["type"] == "Prepend":
            prefix = part["prepend"].replace(SPACE_SIGN, " ")
        else:
            kept.append(part)
    cuts = parts_of(spec, "pre_tokenizer")
    by_words = any(part["type"] == "WhitespaceSplit" for part in cuts)
    for part in cuts:
        if part["type"] == "Metaspace" and part["prepend_scheme"] != "never":
            prefix = " "
            if not by_words:
                part["prepend_scheme"] = "never"
        if part["type"] == "ByteLevel" and part["add_prefix_space"]:
            prefix, part["add_prefix_space"] = " ", False
    if by_words:
        prefix = " "
    for part in kept:
        if part["type"] == "Strip" and prefix:
            part["strip_left"] = False  # it would take the prefix away
    spec["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False)), prefix.encode()


def _hide(spec: Spec, silent: set[int]) -> None:
    """Give ids without text names that no text contains."""
    model = spec["model"]
    names = {id: f"\U0010ffff{id}" for id in silent}
    if isinstance(model["vocab"], list):
        for id in silent & set(range(len(model["vocab"]))):
            model["vocab"][id][0] = names[id]
    else:
        unknown = model["vocab"].get(model.get("unk_token"))
        if unknown in silent:
            model["unk_token"] = names[unknown]
        if model["type"] == "BPE":
            _drop_merges(model, silent)
        model["vocab"] = {names.get(id, piece): id for piece, id in model["vocab"].items()}
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["id"], token["content"])
        token["lstrip"] = token["rstrip"] = False


def _drop_merges(model: Spec, silent: set[int]) -> None:
    """Leave out the merges of ids without text, such as of an end token that is a word."""
    hidden = {piece for piece, id in model["vocab"].items() if id in silent}
    skip = len(model.get("continuing_subword_prefix") or "")
    kept = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if hidden.isdisjoint((left, right, left + right[skip:])):
            kept.append(merge)
    model["merges"] = kept
