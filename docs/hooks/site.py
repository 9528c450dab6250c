"""What the site needs and a git host does by itself: formulas, and links that leave docs/."""

import html
import os
import re
from typing import Any

from latex2mathml.converter import convert

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_OUTWARD = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<path>\.\./[^)#\s]+)(?:#[^)]*)?\)")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Files outside docs/ are no pages of the site: their links become paths in code type."""
    folder = os.path.dirname(page.file.src_uri)

    def plain(link: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join("docs", folder, link["path"]))
        text = link["text"]
        if os.path.basename(path) in text:
            return text
        return f"{text}: `{path}`" if link.string[link.start() - 1] == "(" else f"{text} (`{path}`)"

    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_OUTWARD.sub(plain, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _OUTWARD.sub(plain, markdown[end:])])


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script or a font from elsewhere."""

    def drawn(formula: re.Match[str]) -> str:
        display = "block" if formula["tag"] == "div" else "inline"
        return convert(html.unescape(formula["latex"]).strip(), display=display)

    return _FORMULA.sub(drawn, content)
