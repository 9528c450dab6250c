"""`infer-kit inspect`: what two tokenizers share, and over which alphabet to pool their models."""

import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infer_kit.errors import InferKitError

if TYPE_CHECKING:
    from rich.console import Console

    from infer_kit.vocab.inspection import Inspection, TokenizerFacts
    from infer_kit.vocab.mismatch import Example

_KINDS = {
    "byte_bpe": "byte-level BPE",
    "bpe": "BPE over characters",
    "unigram": "Unigram",
    "wordpiece": "WordPiece",
    "bytes": "bytes",
    "words": "whole words",
}
_SHOWN = 3  # examples and special tokens of each kind


def inspect(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A model folder, hub name, or tokenizer file (.tiktoken, .bpe, .model, .json).",
        ),
    ],
    second: Annotated[
        str | None, typer.Argument(metavar="B", help="Another, to be pooled with it.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text to count on; default: English, code, German and Chinese."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Show what a tokenizer does, what two share, and which alphabet their models need."""
    from infer_kit.vocab.inspection import inspect_tokenizers

    found = inspect_tokenizers(first, second, None if text is None else _contents(text))
    if as_json:
        print(json.dumps(found.as_json(), ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    _show_each(console, found)
    if found.pair is not None:
        _show_pair(console, found)
    _show_advice(console, found)


def _contents(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InferKitError(f"--text {str(path)!r} cannot be read: {error}") from error


def _show_each(console: "Console", found: "Inspection") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    facts = found.tokenizers
    table = Table("", *(Column(Text(fact.name)) for fact in facts))
    rows: dict[str, Callable[[TokenizerFacts], str]] = {
        "kind": lambda fact: _KINDS[fact.kind],
        "ids": lambda fact: f"{fact.size:,} ({fact.texts:,} with text)",
        "same text twice": lambda fact: f"{fact.texts - fact.distinct:,} tokens",
        "longest token": lambda fact: f"{fact.longest} bytes",
        "special tokens": _specials,
        "ends a text": lambda fact: _named(fact, fact.ends),
        "before a text": lambda fact: _named(fact, fact.begins),
        "dummy prefix": lambda fact: repr(fact.dummy_prefix) if fact.dummy_prefix else "none",
        "normaliser": _changes,
        "chat template": lambda fact: "yes" if fact.chat_template else "none",
        "single bytes": _bytes,
        "tokens per byte": lambda fact: (
            "–"
            if fact.text_tokens is None
            else f"{fact.text_tokens / found.text_bytes:.3f} ({fact.text_tokens:,} of "
            f"{found.text_bytes:,} bytes)"
        ),
        "byte fallback": lambda fact: f"{fact.fallback:.2%} of these tokens",
    }
    for title, show in rows.items():
        table.add_row(title, *(Text(show(fact)) for fact in facts))
    console.print(table)
    for fact in facts:
        if fact.problem is not None:
            console.print(Text(fact.problem, style="yellow"), soft_wrap=True)


def _specials(fact: "TokenizerFacts") -> str:
    names = list(fact.specials.values())
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more or "none"


def _changes(fact: "TokenizerFacts") -> str:
    lines = []
    for what, texts in fact.changes.items():
        alike = len({unicodedata.normalize("NFC", text) for text in texts}) == 1
        before, after = map(ascii if alike else repr, texts)
        lines.append(f"{what}: {before} → {after}")
    return "\n".join(lines) or "changes nothing"


def _named(fact: "TokenizerFacts", ids: Iterable[int]) -> str:
    return ", ".join(f"{fact.specials.get(id, '')} ({id})".strip() for id in ids) or "nothing"


def _bytes(fact: "TokenizerFacts") -> str:
    if not fact.missing_bytes:
        return "all that UTF-8 has" if fact.single_bytes < 256 else "all 256"
    shown = ", ".join(f"{byte:#04x}" for byte in fact.missing_bytes[:_SHOWN])
    return f"{fact.single_bytes}; {len(fact.missing_bytes)} are missing ({shown}, …)"


def _show_pair(console: "Console", found: "Inspection") -> None:
    from rich.table import Table
    from rich.text import Text

    pair = found.pair
    assert pair is not None
    table = Table("together", "")
    table.add_row("same tokenizer", "yes" if pair.same else "no")
    shares = " and ".join(f"{share:.1%}" for share in pair.shares)
    table.add_row("shared tokens", f"{pair.shared:,} ({shares} of each one's)")
    same = {None: "not both have one", True: "the same", False: "different"}
    table.add_row("chat templates", same[pair.same_template])
    for method, mismatch in pair.mismatch.items():
        table.add_row(
            f"symbols cut differently ({method})",
            f"{mismatch.forward:.2%} and {mismatch.backward:.2%} of each one's",
        )
    best = min(pair.mismatch.values(), key=lambda each: each.worst, default=None)
    for example in best.examples[:_SHOWN] if best is not None else ():
        table.add_row("for example", Text(_example(example)))
    console.print(table)


def _example(example: "Example") -> str:
    cuts = (
        "|".join(symbol.decode("utf-8", "backslashreplace") for symbol in symbols)
        for symbols in (example.first, example.second)
    )
    return "…{}[{}]{}…".format(example.before, " or ".join(cuts), example.after).replace("\n", "⏎")


def _show_advice(console: "Console", found: "Inspection") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("tokens read per byte of text", "its own tokens", found.alphabet)
    for fact, costs in zip(found.tokenizers, found.cost, strict=True):
        own, pooled = ("–" if cost is None else f"{cost:.2f}" for cost in costs)
        at_most = "" if found.alphabet == "tokens" else "at most "
        table.add_row(Text(fact.name), own, at_most + pooled)
    console.print(table)
    method = f" (method {found.method!r})" if found.method else ""
    console.print(Text.assemble(("Use: ", "bold green"), found.alphabet + method), soft_wrap=True)
    for sentence in found.why:
        console.print(Text(sentence), soft_wrap=True)
