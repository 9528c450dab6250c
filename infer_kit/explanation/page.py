"""The page of an explanation: one HTML file that asks for nothing else.

Texts of models and users are escaped where they are put in, and the scripts put them in as text
alone. The policy in the page's head forbids every request.
"""

import html
import json
import re
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from infer_kit.errors import InferKitError
from infer_kit.explanation.contexts import Context
from infer_kit.explanation.pictures import Picture
from infer_kit.explanation.recomputed import stored

if TYPE_CHECKING:
    from infer_kit.explanation.explained import Explanation

MARK = '<meta name="generator" content="infer-kit explain">'
"""What tells a page of this kind from other files."""

_FORMULAS = {
    "product": "log π = Σ w · log p, up to a constant",
    "mixture": "π = Σ w · p",
}


def page_of(explanation: "Explanation") -> str:
    """The whole file."""
    e = html.escape
    trace, facts = explanation.trace, dict(explanation.facts)
    note = explanation.controls.note
    method, model = facts.get("method", "").partition("(")[0], facts.get("model", "")
    return _filled(
        _read("page.html"),
        {
            "title": e(f"{_line(explanation.question)} — infer-kit explain"),
            "css": _read("page.css"),
            "pictured": "pictured" if explanation.pictures else "plain-page",
            "question": e(explanation.question),
            "kicker": e(" · ".join(part for part in ("infer-kit explain", method, model) if part)),
            "pictures": _pictures(explanation.pictures),
            "answer": e(explanation.text) or "<em>(empty)</em>",
            "note": f'<p class="fine">{e(note)}</p>' if note else "",
            "contexts": "\n".join(_context(c, trace.idle) for c in explanation.contexts),
            "facts": "\n".join(f"<dt>{e(n)}</dt><dd>{e(v)}</dd>" for n, v in explanation.facts),
            "formula": e(_FORMULAS[trace.pool]),
            "depth": str(explanation.depth),
            "data": embedded(data_of(explanation)),
            "recompute": _read("recompute.js"),
            "view": _read("view.js"),
        },
    )


def data_of(explanation: "Explanation") -> dict[str, Any]:
    """What the scripts read; −∞ is null."""
    trace, controls = explanation.trace, explanation.controls
    tokens = [
        {
            "texts": list(token.texts),
            "ids": token.ids.tolist(),
            "logprobs": _numbers(token.logprobs),
            "floors": _numbers(token.floors),
            "pooledFloor": _numbers(np.array(token.pooled_floor)),
            "weights": token.in_force.tolist(),
            "chosen": token.chosen,
            "anchor": token.anchor[0],
            "anchorLogPi": token.anchor[1],
        }
        for token in stored(trace)
    ]
    sliders = [
        {
            "name": slider.name,
            "stops": list(slider.stops),
            "neutral": slider.neutral,
            "values": list(slider.values),
            "direction": list(slider.direction),
            "start": slider.start,
            "fixed": len(set(slider.values)) == 1,
        }
        for slider in controls.sliders
    ]
    return {
        "streams": list(trace.streams),
        "pool": trace.pool,
        "plausibility": trace.plausibility,
        "experts": list(trace.experts),
        "controls": {
            "base": list(controls.base),
            "normalize": controls.normalize,
            "sliders": sliders,
        },
        "tokens": tokens,
    }


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends one, or starts a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def check_target(path: str | Path, force: bool = False) -> Path:
    """The path, if a page may be written there.

    Raises:
        InferKitError: it is a folder, its folder is missing or cannot be written to, or it is a
            file of another kind and `force` is False.
    """
    target = Path(path)
    if target.is_dir():
        raise InferKitError(f"{str(path)!r} is a folder.", hint="Give the name of a file in it.")
    if target.exists():
        try:
            with target.open("r+b") as file:
                ours = MARK.encode() in file.read(1000)
        except OSError as error:
            raise _unwritable(target, error) from error
        if not ours and not force:
            raise InferKitError(
                f"{str(path)!r} exists and is not a page of infer-kit explain.",
                hint="Give another name, or --force (in Python force=True).",
            )
        if not target.is_file():  # a device: nothing may take its place
            return target
    elif not target.parent.is_dir():
        raise InferKitError(f"There is no folder {str(target.parent)!r} to write the page to.")
    part = _beside(target)
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def write_page(target: Path, text: str) -> None:
    """Write a file, whole or not at all; one that was there keeps its permissions.

    Raises:
        InferKitError: it cannot be written; what was there stays.
    """
    there = target.exists()
    part = target if there and not target.is_file() else _beside(target)
    try:
        try:
            part.write_text(text, encoding="utf-8", errors="replace")
            if part != target:
                if there:
                    shutil.copymode(target, part)
                part.replace(target.resolve())
        finally:
            if part != target:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error


def _beside(target: Path) -> Path:
    """A name that is not taken, in the folder of the file that is to be written."""
    return target.resolve().with_name(f".{uuid4().hex}.part")


def _unwritable(target: Path, error: OSError) -> InferKitError:
    return InferKitError(f"{str(target)!r} cannot be written: {error.strerror or error}.")


def _pictures(pictures: tuple[Picture, ...]) -> str:
    if not pictures:
        return ""
    shown = []
    for n, picture in enumerate(pictures, start=1):
        size = f"{picture.width} × {picture.height} pixels"
        size += ", shown smaller; the model was given all of it" if picture.scaled else ""
        number = f"Picture {n}: " if len(pictures) > 1 else ""
        shown.append(
            f'<figure><img src="{html.escape(picture.uri)}" alt="The picture that was asked about">'
            f"<figcaption>{number}{size}</figcaption></figure>"
        )
    return f'<aside aria-label="Pictures">{"".join(shown)}</aside>'


def _context(context: Context, idle: tuple[str, ...]) -> str:
    e = html.escape
    facts = f"{context.tokens} tokens"
    if context.shared == context.tokens:
        facts += ", the same text in all streams: they differ in pictures or models"
    elif context.shared:
        facts += f", the first {context.shared} shared by all streams (grey)"
    if context.name in idle:
        facts += "; not run, having weight 0"
    begin = f'<span class="common">{e(context.begin)}</span>' if context.begin else ""
    return (
        f"<details><summary>{e(context.name)} <small>{facts}</small></summary>"
        f'<pre dir="auto">{begin}{e(context.rest)}</pre></details>'
    )


def _numbers(values: np.ndarray) -> Any:
    """Lists of floats with None for −∞."""
    plain = values.tolist()

    def mended(value: Any) -> Any:
        if isinstance(value, list):
            return [mended(item) for item in value]
        return None if value == -np.inf else value

    return mended(plain)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """A template with `{{name}}` replaced, in one pass: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def _read(name: str) -> str:
    return files("infer_kit.explanation").joinpath(name).read_text(encoding="utf-8").strip()


def _line(text: str) -> str:
    return " ".join(text.split())
